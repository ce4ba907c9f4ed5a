//! How the shards come up, what they share, and how they go down together.
//!
//! Order matters: what a former daemon left is taken over or goes first, helper processes start before any thread
//! or key exists, sockets are bound in the order of the shards, then each shard gets its thread and its core.

mod thread;

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize},
        mpsc,
    },
    time::Duration,
};

use thiserror::Error;

use self::thread::{Mailbox, ThreadParts};
use super::{
    core::CoreLimits,
    driver::Loads,
    handle::{Handle, Settings},
    inherit::{self, Inheritance},
    queue::{Budget, Queue},
    remote::Local,
    volumes::{self, Registry, Shelf},
};
use crate::{
    cgroup::{self, CgroupError},
    config::{self, Config, LogPolicy},
    host::{Base, RecoverError},
    job::ShardIndex,
    limits,
    log::{self, DiskGuard, LogError, Policy},
    rt::{
        RunError,
        mail::{Bell, link},
    },
    sandbox::{
        adopt::AdoptError,
        crew::{Crew, CrewError, CrewOptions},
        identity::{IdError, IdRanges, LEASE_DIRECTORY, LeaseOptions},
        plan::Rlimit,
    },
    store::{self, OpenError, Reader, SealKey, Store, StoreError, Writer},
    sys::affinity::CpuMask,
    volume::{VolumeError, Volumes},
};

/// What all shards share, read-only but for its counters.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) shards: usize,
    pub(super) instance: String,
    pub(super) hostname: String,
    pub(super) kernel: String,
    pub(super) settings: Settings,
    pub(super) jobs_dir: PathBuf,
    pub(super) base_dir: PathBuf,
    pub(super) work_keep: Duration,
    /// Images of ended jobs that each shard keeps.
    pub(super) work_keep_jobs: usize,
    pub(super) log_limits: log::Limits,
    pub(super) disk: Arc<DiskGuard>,
    /// What an acknowledged job survives.
    pub(super) durability: config::Durability,
    pub(super) tmp_bytes: u64,
    pub(super) shm_bytes: u64,
    /// Every core the daemon may use: what a job sees.
    pub(super) cpus: CpuMask,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) cgroups: cgroup::Tree,
    /// Jobs need a place in the daemon's queue.
    pub(super) has_queue: bool,
    /// How much is remembered of jobs that have ended.
    pub(super) retention: Retention,
    /// Accept limits that this host does not keep.
    pub(super) best_effort: bool,
    /// Disks that an I/O limit is set on: those of the host's programs and of our own files.
    pub(super) devices: Vec<cgroup::Device>,
    pub(super) loads: Loads,
    /// Volumes as files, mounts and devices; which there are the first shard knows.
    pub(super) volumes: Volumes,
    helpers_procs: OwnedFd,
    scratch_dir: PathBuf,
    /// Shards that accept.
    ready: AtomicUsize,
}

impl Host {
    pub(super) fn crew_options(&self) -> CrewOptions<'_> {
        CrewOptions {
            scratch_dir: &self.scratch_dir,
            run_dir: &self.scratch_dir,
            helpers_procs: self.helpers_procs.as_fd(),
        }
    }
}

/// Why the shards do not come up.
#[derive(Debug, Error)]
#[expect(
    missing_docs,
    reason = "each variant says what was tried; the source says why it failed"
)]
pub enum StartError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(
        "the limit of open files is {open_files}, {} of which the daemon needs for itself: raise it, with \
         ulimit -n or LimitNOFILE=",
        limits::DAEMON_FILES_RESERVE
    )]
    OpenFiles { open_files: usize },
    #[error("lease host ids")]
    Ids(#[source] IdError),
    #[error("start the helper processes of shard {shard}")]
    Crew {
        shard: ShardIndex,
        #[source]
        source: CrewError,
    },
    #[error(transparent)]
    OpenStore(#[from] OpenError),
    #[error("read the store")]
    Store(#[from] StoreError),
    #[error("write down that a job is lost")]
    MarkLost(#[source] StoreError),
    #[error("the store has ended before the daemon began")]
    StoreEnded,
    #[error("take over jobs that a former daemon left running; joblet down ends them")]
    Adopt(#[from] AdoptError),
    #[error(
        "descriptors of running jobs could not be taken over: raise the limit of open files, with ulimit -n or \
         LimitNOFILE="
    )]
    Incomplete,
    #[error("remove what a former daemon left")]
    Recover(#[from] RecoverError),
    #[error("watch the file system of {}", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: LogError,
    },
    #[error("open the directory of volumes")]
    Volumes(#[from] VolumeError),
    #[error("make {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("run shard {shard}")]
    Shard {
        shard: ShardIndex,
        #[source]
        source: RunError,
    },
}

/// What a daemon comes up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve until a signal comes.
    Serve,
    /// To admit nothing and to end with the last job.
    Drain,
    /// To end every job that a former daemon left, and then itself.
    Down,
}

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its jobs go on, and the next daemon takes them over.
    Left,
    /// No job was left.
    Drained,
    /// Every job was ended.
    Down,
}

/// What the daemon brings to the shards.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The base directory, locked by the caller.
    pub base: &'a Base,
    /// Configuration.
    pub config: &'a Config,
    /// One socket a shard, bound in this order.
    pub sockets: Vec<UdpSocket>,
    /// Cores the daemon may use, from before anything was pinned.
    pub cpus: Vec<usize>,
    /// The key under which the store seals secrets.
    pub seal_key: [u8; 32],
    /// What to come up for.
    pub purpose: Purpose,
    /// A signalfd(2) with the signals that end the daemon.
    pub signals: OwnedFd,
    /// Called once when every shard accepts.
    pub on_ready: fn(),
}

/// Starts the front of one shard on its thread; ends when the front has closed.
pub type FrontStart = Arc<dyn Fn(Handle, UdpSocket) -> Local<()> + Send + Sync>;

/// Brings the shards up, with what a former daemon left, and returns when the daemon is to end: after SIGTERM,
/// SIGINT or SIGHUP with its jobs running, after SIGUSR1 when each was ended, after SIGUSR2 when each has ended by
/// itself. The threads of the shards are left
/// where they are: the caller ends the process.
///
/// # Errors
/// [`StartError`].
pub fn run(setup: Setup<'_>, front: FrontStart) -> Result<Ending, StartError> {
    let shards = setup.sockets.len();
    let budget = budget(setup.config);
    let core = core_limits(shards, raise_open_files(), !budget.is_open())?;
    let seal_key = SealKey::from_bytes(&setup.seal_key);
    let (writer, store) = open_store(&setup, seal_key.clone())?;
    let reader = Reader::open(&setup.base.store(), &seal_key)?;
    let inheritance = inherit::take_over(setup.base, &reader, &writer)?;
    let host = Arc::new(host(&setup, shards)?);
    // Before any job is gone on with or made.
    let mut shelf = Some(Shelf::new(match setup.purpose {
        Purpose::Serve | Purpose::Drain => {
            volumes::restore(&host.volumes, &reader, &writer, inheritance.volumes())?
        }
        // What runs has its volumes, and nothing is begun any more.
        Purpose::Down => Registry::default(),
    }));
    let ids = lease_ids(&setup, shards, &inheritance)?;
    let crews = start_crews(&host, shards)?;
    // Before anybody may ask: what runs has its place.
    let mut queue = Some(inheritance.queue(budget));
    let shares = inheritance
        .deal(shards)
        .map_err(|source| StartError::Kernel {
            what: "copies of keepers' sockets",
            source,
        })?;
    let mailboxes = mailboxes(shards)?;
    let (done, is_done) = mpsc::channel();
    let mut signals = Some(setup.signals);
    let per_shard = setup
        .sockets
        .into_iter()
        .zip(crews)
        .zip(ids)
        .zip(shares)
        .zip(mailboxes);
    for (index, ((((socket, crew), ids), share), mailbox)) in per_shard.enumerate() {
        let parts = ThreadParts {
            index,
            host: Arc::clone(&host),
            core,
            queue: queue.take().unwrap_or_else(|| Queue::new(budget)),
            shelf: shelf.take().unwrap_or_default(),
            cpu: setup.cpus[index % setup.cpus.len()],
            mailbox,
            ids,
            crew,
            writer: writer.clone(),
            reader: Reader::open(&setup.base.store(), &seal_key)?,
            share,
            socket,
            front: Arc::clone(&front),
            signals: signals.take(),
            purpose: setup.purpose,
            on_ready: setup.on_ready,
        };
        let done = done.clone();
        let run = move || {
            if let Some(result) = parts.run().transpose() {
                let _ = done.send(result);
            }
        };
        let thread = std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(run);
        thread.map_err(|source| StartError::Kernel {
            what: "a shard's thread",
            source,
        })?;
    }
    let ending = is_done.recv().unwrap_or(Ok(Ending::Left))?;
    store.close();
    Ok(ending)
}

fn open_store(setup: &Setup<'_>, key: SealKey) -> Result<(Writer, Store), StartError> {
    Ok(Store::open(store::Options {
        path: setup.base.store(),
        key,
        durability: match setup.config.store.durability {
            config::Durability::Process => store::Durability::Process,
            config::Durability::Power => store::Durability::Power,
        },
    })?)
}

fn host(setup: &Setup<'_>, shards: usize) -> Result<Host, StartError> {
    let (base, config) = (setup.base, setup.config);
    let cgroups = cgroup::Tree::open(&base.instance().to_string())?;
    let settings = Settings::new(config, &setup.cpus);
    let cores = settings
        .cores
        .iter()
        .filter_map(|core| usize::try_from(*core).ok());
    let cpus = CpuMask::from_cpus(cores);
    let uname = nix::sys::utsname::uname().map_err(|errno| kernel("uname", errno))?;
    Ok(Host {
        shards,
        instance: base.instance().to_string(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        settings,
        jobs_dir: base.jobs(),
        base_dir: base.root().to_owned(),
        work_keep: config.limits.work_keep,
        work_keep_jobs: config.limits.work_keep_jobs.div_ceil(shards),
        log_limits: log::Limits {
            bytes: config.limits.log_bytes,
            policy: match config.limits.log_policy {
                LogPolicy::Drop => Policy::Drop,
                LogPolicy::Stop => Policy::Stop,
            },
        },
        disk: DiskGuard::new(base.root(), config.limits.disk_reserve).map_err(|source| {
            StartError::Disk {
                path: base.root().to_owned(),
                source,
            }
        })?,
        durability: config.store.durability,
        tmp_bytes: config.limits.tmp_bytes,
        shm_bytes: config.limits.shm_bytes,
        cpus,
        rlimits: rlimits(),
        has_queue: !budget(config).is_open(),
        retention: Retention {
            jobs: config.limits.history_jobs,
            age: config.limits.history_age,
            bytes: config.limits.history_bytes,
        },
        best_effort: config.best_effort,
        devices: devices(base.root()),
        volumes: Volumes::open(base.root())?,
        helpers_procs: cgroups.helpers_procs()?,
        scratch_dir: base.run(),
        cgroups,
        loads: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        ready: AtomicUsize::new(0),
    })
}

/// How much is remembered of jobs that have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    /// So many jobs.
    pub(super) jobs: usize,
    /// Those that ended so long ago at most.
    pub(super) age: Option<Duration>,
    /// Bytes of output in all.
    pub(super) bytes: Option<u64>,
}

/// What bounds the jobs that run at once.
fn budget(config: &Config) -> Budget {
    Budget {
        running_max: config.jobs.max_running,
        memory_bytes: config.jobs.memory_budget,
        cpu_percent: config.jobs.cpu_budget,
        queue_max: config.jobs.queue_max,
    }
}

/// The disks behind everything on a disk that a job may read or write, but for a `/work` of its own.
fn devices(base: &Path) -> Vec<cgroup::Device> {
    let mut devices: Vec<cgroup::Device> = [base, Path::new("/usr"), Path::new("/etc")]
        .into_iter()
        .flat_map(cgroup::Device::behind)
        .collect();
    devices.sort_unstable_by_key(|device| (device.major, device.minor));
    devices.dedup();
    devices
}

/// Host ids of each shard's jobs: every shard leases slices of its own, more as it needs them. Those of jobs that
/// were taken over stay leased.
fn lease_ids(
    setup: &Setup<'_>,
    shards: usize,
    inheritance: &Inheritance,
) -> Result<Vec<IdRanges>, StartError> {
    let options = LeaseOptions {
        directory: PathBuf::from(LEASE_DIRECTORY),
        instance: setup.base.instance().to_string(),
        base_dir: setup.base.root().to_owned(),
        first: setup.config.ids.first,
        count: setup.config.ids.count,
    };
    let used: Vec<Vec<_>> = (0..shards)
        .map(|shard| inheritance.ids_of(shard, shards))
        .collect();
    IdRanges::adopt(&options, &used).map_err(StartError::Ids)
}

/// What a job may use of what is counted by process: the kernel's own defaults, whatever the daemon has.
fn rlimits() -> Vec<Rlimit> {
    let hard = |resource| {
        nix::sys::resource::getrlimit(resource).map_or(libc::RLIM_INFINITY, |(_, hard)| hard)
    };
    let files = hard(nix::sys::resource::Resource::RLIMIT_NOFILE).min(limits::JOB_FILES_HARD);
    let stack = hard(nix::sys::resource::Resource::RLIMIT_STACK);
    vec![
        Rlimit {
            resource: libc::RLIMIT_NOFILE,
            soft: limits::JOB_FILES_SOFT.min(files),
            hard: files,
        },
        // A core dump would go wherever the host's core_pattern says, with the host's rights.
        Rlimit {
            resource: libc::RLIMIT_CORE,
            soft: 0,
            hard: 0,
        },
        Rlimit {
            resource: libc::RLIMIT_STACK,
            soft: limits::JOB_STACK_BYTES.min(stack),
            hard: stack,
        },
    ]
}

fn start_crews(host: &Host, shards: usize) -> Result<Vec<Crew>, StartError> {
    (0..shards)
        .map(|shard| {
            Crew::start(&host.crew_options()).map_err(|source| StartError::Crew { shard, source })
        })
        .collect()
}

/// One inbound and one outbound end a pair of shards, and a bell each.
fn mailboxes(shards: usize) -> Result<Vec<Mailbox>, StartError> {
    let bells: io::Result<Vec<Arc<Bell>>> = (0..shards).map(|_| Bell::new()).collect();
    let bells = bells.map_err(|source| StartError::Kernel {
        what: "a mailbox",
        source,
    })?;
    let mut boxes: Vec<Mailbox> = bells
        .iter()
        .map(|bell| Mailbox {
            bell: Arc::clone(bell),
            out: Vec::new(),
            inbound: Vec::new(),
        })
        .collect();
    for from in 0..shards {
        for to in 0..shards {
            if from == to {
                boxes[from].out.push(None);
                continue;
            }
            let (tx, rx) = link(limits::MAILBOX_SLOTS, &bells[from], &bells[to]);
            boxes[from].out.push(Some(tx));
            boxes[to].inbound.push(rx);
        }
    }
    Ok(boxes)
}

fn core_limits(
    shards: usize,
    open_files: usize,
    has_queue: bool,
) -> Result<CoreLimits, StartError> {
    let live_jobs_max = live_jobs_max(open_files, shards);
    if live_jobs_max == 0 {
        return Err(StartError::OpenFiles { open_files });
    }
    Ok(CoreLimits {
        live_jobs_max,
        starts_max: limits::STARTS_IN_FLIGHT_MAX,
        scheduled_max: limits::SCHEDULED_JOBS_MAX.div_ceil(shards),
        has_queue,
    })
}

/// Raises our limit of open files as far as the host allows and returns it: a login shell and systemd give
/// 1,024, which is less than a daemon needs for itself.
fn raise_open_files() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let mut open_files = limits::OPEN_FILES_ASSUMED;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        open_files = soft;
        // Past the hard limit only with CAP_SYS_RESOURCE, which a container's root often lacks.
        for wanted in [hard.max(limits::OPEN_FILES_WANTED), hard] {
            if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
                open_files = wanted;
                break;
            }
        }
    }
    usize::try_from(open_files).unwrap_or(usize::MAX)
}

/// How many jobs a shard may hold with the descriptors the daemon and the shard's keeper may have.
fn live_jobs_max(open_files: usize, shards: usize) -> usize {
    let daemon = open_files.saturating_sub(limits::DAEMON_FILES_RESERVE)
        / limits::DAEMON_FILES_PER_JOB
        / shards;
    let keeper =
        open_files.saturating_sub(limits::KEEPER_FILES_RESERVE) / limits::KEEPER_FILES_PER_JOB;
    daemon.min(keeper)
}

fn kernel(what: &'static str, errno: nix::Error) -> StartError {
    StartError::Kernel {
        what,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_the_descriptors_that_the_daemon_and_a_keeper_do_not_need() {
        let check = |open_files, shards, expected| {
            assert_eq!(live_jobs_max(open_files, shards), expected, "{open_files}");
        };
        check(1_024, 1, 0);
        check(limits::DAEMON_FILES_RESERVE + 1, 1, 0);
        check(limits::DAEMON_FILES_RESERVE + 2, 1, 1);
        check(limits::DAEMON_FILES_RESERVE + 2, 2, 0);
        check(limits::DAEMON_FILES_RESERVE + 4, 2, 1);
        // One shard's keeper is the bound.
        check(64 + 4 * 5_000, 1, 5_000);
    }
}

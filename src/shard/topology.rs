//! How the shards come up, what they share, and how they go down together.
//!
//! Order matters: what was left by a former daemon goes first, helper processes start before any thread or
//! key exists, sockets are bound in the order of the shards, then each shard gets its thread and its core.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use thiserror::Error;

use super::{
    core::CoreLimits,
    desk::Desk,
    driver::{Loads, Shard, ShardParts},
    handle::{Handle, Settings},
    journal::JournalWriter,
    remote::{Call, Local, Remote},
    seats::Seats,
};
use crate::{
    cgroup::{self, CgroupError},
    config::{Config, LogPolicy},
    host::Base,
    job::{JobView, ShardIndex},
    limits,
    log::{self, DiskGuard, JobFiles, LogError, Policy, Recorder},
    rt::{
        self, Ready, RunError,
        mail::{Bell, Rx, Sleeper, Tx, link},
    },
    sandbox::{
        crew::{Crew, CrewError, CrewOptions},
        identity::{IdError, IdRanges, LEASE_DIRECTORY, LeaseOptions},
        plan::Rlimit,
    },
    store::{self, JournalError},
    sys::affinity::CpuMask,
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
    pub(super) tmp_bytes: u64,
    pub(super) shm_bytes: u64,
    /// Every core the daemon may use: what a job sees.
    pub(super) cpus: CpuMask,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) cgroups: cgroup::Tree,
    /// Accept limits that this host does not keep.
    pub(super) best_effort: bool,
    /// Disks that an I/O limit is set on: those of the host's programs and of our own files.
    pub(super) devices: Vec<cgroup::Device>,
    pub(super) loads: Loads,
    helpers_procs: OwnedFd,
    scratch_dir: PathBuf,
    ready: AtomicUsize,
}

impl Host {
    pub(super) fn crew_options(&self) -> CrewOptions<'_> {
        CrewOptions {
            scratch_dir: &self.scratch_dir,
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
    Journal(#[from] JournalError),
    #[error("watch the file system of {}", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: LogError,
    },
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
    /// Readable when a signal that ends the daemon has come.
    pub signals: OwnedFd,
    /// Called once when every shard accepts.
    pub on_ready: fn(),
}

/// Starts the front of one shard on its thread; ends when the front has closed.
pub type FrontStart = Arc<dyn Fn(Handle, UdpSocket) -> Local<()> + Send + Sync>;

/// Brings the shards up and returns when every job has ended after a signal. The threads of the shards are
/// left where they are: the caller ends the process.
///
/// # Errors
/// [`StartError`].
pub fn run(setup: Setup<'_>, front: FrontStart) -> Result<(), StartError> {
    let shards = setup.sockets.len();
    let core = core_limits(setup.config, shards, raise_open_files())?;
    let host = Arc::new(host(&setup, shards)?);
    let ids = lease_ids(&setup, shards)?;
    let crews = start_crews(&host, shards)?;
    let histories = replay(&setup, shards)?;
    let mailboxes = mailboxes(shards)?;
    let (done, is_done) = mpsc::channel();
    let mut signals = Some(setup.signals);
    let per_shard = setup
        .sockets
        .into_iter()
        .zip(crews)
        .zip(ids)
        .zip(histories)
        .zip(mailboxes);
    for (index, ((((socket, crew), ids), history), mailbox)) in per_shard.enumerate() {
        let parts = ThreadParts {
            index,
            host: Arc::clone(&host),
            core,
            cpu: setup.cpus[index % setup.cpus.len()],
            mailbox,
            ids,
            crew,
            journal: store::open_shard(&setup.base.journal(), index)?.into(),
            history,
            socket,
            front: Arc::clone(&front),
            signals: signals.take(),
            on_ready: setup.on_ready,
        };
        let done = done.clone();
        let run = move || {
            if let Some(result) = parts.run().transpose() {
                let _ = done.send(result);
            }
        };
        let thread = thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(run);
        thread.map_err(|source| StartError::Kernel {
            what: "a shard's thread",
            source,
        })?;
    }
    is_done.recv().unwrap_or(Ok(()))
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
        tmp_bytes: config.limits.tmp_bytes,
        shm_bytes: config.limits.shm_bytes,
        cpus,
        rlimits: rlimits(),
        best_effort: config.best_effort,
        devices: devices(base.root()),
        helpers_procs: cgroups.helpers_procs()?,
        scratch_dir: base.run(),
        cgroups,
        loads: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        ready: AtomicUsize::new(0),
    })
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

/// Host ids of each shard's jobs: every shard leases slices of its own, more as it needs them.
fn lease_ids(setup: &Setup<'_>, shards: usize) -> Result<Vec<IdRanges>, StartError> {
    let options = LeaseOptions {
        directory: PathBuf::from(LEASE_DIRECTORY),
        instance: setup.base.instance().to_string(),
        base_dir: setup.base.root().to_owned(),
        first: setup.config.ids.first,
        count: setup.config.ids.count,
    };
    (0..shards)
        .map(|_| IdRanges::lease(options.clone()).map_err(StartError::Ids))
        .collect()
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

/// Jobs of former daemons by the shard that owns them now. One that had not ended was lost with its daemon,
/// and the journal is told so.
fn replay(setup: &Setup<'_>, shards: usize) -> Result<Vec<Vec<JobView>>, StartError> {
    let dir = setup.base.journal();
    let wall_ns = i64::try_from(rt::wall_ns()).unwrap_or(i64::MAX);
    let now = store::Moment {
        wall_ns,
        mono_ns: rt::mono_ns(),
    };
    let mut found = store::replay(&dir, now)?;
    for damage in &found.damaged {
        tracing::error!(path = %damage.path.display(), line = damage.line, "a line of the journal is damaged and skipped");
    }
    if !found.lost.is_empty() {
        tracing::warn!(
            jobs = found.lost.len(),
            "jobs of a daemon that died are lost"
        );
    }
    for job in &mut found.lost {
        // What it wrote until the daemon died is in its files; index and files are made to agree.
        match log::recover(
            JobFiles::new(setup.base.root(), job.id).dir(),
            rt::wall_ns(),
        ) {
            Ok(recovered) => job.log = recovered.totals,
            Err(error) => {
                tracing::error!(job_id = %job.id, %error, "the log of a lost job cannot be read")
            }
        }
    }
    found.ended.append(&mut found.lost);
    let history = store::compact(
        &dir,
        found.ended,
        &found.damaged,
        setup.config.limits.history_jobs,
    )?;
    for job in &history.forgotten {
        let files = JobFiles::new(setup.base.root(), job.id);
        if let Err(error) = std::fs::remove_dir_all(files.dir())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(job_id = %job.id, %error, "output of a forgotten job is left");
        }
    }
    let mut histories: Vec<Vec<JobView>> = (0..shards).map(|_| Vec::new()).collect();
    for job in history.kept {
        histories[job.id.owner(shards)].push(job);
    }
    Ok(histories)
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
    config: &Config,
    shards: usize,
    open_files: usize,
) -> Result<CoreLimits, StartError> {
    let live_jobs_max = live_jobs_max(open_files, shards);
    if live_jobs_max == 0 {
        return Err(StartError::OpenFiles { open_files });
    }
    Ok(CoreLimits {
        live_jobs_max,
        starts_max: limits::STARTS_IN_FLIGHT_MAX,
        history_max: config.limits.history_jobs.div_ceil(shards),
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

/// One shard's ends of the mailbox.
struct Mailbox {
    bell: Arc<Bell>,
    out: Vec<Option<Tx<Call>>>,
    inbound: Vec<Rx<Call>>,
}

/// Everything that goes to a shard's thread.
struct ThreadParts {
    index: ShardIndex,
    host: Arc<Host>,
    core: CoreLimits,
    cpu: usize,
    mailbox: Mailbox,
    ids: IdRanges,
    crew: Crew,
    journal: OwnedFd,
    history: Vec<JobView>,
    socket: UdpSocket,
    front: FrontStart,
    /// The first shard hears the signals.
    signals: Option<OwnedFd>,
    on_ready: fn(),
}

impl ThreadParts {
    /// Runs the shard. `None` when another shard says how it ended.
    fn run(self) -> Result<Option<()>, StartError> {
        let shard = self.index;
        let options = rt::Options {
            cpu: Some(self.cpu),
            ..rt::Options::default()
        };
        rt::run(options, || self.live()).map_err(|source| StartError::Shard { shard, source })?
    }

    async fn live(self) -> Result<Option<()>, StartError> {
        let io = |what| move |source| StartError::Kernel { what, source };
        let sleeper = Sleeper::new(&self.mailbox.bell).map_err(io("a mailbox"))?;
        let journal_file = rt::File::from_fd(self.journal).map_err(io("the journal's file"))?;
        let recorder = Recorder::new(&self.host.base_dir, Arc::clone(&self.host.disk));
        let recorder = recorder.map_err(|source| StartError::Disk {
            path: self.host.jobs_dir.clone(),
            source,
        })?;
        let shard = Shard::new(ShardParts {
            index: self.index,
            host: Arc::clone(&self.host),
            limits: self.core,
            remote: Remote::new(self.mailbox.out),
            desk: Desk::new(self.ids),
            recorder,
            journal: JournalWriter::new(),
            seats: Seats::new(self.host.shards).map_err(io("a counter"))?,
            history: self.history,
        });
        rt::spawn(shard.journal.clone().serve(journal_file));
        rt::spawn(Rc::clone(&shard).serve_mailbox(self.mailbox.inbound, sleeper));
        rt::spawn(Rc::clone(&shard).serve_timers());
        rt::spawn(Rc::clone(&shard).serve_kept());
        rt::spawn(Rc::clone(&shard).serve_seats());
        rt::spawn(Rc::clone(&shard).serve_memory());
        shard
            .employ(self.crew)
            .await
            .map_err(io("a crew's sockets"))?;
        let front = rt::spawn((self.front)(Handle::new(Rc::clone(&shard)), self.socket));
        shard.front.keep(front);
        if self.host.ready.fetch_add(1, Ordering::AcqRel) + 1 == self.host.shards {
            (self.on_ready)();
        }
        let Some(signals) = self.signals else {
            return std::future::pending().await;
        };
        let signals = Ready::new(signals).map_err(io("the signal descriptor"))?;
        signals
            .readable()
            .await
            .map_err(io("the signal descriptor"))?;
        tracing::info!("a signal came: every job is stopped, as `joblet down` does");
        shard.end_all().await;
        Ok(Some(()))
    }
}

impl Shard {
    /// Ends every job of every shard, then every front, then every helper. Each waits for all before it: a front
    /// may be telling a client of a job that another shard owns.
    async fn end_all(self: &Rc<Self>) {
        self.on_each(|shard| Box::pin(shard.shut_down())).await;
        self.on_each(|shard| Box::pin(shard.end())).await;
    }

    async fn on_each(self: &Rc<Self>, act: fn(Rc<Self>) -> Local<()>) {
        let each: Vec<_> = (0..self.shards)
            .map(|index| {
                let this = Rc::clone(self);
                rt::spawn(async move { this.on(index, act).await })
            })
            .collect();
        for shard in each {
            if let Ok(Err(refusal)) = shard.await {
                tracing::error!(%refusal, "a shard did not go down in order");
            }
        }
    }

    /// Everything after the last job.
    async fn end(self: Rc<Self>) {
        self.front.close().await;
        self.discard_kept().await;
        self.desk.shut_down().await;
        self.seats.close().await;
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

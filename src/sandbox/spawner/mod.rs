//! The spawner: a small process that walks plans. It serves one start after another and holds nothing of any.
//!
//! ```text
//! prepare: own namespaces ─► template root ─► inheritance reset ─► CAP_SYS_ADMIN only
//! serve:   Start ─► read plan ─► clone3 (child walks the plan, executes init) ─► Birth to the keeper ─► close all
//! ```
//! Whatever is the same for every job is done once, in `prepare`, and inherited: root, host name, umask, signal
//! dispositions, personality, no_new_privs, session keyring, the score for the out-of-memory killer. The child
//! does only what differs.
//!
//! It is disposable. A spawner that is stuck in a step is killed with the one job it was making; jobs that have
//! been born are the keeper's children and notice nothing.

use std::{
    cell::Cell,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        stat::{Mode, fstat, umask},
        uio::pread,
    },
};
use thiserror::Error;

use super::{
    birth::{self, Birth, StepFailure},
    init,
    plan::{DecodedPlan, tag},
    rootfs::{self, RootfsError},
    start::{self, Start, StartError},
};
use crate::{
    limits,
    sys::{
        capability::{self, Capabilities},
        clone::{Born, Stack, vfork},
        descriptors,
        inheritance::{self, ResetError},
        keyring,
        process::{self, SingleThreaded},
    },
};

mod walk;

use walk::{Progress, Walk};

/// Descriptors below this are the child's targets (0 to 4). We keep them all occupied, so that nothing a start
/// brings lies where the child puts something else.
const TARGETS_END: i32 = 8;

/// How to run a spawner.
#[derive(Debug, Clone)]
pub struct SpawnerOptions {
    /// An existing directory to mount the template on, in our own namespace; nothing of it shows on the host.
    pub scratch_dir: PathBuf,
}

/// Why a spawner ended before its daemon did.
#[derive(Debug, Error)]
pub enum SpawnerError {
    /// One of the things that are done once.
    #[error("prepare: {action}")]
    Prepare {
        /// What.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The template root.
    #[error("build the template root")]
    Template(#[from] RootfsError),
    /// What jobs would inherit.
    #[error("prepare: inheritance")]
    Reset(#[from] ResetError),
    /// The daemon's socket.
    #[error("serve the daemon")]
    Start(#[from] StartError),
    /// The keeper's socket.
    #[error("tell the keeper")]
    Keeper(#[source] io::Error),
}

/// Runs a spawner until the daemon closes its socket. The caller is a process of its own with one thread, root's
/// capabilities, and has set its own parent-death signal.
///
/// # Errors
/// [`SpawnerError`]; the process has then nothing left to do but end.
pub fn run(daemon: OwnedFd, keeper: OwnedFd, options: &SpawnerOptions) -> Result<(), SpawnerError> {
    let mut spawner = Spawner::prepare(&daemon, &keeper, options)?;
    while let Some(start) = start::receive(spawner.daemon.as_fd())? {
        spawner.serve(&start)?;
    }
    Ok(())
}

struct Spawner {
    daemon: OwnedFd,
    keeper: OwnedFd,
    init: OwnedFd,
    stack: Stack,
    single: SingleThreaded,
    /// Reused for every plan.
    buffer: Vec<u8>,
    /// Occupies the numbers below [`TARGETS_END`].
    _low: Vec<OwnedFd>,
}

/// `map_err` with the action's name.
fn doing<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SpawnerError {
    move |error| SpawnerError::Prepare {
        action,
        source: error.into(),
    }
}

impl Spawner {
    fn prepare(
        daemon: &OwnedFd,
        keeper: &OwnedFd,
        options: &SpawnerOptions,
    ) -> Result<Self, SpawnerError> {
        let raise = |fd: &OwnedFd| descriptors::duplicate_from(fd.as_fd(), TARGETS_END);
        let daemon = raise(daemon).map_err(doing("move the daemon's socket"))?;
        let keeper = raise(keeper).map_err(doing("move the keeper's socket"))?;
        // Whatever else was inherited must not reach a job, nor be held open by us.
        descriptors::close_all_but(&[daemon.as_fd(), keeper.as_fd()])
            .map_err(doing("close descriptors"))?;
        let single = SingleThreaded::check().map_err(doing("count threads"))?;
        let low = occupy_targets().map_err(doing("occupy descriptors"))?;

        raise_oom_score().map_err(doing("raise oom_score_adj"))?;
        // Nothing of the host is named after it; UTS and network are only here to be copied or empty.
        let namespaces =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
        unshare(namespaces).map_err(doing("unshare namespaces"))?;
        nix::unistd::sethostname("job").map_err(doing("set the host name"))?;
        umask(Mode::empty());
        rootfs::enter_template(&options.scratch_dir)?;
        inheritance::reset()?;
        keyring::join_new_session().map_err(doing("join a session keyring"))?;
        let init = init::executable().map_err(doing("load init"))?;
        let stack = Stack::new().map_err(doing("map a stack"))?;
        // Mounting, cloning into namespaces, entering them: all of it is this one.
        capability::keep_only(Capabilities::SYS_ADMIN).map_err(doing("drop capabilities"))?;
        Ok(Self {
            daemon,
            keeper,
            init,
            stack,
            single,
            buffer: Vec::new(),
            _low: low,
        })
    }

    /// Makes one job and tells the keeper, whatever came of it.
    fn serve(&mut self, start: &Start) -> Result<(), SpawnerError> {
        let made = self.make(start);
        let (born, failure) = match made {
            Ok((born, failure)) => (Some(born), failure),
            Err(failure) => (None, Some(failure)),
        };
        let birth = Birth {
            id: start.id,
            pid: born.as_ref().map_or(0, |born| born.pid),
            failure,
        };
        let pidfd = born.as_ref().map(|born| born.pidfd.as_fd());
        let [stdout, stderr, control] = start.keeper_fds();
        let sent = match pidfd {
            Some(pidfd) => birth::send(
                self.keeper.as_fd(),
                &birth,
                &[pidfd, stdout, stderr, control],
            ),
            None => birth::send(self.keeper.as_fd(), &birth, &[]),
        };
        sent.map_err(|error| {
            // Nobody will ever reap or release it. Best effort: it may have ended already.
            if let Some(pidfd) = pidfd {
                let _ = process::signal(pidfd, libc::SIGKILL);
            }
            SpawnerError::Keeper(error)
        })
    }

    /// Clones the job. An error means that there is no process; a failure beside one, that it is ending.
    fn make(&mut self, start: &Start) -> Result<(Born, Option<StepFailure>), StepFailure> {
        let unreadable = |errno| StepFailure {
            step: tag::PLAN,
            errno,
        };
        read_plan(&start.plan, &mut self.buffer).map_err(unreadable)?;
        let plan = DecodedPlan::read(&self.buffer).map_err(|_| unreadable(libc::EINVAL))?;
        if plan.wants_tree() != start.work_tree.is_some()
            || plan.wants_upload() != start.upload.is_some()
            || plan.wants_joins() != start.joins.len()
            || plan.wants_volumes() != start.volumes.len()
        {
            return Err(unreadable(libc::EINVAL));
        }
        let progress = Progress::default();
        let walk = Walk {
            steps: &plan.steps,
            arguments: plan.arguments.iter().copied().collect(),
            variables: plan.variables.iter().copied().collect(),
            start,
            init: self.init.as_fd(),
            volume: Cell::new(0),
            progress: &progress,
        };
        let born = vfork(&self.single, start.cgroup.as_fd(), &mut self.stack, || {
            walk.run()
        });
        let born = born.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            StepFailure {
                step: tag::CLONE,
                errno,
            }
        })?;
        Ok((born, progress.failure()))
    }
}

/// Reads a whole plan into `buffer`, whose room is kept for the next one unless it was a huge one.
fn read_plan(plan: &OwnedFd, buffer: &mut Vec<u8>) -> Result<(), i32> {
    const KEPT_BYTES: usize = 64 << 10;
    let bytes = fstat(plan).map_err(|errno| errno as i32)?.st_size;
    let bytes = usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= limits::PLAN_BYTES_MAX)
        .ok_or(libc::E2BIG)?;
    buffer.clear();
    if bytes <= KEPT_BYTES {
        buffer.shrink_to(KEPT_BYTES);
    }
    buffer.resize(bytes, 0);
    let mut done = 0;
    while done < bytes {
        let at = i64::try_from(done).map_err(|_| libc::E2BIG)?;
        match pread(plan, &mut buffer[done..], at).map_err(|errno| errno as i32)? {
            0 => return Err(libc::EIO),
            count => done += count,
        }
    }
    Ok(())
}

/// Opens `/dev/null` until every number below [`TARGETS_END`] is taken. 1 and 2 stay what they are, so that a
/// panic of ours is seen somewhere.
fn occupy_targets() -> io::Result<Vec<OwnedFd>> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    let mut low = vec![OwnedFd::from(null)];
    while low.last().is_some_and(|fd| fd.as_raw_fd() < TARGETS_END) {
        low.push(low[0].try_clone()?);
    }
    // The last one is the first that is not needed.
    low.pop();
    Ok(low)
}

/// Jobs inherit it from us. Only ever raised: lowering is a privilege we may not have.
fn raise_oom_score() -> io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(PATH)?.trim().parse::<i32>().unwrap_or(0);
    let wanted = limits::OOM_SCORE_ADJ_JOB;
    if now < wanted {
        OpenOptions::new()
            .write(true)
            .open(PATH)?
            .write_all(wanted.to_string().as_bytes())
    } else {
        Ok(())
    }
}

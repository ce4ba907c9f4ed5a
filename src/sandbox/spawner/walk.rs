//! What the child does: one step of the plan after another, then execve of init.
//!
//! It runs in the spawner's memory while the spawner is suspended. It does not allocate, lock or panic, and every
//! call is one of `sys::child`. Where it is stands in [`Progress`], which the spawner reads afterwards.

use std::{
    cell::Cell,
    convert::Infallible,
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    sandbox::{birth::StepFailure, init::record::fd, plan::Step, start::Start},
    sys::{
        capability::Capabilities,
        child::{self, Done, Namespace, Pointers},
    },
};

/// How far a child has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    step: Cell<u16>,
    errno: Cell<i32>,
}

/// Everything a child looks at.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) steps: &'a [Step<'a>],
    pub(super) arguments: Pointers<'a>,
    pub(super) variables: Pointers<'a>,
    pub(super) start: &'a Start,
    pub(super) init: BorrowedFd<'a>,
    /// Which volume is attached next.
    pub(super) volume: Cell<usize>,
    pub(super) progress: &'a Progress,
}

impl Progress {
    /// What stopped the child before init, if something has. Call it once the child has left our memory.
    pub(super) fn failure(&self) -> Option<StepFailure> {
        let (step, errno) = (self.step.get(), self.errno.get());
        match errno {
            0 if step == Step::Execute.tag() => None,
            // Killed from outside in the middle of a step.
            0 => Some(StepFailure {
                step,
                errno: libc::EINTR,
            }),
            _ => Some(StepFailure { step, errno }),
        }
    }
}

impl Walk<'_> {
    /// The child's whole life.
    pub(super) fn run(&self) -> Infallible {
        for step in self.steps {
            self.progress.step.set(step.tag());
            if let Err(errno) = self.perform(step) {
                self.progress.errno.set(errno);
                break;
            }
        }
        child::exit(1)
    }

    fn perform(&self, step: &Step<'_>) -> Done {
        /// What no file system of a job needs.
        const PLAIN: u64 = libc::MS_NOSUID | libc::MS_NODEV;
        /// Nothing below /proc and /dev/pts is a program; terminals are devices.
        const PROC: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        const PTS: u64 = libc::MS_NOSUID | libc::MS_NOEXEC;
        const VOLUMES: &CStr = c"/volumes";
        let tmpfs = |target: &CStr, options| child::mount(c"tmpfs", target, PLAIN, Some(options));
        let start = self.start;
        match *step {
            Step::JoinCgroups(_) => start
                .joins
                .iter()
                .try_for_each(|tasks| child::join_cgroup(tasks.as_fd())),
            Step::CgroupNamespace => child::unshare(Namespace::Cgroup),
            Step::MountProc => child::mount(c"proc", c"/proc", PROC, None),
            Step::MountTmp { options } => tmpfs(c"/tmp", options),
            Step::MountShm { options } => tmpfs(c"/dev/shm", options),
            Step::MountPts { options } => child::mount(c"devpts", c"/dev/pts", PTS, Some(options)),
            Step::MountWork { options } => tmpfs(c"/work", options),
            Step::AttachWork => with(start.work_tree.as_ref(), |tree| {
                child::attach(tree, c"/work")
            }),
            Step::MountVolumes { options } => tmpfs(VOLUMES, options),
            Step::AttachVolume { target } => {
                let index = self.volume.replace(self.volume.get() + 1);
                with(start.volumes.get(index), |tree| {
                    child::make_dir(target, 0o755)?;
                    child::attach(tree, target)
                })
            }
            Step::SealVolumes => child::make_read_only(VOLUMES),
            Step::EnterNet => child::enter(Namespace::Net, start.net_ns.as_fd()),
            Step::Rlimit(limit) => child::set_rlimit(limit.resource, limit.soft, limit.hard),
            Step::Affinity { mask } => child::set_affinity(mask),
            Step::Stdin => child::open_as(c"/dev/null", 0),
            Step::Stdout => child::duplicate_as(start.stdout_write.as_fd(), 1),
            Step::Stderr => child::duplicate_as(start.stderr_write.as_fd(), 2),
            Step::Control => child::duplicate_as(start.control_init.as_fd(), fd::CONTROL),
            Step::Upload => with(start.upload.as_ref(), |upload| {
                child::duplicate_as(upload, fd::UPLOAD)
            }),
            Step::EnterUser => child::enter(Namespace::User, start.user_ns.as_fd()),
            Step::Groups => child::clear_groups(),
            Step::Gid(gid) => child::set_gid(gid),
            Step::Uid(uid) => child::set_uid(uid),
            Step::Capabilities(set) => child::keep_capabilities(Capabilities::from_bits(set)),
            Step::Descriptors => {
                // Up to the last one that init is given.
                let last = if start.upload.is_some() {
                    fd::UPLOAD
                } else {
                    fd::CONTROL
                };
                child::close_from_at_exec(last + 1)
            }
            Step::Execute => Err(child::execute(self.init, &self.arguments, &self.variables)),
        }
    }
}

/// A descriptor that the spawner has checked to be there.
fn with(fd: Option<&impl AsFd>, act: impl FnOnce(BorrowedFd<'_>) -> Done) -> Done {
    fd.map_or(Err(libc::EBADF), |fd| act(fd.as_fd()))
}

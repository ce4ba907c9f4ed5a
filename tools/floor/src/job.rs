//! One job's kernel objects, made and taken down by one thread without a daemon, a store or a wire.
//!
//! What a product job has, this has: a cgroup leaf, two pipes, a control socket, the namespaces, the mounts,
//! the user and network namespace from a pool, PID 1 from a memfd, and a static command as its child. What
//! the product adds on top (plan and descriptors by message, records, log files, wire) is what the ratio
//! shows.

use std::{
    ffi::{CString, c_char, c_void},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    sys::{
        resource::{Resource, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::{Mode, fchmod, mkdirat, umask},
    },
    unistd::{
        Gid, Pid, UnlinkatFlags, chdir, fchown, pipe2, pivot_root, sethostname, setsid, unlinkat,
    },
};

use crate::{pool::Namespaces, sys, template};

/// Host id of init inside.
const INIT_ID: u32 = 65_534;

/// What all jobs of one loop share.
#[derive(Debug)]
pub(crate) struct Bench {
    cgroup: OwnedFd,
    init: OwnedFd,
    null: OwnedFd,
    stack: Vec<u8>,
    argv: Vec<CString>,
    count: u64,
}

/// Nanoseconds from the beginning of one job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// To the moment after its command's execve.
    pub(crate) executed: u64,
    /// To the moment when it was waited for.
    pub(crate) reaped: u64,
}

/// What the child needs; made before it exists.
#[derive(Debug)]
struct Plan {
    user: RawFd,
    net: RawFd,
    null: RawFd,
    stdout: RawFd,
    stderr: RawFd,
    control: RawFd,
    init: RawFd,
    cpus: CpuSet,
    work: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// Where the child says which step failed: 1-based number << 16 | errno.
    failed: AtomicU32,
}

const STACK_BYTES: usize = 256 << 10;

impl Bench {
    /// With leaves below `cgroup`, and the program behind `init` as PID 1.
    pub(crate) fn new(cgroup: OwnedFd, init: OwnedFd, null: OwnedFd) -> Self {
        let argv = [
            c"init".to_owned(),
            CString::from_vec_with_nul(format!("{}\0", template::COMMAND).into())
                .unwrap_or_default(),
        ];
        Self {
            cgroup,
            init,
            null,
            stack: vec![0; STACK_BYTES],
            argv: argv.into(),
            count: 0,
        }
    }

    /// Makes one job with namespaces from the pool, waits for its end and takes everything down.
    pub(crate) fn run(&mut self, namespaces: Namespaces) -> Result<Times> {
        self.count += 1;
        let leaf = format!("job-{}-{}", std::process::id(), self.count);
        let begin = sys::now_ns();
        mkdirat(&self.cgroup, leaf.as_str(), Mode::from_bits_truncate(0o755))
            .context("make the leaf")?;
        let times = self.run_in(&leaf, &namespaces, begin);
        self.remove(&leaf)?;
        times
    }

    fn run_in(&mut self, leaf: &str, namespaces: &Namespaces, begin: u64) -> Result<Times> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let cgroup = openat(&self.cgroup, leaf, flags, Mode::empty()).context("open the leaf")?;
        let (stdout, stdout_end) = job_pipe(namespaces.base)?;
        let (stderr, stderr_end) = job_pipe(namespaces.base)?;
        let (control, control_end) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        let mut control = File::from(control);
        control.write_all(b"G")?;
        let plan = self.plan(namespaces, [&stdout_end, &stderr_end, &control_end])?;
        let kinds = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        let pidfd = sys::spawn(
            u64::from(kinds.bits().cast_unsigned()),
            cgroup.as_fd(),
            &mut self.stack,
            child,
            &plan,
        )
        .context("clone")?;
        drop((stdout_end, stderr_end, control_end));
        let executed = started(&mut control).inspect_err(|_| {
            // The child is at its end when the socket is closed; it must not stay a zombie.
            let _ = sys::reap(pidfd.as_fd());
        });
        let executed = executed.with_context(|| describe(plan.failed.load(Ordering::Relaxed)))?;
        let mut status = [0; 4];
        control
            .read_exact(&mut status)
            .context("the record of the end")?;
        ensure!(sys::reap(pidfd.as_fd())?, "init failed");
        let reaped = sys::now_ns();
        ensure!(status == [0; 4], "the command ended with {status:?}");
        for end in [stdout, stderr] {
            ensure!(
                File::from(end).read(&mut [0; 1])? == 0,
                "the command wrote something"
            );
        }
        Ok(Times {
            executed: executed.saturating_sub(begin),
            reaped: reaped - begin,
        })
    }

    fn plan(
        &self,
        namespaces: &Namespaces,
        [stdout, stderr, control]: [&OwnedFd; 3],
    ) -> Result<Plan> {
        let mut cpus = CpuSet::new();
        for cpu in 0..std::thread::available_parallelism()?.get() {
            cpus.set(cpu)?;
        }
        let id = namespaces.base + 1000;
        let mut argv: Vec<*const c_char> = self.argv.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        Ok(Plan {
            user: namespaces.user.as_raw_fd(),
            net: namespaces.net.as_raw_fd(),
            null: self.null.as_raw_fd(),
            stdout: stdout.as_raw_fd(),
            stderr: stderr.as_raw_fd(),
            control: control.as_raw_fd(),
            init: self.init.as_raw_fd(),
            cpus,
            work: CString::new(format!("size=64m,mode=755,uid={id},gid={id}"))?,
            argv,
            envp: vec![
                c"PATH=/usr/bin:/bin".as_ptr(),
                c"HOME=/work".as_ptr(),
                std::ptr::null(),
            ],
            failed: AtomicU32::new(0),
        })
    }

    /// Removes a leaf; the kernel may need a moment after the last process.
    fn remove(&self, leaf: &str) -> Result<()> {
        for _ in 0..100_000 {
            match unlinkat(&self.cgroup, leaf, UnlinkatFlags::RemoveDir) {
                Ok(()) => return Ok(()),
                Err(Errno::EBUSY) => std::hint::spin_loop(),
                Err(errno) => return Err(errno).context("remove the leaf"),
            }
        }
        bail!("the leaf {leaf} stays busy")
    }
}

/// A pipe whose write end the job may open again, for writing only.
fn job_pipe(base: u64) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(
        &write,
        None,
        Some(Gid::from_raw(u32::try_from(base + 1000)?)),
    )?;
    fchmod(&write, Mode::from_bits_truncate(0o620))?;
    Ok((read, write))
}

/// Waits for init's first record; when the command was executed.
fn started(control: &mut File) -> Result<u64> {
    let mut record = [0; 16];
    let count = control.read(&mut record)?;
    ensure!(count == 16, "the child ended before its command");
    let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().unwrap_or_default());
    Ok(word(0) * 1_000_000_000 + word(8))
}

fn describe(failed: u32) -> String {
    if failed == 0 {
        return "init did not report".to_owned();
    }
    let errno = Errno::from_raw(i32::from(failed.to_le_bytes()[0]));
    format!("step {} of the child: {errno}", failed >> 16)
}

/// Runs in the clone, on its own stack and in our memory: it allocates nothing and never returns.
extern "C" fn child(plan: *const c_void) -> ! {
    let plan: &Plan = sys::argument(plan);
    let mut step = 0;
    let errno =
        steps(plan, &mut step).map_or_else(|error| error.raw_os_error().unwrap_or(255), |()| 0);
    plan.failed
        .store(step << 16 | errno.cast_unsigned(), Ordering::Relaxed);
    sys::end(99)
}

/// The steps, in the product's order. Returns only when one fails.
fn steps(plan: &Plan, step: &mut u32) -> io::Result<()> {
    let none = None::<&str>;
    let hard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut next = || *step += 1;
    next();
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    next();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    chdir(template::ROOT)?;
    next();
    mount(
        Some("proc"),
        "proc",
        Some("proc"),
        hard | MsFlags::MS_NOEXEC,
        none,
    )?;
    mount(
        Some("tmpfs"),
        "tmp",
        Some("tmpfs"),
        hard,
        Some("size=64m,mode=1777"),
    )?;
    mount(
        Some("tmpfs"),
        "dev/shm",
        Some("tmpfs"),
        hard,
        Some("size=64m,mode=1777"),
    )?;
    let pts = Some("newinstance,ptmxmode=0666,mode=620");
    mount(
        Some("devpts"),
        "dev/pts",
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        pts,
    )?;
    next();
    mount(
        Some("tmpfs"),
        "work",
        Some("tmpfs"),
        hard,
        Some(plan.work.as_c_str()),
    )?;
    next();
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    sethostname("job")?;
    next();
    setns(sys::borrow(plan.net), CloneFlags::CLONE_NEWNET)?;
    next();
    inherited(plan)?;
    next();
    setns(sys::borrow(plan.user), CloneFlags::CLONE_NEWUSER)?;
    sys::keep_capabilities()?;
    sys::become_id(INIT_ID)?;
    sys::close_from(INIT_AT.cast_unsigned() + 1)?;
    next();
    sys::keep_four_capabilities()?;
    next();
    Err(sys::execute(INIT_AT, &plan.argv, &plan.envp))
}

/// Where init's image is after [`inherited`] has put the descriptors in order.
const INIT_AT: RawFd = 4;

/// Everything execve(2) and fork(2) say is inherited.
fn inherited(plan: &Plan) -> io::Result<()> {
    sys::join_session_keyring()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let score = nix::fcntl::open(
        "/proc/self/oom_score_adj",
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    nix::unistd::write(&score, b"500")?;
    drop(score);
    sched_setaffinity(Pid::from_raw(0), &plan.cpus)?;
    umask(Mode::from_bits_truncate(0o022));
    setsid()?;
    for (from, to) in [(plan.null, 0), (plan.stdout, 1), (plan.stderr, 2)] {
        sys::duplicate(from, to, 0)?;
    }
    sys::duplicate(plan.control, 3, 0)?;
    sys::duplicate(plan.init, INIT_AT, libc::O_CLOEXEC)
}

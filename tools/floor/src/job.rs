//! One job's kernel objects, made and taken down by one thread without a daemon, a store or a wire.
//!
//! What a product job has, this has: its cgroups, two pipes, a control socket, the namespaces, the mounts, the
//! user and network namespace from a pool, PID 1 from a memfd, and a static command as its child. What is the
//! same for all jobs is done once and inherited, as the product's spawner does it. What the product adds on top
//! (plan and descriptors by message, records, log files, wire) is what the ratio shows.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare},
    sys::{
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::{Mode, fchmod},
    },
    unistd::{Gid, Pid, fchown, pipe2},
};

use crate::{
    cgroups::{Cgroups, Seat},
    pool::Namespaces,
    sys, template,
};

/// Host id of init inside.
const INIT_ID: u32 = 65_534;

/// What all jobs of one loop share.
#[derive(Debug)]
pub(crate) struct Bench {
    cgroups: Cgroups,
    init: OwnedFd,
    null: OwnedFd,
    cpus: CpuSet,
    limits: [(Resource, rlim_t, rlim_t); 3],
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
    joins: Vec<RawFd>,
    limits: [(Resource, rlim_t, rlim_t); 3],
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
    /// With leaves in `cgroups`, and the program behind `init` as PID 1.
    pub(crate) fn new(cgroups: Cgroups, init: OwnedFd, null: OwnedFd) -> Result<Self> {
        let mut cpus = CpuSet::new();
        for cpu in 0..std::thread::available_parallelism()?.get() {
            cpus.set(cpu)?;
        }
        let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let (_, stack) = getrlimit(Resource::RLIMIT_STACK)?;
        let argv = [
            c"init".to_owned(),
            CString::from_vec_with_nul(format!("{}\0", template::COMMAND).into())
                .unwrap_or_default(),
        ];
        Ok(Self {
            cgroups,
            init,
            null,
            cpus,
            limits: [
                (Resource::RLIMIT_NOFILE, files.min(1_024), files),
                (Resource::RLIMIT_CORE, 0, 0),
                (Resource::RLIMIT_STACK, stack.min(8 << 20), stack),
            ],
            stack: vec![0; STACK_BYTES],
            argv: argv.into(),
            count: 0,
        })
    }

    /// Makes a seat for a job to come.
    pub(crate) fn make_seat(&mut self) -> Result<Seat> {
        self.count += 1;
        self.cgroups
            .make_seat(format!("ready-{}-{}", std::process::id(), self.count))
    }

    /// Makes one job with a seat and namespaces that are ready, waits for its end and takes everything down.
    pub(crate) fn run(&mut self, (seat, namespaces): (Seat, Namespaces)) -> Result<Times> {
        self.count += 1;
        let leaf = format!("job-{}-{}", std::process::id(), self.count);
        let begin = sys::now_ns();
        let times = self.run_in(&leaf, seat, &namespaces, begin)?;
        self.cgroups.remove(&leaf)?;
        Ok(times)
    }

    fn run_in(
        &mut self,
        leaf: &str,
        seat: Seat,
        namespaces: &Namespaces,
        begin: u64,
    ) -> Result<Times> {
        let cgroup = self.cgroups.make_leaf(leaf, &seat)?;
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
        let plan = self.plan(&seat, namespaces, [&stdout_end, &stderr_end, &control_end])?;
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
        drop((stdout_end, stderr_end, control_end, seat));
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
        seat: &Seat,
        namespaces: &Namespaces,
        [stdout, stderr, control]: [&OwnedFd; 3],
    ) -> Result<Plan> {
        let id = namespaces.base + 1000;
        let mut argv: Vec<*const c_char> = self.argv.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        Ok(Plan {
            user: namespaces.user.as_raw_fd(),
            net: namespaces.net.as_raw_fd(),
            joins: seat.joins.iter().map(AsRawFd::as_raw_fd).collect(),
            limits: self.limits,
            null: self.null.as_raw_fd(),
            stdout: stdout.as_raw_fd(),
            stderr: stderr.as_raw_fd(),
            control: control.as_raw_fd(),
            init: self.init.as_raw_fd(),
            cpus: self.cpus,
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
    let hard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let tmpfs =
        |target, options: &CStr| mount(Some(c"tmpfs"), target, Some(c"tmpfs"), hard, Some(options));
    let mut next = || *step += 1;
    next();
    for tasks in &plan.joins {
        sys::join_cgroup(*tasks)?;
    }
    next();
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    next();
    let proc = hard | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), proc, None::<&CStr>)?;
    tmpfs(c"/tmp", c"size=64m,mode=1777")?;
    tmpfs(c"/dev/shm", c"size=64m,mode=1777")?;
    let pts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some(c"newinstance,ptmxmode=0666,mode=620");
    mount(Some(c"devpts"), c"/dev/pts", Some(c"devpts"), pts, options)?;
    next();
    tmpfs(c"/work", &plan.work)?;
    next();
    setns(sys::borrow(plan.net), CloneFlags::CLONE_NEWNET)?;
    next();
    inherited(plan)?;
    next();
    setns(sys::borrow(plan.user), CloneFlags::CLONE_NEWUSER)?;
    sys::keep_capabilities()?;
    sys::become_id(INIT_ID)?;
    next();
    sys::keep_four_capabilities()?;
    sys::close_from_at_exec(INIT_AT.cast_unsigned())?;
    next();
    Err(sys::execute(INIT_AT, &plan.argv, &plan.envp))
}

/// Where init's image is after [`inherited`] has put the descriptors in order.
const INIT_AT: RawFd = 4;

/// What is inherited and each job has its own of.
fn inherited(plan: &Plan) -> io::Result<()> {
    for (kind, soft, hard) in plan.limits {
        setrlimit(kind, soft, hard)?;
    }
    sched_setaffinity(Pid::from_raw(0), &plan.cpus)?;
    for (from, to) in [(plan.null, 0), (plan.stdout, 1), (plan.stderr, 2)] {
        sys::duplicate(from, to, 0)?;
    }
    sys::duplicate(plan.control, 3, 0)?;
    sys::duplicate(plan.init, INIT_AT, libc::O_CLOEXEC)
}

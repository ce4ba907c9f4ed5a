//! A spawner of one's own, without a daemon: makes what a job needs, starts it and collects what comes back.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        signal::Signal,
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair},
        stat::{Mode, fchmod},
        wait::waitpid,
    },
    unistd::{Gid, Pid, fchown},
};
use tempfile::TempDir;

use crate::{
    job::{JobId, User},
    sandbox::{
        birth::{self, Birth},
        init::record::{GO, RECORD_BYTES, Record, SIGNAL},
        plan::{Plan, PlanSpec, Work},
        spawner::{self, SpawnerOptions},
        start::{self, StartFds},
    },
    sys::{affinity::CpuMask, memfd, process as procs, scm},
};

/// One spawner, with us as daemon and keeper.
pub(super) struct Bench {
    daemon: OwnedFd,
    keeper: OwnedFd,
    spawner: Pid,
    _scratch: TempDir,
}

/// What a test asks for; everything has an ordinary value.
pub(in crate::sandbox) struct Request {
    pub(super) argv: Vec<Vec<u8>>,
    pub(super) env: Vec<Vec<u8>>,
    pub(super) workdir: &'static str,
    pub(super) user: User,
    pub(super) tree: Option<OwnedFd>,
    pub(super) upload: Option<OwnedFd>,
    /// Mounts below `/volumes`, by name.
    pub(super) volumes: Vec<(&'static str, OwnedFd)>,
    pub(in crate::sandbox) ids_base: u32,
    /// Bytes instead of the plan.
    pub(super) plan: Option<Vec<u8>>,
    /// Sent instead of the real ones, to make a step fail.
    pub(super) net_ns: Option<OwnedFd>,
    pub(super) cgroup: Option<OwnedFd>,
}

/// A job on its way.
pub(super) struct Running {
    pub(super) birth: Birth,
    pub(super) fds: BirthFds,
    /// The daemon's copy of the keeper's end.
    pub(super) control: OwnedFd,
    cgroup: Cgroup,
}

/// What a birth brings. Without a process it brings nothing, and these are our own copies.
#[derive(Debug)]
pub(super) struct BirthFds {
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) control: OwnedFd,
}

/// What came back of a job.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) birth: Birth,
    pub(super) records: Vec<Record>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A leaf of its own, removed at the end: that succeeds only when nothing lives in it.
pub(in crate::sandbox) struct Cgroup(pub(in crate::sandbox) PathBuf);

impl Request {
    /// A shell script as uid 1000.
    pub(in crate::sandbox) fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(in crate::sandbox) fn new(argv: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let range = NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        Self {
            argv: argv.iter().map(|text| text.as_bytes().to_vec()).collect(),
            env: vec![
                b"PATH=/usr/bin:/bin:/usr/sbin:/sbin".to_vec(),
                b"HOME=/work".to_vec(),
            ],
            workdir: "/work",
            user: User {
                uid: 1000,
                gid: 1000,
            },
            tree: None,
            upload: None,
            volumes: Vec::new(),
            ids_base: 0x9000_0000 + range * 65_536,
            plan: None,
            net_ns: None,
            cgroup: None,
        }
    }
}

impl Bench {
    pub(super) fn new() -> Self {
        let (daemon, daemon_end) = seqpacket();
        let (keeper, keeper_end) = seqpacket();
        let scratch = tempfile::tempdir().unwrap();
        let options = SpawnerOptions {
            scratch_dir: scratch.path().to_owned(),
        };
        let spawner = procs::fork_child(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("a signal");
            match spawner::run(daemon_end, keeper_end, &options) {
                Ok(()) => procs::exit_now(0),
                Err(error) => {
                    // Past the capture of the test's output, which has a lock.
                    let text = format!(
                        "spawner: {error}: {:?}\n",
                        std::error::Error::source(&error)
                    );
                    let _ = nix::unistd::write(std::io::stderr(), text.as_bytes());
                    procs::exit_now(1)
                }
            }
        });
        Self {
            daemon,
            keeper,
            spawner: spawner.unwrap(),
            _scratch: scratch,
        }
    }

    /// Starts a job and waits for its birth, without go.
    pub(super) fn start(&self, request: &Request) -> Running {
        let id = JobId::random();
        let cgroup = Cgroup::new(id);
        let leaf = File::open(&cgroup.0).unwrap();
        let (user_ns, net_ns) = namespaces(request.ids_base);
        let (stdout_read, stdout_write) = pipe(request.ids_base + request.user.gid);
        let (stderr_read, stderr_write) = pipe(request.ids_base + request.user.gid);
        let (control_keeper, control_init) = seqpacket();
        let plan = match &request.plan {
            Some(bytes) => memfd::sealed(c"plan", bytes).unwrap(),
            None => request.plan().seal().unwrap(),
        };
        let volumes: Vec<OwnedFd> = request
            .volumes
            .iter()
            .map(|(_, tree)| tree.try_clone().unwrap())
            .collect();
        let fds = StartFds {
            plan: plan.as_fd(),
            stdout_write: stdout_write.as_fd(),
            stderr_write: stderr_write.as_fd(),
            control_init: control_init.as_fd(),
            cgroup: request.cgroup.as_ref().map_or(leaf.as_fd(), AsFd::as_fd),
            user_ns: user_ns.as_fd(),
            net_ns: request.net_ns.as_ref().unwrap_or(&net_ns).as_fd(),
            stdout_read: stdout_read.as_fd(),
            stderr_read: stderr_read.as_fd(),
            control_keeper: control_keeper.as_fd(),
            work_tree: request.tree.as_ref().map(AsFd::as_fd),
            upload: request.upload.as_ref().map(AsFd::as_fd),
            joins: &[],
            volumes: &volumes,
        };
        start::send(self.daemon.as_fd(), id, &fds).unwrap();
        let (birth, fds) = birth::receive(self.keeper.as_fd())
            .unwrap()
            .expect("the spawner has died");
        assert_eq!(birth.id, id);
        let fds = match <[OwnedFd; 4]>::try_from(fds) {
            Ok([pidfd, stdout, stderr, control]) => BirthFds {
                pidfd: Some(pidfd),
                stdout,
                stderr,
                control,
            },
            Err(some) => {
                assert_eq!((some.len(), birth.pid), (0, 0));
                BirthFds {
                    pidfd: None,
                    stdout: stdout_read,
                    stderr: stderr_read,
                    control: control_keeper.try_clone().unwrap(),
                }
            }
        };
        Running {
            birth,
            fds,
            control: control_keeper,
            cgroup,
        }
    }

    /// Starts a job, says go and waits for its end.
    pub(super) fn run(&self, request: &Request) -> Report {
        let job = self.start(request);
        job.go();
        job.finish()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let (other, _) = seqpacket();
        // Closes our end, which is how a spawner is told to end.
        drop(std::mem::replace(&mut self.daemon, other));
        let _ = waitpid(self.spawner, None);
    }
}

impl Request {
    pub(in crate::sandbox) fn plan(&self) -> Plan {
        let cpus = CpuMask::of_this_thread().unwrap();
        let names: Vec<&str> = self.volumes.iter().map(|(name, _)| *name).collect();
        let work = if self.tree.is_some() {
            Work::Tree
        } else {
            Work::Tmpfs { bytes: 1 << 20 }
        };
        Plan::new(&PlanSpec {
            user: self.user,
            ids_base: self.ids_base,
            workdir: self.workdir.as_bytes(),
            work,
            tmp_bytes: 1 << 20,
            shm_bytes: 1 << 20,
            argv: &self.argv,
            env: &self.env,
            cpus: &cpus,
            rlimits: &[],
            has_uploads: self.upload.is_some(),
            joins: 0,
            volumes: &names,
        })
        .unwrap()
    }
}

impl Running {
    pub(super) fn go(&self) {
        // Fails when it has ended already, which is the test's subject then.
        let _ = scm::send(self.control.as_fd(), &[GO], &[]);
    }

    pub(super) fn signal(&self, signo: u8) {
        scm::send(self.control.as_fd(), &[SIGNAL, signo], &[]).unwrap();
    }

    /// The next record; `None` when init has gone.
    pub(super) fn record(&self) -> Option<Record> {
        let mut bytes = [0; RECORD_BYTES];
        match recv(self.fds.control.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(0) => None,
            Ok(count) => Some(Record::decode(&bytes[..count]).expect("a record")),
            // It has ended without reading go. Said once, before what is still queued.
            Err(Errno::ECONNRESET) => self.record(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for the end and collects everything; proves that nothing is left.
    pub(super) fn finish(self) -> Report {
        let mut records = Vec::new();
        while let Some(record) = self.record() {
            records.push(record);
        }
        if let Some(pidfd) = &self.fds.pidfd {
            procs::reap(pidfd.as_fd()).unwrap();
        }
        self.cgroup.remove();
        let text = |fd: OwnedFd| {
            let mut bytes = Vec::new();
            File::from(fd).read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Report {
            birth: self.birth,
            records,
            stdout: text(self.fds.stdout),
            stderr: text(self.fds.stderr),
        }
    }
}

impl Report {
    /// Exit code of a command that started.
    pub(super) fn code(&self) -> i32 {
        let status = self.wait_status();
        assert!(libc::WIFEXITED(status), "{self:?}");
        libc::WEXITSTATUS(status)
    }

    pub(super) fn wait_status(&self) -> i32 {
        let [
            Record::Started { errno: 0, .. },
            Record::Exited { wait_status, .. },
        ] = self.records[..]
        else {
            panic!("not a whole life: {self:?}")
        };
        wait_status
    }

    /// Step and errno of a command that did not start.
    pub(super) fn start_error(&self) -> (u8, i32) {
        let [Record::Started { step, errno, .. }] = self.records[..] else {
            panic!("not one record: {self:?}")
        };
        (step, errno)
    }
}

impl Cgroup {
    pub(in crate::sandbox) fn new(id: JobId) -> Self {
        let path = Self::path(process::id(), id);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where process `maker` makes the one of job `id`.
    pub(in crate::sandbox) fn path(maker: u32, id: JobId) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .expect("cgroup2 is mounted");
        let root = unified.split(' ').nth(4).unwrap();
        PathBuf::from(root).join(format!("joblet-proof-{maker}-{id}"))
    }

    fn remove(&self) {
        fs::remove_dir(&self.0).expect("nothing is left in the cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.0.exists() {
            let kill = OpenOptions::new()
                .write(true)
                .open(self.0.join("cgroup.kill"));
            let _ = kill.and_then(|mut file| file.write_all(b"1"));
            // The killed need a moment to leave; a test has failed, so nobody counts the turns.
            let gone = || fs::remove_dir(&self.0).is_ok();
            let _ = (0..10_000).any(|_| {
                std::thread::yield_now();
                gone()
            });
        }
    }
}

pub(super) fn seqpacket() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap()
}

pub(in crate::sandbox) fn pipe(gid: u32) -> (OwnedFd, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    fchown(&write, None, Some(Gid::from_raw(gid))).unwrap();
    fchmod(&write, Mode::from_bits_truncate(0o620)).unwrap();
    (read, write)
}

/// A user namespace that maps the range from `base` on and may have no children, and a network namespace.
pub(in crate::sandbox) fn namespaces(base: u32) -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = seqpacket();
    let child = procs::fork_child(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        unshare(CloneFlags::CLONE_NEWUSER).expect("root");
        let mut byte = [0];
        nix::unistd::write(&theirs, &byte).expect("our parent lives");
        nix::unistd::read(&theirs, &mut byte).expect("our parent lives");
        let seal = OpenOptions::new()
            .write(true)
            .open("/proc/sys/user/max_user_namespaces");
        seal.and_then(|mut file| file.write_all(b"0"))
            .expect("root of the namespace");
        nix::unistd::write(&theirs, &byte).expect("our parent lives");
        nix::unistd::read(&theirs, &mut byte).expect("our parent lives");
        procs::exit_now(0)
    });
    let child = child.unwrap();
    let mut byte = [0];
    nix::unistd::read(&ours, &mut byte).unwrap();
    for map in ["uid_map", "gid_map"] {
        let file = OpenOptions::new()
            .write(true)
            .open(format!("/proc/{child}/{map}"));
        file.unwrap()
            .write_all(format!("0 {base} 65536\n").as_bytes())
            .unwrap();
    }
    nix::unistd::write(&ours, &byte).unwrap();
    nix::unistd::read(&ours, &mut byte).unwrap();
    let open = |name: &str| OwnedFd::from(File::open(format!("/proc/{child}/ns/{name}")).unwrap());
    let both = (open("user"), open("net"));
    nix::unistd::write(&ours, &byte).unwrap();
    waitpid(child, None).unwrap();
    both
}

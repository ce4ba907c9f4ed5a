//! Daemons that are killed and followed by others: real crews, real jobs, and each daemon a process of its own.
//!
//! ```text
//! test ─► first daemon: crew, fifty jobs ── killed ─► second: adopts, says go to some ── killed ─► test adopts
//! ```

use std::{
    collections::HashSet,
    io::Read,
    process::{Child, Command, Stdio},
};

use nix::sys::{
    signal::Signal,
    socket::{SockType, getsockopt, sockopt},
};

use super::*;
use crate::sandbox::{
    crew::{Crew, CrewOptions, tests::AS_HELPER},
    identity,
    proof::bench::{Cgroup, Request, namespaces, pipe},
    start::{self, StartFds},
};
use crate::sys::pidfd;

/// What this test binary has to be given to run `the_daemon_of_these_tests` and nothing else.
const AS_DAEMON: [&str; 5] = [
    "--exact",
    "sandbox::adopt::tests::crews::the_daemon_of_these_tests",
    "--nocapture",
    "--test-threads=1",
    "--quiet",
];
const WAIT: Duration = Duration::from_secs(20);
const IDS_FIRST: u32 = 0xA000_0000;

/// Jobs by number, in the order in which they are started; the phase is the one they are in when the first
/// daemon is killed.
const RUNNING: std::ops::Range<u32> = 0..13;
const GONE: std::ops::Range<u32> = 13..23;
const RELEASED: std::ops::Range<u32> = 23..25;
const BORN: std::ops::Range<u32> = 25..40;
/// Asked for, and perhaps not yet made.
const ASKED: std::ops::Range<u32> = 40..50;
/// Those that the second daemon says go to, and those that the last one says it to, twice.
const SECOND_GO: std::ops::Range<u32> = 25..30;
const LAST_GO: std::ops::Range<u32> = 30..35;

fn ids_base(number: u32) -> u32 {
    IDS_FIRST + number * 65_536
}

fn id_of_number(number: u32) -> JobId {
    let mut raw = [0x4a; 16];
    raw[..4].copy_from_slice(&number.to_le_bytes());
    JobId::from_bytes(raw)
}

fn numbers(of: &HashSet<JobId>) -> Vec<u32> {
    (0..ASKED.end)
        .filter(|number| of.contains(&id_of_number(*number)))
        .collect()
}

/// Reads events until `enough` says so of what has come.
fn events_until(socket: &OwnedFd, enough: impl Fn(&[KeeperEvent]) -> bool) -> Vec<KeeperEvent> {
    let mut told = Vec::new();
    while !enough(&told) {
        told.push(event(socket, WAIT).expect("the keeper says nothing"));
    }
    told
}

fn count(told: &[KeeperEvent], is_it: impl Fn(&KeeperEvent) -> bool) -> usize {
    told.iter().filter(|event| is_it(event)).count()
}

const fn is_gone(event: &KeeperEvent) -> bool {
    matches!(event, KeeperEvent::Gone { .. })
}

const fn is_started(event: &KeeperEvent) -> bool {
    matches!(event, KeeperEvent::Started { .. })
}

const fn is_born(event: &KeeperEvent) -> bool {
    matches!(event, KeeperEvent::Born { .. })
}

// ---- the daemons ---------------------------------------------------------------------------------------

/// When this binary is executed by [`Daemon::start`], this is where it is a daemon until it is killed.
#[test]
fn the_daemon_of_these_tests() {
    let is_executed =
        getsockopt(&io::stdin(), sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket);
    if !is_executed {
        return;
    }
    let mut message = [0; 4_096];
    let length = scm::recv(io::stdin().as_fd(), &mut message, &mut Vec::new()).unwrap();
    let run_dir = PathBuf::from(std::str::from_utf8(&message[1..length]).unwrap());
    let ready = |pid: u32| scm::send(io::stdin().as_fd(), &pid.to_le_bytes(), &[]).unwrap();
    match message[0] {
        1 => first_daemon(&run_dir, ready),
        _ => second_daemon(&run_dir, ready),
    }
}

fn forever() -> ! {
    loop {
        nix::unistd::pause();
    }
}

fn first_daemon(run_dir: &Path, ready: impl Fn(u32)) -> ! {
    let null = File::options().write(true).open("/dev/null").unwrap();
    let options = CrewOptions {
        scratch_dir: run_dir,
        run_dir,
        helpers_procs: null.as_fd(),
    };
    let crew = Crew::start_as(&options, &AS_HELPER).unwrap();
    let keeper = &crew.keeper.socket;
    let mut controls: Vec<OwnedFd> = (0..BORN.end).map(|number| ask(&crew, number)).collect();
    let born = BORN.end as usize;
    events_until(keeper, |told| count(told, is_born) == born);
    for number in RUNNING.chain(GONE).chain(RELEASED) {
        scm::send(controls[number as usize].as_fd(), GO, &[]).unwrap();
    }
    let (started, gone) = (RELEASED.end as usize, (GONE.len() + RELEASED.len()));
    events_until(keeper, |told| {
        count(told, is_started) == started && count(told, is_gone) == gone
    });
    for number in RELEASED {
        let id = id_of_number(number);
        command(keeper, KeeperCommand::Release { id });
    }
    controls.extend(ASKED.map(|number| ask(&crew, number)));
    ready(crew.keeper.pid);
    forever()
}

/// Asks the spawner for a job; returns the daemon's end of its control socket.
fn ask(crew: &Crew, number: u32) -> OwnedFd {
    let mut request = if RUNNING.contains(&number) {
        Request::shell("echo running; exec sleep 1000")
    } else {
        Request::shell("echo hello")
    };
    request.ids_base = ids_base(number);
    let id = id_of_number(number);
    let leaf = Cgroup::new(id);
    let cgroup = File::open(&leaf.0).unwrap();
    std::mem::forget(leaf); // whoever is the daemon at the end removes it
    let (user_ns, net_ns) = namespaces(request.ids_base);
    let (stdout_read, stdout_write) = pipe(request.ids_base + 1_000);
    let (stderr_read, stderr_write) = pipe(request.ids_base + 1_000);
    let (control_keeper, control_init) = pair();
    let plan = request.plan().seal().unwrap();
    let fds = StartFds {
        plan: plan.as_fd(),
        stdout_write: stdout_write.as_fd(),
        stderr_write: stderr_write.as_fd(),
        control_init: control_init.as_fd(),
        cgroup: cgroup.as_fd(),
        user_ns: user_ns.as_fd(),
        net_ns: net_ns.as_fd(),
        stdout_read: stdout_read.as_fd(),
        stderr_read: stderr_read.as_fd(),
        control_keeper: control_keeper.as_fd(),
        work_tree: None,
        upload: None,
        joins: &[],
        volumes: &[],
    };
    let spawner = crew.spawner.socket.as_fd();
    while let Err(error) = start::send(spawner, id, &fds) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        nix::poll::poll(&mut [], 1_u16).unwrap();
    }
    control_keeper
}

fn second_daemon(run_dir: &Path, ready: impl Fn(u32)) -> ! {
    let adopted = keepers(run_dir).unwrap().pop().unwrap().unwrap();
    for job in &adopted.jobs {
        if SECOND_GO.map(id_of_number).any(|id| id == job.id) {
            scm::send(job.control.as_ref().unwrap().as_fd(), GO, &[]).unwrap();
        }
    }
    let gone = GONE.len() + SECOND_GO.len();
    events_until(&adopted.keeper.socket, |told| count(told, is_gone) == gone);
    ready(adopted.keeper.pid);
    forever()
}

/// A daemon of either kind, a child of this test.
struct Daemon {
    child: Child,
    keeper: u32,
}

impl Daemon {
    /// Starts it and waits until it has done its part.
    fn start(kind: u8, run_dir: &Path) -> Self {
        let (ours, theirs) = pair();
        #[expect(clippy::disallowed_methods, reason = "a process to be killed")]
        let child = Command::new("/proc/self/exe")
            .args(AS_DAEMON)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self { child, keeper: 0 };
        let message = [&[kind], run_dir.to_str().unwrap().as_bytes()].concat();
        scm::send(ours.as_fd(), &message, &[]).unwrap();
        assert!(readable(ours.as_fd(), Duration::from_secs(60)).unwrap());
        let mut pid = [0; 4];
        let length = scm::recv(ours.as_fd(), &mut pid, &mut Vec::new()).unwrap();
        assert_eq!(length, pid.len(), "the daemon has failed");
        daemon.keeper = u32::from_le_bytes(pid);
        daemon
    }

    /// SIGKILL, and it is gone when this returns.
    fn kill(mut self) -> u32 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.keeper
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- the test ------------------------------------------------------------------------------------------

/// Ends everything, also when the test fails.
struct Scene {
    leaves: Vec<Cgroup>,
    keeper: OwnedFd,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.leaves.clear();
        let _ = pidfd_kill(self.keeper.as_fd());
    }
}

fn by_number(adopted: &AdoptedKeeper, number: u32) -> &HeldJob {
    let id = id_of_number(number);
    adopted.jobs.iter().find(|job| job.id == id).unwrap()
}

/// Everything that a job has written; its processes have ended.
fn output(job: &mut HeldJob) -> String {
    let mut text = String::new();
    let pipes = job.pipes.take().unwrap();
    File::from(pipes.stdout).read_to_string(&mut text).unwrap();
    File::from(pipes.stderr).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn real_jobs_in_all_phases_survive_two_daemons_that_are_killed() {
    let run_dir = tempfile::tempdir().unwrap();
    let first = Daemon::start(1, run_dir.path());
    let maker = first.child.id();
    let scene = Scene {
        leaves: (0..ASKED.end)
            .map(|number| Cgroup(Cgroup::path(maker, id_of_number(number))))
            .collect(),
        keeper: pidfd_open(first.keeper).unwrap(),
    };
    let keeper = first.kill();
    assert_eq!(Daemon::start(2, run_dir.path()).kill(), keeper);

    let mut adopted = keepers(run_dir.path()).unwrap().pop().unwrap().unwrap();
    assert_eq!(adopted.keeper.pid, keeper);
    let listed: HashSet<JobId> = adopted.jobs.iter().map(|job| job.id).collect();
    let expected: Vec<u32> = (0..ASKED.end)
        .filter(|number| !RELEASED.contains(number))
        .collect();
    assert_eq!((numbers(&listed), adopted.jobs.len()), (expected, 48));
    for number in (0..ASKED.end).filter(|number| !RELEASED.contains(number)) {
        let job = by_number(&adopted, number);
        let is_gone = GONE.contains(&number) || SECOND_GO.contains(&number);
        let state = HeldState {
            started: is_gone || RUNNING.contains(&number),
            exited: is_gone,
            gone: is_gone,
            ..HeldState::default()
        };
        assert_eq!(job.state, state, "{number}");
        assert!(job.pipes.is_some() && job.control.is_some() && !job.is_incomplete);
        let range = identity::range_of(job.pid).map(identity::IdRange::base);
        assert_eq!(range, (!is_gone).then(|| ids_base(number)), "{number}");
    }
    let gone = GONE.len() + SECOND_GO.len();
    let live = 48 - gone;
    // The standard three, daemon, listener, epoll; three of each job, and the pidfds of those that live.
    assert_eq!(descriptors_of(keeper), 6 + 48 * 3 + live);

    let socket = adopted.keeper.socket.try_clone().unwrap();
    let told = events(&socket, 48 + RUNNING.len() + 3 * gone + 1);
    assert_eq!(count(&told, is_born), 48);
    assert_eq!(count(&told, is_started), RUNNING.len() + gone);
    assert_eq!(count(&told, is_gone), gone);
    assert_eq!(told.last(), Some(&KeeperEvent::SpawnerGone));

    // What is said twice counts once.
    for number in LAST_GO {
        let control = by_number(&adopted, number).control.as_ref().unwrap();
        scm::send(control.as_fd(), GO, &[]).unwrap();
        let _ = scm::send(control.as_fd(), GO, &[]);
    }
    for number in RUNNING {
        let (id, signo) = (id_of_number(number), libc::SIGKILL);
        command(&socket, KeeperCommand::Signal { id, signo });
    }
    let ended = LAST_GO.len() + RUNNING.len();
    let told = events_until(&socket, |told| count(told, is_gone) == ended);
    assert_eq!(count(&told, is_started), LAST_GO.len());
    // The rest was never told to go, and nobody can tell it any more.
    for job in &mut adopted.jobs {
        job.control = None;
        command(&socket, KeeperCommand::Release { id: job.id });
    }
    for job in &mut adopted.jobs {
        let expected = match job.id {
            id if RUNNING.map(id_of_number).any(|other| other == id) => "running\n",
            id if (35..50).map(id_of_number).any(|other| other == id) => "",
            _ => "hello\n",
        };
        assert_eq!(output(job), expected);
    }
    drop(socket);
    let path = adopted.keeper.socket_path.clone().unwrap();
    adopted.keeper.end_keeper().unwrap();
    assert!(readable(scene.keeper.as_fd(), Duration::ZERO).unwrap());
    assert!(!path.exists());
    for leaf in &scene.leaves {
        let is_empty = || fs::remove_dir(&leaf.0).is_ok();
        let soon = (0..2_000).any(|_| is_empty() || nix::poll::poll(&mut [], 5_u16).is_err());
        assert!(soon, "something of a job is left in {}", leaf.0.display());
    }
}

#[test]
fn a_spawner_that_is_stuck_when_its_daemon_dies_is_killed_and_its_keeper_adopted() {
    let run_dir = tempfile::tempdir().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let options = CrewOptions {
        scratch_dir: run_dir.path(),
        run_dir: run_dir.path(),
        helpers_procs: null.as_fd(),
    };
    let crew = Crew::start_as(&options, &AS_HELPER).unwrap();
    // It sleeps in no system call that an end of file wakes.
    pidfd::send_signal(crew.spawner.pidfd.as_fd(), Signal::SIGSTOP).unwrap();
    let (pidfd, spawner, maker) = (crew.keeper.pidfd, crew.spawner.pidfd, crew.maker.pidfd);
    drop((crew.keeper.socket, crew.spawner.socket, crew.maker.socket));
    let adopted = keepers(run_dir.path()).unwrap().pop().unwrap().unwrap();
    assert!(adopted.jobs.is_empty());
    assert_eq!(
        events(&adopted.keeper.socket, 1),
        [KeeperEvent::SpawnerGone]
    );
    for helper in [&spawner, &maker] {
        assert!(readable(helper.as_fd(), WAIT).unwrap());
    }
    assert!(!adopted.keeper.has_ended());
    adopted.keeper.end_keeper().unwrap();
    assert!(readable(pidfd.as_fd(), Duration::ZERO).unwrap());
    assert_eq!(fs::read_dir(run_dir.path()).unwrap().count(), 0);
}

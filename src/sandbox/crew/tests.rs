//! Whole crews, made of this test binary.

use std::fs;

use super::*;
use crate::sandbox::{
    identity::IdRange,
    pool::{Answer, receive, request},
};

/// What this test binary has to be given to run `the_helper_of_these_tests` and nothing else.
pub(in crate::sandbox) const AS_HELPER: [&str; 5] = [
    "--exact",
    "sandbox::crew::tests::the_helper_of_these_tests",
    "--nocapture",
    "--test-threads=1",
    "--quiet",
];

/// When this binary is executed by [`Crew::start_as`], this is where it becomes the helper.
#[test]
fn the_helper_of_these_tests() {
    let executed =
        getsockopt(&io::stdin(), sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket);
    if executed {
        helper_main(setup_from_stdin().unwrap());
    }
}

/// A file that takes a pid as `cgroup.procs` does, and changes nothing.
fn no_cgroup() -> OwnedFd {
    File::options()
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

struct Scratch {
    directory: tempfile::TempDir,
    procs: OwnedFd,
}

impl Scratch {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            procs: no_cgroup(),
        }
    }

    fn left(&self) -> usize {
        fs::read_dir(self.directory.path()).unwrap().count()
    }

    fn crew(&self) -> Crew {
        let options = CrewOptions {
            scratch_dir: self.directory.path(),
            run_dir: self.directory.path(),
            helpers_procs: self.procs.as_fd(),
        };
        Crew::start_as(&options, &AS_HELPER).unwrap()
    }
}

/// A field of the status of a helper: under the test harness it is not the first thread of its process.
fn status(pid: u32, field: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
        .find(|status| status.starts_with("Name:\tjoblet-"))
        .unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once('\t').unwrap().1.trim().to_owned()
}

fn ended(helper: &Helper) {
    assert!(
        readable(helper.pidfd.as_fd(), Duration::from_secs(20)).unwrap(),
        "{helper:?} lives"
    );
}

#[test]
fn a_crew_is_three_processes_the_keeper_confined_and_all_end_with_it() {
    let scratch = Scratch::new();
    let crew = scratch.crew();
    assert!(crew.is_alive());
    let keeper = crew.keeper.pid;
    assert_eq!(status(keeper, "Name:"), "joblet-keeper");
    assert_eq!(status(keeper, "CapEff:"), "0000000000000020");
    assert_eq!(status(keeper, "NoNewPrivs:"), "1");
    assert_eq!(status(keeper, "Seccomp:"), "2");
    assert_eq!(status(keeper, "PPid:"), std::process::id().to_string());
    for helper in [&crew.spawner, &crew.maker] {
        assert_eq!(status(helper.pid, "PPid:"), keeper.to_string());
    }
    assert!(
        fs::read(format!("/proc/{keeper}/environ"))
            .unwrap()
            .is_empty()
    );
    // stdin, stdout, stderr, daemon, births, listener, epoll.
    assert_eq!(
        fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count(),
        7
    );
    assert!(crew.keeper.socket_path.as_ref().unwrap().exists());
    let others = [
        crew.spawner.pidfd.try_clone().unwrap(),
        crew.maker.pidfd.try_clone().unwrap(),
    ];
    crew.shut_down().unwrap();
    assert!(!Path::new(&format!("/proc/{keeper}")).exists());
    for pidfd in others {
        assert!(readable(pidfd.as_fd(), Duration::from_secs(20)).unwrap());
    }
    assert_eq!(scratch.left(), 0, "its socket has lost its name");
}

#[test]
fn the_maker_of_a_crew_makes_namespaces() {
    let scratch = Scratch::new();
    let crew = scratch.crew();
    let ids = IdRange::from_base(0xA000_0000).unwrap();
    let socket = crew.maker.socket.as_fd();
    assert!(
        receive(socket).unwrap().is_none(),
        "nothing yet, and no waiting"
    );
    request(socket, ids).unwrap();
    assert!(readable(socket, Duration::from_secs(20)).unwrap());
    assert!(matches!(receive(socket).unwrap(), Some(Answer::Made(made)) if made.ids == ids));
    crew.shut_down().unwrap();
}

#[test]
fn a_killed_spawner_is_noticed_and_reaped_and_the_keeper_lives_on() {
    let scratch = Scratch::new();
    let crew = scratch.crew();
    crew.kill_spawner().unwrap();
    ended(&crew.spawner);
    assert!(!crew.is_alive());
    let maker = crew.maker.pidfd.try_clone().unwrap();
    let spawner = PathBuf::from(format!("/proc/{}", crew.spawner.pid));
    let keeper = crew.retire().unwrap();
    assert!(readable(keeper.socket.as_fd(), Duration::from_secs(20)).unwrap());
    let mut buffer = [0; EVENT_BYTES];
    scm::recv(keeper.socket.as_fd(), &mut buffer, &mut Vec::new()).unwrap();
    assert_eq!(KeeperEvent::decode(&buffer), Ok(KeeperEvent::SpawnerGone));
    assert!(readable(maker.as_fd(), Duration::from_secs(20)).unwrap());
    for _ in 0..2_000 {
        if spawner.exists() {
            assert!(!readable(keeper.pidfd.as_fd(), Duration::from_millis(10)).unwrap());
        }
    }
    assert!(!spawner.exists(), "the keeper reaps it");
    assert!(!keeper.has_ended());
    keeper.end_keeper().unwrap();
}

#[test]
fn helpers_without_a_daemon_end() {
    let scratch = Scratch::new();
    let Crew {
        keeper,
        spawner,
        maker,
    } = scratch.crew();
    let pidfds = [&keeper, &spawner, &maker].map(|helper| helper.pidfd.try_clone().unwrap());
    drop((keeper.socket, spawner.socket, maker.socket));
    for pidfd in &pidfds {
        assert!(readable(pidfd.as_fd(), Duration::from_secs(20)).unwrap());
    }
    waitid(Id::PIDFd(pidfds[0].as_fd()), WaitPidFlag::WEXITED).unwrap();
}

#[test]
fn what_cannot_start_is_an_error_and_leaves_no_process() {
    let scratch = Scratch::new();
    let options = CrewOptions {
        scratch_dir: Path::new("relative"),
        run_dir: scratch.directory.path(),
        helpers_procs: scratch.procs.as_fd(),
    };
    assert!(matches!(Crew::start(&options), Err(CrewError::Scratch(_))));
    let children = || {
        let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
        fs::read_to_string(path).unwrap()
    };
    let before = children();
    let read_only = File::open("/dev/null").unwrap();
    let options = CrewOptions {
        scratch_dir: scratch.directory.path(),
        run_dir: scratch.directory.path(),
        helpers_procs: read_only.as_fd(),
    };
    assert!(matches!(
        Crew::start_as(&options, &AS_HELPER),
        Err(CrewError::Join { .. })
    ));
    let options = CrewOptions {
        scratch_dir: scratch.directory.path(),
        run_dir: scratch.directory.path(),
        helpers_procs: scratch.procs.as_fd(),
    };
    // A program that ends without an answer.
    assert!(matches!(
        Crew::start_as(&options, &["--list"]),
        Err(CrewError::SetUp { .. })
    ));
    assert_eq!(children(), before);
    assert_eq!(scratch.left(), 0);
}

//! Keepers of dead daemons, taken over: with children that play init, and with whole crews.

mod crews;

use std::os::{fd::AsRawFd, unix::fs::PermissionsExt};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{MsgFlags, recv},
    wait::{WaitStatus, waitpid},
};

use super::*;
use crate::sandbox::{
    birth::{self, Birth, StepFailure},
    keeper::tests::{EXITED, Init, Kept, STARTED, exited, hear, id, keep, pair, started, tell},
    wire::{GO, KeeperEvent},
};
use crate::sys::keeper_calls::{Forked, exit_now, fork};

/// One keeper, which must be there.
fn adopt_one(kept: &Kept) -> AdoptedKeeper {
    let mut found = keepers(kept.run_dir.path()).unwrap();
    assert_eq!(found.len(), 1);
    found.pop().unwrap().unwrap()
}

fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The next event; none within `wait` is `None`.
fn event(socket: &OwnedFd, wait: Duration) -> Option<KeeperEvent> {
    readable(socket.as_fd(), wait).unwrap().then(|| {
        let mut buffer = [0; 64];
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        KeeperEvent::decode(&buffer[..length]).unwrap()
    })
}

fn events(socket: &OwnedFd, count: usize) -> Vec<KeeperEvent> {
    let next = || event(socket, Duration::from_secs(20)).expect("the keeper says nothing");
    let events = (0..count).map(|_| next()).collect();
    assert_eq!(event(socket, Duration::ZERO), None, "more than {count}");
    events
}

fn command(socket: &OwnedFd, command: KeeperCommand) {
    scm::send(socket.as_fd(), &command.encode(), &[]).unwrap();
}

/// What a job says by itself in each phase; without go the first waits, and with it runs through.
const PHASES: [Init; 4] = [
    |control| {
        assert_eq!(hear(control), GO);
        tell(control, &started().encode());
        tell(control, &exited().encode());
    },
    |control| {
        tell(control, &started().encode());
        _ = hear(control);
    },
    |control| {
        tell(control, &started().encode());
        tell(control, &exited().encode());
        _ = hear(control);
    },
    |control| {
        tell(control, &started().encode());
        tell(control, &exited().encode());
    },
];
const HELD: u8 = 40;
const FAILED: u8 = 10;

/// What is known of job `number` of those above when it can do no more by itself.
fn life(number: u8) -> Vec<KeeperEvent> {
    let id = id(number);
    if number >= HELD {
        let (step, errno) = (7, libc::EAGAIN);
        return vec![
            KeeperEvent::StepFailed { id, step, errno },
            KeeperEvent::Gone { id },
        ];
    }
    let (started, exited) = (
        KeeperEvent::Started {
            id,
            record: STARTED,
        },
        KeeperEvent::Exited { id, record: EXITED },
    );
    match number % 4 {
        0 => vec![],
        1 => vec![started],
        2 => vec![started, exited],
        _ => vec![started, exited, KeeperEvent::Gone { id }],
    }
}

fn id_of(event: &KeeperEvent) -> Option<JobId> {
    match *event {
        KeeperEvent::Born { id, .. }
        | KeeperEvent::StepFailed { id, .. }
        | KeeperEvent::Started { id, .. }
        | KeeperEvent::Exited { id, .. }
        | KeeperEvent::Gone { id } => Some(id),
        KeeperEvent::Ready | KeeperEvent::SpawnerGone => None,
    }
}

/// Fifty jobs in every phase, whose first daemon has read everything and released `released`.
fn fifty(released: &[u8]) -> Kept {
    let inits: Vec<Init> = (0..HELD)
        .map(|number| PHASES[usize::from(number % 4)])
        .collect();
    let mut kept = keep(&inits, 0);
    for number in HELD..HELD + FAILED {
        let failure = Some(StepFailure {
            step: 7,
            errno: libc::EAGAIN,
        });
        let birth = Birth {
            id: id(number),
            pid: 0,
            failure,
        };
        birth::send(kept.spawner.as_ref().unwrap().as_fd(), &birth, &[]).unwrap();
    }
    let told: usize = (0..HELD + FAILED).map(|number| life(number).len()).sum();
    (0..told + usize::from(HELD)).for_each(|_| _ = kept.event());
    for number in released {
        kept.command(KeeperCommand::Release { id: id(*number) });
    }
    (kept.daemon, kept.spawner) = (None, None);
    kept
}

/// Checks list, events and descriptors of those fifty, and returns the keeper with its jobs.
fn check(kept: &Kept, adopted: AdoptedKeeper, released: &[u8]) -> AdoptedKeeper {
    let socket = &adopted.keeper.socket;
    assert_eq!(adopted.keeper.pid, kept.pid);
    let ids: Vec<JobId> = adopted.jobs.iter().map(|job| job.id).collect();
    let held = |number: &u8| !released.contains(number);
    let numbers: Vec<u8> = (0..HELD + FAILED).filter(held).collect();
    assert_eq!(
        ids,
        numbers.iter().map(|number| id(*number)).collect::<Vec<_>>()
    );
    let mut descriptors = 0;
    for (number, job) in numbers.iter().zip(&adopted.jobs) {
        assert!(!job.is_incomplete && !job.state.released);
        let has_all = *number < HELD;
        assert_eq!(
            (job.pipes.is_some(), job.control.is_some()),
            (has_all, has_all)
        );
        let is_gone = *number >= HELD || number % 4 == 3;
        assert_eq!(job.state.gone, is_gone);
        assert_eq!(job.state.failed, *number >= HELD);
        assert_eq!(job.state.exited, *number < HELD && number % 4 > 1);
        assert_eq!(job.state.started, *number < HELD && number % 4 > 0);
        descriptors += if has_all { 3 } else { 0 } + usize::from(!is_gone);
    }
    let count: usize = numbers
        .iter()
        .map(|number| life(*number).len() + usize::from(*number < HELD))
        .sum();
    let mut told_events = events(socket, count + 1);
    assert_eq!(told_events.pop(), Some(KeeperEvent::SpawnerGone));
    for number in &numbers {
        let of_job: Vec<KeeperEvent> = told_events
            .iter()
            .filter(|event| id_of(event) == Some(id(*number)))
            .copied()
            .collect();
        let mut of_job = &of_job[..];
        if *number < HELD {
            assert!(matches!(of_job[0], KeeperEvent::Born { pid, .. } if pid > 0));
            of_job = &of_job[1..];
        }
        assert_eq!(of_job, life(*number));
    }
    // The standard three, daemon, listener, epoll.
    assert_eq!(kept.descriptors(), 6 + descriptors);
    adopted
}

#[test]
fn fifty_jobs_in_all_phases_are_adopted_twice_and_then_run_to_their_ends() {
    let released = [3, 41];
    let kept = fifty(&released);
    let first = check(&kept, adopt_one(&kept), &released);
    // The first of the new daemons releases one more, and dies.
    command(&first.keeper.socket, KeeperCommand::Release { id: id(7) });
    drop(first);
    let released = [3, 7, 41];
    let AdoptedKeeper { keeper, jobs } = check(&kept, adopt_one(&kept), &released);
    for job in &jobs {
        let message = if job.state.started { b"S\x09" } else { GO };
        if let Some(control) = &job.control {
            // The ends of those that are gone are closed.
            let _ = scm::send(control.as_fd(), message, &[]);
        }
    }
    let counts = |number: u8| match (released.contains(&number), number % 4) {
        (true, _) | (false, 3) => 0,
        (false, 0) => 3,
        (false, _) => 1,
    };
    let count = (0..HELD).map(counts).sum();
    let rest = events(&keeper.socket, count);
    for number in (0..HELD).filter(|number| counts(*number) > 0) {
        let last = rest
            .iter()
            .rev()
            .find(|event| id_of(event) == Some(id(number)));
        assert_eq!(last, Some(&KeeperEvent::Gone { id: id(number) }));
    }
    for number in 0..HELD + FAILED {
        command(&keeper.socket, KeeperCommand::Release { id: id(number) });
    }
    command(&keeper.socket, KeeperCommand::Exit);
    assert_eq!(kept.ended(), 0);
    let path = keeper.socket_path.clone().unwrap();
    keeper.end_keeper().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_daemon_that_dies_anywhere_in_the_conversation_costs_the_next_one_nothing() {
    let kept = fifty(&[]);
    let directory = File::open(kept.run_dir.path()).unwrap();
    let name = sockets(kept.run_dir.path()).unwrap().unwrap().1.remove(0);
    for count in 0..60 {
        let socket = seqpacket::connect(directory.as_fd(), &name).unwrap();
        let hello = Hello { version: SPOKEN[0] };
        scm::send(socket.as_fd(), &hello.encode(), &[]).unwrap();
        for _ in 0..count {
            assert!(readable(socket.as_fd(), Duration::from_secs(20)).unwrap());
            scm::recv(socket.as_fd(), &mut [0; 64], &mut Vec::new()).unwrap();
        }
    }
    check(&kept, adopt_one(&kept), &[]);
}

#[test]
fn while_its_daemon_lives_nobody_is_let_in_and_then_the_one_who_waited() {
    let mut kept = keep(&[|control| _ = hear(control)], 0);
    let directory = File::open(kept.run_dir.path()).unwrap();
    let name = sockets(kept.run_dir.path()).unwrap().unwrap().1.remove(0);
    let socket = seqpacket::connect(directory.as_fd(), &name).unwrap();
    // Of a version that this keeper does not speak, then of its own.
    scm::send(socket.as_fd(), &Hello { version: 200 }.encode(), &[]).unwrap();
    assert!(!readable(socket.as_fd(), Duration::from_millis(100)).unwrap());
    kept.daemon = None;
    let mut buffer = [0; 64];
    let mut next = || {
        assert!(readable(socket.as_fd(), Duration::from_secs(20)).unwrap());
        let length = scm::recv(socket.as_fd(), &mut buffer, &mut Vec::new()).unwrap();
        buffer[..length].to_vec()
    };
    let ours = Hello { version: SPOKEN[0] }.encode();
    assert_eq!(next(), ours);
    assert!(!readable(socket.as_fd(), Duration::from_millis(50)).unwrap());
    // Commands count only after a hello.
    command(&socket, KeeperCommand::Release { id: id(0) });
    scm::send(socket.as_fd(), &ours, &[]).unwrap();
    assert_eq!(next(), ours);
    let listed = Inventory::decode(&next()).unwrap();
    assert!(matches!(listed, Inventory::Job { id: listed, state, .. }
        if listed == id(0) && state == HeldState::default()));
    assert!(
        !readable(socket.as_fd(), Duration::from_millis(50)).unwrap(),
        "its spawner lives"
    );
    kept.spawner = None;
    assert_eq!(Inventory::decode(&next()), Ok(Inventory::End { jobs: 1 }));
}

#[test]
fn births_after_the_death_of_the_daemon_are_listed_and_a_stuck_spawner_is_not_waited_for() {
    let mut kept = keep(&[], 0);
    kept.daemon = None;
    let late = |number: u8| {
        let (control, theirs) = pair();
        let (output, _) = nix::unistd::pipe().unwrap();
        let pidfd = pidfd_open(std::process::id()).unwrap();
        let birth = Birth {
            id: id(number),
            pid: 7,
            failure: None,
        };
        let fds = [
            pidfd.as_fd(),
            output.as_fd(),
            output.as_fd(),
            control.as_fd(),
        ];
        birth::send(kept.spawner.as_ref().unwrap().as_fd(), &birth, &fds).unwrap();
        theirs
    };
    let first = late(1);
    let adopted = std::thread::scope(|scope| {
        let adopting = scope.spawn(|| adopt_one(&kept));
        // Comes while the list is waited for, or before it: both are right.
        let second = late(2);
        let adopted = adopting.join().unwrap();
        drop(second);
        adopted
    });
    assert_eq!(adopted.jobs.len(), 2);
    assert!(adopted.jobs.iter().all(|job| job.pipes.is_some()));
    let told = events(&adopted.keeper.socket, 3);
    assert_eq!(told[2], KeeperEvent::SpawnerGone);
    // Go reaches init through the keeper's end.
    scm::send(adopted.jobs[0].control.as_ref().unwrap().as_fd(), GO, &[]).unwrap();
    assert_eq!(hear(&first), GO);
}

/// Runs `probe` in a child of this test, where what it changes of the process is its own, and expects `true`.
fn in_a_child(probe: impl FnOnce() -> bool) {
    let Forked::Parent(pid) = fork().unwrap() else {
        exit_now(i32::from(!probe()));
    };
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
}

#[test]
fn jobs_whose_descriptors_find_no_room_are_named_and_come_whole_the_next_time() {
    let kept = fifty(&[]);
    in_a_child(|| {
        let open = descriptors_of(std::process::id()) as u64;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, open + 60, hard).unwrap();
        let adopted = adopt_one(&kept);
        let incomplete = adopted.jobs.iter().filter(|job| job.is_incomplete);
        let bare = |job: &HeldJob| job.pipes.is_none() && job.control.is_none();
        adopted.jobs.len() == 50 && incomplete.clone().count() > 10 && incomplete.clone().all(bare)
    });
    check(&kept, adopt_one(&kept), &[]);
}

#[test]
fn nobody_of_another_user_is_let_in_even_where_the_directory_lets_him_through() {
    let mut kept = keep(&[|control| _ = hear(control)], 0);
    (kept.daemon, kept.spawner) = (None, None);
    let (directory, names) = sockets(kept.run_dir.path()).unwrap().unwrap();
    let everybody = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    everybody(kept.run_dir.path(), 0o755);
    everybody(&kept.run_dir.path().join(&names[0]), 0o666);
    in_a_child(|| {
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
        let socket = seqpacket::connect(directory.as_fd(), &names[0]).unwrap();
        let hello = Hello { version: SPOKEN[0] };
        let _ = scm::send(socket.as_fd(), &hello.encode(), &[]);
        readable(socket.as_fd(), Duration::from_secs(20)).unwrap()
            && match scm::recv(socket.as_fd(), &mut [0; 64], &mut Vec::new()) {
                Ok(length) => length == 0,
                Err(error) => is_end(&error),
            }
    });
    assert_eq!(adopt_one(&kept).jobs.len(), 1);
}

#[test]
fn names_of_dead_keepers_go_and_other_files_stay() {
    let run_dir = tempfile::tempdir().unwrap();
    let directory = File::open(&run_dir).unwrap();
    for name in [socket_name(), socket_name()] {
        drop(seqpacket::bind(directory.as_fd(), &name).unwrap());
    }
    for name in [
        "keeper-0.sock",
        "joblet.sock",
        "keeper-0123456789abcdeg.sock",
    ] {
        File::create(run_dir.path().join(name)).unwrap();
    }
    assert!(keepers(run_dir.path()).unwrap().is_empty());
    let left = || fs::read_dir(&run_dir).unwrap().count();
    assert_eq!(left(), 3);
    drop(seqpacket::bind(directory.as_fd(), &socket_name()).unwrap());
    assert_eq!(remove_sockets(run_dir.path()).unwrap(), 1);
    assert_eq!(left(), 3);
    let nowhere = Path::new("/nonexistent/run");
    assert!(keepers(nowhere).unwrap().is_empty());
    assert_eq!(remove_sockets(nowhere).unwrap(), 0);
}

/// Something that is no keeper of ours answers with `answers`, one for each message.
fn imposter(answers: &[Vec<u8>]) -> AdoptError {
    let run_dir = tempfile::tempdir().unwrap();
    let directory = File::open(&run_dir).unwrap();
    let listener = seqpacket::bind(directory.as_fd(), &socket_name()).unwrap();
    seqpacket::listen(listener.as_fd(), 1).unwrap();
    std::thread::scope(|scope| {
        let adopting = scope.spawn(|| keepers(run_dir.path()).unwrap().remove(0));
        assert!(readable(listener.as_fd(), Duration::from_secs(20)).unwrap());
        let socket = seqpacket::accept(listener.as_fd()).unwrap();
        for answer in answers {
            assert!(readable(socket.as_fd(), Duration::from_secs(20)).unwrap());
            scm::recv(socket.as_fd(), &mut [0; 64], &mut Vec::new()).unwrap();
            scm::send(socket.as_fd(), answer, &[]).unwrap();
        }
        adopting.join().unwrap().unwrap_err()
    })
}

#[test]
fn a_keeper_of_an_unknown_version_or_with_other_words_is_left_alone() {
    let newer = Hello { version: 9 }.encode().to_vec();
    assert!(matches!(
        imposter(std::slice::from_ref(&newer)),
        AdoptError::Version { version: 9, .. }
    ));
    assert!(matches!(
        imposter(&[b"what?".to_vec()]),
        AdoptError::Message {
            source: WireError::Length(5),
            ..
        }
    ));
}

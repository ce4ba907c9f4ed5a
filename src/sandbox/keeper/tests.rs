//! A real keeper in a process of its own; the test plays daemon and spawner. `adopt` tests with it too.

use std::{fs, path::PathBuf};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_pdeathsig,
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::waitpid,
    },
    unistd::Pid,
};

use super::*;
use crate::sandbox::{
    adopt, birth,
    init::record::Record,
    wire::{ExitedRecord, KeeperEvent, StartedRecord},
};
use crate::sys::{
    keeper_calls::{Forked, close_others, fork, pidfd_open},
    seqpacket,
};

pub(in crate::sandbox) const STARTED: StartedRecord = StartedRecord {
    step: 0,
    errno: 0,
    mono_ns: 99,
};
pub(in crate::sandbox) const EXITED: ExitedRecord = ExitedRecord {
    wait_status: 15,
    utime_us: 1,
    stime_us: 2,
    maxrss_kb: 3,
};

/// [`STARTED`] as init writes it.
pub(in crate::sandbox) fn started() -> Record {
    let StartedRecord {
        step,
        errno,
        mono_ns,
    } = STARTED;
    Record::Started {
        step,
        errno,
        mono_ns,
    }
}

/// [`EXITED`] as init writes it, with the moment, which is not passed on.
pub(in crate::sandbox) fn exited() -> Record {
    let ExitedRecord {
        wait_status,
        utime_us,
        stime_us,
        maxrss_kb,
    } = EXITED;
    Record::Exited {
        wait_status,
        utime_us,
        stime_us,
        maxrss_kb,
        mono_ns: 100,
    }
}

/// What a child of the keeper does with its control socket, as an init would.
pub(in crate::sandbox) type Init = fn(&OwnedFd);

pub(in crate::sandbox) struct Kept {
    pub(in crate::sandbox) daemon: Option<OwnedFd>,
    pub(in crate::sandbox) spawner: Option<OwnedFd>,
    pub(in crate::sandbox) pid: u32,
    pub(in crate::sandbox) pidfd: OwnedFd,
    pub(in crate::sandbox) run_dir: tempfile::TempDir,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = pidfd_kill(self.pidfd.as_fd());
        let _ = waitpid(Pid::from_raw(i32::try_from(self.pid).unwrap()), None);
    }
}

pub(in crate::sandbox) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .unwrap()
}

pub(in crate::sandbox) fn id(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

/// A child with its own end of a control socket only.
fn child(init: Init, control: &OwnedFd) -> u32 {
    match fork().unwrap() {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            let _ = set_pdeathsig(Signal::SIGKILL);
            close_others(&[control.as_fd()]).unwrap();
            init(control);
            exit_now(0)
        }
    }
}

/// Starts a keeper whose births are `inits`, numbered from 0, and with `strays` children it is not told of.
pub(in crate::sandbox) fn keep(inits: &[Init], strays: usize) -> Kept {
    let (daemon, keeper_daemon) = pair();
    let (spawner, births) = pair();
    let run_dir = tempfile::tempdir().unwrap();
    let directory = fs::File::open(&run_dir).unwrap();
    let listener = seqpacket::bind(directory.as_fd(), &adopt::socket_name()).unwrap();
    let pid = match fork().unwrap() {
        Forked::Parent(pid) => pid,
        Forked::Child => {
            // What tests beside this one have open must not stay open here.
            let ours = [
                daemon.as_fd(),
                spawner.as_fd(),
                keeper_daemon.as_fd(),
                births.as_fd(),
                listener.as_fd(),
            ];
            close_others(&ours).unwrap();
            for (number, init) in inits.iter().enumerate() {
                let (control, theirs) = pair();
                let (output, _) = nix::unistd::pipe().unwrap();
                let pid = child(*init, &theirs);
                let birth = Birth {
                    id: id(u8::try_from(number).unwrap()),
                    pid,
                    failure: None,
                };
                let pidfd = pidfd_open(pid).unwrap();
                let fds = [
                    pidfd.as_fd(),
                    output.as_fd(),
                    output.as_fd(),
                    control.as_fd(),
                ];
                birth::send(spawner.as_fd(), &birth, &fds).unwrap();
            }
            (0..strays).for_each(|_| _ = child(|_| {}, &births));
            drop((daemon, spawner));
            run(keeper_daemon, births, listener)
        }
    };
    let kept = Kept {
        daemon: Some(daemon),
        spawner: Some(spawner),
        pid,
        pidfd: pidfd_open(pid).unwrap(),
        run_dir,
    };
    drop((keeper_daemon, births, listener));
    assert_eq!(kept.event(), KeeperEvent::Ready);
    kept
}

pub(in crate::sandbox) fn readable(fd: BorrowedFd<'_>, timeout_ms: u16) -> bool {
    poll(
        &mut [PollFd::new(fd, PollFlags::POLLIN)],
        PollTimeout::from(timeout_ms),
    )
    .unwrap()
        == 1
}

impl Kept {
    pub(in crate::sandbox) fn event(&self) -> KeeperEvent {
        let daemon = self.daemon.as_ref().unwrap();
        assert!(readable(daemon.as_fd(), 20_000), "the keeper says nothing");
        let mut buffer = [0; 64];
        let length = recv(daemon.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        KeeperEvent::decode(&buffer[..length]).unwrap()
    }

    pub(in crate::sandbox) fn born(&self, number: u8) -> u32 {
        let event = self.event();
        let KeeperEvent::Born { id: born, pid } = event else {
            panic!("{event:?}, not the birth of {number}")
        };
        assert_eq!(born, id(number));
        pid
    }

    pub(in crate::sandbox) fn command(&self, command: KeeperCommand) {
        let daemon = self.daemon.as_ref().unwrap();
        send(
            daemon.as_raw_fd(),
            &command.encode(),
            MsgFlags::MSG_NOSIGNAL,
        )
        .unwrap();
    }

    pub(in crate::sandbox) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .count()
    }

    pub(in crate::sandbox) fn ended(&self) -> i32 {
        assert!(
            readable(self.pidfd.as_fd(), 20_000),
            "the keeper does not end"
        );
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::PIDFd(self.pidfd.as_fd()), flags).unwrap();
        let WaitStatus::Exited(_, code) = status else {
            panic!("{status:?}")
        };
        code
    }

    /// Waits for a state of the keeper that commands lead to without an answer.
    pub(in crate::sandbox) fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if holds(self) {
                return;
            }
            assert!(
                !readable(self.pidfd.as_fd(), 10),
                "the keeper ended before {what}"
            );
        }
        panic!("never: {what}");
    }
}

pub(in crate::sandbox) fn tell(control: &OwnedFd, bytes: &[u8]) {
    send(control.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).unwrap();
}

pub(in crate::sandbox) fn hear(control: &OwnedFd) -> Vec<u8> {
    let mut buffer = [0; 8];
    let length = recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    buffer[..length].to_vec()
}

fn proc_dir(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

#[test]
fn a_job_is_born_started_exited_gone_reaped_and_after_release_nothing_is_held() {
    let kept = keep(&[], 0);
    let before = kept.descriptors();
    drop(kept);
    let kept = keep(
        &[|control| {
            tell(control, &started().encode());
            tell(control, &exited().encode());
        }],
        0,
    );
    let pid = kept.born(0);
    assert_eq!(
        kept.event(),
        KeeperEvent::Started {
            id: id(0),
            record: STARTED
        }
    );
    assert_eq!(
        kept.event(),
        KeeperEvent::Exited {
            id: id(0),
            record: EXITED
        }
    );
    assert_eq!(kept.event(), KeeperEvent::Gone { id: id(0) });
    assert!(!proc_dir(pid).exists(), "reaped before it is reported");
    assert_eq!(before, 7, "standard three, daemon, births, listener, epoll");
    assert_eq!(
        kept.descriptors(),
        before + 3,
        "pipes and control are kept until release"
    );
    kept.command(KeeperCommand::Release { id: id(0) });
    kept.until("all is closed", |kept| kept.descriptors() == before);
    assert!(
        !readable(kept.daemon.as_ref().unwrap().as_fd(), 0),
        "nothing else was said"
    );
}

#[test]
fn a_signal_reaches_init_and_a_record_behind_an_unread_signal_is_not_lost() {
    let kept = keep(
        &[|control| {
            assert_eq!(hear(control), [wire::SIGNAL, 15]);
            tell(control, &started().encode());
            // Leave the next one unread: closing then resets the socket in front of the record.
            assert!(readable(control.as_fd(), 20_000));
            tell(control, &exited().encode());
        }],
        0,
    );
    kept.born(0);
    kept.command(KeeperCommand::Signal {
        id: id(0),
        signo: 15,
    });
    assert_eq!(
        kept.event(),
        KeeperEvent::Started {
            id: id(0),
            record: STARTED
        }
    );
    kept.command(KeeperCommand::Signal {
        id: id(0),
        signo: 2,
    });
    assert_eq!(
        kept.event(),
        KeeperEvent::Exited {
            id: id(0),
            record: EXITED
        }
    );
    assert_eq!(kept.event(), KeeperEvent::Gone { id: id(0) });
}

#[test]
fn what_a_daemon_does_not_read_is_kept_and_comes_in_order() {
    const COUNT: u32 = 3_000;
    let mut kept = keep(&[], 0);
    let number = |number: u32| {
        let mut raw = [0; 16];
        raw[..4].copy_from_slice(&number.to_le_bytes());
        JobId::from_bytes(raw)
    };
    let failure = StepFailure {
        step: 7,
        errno: libc::EAGAIN,
    };
    for count in 0..COUNT {
        let birth = Birth {
            id: number(count),
            pid: 0,
            failure: Some(failure),
        };
        birth::send(kept.spawner.as_ref().unwrap().as_fd(), &birth, &[]).unwrap();
    }
    for count in 0..COUNT {
        let id = number(count);
        assert_eq!(
            kept.event(),
            KeeperEvent::StepFailed {
                id,
                step: 7,
                errno: libc::EAGAIN
            }
        );
        assert_eq!(kept.event(), KeeperEvent::Gone { id });
        kept.command(KeeperCommand::Release { id });
    }
    kept.command(KeeperCommand::Exit);
    kept.spawner = None;
    assert_eq!(kept.ended(), 0);
}

#[test]
fn a_birth_without_its_descriptors_is_a_failed_step() {
    let kept = keep(&[], 0);
    let birth = Birth {
        id: id(9),
        pid: 1,
        failure: None,
    };
    birth::send(kept.spawner.as_ref().unwrap().as_fd(), &birth, &[]).unwrap();
    let step = wire::STEP_TAKE_OVER;
    assert_eq!(
        kept.event(),
        KeeperEvent::StepFailed {
            id: id(9),
            step,
            errno: libc::EMFILE
        }
    );
    assert_eq!(kept.event(), KeeperEvent::Gone { id: id(9) });
}

#[test]
fn without_a_daemon_jobs_are_held_and_nothing_spins() {
    let mut kept = keep(
        &[
            |control| _ = hear(control),
            |control| tell(control, &exited().encode()),
        ],
        0,
    );
    kept.daemon = None;
    // The standard three, births, listener, epoll; four of the living job, three of the dead one.
    kept.until("both jobs are held", |kept| kept.descriptors() == 13);
    assert!(!readable(kept.pidfd.as_fd(), 200), "the keeper ended");
    let stat = fs::read_to_string(format!("/proc/{}/stat", kept.pid)).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    assert!(ticks <= 8, "{ticks} ticks of processor time");
    assert_eq!(kept.descriptors(), 13);
}

#[test]
fn a_lost_spawner_is_reported_and_children_nobody_told_of_are_reaped() {
    let mut kept = keep(&[], 2);
    let children = format!("/proc/{0}/task/{0}/children", kept.pid);
    assert_eq!(
        fs::read_to_string(&children)
            .unwrap()
            .split_whitespace()
            .count(),
        2
    );
    kept.spawner = None;
    assert_eq!(kept.event(), KeeperEvent::SpawnerGone);
    kept.until("no child is left", |_| {
        fs::read_to_string(&children).unwrap().is_empty()
    });
}

#[test]
fn a_killed_spawner_is_gone_after_its_births_also_while_its_socket_is_open_elsewhere() {
    let init: Init = |control| _ = hear(control);
    let kept = keep(&[init; 3], 0);
    let stuck = kept.spawner.as_ref().unwrap().try_clone().unwrap();
    let birth = Birth {
        id: id(3),
        pid: 0,
        failure: Some(StepFailure { step: 24, errno: 4 }),
    };
    birth::send(stuck.as_fd(), &birth, &[]).unwrap();
    kept.command(KeeperCommand::SpawnerKilled);
    (0..3).for_each(|number| _ = kept.born(number));
    assert_eq!(
        kept.event(),
        KeeperEvent::StepFailed {
            id: id(3),
            step: 24,
            errno: 4
        }
    );
    assert_eq!(kept.event(), KeeperEvent::Gone { id: id(3) });
    assert_eq!(kept.event(), KeeperEvent::SpawnerGone);
    kept.command(KeeperCommand::SpawnerKilled);
    assert!(
        !readable(kept.daemon.as_ref().unwrap().as_fd(), 50),
        "it is said once"
    );
    drop(stuck);
}

#[test]
fn exit_waits_for_the_release_of_the_last_job() {
    let mut kept = keep(&[|_| {}], 0);
    kept.born(0);
    assert_eq!(kept.event(), KeeperEvent::Gone { id: id(0) });
    kept.command(KeeperCommand::Exit);
    kept.spawner = None;
    kept.command(KeeperCommand::Signal {
        id: id(0),
        signo: 15,
    });
    kept.command(KeeperCommand::Release { id: id(1) });
    assert!(!readable(kept.pidfd.as_fd(), 50), "a job is still held");
    kept.command(KeeperCommand::Release { id: id(0) });
    assert_eq!(kept.ended(), 0);
}

#[test]
fn a_job_released_while_it_runs_is_still_reaped_and_says_no_more() {
    let mut kept = keep(
        &[|control| _ = recv(control.as_raw_fd(), &mut [0; 8], MsgFlags::empty())],
        0,
    );
    let pid = kept.born(0);
    kept.command(KeeperCommand::Release { id: id(0) });
    kept.until("the released job is reaped", |_| !proc_dir(pid).exists());
    kept.command(KeeperCommand::Exit);
    kept.spawner = None;
    assert_eq!(kept.ended(), 0);
}

#[test]
fn alone_and_empty_a_keeper_ends() {
    let mut kept = keep(&[], 0);
    kept.daemon = None;
    kept.spawner = None;
    assert_eq!(kept.ended(), 0);
}

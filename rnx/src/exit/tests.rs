//! Which error gives which exit code and which words.

use rnx::{
    Unreachable,
    proto::{FrameError, Limits, LogTotals, State, Usage, Work},
};

use super::*;

fn job(reason: Reason, exit_code: Option<i32>, signal: Option<i32>) -> Job {
    Job {
        id: [0x11; 16],
        name: None,
        owner: "alice".into(),
        state: State::Failed,
        command: "nosuch -x".into(),
        labels: Vec::new(),
        workdir: "/work".into(),
        user: (1000, 1000),
        work_bytes: 0,
        work: Work::Memory,
        volumes: Vec::new(),
        timeout_ms: Some(2_000),
        grace_ms: 10_000,
        limits: Limits {
            memory_bytes: Some(64 << 20),
            ..Limits::default()
        },
        caveats: Vec::new(),
        transitions: Vec::new(),
        outcome: Some(Outcome {
            reason,
            exit_code,
            signal,
            usage: Usage::default(),
            wall_ms: 0,
            queued_ms: 0,
            start_micros: None,
        }),
        log: LogTotals::default(),
        schedule: None,
        schedule_id: None,
        next_runs_ns: Vec::new(),
        last_run_ns: None,
        priority: 0,
        waits_for: None,
    }
}

#[test]
fn an_attached_run_exits_like_its_job() {
    let check =
        |reason: Reason, exit: Option<i32>, signal: Option<i32>, code: u8, says: Option<&str>| {
            let job = job(reason, exit, signal);
            assert_eq!(
                outcome_code(job.outcome.as_ref().unwrap()),
                code,
                "{:?}",
                job.outcome
            );
            let said = outcome_message(&job, false)
                .map(|text| text.replace("11111111-1111-1111-1111-111111111111", "J"));
            assert_eq!(said.as_deref(), says);
        };
    let by = || Reason::Stopped { by: "bob".into() };
    check(Reason::Exited, Some(0), None, 0, None);
    check(Reason::Exited, Some(7), None, 7, None);
    check(Reason::Exited, Some(255), None, 255, None);
    check(
        Reason::Signaled,
        None,
        Some(6),
        134,
        Some("job J ended by SIGABRT"),
    );
    check(
        Reason::Signaled,
        None,
        Some(9),
        137,
        Some("job J ended by SIGKILL"),
    );
    check(
        Reason::OutOfMemory,
        None,
        Some(9),
        137,
        Some("job J ran out of memory at 64 MB"),
    );
    check(
        Reason::Timeout,
        None,
        Some(15),
        124,
        Some("job J ran out of time after 2s"),
    );
    check(by(), None, Some(15), 143, Some("job J was stopped by bob"));
    check(by(), Some(3), None, 3, Some("job J was stopped by bob"));
    check(
        Reason::LogLimit,
        None,
        Some(9),
        137,
        Some("job J was stopped because of too much output"),
    );
    check(
        Reason::CommandNotFound,
        None,
        None,
        127,
        Some("nosuch: command not found"),
    );
    check(
        Reason::Canceled,
        None,
        None,
        125,
        Some("job J was canceled before it began"),
    );
    check(
        Reason::DaemonDown,
        None,
        Some(15),
        143,
        Some("job J was ended by `joblet down`"),
    );
    let lost = "job J was lost with its helper processes; how it ended is not known";
    check(Reason::HostLost, None, None, 125, Some(lost));
    if cfg!(target_os = "linux") {
        let denied = "nosuch: cannot be executed: permission denied";
        check(
            Reason::CommandNotExecutable { errno: 13 },
            None,
            None,
            126,
            Some(denied),
        );
        let step = Reason::StartFailed {
            step: "mount /proc".into(),
            errno: 1,
        };
        check(
            step,
            None,
            None,
            125,
            Some("job J could not be started: mount /proc: operation not permitted"),
        );
    }
    let step = Reason::StartFailed {
        step: "read uploads".into(),
        errno: 0,
    };
    check(
        step,
        None,
        None,
        125,
        Some("job J could not be started: read uploads"),
    );
    assert_eq!(outcome_message(&job(by(), None, Some(2)), true), None);
}

#[test]
fn refusals_have_the_codes_of_the_table() {
    let check = |refusal: RefusalCode, plain: u8, attached: u8| {
        let refused = RequestError::Refused(Refusal {
            code: refusal,
            message: "m".into(),
            hint: Some("h".into()),
        });
        let failure = Failure::from(refused);
        assert_eq!(
            (failure.message.as_deref(), failure.hint.as_deref()),
            (Some("m"), Some("h"))
        );
        assert_eq!(
            (failure.code, failure.attached().code),
            (plain, attached),
            "{refusal:?}"
        );
    };
    check(RefusalCode::Invalid, 2, 2);
    check(RefusalCode::NotFound, 3, 125);
    check(RefusalCode::NotPermitted, 4, 125);
    check(RefusalCode::Conflict, 5, 125);
    check(RefusalCode::TooLarge, 1, 125);
    check(RefusalCode::Unsupported, 1, 125);
    check(RefusalCode::Busy, 1, 125);
    check(RefusalCode::Failed, 1, 125);
}

#[test]
fn a_server_that_cannot_be_reached_or_trusted_is_6() {
    let address = || "h:1".to_owned();
    let refused = ConnectError::Unreachable {
        address: address(),
        why: Unreachable::Refused,
    };
    let failure = Failure::from(refused);
    assert_eq!(
        (failure.code, failure.message.as_deref()),
        (6, Some("cannot reach h:1: connection refused"))
    );
    let untrusted = |side| ConnectError::Untrusted {
        address: address(),
        side,
        why: Distrust::Expired,
    };
    let failure = Failure::from(RequestError::from(untrusted(Side::Client)));
    assert_eq!(
        (failure.code, failure.message.as_deref()),
        (6, Some("our certificate is not accepted by h:1: expired"))
    );
    assert_eq!(Failure::from(untrusted(Side::Server)).code, 6);
    assert_eq!(
        Failure::from(ConnectError::OtherProtocol { address: address() }).code,
        6
    );
    assert_eq!(
        Failure::from(RequestError::Frame(FrameError::Control)).code,
        1
    );
}

#[test]
fn a_closed_pipe_is_success_also_in_an_attached_run() {
    let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
    assert!(failure.is_closed_pipe() && failure.message.is_none());
    assert_eq!(failure.attached().code, 0);
    assert_eq!(
        Failure::from(io::Error::from(io::ErrorKind::StorageFull)).code,
        1
    );
}

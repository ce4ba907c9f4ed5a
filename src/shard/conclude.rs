//! Our reading of an end: from what was seen and what we did to the one outcome of a job.

use super::{
    core::{Alive, Cause},
    effect::{Exit, ExitStatus, Moment},
};
use crate::job::{Outcome, Reason, State, Usage};

/// What a job's end means. `arrived_mono_ns` is when its submit came in.
///
/// The cause we wrote down before we acted decides; what the kernel said fills in code and signal. A job
/// that died without an exit record and without a cause of ours was killed as a whole from outside, init
/// first, and that takes every process with SIGKILL.
pub(super) fn conclude(alive: &Alive, arrived_mono_ns: u64, now: Moment) -> (State, Outcome) {
    let status = match (alive.exit, alive.started_mono_ns, &alive.cause) {
        (Some(Exit { status, .. }), _, _) => Some(status),
        (None, Some(_), Some(Cause::HostLost)) | (None, None, _) => None,
        (None, Some(_), _) => Some(ExitStatus::Signal(libc::SIGKILL)),
    };
    let (state, reason) = read(alive, status);
    let outcome = Outcome {
        reason,
        exit_code: status.and_then(|status| match status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal(_) => None,
        }),
        signal: status.and_then(|status| match status {
            ExitStatus::Signal(signal) => Some(signal),
            ExitStatus::Code(_) => None,
        }),
        usage: Usage {
            cpu_user_us: alive.exit.map_or(0, |exit| exit.cpu_user_us),
            cpu_system_us: alive.exit.map_or(0, |exit| exit.cpu_system_us),
            ..Usage::default()
        },
        wall_ms: alive
            .started_mono_ns
            .map_or(0, |at| now.mono_ns.saturating_sub(at) / 1_000_000),
        queued_ms: 0,
        start_micros: alive
            .started_mono_ns
            .map(|at| at.saturating_sub(arrived_mono_ns) / 1_000),
    };
    (state, outcome)
}

fn read(alive: &Alive, status: Option<ExitStatus>) -> (State, Reason) {
    match &alive.cause {
        Some(Cause::Timeout) => (State::Timeout, Reason::Timeout),
        Some(Cause::Stopped { by }) => (State::Stopped, Reason::Stopped { by: by.clone() }),
        Some(Cause::LogLimit) => (State::Failed, Reason::LogLimit),
        Some(Cause::DaemonDown) => (State::Stopped, Reason::DaemonDown),
        Some(Cause::HostLost) => (State::Failed, Reason::HostLost),
        Some(Cause::Abandoned) => (State::Canceled, Reason::Canceled),
        Some(Cause::NotFound) => (State::Failed, Reason::CommandNotFound),
        Some(Cause::NotExecutable(errno)) => (
            State::Failed,
            Reason::CommandNotExecutable { errno: *errno },
        ),
        Some(Cause::StartFailed(failure)) => (
            State::Failed,
            Reason::StartFailed {
                step: failure.step.clone(),
                errno: failure.errno,
            },
        ),
        None => match status {
            Some(ExitStatus::Code(0)) => (State::Completed, Reason::Exited),
            Some(ExitStatus::Code(_)) => (State::Failed, Reason::Exited),
            Some(ExitStatus::Signal(_)) => (State::Failed, Reason::Signaled),
            None => (
                State::Failed,
                Reason::StartFailed {
                    step: "init".to_owned(),
                    errno: 0,
                },
            ),
        },
    }
}

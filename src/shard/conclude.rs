//! Our reading of an end: from what was seen and what we did to the one outcome of a job.

use super::{
    core::{Alive, Cause},
    effect::{Exit, ExitStatus, Moment, StartFailure},
};
use crate::job::{Outcome, Reason, State, Usage};

/// When what came before the command's execve, CLOCK_MONOTONIC nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    /// Its submit came in.
    pub(super) arrived: u64,
    /// Its sandbox began to be made, if it ever did.
    pub(super) made: Option<u64>,
}

/// What a job's end means. `usage` is what its cgroup counted, where that could be read.
///
/// The cause we wrote down before we acted decides; what the kernel said fills in code and signal. A job
/// that died without an exit record and without a cause of ours was killed as a whole from outside, init
/// first, and that takes every process with SIGKILL.
pub(super) fn conclude(
    alive: &Alive,
    usage: Option<Usage>,
    beginning: Beginning,
    now: Moment,
) -> (State, Outcome) {
    let status = match (alive.exit, alive.started_mono_ns, &alive.cause) {
        (Some(Exit { status, .. }), _, _) => Some(status),
        (None, Some(_), Some(Cause::HostLost)) | (None, None, _) => None,
        (None, Some(_), _) => Some(ExitStatus::Signal(libc::SIGKILL)),
    };
    // Without a cgroup that told, what init saw of the command.
    let usage = usage.unwrap_or_else(|| Usage {
        cpu_user_us: alive.exit.map_or(0, |exit| exit.cpu_user_us),
        cpu_system_us: alive.exit.map_or(0, |exit| exit.cpu_system_us),
        ..Usage::default()
    });
    let is_out_of_memory = usage.oom_kills.is_some_and(|kills| kills > 0);
    let (state, reason) = read(alive, status, is_out_of_memory);
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
        usage,
        wall_ms: alive
            .started_mono_ns
            .map_or(0, |at| now.mono_ns.saturating_sub(at) / 1_000_000),
        queued_ms: beginning
            .made
            .unwrap_or(now.mono_ns)
            .saturating_sub(beginning.arrived)
            / 1_000_000,
        start_micros: alive
            .started_mono_ns
            .map(|at| at.saturating_sub(beginning.arrived) / 1_000),
    };
    (state, outcome)
}

fn read(alive: &Alive, status: Option<ExitStatus>, is_out_of_memory: bool) -> (State, Reason) {
    match (&alive.cause, status) {
        (Some(cause), _) => (state_of(cause), reason_of(cause)),
        // The kernel was faster than the word of it.
        (None, _) if is_out_of_memory => (State::Failed, Reason::OutOfMemory),
        (None, Some(ExitStatus::Code(0))) => (State::Completed, Reason::Exited),
        (None, Some(ExitStatus::Code(_))) => (State::Failed, Reason::Exited),
        (None, Some(ExitStatus::Signal(_))) => (State::Failed, Reason::Signaled),
        (None, None) => {
            let step = "init".to_owned();
            (State::Failed, Reason::StartFailed { step, errno: 0 })
        }
    }
}

const fn state_of(cause: &Cause) -> State {
    match cause {
        Cause::Timeout => State::Timeout,
        Cause::Stopped { .. } | Cause::DaemonDown => State::Stopped,
        Cause::Abandoned | Cause::Canceled => State::Canceled,
        Cause::OutOfMemory
        | Cause::LogLimit
        | Cause::HostLost
        | Cause::NotFound
        | Cause::NotExecutable(_)
        | Cause::StartFailed(_) => State::Failed,
    }
}

/// What the one who asks is told of a cause.
pub(super) fn reason_of(cause: &Cause) -> Reason {
    match cause {
        Cause::Timeout => Reason::Timeout,
        Cause::Stopped { by } => Reason::Stopped { by: by.clone() },
        Cause::OutOfMemory => Reason::OutOfMemory,
        Cause::LogLimit => Reason::LogLimit,
        Cause::DaemonDown => Reason::DaemonDown,
        Cause::HostLost => Reason::HostLost,
        Cause::Abandoned | Cause::Canceled => Reason::Canceled,
        Cause::NotFound => Reason::CommandNotFound,
        Cause::NotExecutable(errno) => Reason::CommandNotExecutable { errno: *errno },
        Cause::StartFailed(StartFailure { step, errno }) => Reason::StartFailed {
            step: step.clone(),
            errno: *errno,
        },
    }
}

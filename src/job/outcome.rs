//! Why a job ended: one typed record a job.

use super::Usage;

/// Our reading of how a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// Exit code of the command, when it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended the command, when one did.
    pub signal: Option<i32>,
    /// What the job used in all.
    pub usage: Usage,
    /// From `execve` to the end, milliseconds; zero when the command never started.
    pub wall_ms: u64,
    /// From the arrival of the submit until its sandbox began to be made, milliseconds.
    pub queued_ms: u64,
    /// From the arrival of the submit to the command's `execve`, microseconds.
    pub start_micros: Option<u64>,
}

/// The reason, decided before the kill where we are the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The command exited by itself.
    Exited,
    /// A signal that was not ours ended the command.
    Signaled,
    /// It used more memory than it may.
    OutOfMemory,
    /// Its timeout.
    Timeout,
    /// Somebody asked for it.
    Stopped {
        /// Common name of the one who asked.
        by: String,
    },
    /// Ended before it began.
    Canceled,
    /// Its output exceeded `limits.log_bytes` under the policy `stop`.
    LogLimit,
    /// Its sandbox could not be made.
    StartFailed {
        /// Name of the step that failed.
        step: String,
        /// The kernel's error number, 0 when there is none.
        errno: i32,
    },
    /// There is no such command in the job's root.
    CommandNotFound,
    /// The command is there but the kernel would not execute it.
    CommandNotExecutable {
        /// The kernel's error number.
        errno: i32,
    },
    /// The daemon or its helpers died and the true end is not known.
    HostLost,
    /// `joblet down` ended it.
    DaemonDown,
}

/// How much output there was: what the job produced is `stdout_bytes + stderr_bytes + dropped_bytes`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogTotals {
    /// Bytes of standard output in its file.
    pub stdout_bytes: u64,
    /// Bytes of standard error in its file.
    pub stderr_bytes: u64,
    /// Bytes written by the job and not stored.
    pub dropped_bytes: u64,
}

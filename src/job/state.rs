//! States of a job.
//!
//! ```text
//! Scheduled ─► Queued ─► Initializing ─► Running ─► Stopping ─┐
//!     │          │            │             │                 ├─► Completed · Failed · Stopped · Timeout
//!     │          │            └─────────────┴─────────────────┘
//!     └──────────┴─► Canceled
//! ```
//! A job begins where it must: `Scheduled` when it was given a time, `Queued` when there is no room for it. One
//! that repeats stays `Scheduled` until it is canceled; each of its repetitions is a job of its own.

/// Where a job is in its life. It never lies: `Running` means that the command has passed `execve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its time has not come.
    Scheduled,
    /// Waits for capacity.
    Queued,
    /// Its sandbox is being made.
    Initializing,
    /// Its command has passed `execve`.
    Running,
    /// Asked to stop, still alive.
    Stopping,
    /// Exit code 0.
    Completed,
    /// Ended in any way not named here.
    Failed,
    /// Ended by a stop.
    Stopped,
    /// Ended by its timeout.
    Timeout,
    /// Ended before it began.
    Canceled,
}

impl State {
    /// Whether nothing can happen to the job any more.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Scheduled
            | Self::Queued
            | Self::Initializing
            | Self::Running
            | Self::Stopping => false,
            Self::Completed | Self::Failed | Self::Stopped | Self::Timeout | Self::Canceled => true,
        }
    }
}

/// One state entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Which.
    pub state: State,
    /// Wall clock, nanoseconds since the epoch.
    pub wall_ns: i64,
    /// Monotonic clock of the host, nanoseconds.
    pub mono_ns: u64,
}

//! A job as it is shown: a copy that may leave the shard.

use bytes::Bytes;

use super::{Caveat, JobId, LogTotals, Outcome, Reason, Schedule, Spec, State, Stream, Transition};

/// Everything a peer may know about one job. `Send`, so that it may cross shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Common name of the certificate that submitted it.
    pub owner: String,
    /// State.
    pub state: State,
    /// What was asked; shared because a long argument list is not copied for each reader.
    pub spec: std::sync::Arc<Spec>,
    /// What its `/work` is made of.
    pub work: WorkKind,
    /// Which of its limits do not hold in every case on this host.
    pub caveats: Vec<Caveat>,
    /// Every state entered, oldest first.
    pub transitions: Vec<Transition>,
    /// Why it is being ended, when we are doing that.
    pub ending: Option<Reason>,
    /// Why it ended, when it has.
    pub outcome: Option<Outcome>,
    /// Output so far.
    pub log: LogTotals,
    /// The schedule that it is a repetition of.
    pub schedule_id: Option<JobId>,
    /// When it runs next, nanoseconds since the epoch; only while `Scheduled`.
    pub next_run_ns: Option<i64>,
    /// When its schedule last made it run, nanoseconds since the epoch.
    pub last_run_ns: Option<i64>,
    /// What it waits for, in one line: while `Queued`, or while it stands still because the host's disk is full.
    pub waits_for: Option<String>,
}

impl JobView {
    /// Whether it is a schedule: a job that repeats, and no repetition.
    #[must_use]
    pub fn is_schedule(&self) -> bool {
        self.schedule_id.is_none() && self.spec.schedule.as_ref().is_some_and(Schedule::repeats)
    }
}

/// What a job's `/work` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// A tmpfs charged to the job.
    Memory,
    /// A disk image.
    Disk,
}

/// What this daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Instance, 8 hex digits.
    pub instance: String,
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// Number of shards.
    pub shards: usize,
    /// Jobs that have not ended.
    pub jobs_live: u64,
    /// From a submit's arrival to the command's `execve`: p50, p99 in nanoseconds, and how many.
    pub start_ns: (u64, u64, u64),
}

/// A piece of output, in the order of capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which stream.
    pub stream: Stream,
    /// Position of the first byte in that stream.
    pub offset: u64,
    /// When it was captured, nanoseconds since the epoch.
    pub time_ns: u64,
    /// The bytes, never empty.
    pub bytes: Bytes,
}

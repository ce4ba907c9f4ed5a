//! What can happen to a job, and what is to be done about it.
//!
//! The reactor takes an [`Event`] and pushes [`Effect`]s; the driver performs them and turns what came of
//! them into further events. Neither type holds a descriptor or a future: both can be compared and printed.

use std::time::Instant;

use crate::job::{Caveat, JobId, JobView, LogTotals, Refusal, Spec, StopSignal, Usage, WorkKind};

/// When something happened, on the three clocks that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For timers.
    pub instant: Instant,
    /// Wall clock, nanoseconds since the epoch.
    pub wall_ns: i64,
    /// CLOCK_MONOTONIC, nanoseconds; the clock that init stamps its records with.
    pub mono_ns: u64,
}

/// When a new job is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// At once.
    Now,
    /// When the daemon's queue lets it; what it waits for.
    Queued(String),
    /// When the wall clock has reached that, nanoseconds since the epoch.
    At(i64),
}

/// A job that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its id, unique.
    pub id: JobId,
    /// Common name of the one who asked.
    pub owner: String,
    /// What was asked.
    pub spec: Spec,
    /// What its `/work` will be made of.
    pub work: WorkKind,
    /// Which of its limits do not hold in every case on this host.
    pub caveats: Vec<Caveat>,
    /// When the request arrived, CLOCK_MONOTONIC nanoseconds.
    pub arrived_mono_ns: u64,
    /// The schedule that it is a repetition of.
    pub schedule_id: Option<JobId>,
    /// When it is to be made.
    pub start: Start,
    /// The daemon's queue counts it.
    pub has_place: bool,
}

/// A job of a former daemon that had not ended, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundJob {
    /// What the store says.
    pub view: JobView,
    /// What the helpers and the kernel say.
    pub whereabouts: Whereabouts,
    /// Its uploads are on the disk, so that it can be made again.
    pub has_spool: bool,
}

/// Where a job of a former daemon was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// A keeper holds it and tells its story from the beginning.
    Held,
    /// Nothing of it ever ran.
    NotBegun,
    /// No keeper has it, and something of it may have run.
    Lost,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A front wants a job.
    Submit(Box<NewJob>),
    /// The client has given everything; the job may run.
    Accept(JobId),
    /// The client went away before it had given everything.
    Abandon(JobId),
    /// The store keeps the job, or could not take it.
    Recorded(JobId, Result<(), Refusal>),
    /// The store keeps the job's outcome.
    EndRecorded(JobId),
    /// A job of a former daemon is taken over.
    Found(Box<FoundJob>),
    /// A resource of the sandbox could not be made; nothing of the job runs.
    PrepareFailed(JobId, StartFailure),
    /// The job's recipe went to the spawner.
    Sent(JobId),
    /// A step of the sandbox failed in the job's first process, which is gone or going.
    StepFailed(JobId, StartFailure),
    /// The spawner died with this job's recipe unread: it may be sent again.
    Unsent(JobId),
    /// init exists.
    Born(JobId),
    /// init has started the command at that time (CLOCK_MONOTONIC nanoseconds), or could not.
    Started(JobId, Result<u64, ExecFailure>),
    /// The command has ended.
    Exited(JobId, Exit),
    /// Every process of the job but its init is reaped; init ends by itself.
    Reaped(JobId),
    /// No process of the job is left.
    Gone(JobId),
    /// The keeper died: nobody will tell how the job ends, and its processes have been killed.
    Orphaned(JobId),
    /// All output is in the files; this is what the job used, where that could be read.
    Drained(JobId, LogTotals, Option<Usage>),
    /// A process of the job was killed because memory was out.
    OutOfMemory(JobId),
    /// Output reached its limit under the policy `stop`.
    LogLimit(JobId),
    /// A peer asks the job to stop.
    Stop {
        /// Which.
        id: JobId,
        /// Common name of the one who asks.
        by: String,
        /// The first signal.
        signal: StopSignal,
    },
    /// The store knows that a job which waited is being made now.
    Begun(JobId),
    /// The queue lets a job be made.
    Granted(JobId),
    /// What a job in the queue waits for.
    Waits(JobId, String),
    /// The wall clock has reached the time of a scheduled job.
    Due(JobId),
    /// A peer takes back a job that has not begun.
    Cancel(JobId),
    /// A timer that was set has expired.
    Timer(JobId, Timer),
    /// The daemon ends and leaves its jobs to the next one, or waits for them: nothing is admitted.
    Close,
    /// The daemon goes down: every job is to end, nothing is admitted.
    Shutdown,
}

/// The timers of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Its wall-clock limit.
    Timeout,
    /// The time between SIGTERM and SIGKILL.
    Grace,
}

/// A step that failed while a sandbox was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// Name of the step.
    pub step: String,
    /// The kernel's error number, 0 when there is none.
    pub errno: i32,
}

/// Why init could not start the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecFailure {
    /// There is no such command.
    NotFound,
    /// The kernel would not execute it.
    NotExecutable(i32),
    /// A step before `execve` failed.
    Step(StartFailure),
}

/// How the command ended, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As waitid(2) gives it.
    pub status: ExitStatus,
    /// CPU time of the command and what it waited for, user mode, microseconds.
    pub cpu_user_us: u64,
    /// The same in the kernel.
    pub cpu_system_us: u64,
}

/// Exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// Something to be done. Effects of one event are performed in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make the sandbox's resources and send the recipe to the spawner.
    Prepare(JobId),
    /// Let init start the command.
    Go(JobId),
    /// Send a signal to the command.
    Signal(JobId, i32),
    /// Kill every process of the job.
    Kill(JobId),
    /// Feed [`Event::Timer`] at that time; a timer of the same kind that is set is replaced.
    SetTimer(JobId, Timer, Instant),
    /// Bring all output into the files, then feed [`Event::Drained`].
    Drain(JobId),
    /// Have the store keep the job, then feed [`Event::Recorded`].
    RecordAccepted(JobId),
    /// Tell whoever submitted the job that it is accepted, or why it is not.
    Answer(JobId, Result<(), Refusal>),
    /// Have the store note how far a job is: why it is being ended, when it runs next. Signals and kills of the job
    /// that follow wait until it has, or has had its time: a successor must not take an end of our making for the
    /// command's own.
    RecordProgress(JobId),
    /// Have the store note, however long that takes, that a job which waited is being made now; then feed
    /// [`Event::Begun`].
    RecordBegun(JobId),
    /// Feed [`Event::Due`] when the wall clock has reached that; an alarm of the job that is set is replaced.
    SetAlarm(JobId, i64),
    /// Ask the queue for a place for the job, then feed [`Event::Granted`], at once or later.
    Ask(JobId),
    /// Tell the queue that the job has a place, which a former daemon gave it.
    Claim(JobId),
    /// Tell the queue that the job needs its place no more.
    GiveBack(JobId),
    /// Submit the repetition of a schedule that was due then, nanoseconds since the epoch.
    Repeat(JobId, i64),
    /// Have the store keep the job's outcome, wake everybody who waits for the job, then feed
    /// [`Event::EndRecorded`].
    RecordEnded(JobId),
    /// Give back what the job holds, but for its keeper's entry: cgroup, ids, `/work`. Not before the store has its
    /// end: without its cgroup a job that nobody holds looks as if it had never begun.
    Release(JobId),
    /// Have the keeper forget the job.
    Forget(JobId),
    /// Remove the job's output.
    DeleteOutput(JobId),
    /// The last job of a shutdown has ended, and the store has it.
    AllEnded,
}

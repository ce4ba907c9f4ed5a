//! The pure state of one shard: its jobs and nothing of how they are performed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    conclude::reason_of,
    effect::{Exit, Moment, StartFailure},
};
use crate::job::{
    Caveat, JobId, JobView, LogTotals, Outcome, Reason, Spec, State, Transition, WorkKind,
};

/// Bounds that the reactor enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreLimits {
    /// Jobs of this shard that have something of the host: a sandbox that is made or lives.
    pub live_jobs_max: usize,
    /// Sandboxes being made at once; further jobs wait in the order of arrival.
    pub starts_max: usize,
    /// Jobs of this shard whose time has not come.
    pub scheduled_max: usize,
    /// Jobs need a place in the daemon's queue before they are made.
    pub has_queue: bool,
}

/// The jobs of one shard that have not ended, and those whose end is not in the store yet.
#[derive(Debug)]
pub struct Core {
    pub(super) limits: CoreLimits,
    pub(super) jobs: HashMap<JobId, Job>,
    /// Jobs that wait for a place among those being made, oldest first.
    pub(super) waiting: VecDeque<JobId>,
    /// How many sandboxes are being made.
    pub(super) starting: usize,
    /// How many of the jobs have ended.
    pub(super) ended: usize,
    /// How many of them wait for their time.
    pub(super) scheduled: usize,
    /// How many of them wait in the daemon's queue.
    pub(super) queued: usize,
    /// Nothing is admitted any more.
    pub(super) is_closed: bool,
    /// Every job is being ended.
    pub(super) is_down: bool,
    /// CLOCK_MONOTONIC of the event that is being taken.
    pub(super) now_mono_ns: u64,
}

/// One job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) owner: String,
    pub(super) spec: Arc<Spec>,
    pub(super) work: WorkKind,
    pub(super) caveats: Vec<Caveat>,
    pub(super) arrived_mono_ns: u64,
    /// When its sandbox began to be made.
    pub(super) made_mono_ns: Option<u64>,
    pub(super) transitions: Vec<Transition>,
    /// How far its record is.
    pub(super) record: Record,
    /// Counts among the sandboxes being made.
    pub(super) has_slot: bool,
    /// The daemon's queue knows it.
    pub(super) has_place: bool,
    pub(super) schedule_id: Option<JobId>,
    /// When its schedule last made it run, nanoseconds since the epoch.
    pub(super) last_run_ns: Option<i64>,
    /// Why a former daemon was ending it, until its birth is heard of again.
    pub(super) was_ending: Option<Cause>,
    pub(super) phase: Phase,
}

/// How far the record of a job is. Only a job whose record is kept may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// The client has not given everything yet.
    Open,
    /// It has, and the store was asked to keep the job.
    Writing,
    /// The store keeps it: whatever happens to the daemon, it is known.
    Kept,
}

/// Where a job is, with the data that only exists there.
///
/// ```text
/// Scheduled ─► Queued ─► Waiting ─► Making ─► Alive ─► Draining ─► Ended
///     │          │          │         └─────────────────▲            ▲
///     └──────────┴──────────┴────────────────────────────────────────┘
/// ```
/// A job begins in any of the first three. One that repeats stays `Scheduled`; its repetitions are jobs of their
/// own. `Making` goes back to `Making` when a spawner died with the recipe unread.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its time has not come.
    Scheduled { next_ns: i64 },
    /// The daemon's queue has not let it yet.
    Queued { waits_for: String },
    /// Waits for its turn to be made.
    Waiting,
    /// Its resources are being made, or, once `sent`, its recipe is with the spawner.
    Making { sent: bool, cause: Option<Cause> },
    /// init lives; the command has started, unless `started_mono_ns` is empty.
    Alive(Alive),
    /// Every process is dead; output is being brought home.
    Draining(Alive),
    /// Nothing can happen any more; it is forgotten when the store has it.
    Ended { outcome: Outcome, log: LogTotals },
}

/// What is known of a job whose command was started, or was to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Alive {
    /// CLOCK_MONOTONIC of the command's execve.
    pub(super) started_mono_ns: Option<u64>,
    pub(super) exit: Option<Exit>,
    pub(super) cause: Option<Cause>,
}

/// Why we end a job: written down before the first signal is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    Timeout,
    Stopped { by: String },
    LogLimit,
    OutOfMemory,
    DaemonDown,
    HostLost,
    Abandoned,
    Canceled,
    StartFailed(StartFailure),
    NotFound,
    NotExecutable(i32),
}

impl Core {
    /// A shard without jobs.
    #[must_use]
    pub fn new(limits: CoreLimits) -> Self {
        Self {
            limits,
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
            starting: 0,
            ended: 0,
            scheduled: 0,
            queued: 0,
            is_closed: false,
            is_down: false,
            now_mono_ns: 0,
        }
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn live(&self) -> usize {
        self.jobs.len() - self.ended
    }

    /// Jobs that have something of the host.
    pub(super) fn held(&self) -> usize {
        self.live() - self.scheduled - self.queued - self.waiting.len()
    }

    /// Sandboxes being made and jobs waiting to be: the load a placement looks at.
    #[must_use]
    pub fn starting(&self) -> usize {
        self.starting + self.waiting.len()
    }

    /// One job as it is shown; `log` of an ended job is final, of a live one the driver adds it.
    #[must_use]
    pub fn view(&self, id: JobId) -> Option<JobView> {
        self.jobs.get(&id).map(|job| job.view(id))
    }

    /// Every job but those that were never accepted and are being taken apart, in no order.
    pub fn views(&self) -> impl Iterator<Item = JobView> + '_ {
        self.jobs
            .iter()
            .filter(|(_, job)| !job.is_abandoned())
            .map(|(id, job)| job.view(*id))
    }

    /// Ids that begin with `prefix`, at most `max`.
    #[must_use]
    pub fn find(&self, prefix: &str, max: usize) -> Vec<JobId> {
        if let Some(id) = JobId::parse(prefix) {
            return self
                .jobs
                .contains_key(&id)
                .then_some(id)
                .into_iter()
                .collect();
        }
        self.jobs
            .keys()
            .copied()
            .filter(|id| id.starts_with(prefix))
            .take(max)
            .collect()
    }

    /// What was asked of a job.
    #[must_use]
    pub fn spec(&self, id: JobId) -> Option<Arc<Spec>> {
        self.jobs.get(&id).map(|job| Arc::clone(&job.spec))
    }

    /// What a job's `/work` is made of.
    #[must_use]
    pub fn work(&self, id: JobId) -> Option<WorkKind> {
        self.jobs.get(&id).map(|job| job.work)
    }

    /// CLOCK_MONOTONIC nanoseconds from the arrival of a job's submit to its command's execve.
    #[must_use]
    pub fn start_ns(&self, id: JobId) -> Option<u64> {
        let job = self.jobs.get(&id)?;
        match &job.phase {
            Phase::Alive(alive) | Phase::Draining(alive) => alive
                .started_mono_ns
                .map(|at| at.saturating_sub(job.arrived_mono_ns)),
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Making { .. }
            | Phase::Ended { .. } => None,
        }
    }
}

impl Job {
    pub(super) fn state(&self) -> State {
        self.transitions
            .last()
            .map_or(State::Initializing, |last| last.state)
    }

    pub(super) fn enter(&mut self, state: State, now: Moment) {
        if self.state() != state || self.transitions.is_empty() {
            self.transitions.push(Transition {
                state,
                wall_ns: now.wall_ns,
                mono_ns: now.mono_ns,
            });
        }
    }

    fn is_abandoned(&self) -> bool {
        let cause = match &self.phase {
            Phase::Making { cause, .. } => cause.as_ref(),
            Phase::Alive(alive) | Phase::Draining(alive) => alive.cause.as_ref(),
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Ended { .. } => None,
        };
        cause == Some(&Cause::Abandoned)
    }

    /// Why it is being ended, when it is.
    fn ending(&self) -> Option<Reason> {
        match &self.phase {
            Phase::Making { cause, .. } => cause.as_ref(),
            Phase::Alive(alive) | Phase::Draining(alive) => alive.cause.as_ref(),
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Ended { .. } => None,
        }
        .map(reason_of)
    }

    fn view(&self, id: JobId) -> JobView {
        let (outcome, log) = match &self.phase {
            Phase::Ended { outcome, log } => (Some(outcome.clone()), *log),
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Making { .. }
            | Phase::Alive(_)
            | Phase::Draining(_) => (None, LogTotals::default()),
        };
        JobView {
            id,
            owner: self.owner.clone(),
            state: self.state(),
            spec: Arc::clone(&self.spec),
            work: self.work,
            caveats: self.caveats.clone(),
            transitions: self.transitions.clone(),
            ending: self.ending(),
            outcome,
            log,
            schedule_id: self.schedule_id,
            next_run_ns: if let Phase::Scheduled { next_ns } = &self.phase {
                Some(*next_ns)
            } else {
                None
            },
            last_run_ns: self.last_run_ns,
            waits_for: if let Phase::Queued { waits_for } = &self.phase {
                Some(waits_for.clone())
            } else {
                None
            },
        }
    }
}

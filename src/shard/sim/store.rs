//! The store: changes wait in a queue, are committed in groups, and then answered in order.
//!
//! What is committed stays, whatever dies. What waits is lost with its daemon. What was committed and not answered is
//! there, and its daemon does not know.

use std::collections::{BTreeMap, VecDeque};

use super::{
    agenda::{Channel, Life, MS, Step, US},
    faults::Planted,
    trace::Short,
    world::World,
};
use crate::job::{JobId, JobView, ShardIndex};

/// Changes that may wait; more are refused at once.
const QUEUE_CHANGES: usize = 24;

/// One change.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Accept(Box<JobView>, Option<u32>),
    Update(Box<JobView>),
    /// An update that somebody waits for.
    Begin(Box<JobView>),
    End(Box<JobView>),
}

/// What the store says to a change.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    Accepted,
    /// The key was used for this job before.
    Duplicate(JobId),
    NotAccepted,
    /// Of an update nobody waits to hear.
    Updated,
    Begun,
    NotBegun,
    Ended,
    NotEnded,
}

/// What is on the disk, and what is on its way there.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) rows: BTreeMap<JobId, JobView>,
    pub(super) keys: BTreeMap<u32, JobId>,
    queue: VecDeque<(Life, ShardIndex, Change)>,
    is_committing: bool,
    pub(super) is_full: bool,
}

impl Store {
    /// The daemon is dead: what was not committed never was.
    pub(super) fn lose_queue(&mut self) {
        self.queue.clear();
    }

    /// Makes one change.
    fn make(&mut self, change: Change) -> Answer {
        match change {
            Change::Accept(job, key) => {
                if let Some(first) = key.and_then(|key| self.keys.get(&key)) {
                    return Answer::Duplicate(*first);
                }
                if let Some(key) = key {
                    self.keys.insert(key, job.id);
                }
                self.rows.insert(job.id, *job);
                Answer::Accepted
            }
            Change::Begin(job) => {
                self.make(Change::Update(job));
                Answer::Begun
            }
            Change::Update(job) => {
                if let Some(row) = self.rows.get_mut(&job.id)
                    && row.outcome.is_none()
                {
                    (row.state, row.transitions, row.ending) =
                        (job.state, job.transitions, job.ending);
                    (row.next_run_ns, row.last_run_ns) = (job.next_run_ns, job.last_run_ns);
                }
                Answer::Updated
            }
            // The first end of a job is the one that stays.
            Change::End(job) => {
                let known = self.rows.get(&job.id);
                if known.is_none_or(|row| row.outcome.is_none()) {
                    self.rows.insert(job.id, *job);
                }
                Answer::Ended
            }
        }
    }
}

impl Change {
    const fn job(&self) -> JobId {
        match self {
            Self::Accept(job, _) | Self::Update(job) | Self::Begin(job) | Self::End(job) => job.id,
        }
    }

    const fn refused(&self) -> Answer {
        match self {
            Self::Accept(..) => Answer::NotAccepted,
            Self::Update(_) => Answer::Updated,
            Self::Begin(_) => Answer::NotBegun,
            Self::End(_) => Answer::NotEnded,
        }
    }
}

impl World {
    /// Puts a change behind those that wait.
    pub(super) fn submit_change(&mut self, life: Life, shard: ShardIndex, change: Change) {
        if self.store.queue.len() >= QUEUE_CHANGES {
            return self.answer(life, shard, change.job(), change.refused());
        }
        if self.planted == Planted::LostAcknowledgement
            && let Change::Accept(job, _) = &change
        {
            self.answer(life, shard, job.id, Answer::Accepted);
        }
        self.store.queue.push_back((life, shard, change));
        if !std::mem::replace(&mut self.store.is_committing, true) {
            self.commit_soon();
        }
    }

    fn commit_soon(&mut self) {
        let (low, high) = self.weather.commit;
        let delay = self.dice.between(low, high);
        self.agenda.after(delay, Step::Commit);
    }

    fn answer(&mut self, life: Life, shard: ShardIndex, job: JobId, answer: Answer) {
        let delay = self.delay(5 * US, MS);
        let stored = Step::Stored(life, shard, job, answer);
        self.agenda.through(Channel::Store(shard), delay, stored);
    }

    pub(super) fn on_commit(&mut self) {
        let group = std::mem::take(&mut self.store.queue);
        for (life, shard, change) in group {
            let job = change.job();
            let is_early = self.planted == Planted::LostAcknowledgement
                && matches!(change, Change::Accept(..));
            let answer = if self.store.is_full {
                change.refused()
            } else {
                self.store.make(change)
            };
            let now = self.agenda.now();
            self.trace
                .note(now, format_args!("store {} {answer:?}", Short(job)));
            if !is_early {
                self.answer(life, shard, job, answer);
            }
        }
        self.store.is_committing = false;
    }
}

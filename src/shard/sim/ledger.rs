//! What was promised and what really happened: written down from outside, and never by what is examined.

use std::collections::{BTreeMap, BTreeSet};

use super::agenda::ClientIndex;
use crate::job::{JobId, JobView, Reason, State};

/// How a job ended, as far as nobody may say two things of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    state: State,
    reason: Reason,
    exit_code: Option<i32>,
    signal: Option<i32>,
}

impl Verdict {
    /// `None` while it has not ended.
    pub(super) fn of(view: &JobView) -> Option<Self> {
        let outcome = view.outcome.as_ref()?;
        Some(Self {
            state: view.state,
            reason: outcome.reason.clone(),
            exit_code: outcome.exit_code,
            signal: outcome.signal,
        })
    }
}

/// Facts of one run.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Whose job it is.
    pub(super) owners: BTreeMap<JobId, ClientIndex>,
    /// Jobs of which a client was told that they are accepted, or would have been.
    pub(super) promised: BTreeSet<JobId>,
    /// Jobs that were refused, or whose client went away before it had given everything.
    pub(super) refused: BTreeSet<JobId>,
    /// How often its command was executed.
    pub(super) runs: BTreeMap<JobId, u32>,
    /// Jobs that were let go.
    pub(super) let_go: BTreeSet<JobId>,
    /// Jobs of which the store has, or is asked to have, why they are being ended.
    pub(super) noted: BTreeSet<JobId>,
    /// Jobs that were sent a signal of ours, let go, and not noted.
    pub(super) unnoted: BTreeSet<JobId>,
    /// Jobs whose keeper or spawner died with them.
    pub(super) bereft: BTreeSet<JobId>,
    /// Jobs that were said to be lost and were not.
    pub(super) lost_alive: BTreeSet<JobId>,
    /// What anybody was told of an end.
    pub(super) told: BTreeMap<JobId, Verdict>,
    /// Jobs whose end was told while the store did not take it.
    pub(super) unsure: BTreeSet<JobId>,
    /// What the daemon that lives has decided of an end.
    pub(super) decided: BTreeMap<JobId, Verdict>,
    /// A rule that was seen to be broken where it happened.
    pub(super) broken: Option<String>,
}

impl Ledger {
    /// The first rule that is broken counts.
    pub(super) fn break_rule(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(super) fn ran(&mut self, job: JobId) {
        *self.runs.entry(job).or_default() += 1;
    }

    /// A signal or a kill that the reactor has decided on.
    pub(super) fn signals(&mut self, job: JobId) {
        if self.let_go.contains(&job) && !self.noted.contains(&job) {
            self.unnoted.insert(job);
        }
    }

    /// Somebody is told of an end.
    pub(super) fn told(&mut self, view: &JobView) {
        let Some(verdict) = Verdict::of(view) else {
            return self.break_rule(format!("{} is told to have ended and has not", view.id));
        };
        let before = self.told.entry(view.id).or_insert_with(|| verdict.clone());
        if *before != verdict && !self.unsure.contains(&view.id) {
            let broken = format!("{} was told to be {before:?} and now {verdict:?}", view.id);
            self.break_rule(broken);
        }
    }

    /// The reactor has decided on an end.
    pub(super) fn ended(&mut self, view: &JobView) {
        if let Some(verdict) = Verdict::of(view)
            && let Some(before) = self.decided.insert(view.id, verdict)
        {
            self.break_rule(format!("{} ended twice, once as {before:?}", view.id));
        }
    }
}

//! The two records of a job in the journal, and their lines.
//!
//! ```text
//! {"accepted":{"v":1,"id":"…","owner":"ann","argv":["true"],…}}     once, before it may run
//! {"ended":{"v":1,"id":"…","state":"completed","outcome":{…},…}}    once, when its output is complete
//! ```

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::record::{
    CaveatRecord, LimitsMirror, LogTotalsMirror, OutcomeMirror, StateMirror, Text,
    TransitionRecord, UserMirror, Variable, WorkKindMirror, to_ns,
};
use crate::job::{JobId, JobView, Limits, LogTotals, Outcome, Spec, State, User, WorkKind};

/// Version of both records.
const VERSION: u32 = 1;

/// The line that says that a job was accepted. It ends with a newline.
#[must_use]
pub fn encode_accepted(view: &JobView) -> Vec<u8> {
    line(&Record::Accepted(Accepted::from_view(view)))
}

/// The line that says how a job ended. It ends with a newline.
///
/// # Panics
/// If the job has no outcome: it has not ended.
#[must_use]
pub fn encode_ended(view: &JobView) -> Vec<u8> {
    line(&Record::Ended(Ended {
        v: VERSION,
        id: view.id.to_string(),
        state: view.state,
        transitions: view
            .transitions
            .iter()
            .copied()
            .map(TransitionRecord)
            .collect(),
        outcome: view
            .outcome
            .clone()
            .expect("a job that has ended has an outcome"),
        log: view.log,
    }))
}

fn line(record: &Record) -> Vec<u8> {
    let mut line =
        serde_json::to_vec(record).expect("keys are text and nothing in a record can refuse");
    line.push(b'\n');
    line
}

/// One line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    Accepted(Accepted),
    Ended(Ended),
}

impl Record {
    /// Reads a line without its newline; `None` when it is none of ours.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(line).ok()?;
        let (Self::Accepted(Accepted { v, .. }) | Self::Ended(Ended { v, .. })) = &record;
        (*v == VERSION).then_some(record)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Accepted {
    v: u32,
    id: String,
    owner: String,
    #[serde(with = "StateMirror")]
    state: State,
    name: Option<String>,
    labels: Vec<(String, String)>,
    argv: Vec<Text>,
    env: Vec<Variable>,
    workdir: Text,
    #[serde(with = "UserMirror")]
    user: User,
    work_bytes: u64,
    #[serde(with = "WorkKindMirror")]
    work: WorkKind,
    #[serde(with = "LimitsMirror")]
    limits: Limits,
    caveats: Vec<CaveatRecord>,
    timeout_ns: Option<u64>,
    grace_ns: u64,
    uploads: Option<u64>,
    transitions: Vec<TransitionRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    v: u32,
    id: String,
    #[serde(with = "StateMirror")]
    state: State,
    transitions: Vec<TransitionRecord>,
    #[serde(with = "OutcomeMirror")]
    outcome: Outcome,
    #[serde(with = "LogTotalsMirror")]
    log: LogTotals,
}

impl Accepted {
    fn from_view(view: &JobView) -> Self {
        let spec = &*view.spec;
        Self {
            v: VERSION,
            id: view.id.to_string(),
            owner: view.owner.clone(),
            state: view.state,
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            argv: spec
                .argv
                .iter()
                .map(|bytes| Text::from_bytes(bytes))
                .collect(),
            env: spec.env.iter().map(Variable::from_entry).collect(),
            workdir: Text::from_bytes(&spec.workdir),
            user: spec.user,
            work_bytes: spec.work_bytes,
            work: view.work,
            limits: spec.limits.clone(),
            caveats: view.caveats.iter().cloned().map(CaveatRecord).collect(),
            timeout_ns: spec.timeout.map(to_ns),
            grace_ns: to_ns(spec.grace),
            uploads: spec.uploads,
            transitions: view
                .transitions
                .iter()
                .copied()
                .map(TransitionRecord)
                .collect(),
        }
    }

    /// The job as it was when it was accepted; `None` when a field says what it cannot say.
    pub(super) fn into_view(self) -> Option<JobView> {
        let spec = Spec {
            name: self.name,
            labels: self.labels,
            argv: self
                .argv
                .into_iter()
                .map(Text::into_bytes)
                .collect::<Option<_>>()?,
            env: self
                .env
                .into_iter()
                .map(Variable::into_entry)
                .collect::<Option<_>>()?,
            workdir: self.workdir.into_bytes()?,
            user: self.user,
            work_bytes: self.work_bytes,
            limits: self.limits,
            timeout: self.timeout_ns.map(Duration::from_nanos),
            grace: Duration::from_nanos(self.grace_ns),
            uploads: self.uploads,
        };
        Some(JobView {
            id: JobId::parse(&self.id)?,
            owner: self.owner,
            state: self.state,
            spec: Arc::new(spec),
            work: self.work,
            caveats: self.caveats.into_iter().map(|record| record.0).collect(),
            transitions: self
                .transitions
                .into_iter()
                .map(|record| record.0)
                .collect(),
            outcome: None,
            log: LogTotals::default(),
        })
    }
}

impl Ended {
    /// Which job ended.
    pub(super) fn id(&self) -> Option<JobId> {
        JobId::parse(&self.id)
    }

    /// Makes the accepted job the ended one.
    pub(super) fn apply(self, view: &mut JobView) {
        view.state = self.state;
        view.transitions = self
            .transitions
            .into_iter()
            .map(|record| record.0)
            .collect();
        view.outcome = Some(self.outcome);
        view.log = self.log;
    }
}

#[cfg(test)]
mod tests;

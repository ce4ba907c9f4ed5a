//! A job as a row: numbers and names that people ask for are columns, the rest is JSON.
//!
//! What was asked is written once; what happens to the job is in columns of its own and overwritten.

use std::{sync::Arc, time::Duration};

use rusqlite::Row;
use serde::{
    Deserialize, Serialize,
    de::value::{Error as TextError, StrDeserializer},
};

use super::{
    Cursor, StoreError,
    record::{
        AttachmentRecord, CaveatRecord, LimitsMirror, OutcomeMirror, ReasonMirror, ScheduleRecord,
        StateMirror, Text, TransitionRecord, UserMirror, Variable, WorkKindMirror, is_zero, to_ns,
    },
};
use crate::job::{JobId, JobView, Limits, LogTotals, Outcome, Reason, Spec, State, User, WorkKind};

/// The columns that [`decode`] and [`place_of`] read, in their order.
pub(super) const COLUMNS: &str = "id, owner, name, state, work, spec, caveats, transitions, outcome, \
     stdout_bytes, stderr_bytes, dropped_bytes, secrets, created_ns, ending, \
     schedule_id, next_run_ns, last_run_ns";

/// What was asked of a job, without its name: that is a column.
#[derive(Serialize, Deserialize)]
struct SpecRecord {
    argv: Vec<Text>,
    workdir: Text,
    env: Vec<Variable>,
    labels: Vec<(String, String)>,
    #[serde(with = "UserMirror")]
    user: User,
    work_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<AttachmentRecord>,
    #[serde(with = "LimitsMirror")]
    limits: Limits,
    timeout_ns: Option<u64>,
    grace_ns: u64,
    uploads: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleRecord>,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i32,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct OutcomeRecord(#[serde(with = "OutcomeMirror")] Outcome);

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct ReasonRecord(#[serde(with = "ReasonMirror")] Reason);

/// What changes in the life of a job.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) state: &'static str,
    pub(super) work: &'static str,
    pub(super) caveats: String,
    pub(super) transitions: String,
    pub(super) ending: Option<String>,
    pub(super) outcome: Option<String>,
    pub(super) ended_ns: Option<i64>,
    pub(super) next_run_ns: Option<i64>,
    pub(super) last_run_ns: Option<i64>,
    /// Standard output, standard error, dropped.
    pub(super) log_bytes: [i64; 3],
}

/// What was asked of a job, as JSON without values of secrets.
pub(super) fn encode_spec(spec: &Spec) -> String {
    let texts = |list: &[Vec<u8>]| list.iter().map(|bytes| Text::from_bytes(bytes)).collect();
    json(&SpecRecord {
        argv: texts(&spec.argv),
        workdir: Text::from_bytes(&spec.workdir),
        env: spec.env.iter().map(Variable::from_entry).collect(),
        labels: spec.labels.clone(),
        user: spec.user,
        work_bytes: spec.work_bytes,
        volumes: spec.volumes.iter().map(AttachmentRecord::new).collect(),
        limits: spec.limits.clone(),
        timeout_ns: spec.timeout.map(to_ns),
        grace_ns: to_ns(spec.grace),
        uploads: spec.uploads,
        schedule: spec.schedule.clone().map(ScheduleRecord),
        priority: spec.priority,
    })
}

/// What happened to a job so far.
pub(super) fn encode_progress(view: &JobView) -> Progress {
    let transitions: Vec<_> = view
        .transitions
        .iter()
        .copied()
        .map(TransitionRecord)
        .collect();
    let caveats: Vec<_> = view.caveats.iter().cloned().map(CaveatRecord).collect();
    let last_ns = view.transitions.last().map_or(0, |last| last.wall_ns);
    let log = view.log;
    Progress {
        state: state_text(view.state),
        work: work_text(view.work),
        caveats: json(&caveats),
        transitions: json(&transitions),
        ending: view
            .ending
            .clone()
            .filter(|_| view.outcome.is_none())
            .map(|reason| json(&ReasonRecord(reason))),
        outcome: view
            .outcome
            .clone()
            .map(|outcome| json(&OutcomeRecord(outcome))),
        ended_ns: view.outcome.as_ref().map(|_| last_ns),
        next_run_ns: view.next_run_ns,
        last_run_ns: view.last_run_ns,
        log_bytes: [log.stdout_bytes, log.stderr_bytes, log.dropped_bytes].map(to_integer),
    }
}

/// When a job was accepted, nanoseconds since the epoch: what lists are ordered by.
pub(super) fn created_ns(view: &JobView) -> i64 {
    view.transitions.first().map_or(0, |first| first.wall_ns)
}

/// Where a row with our [`COLUMNS`] stands in the list of all jobs.
pub(super) fn place_of(row: &Row<'_>) -> Result<Cursor, StoreError> {
    let id = JobId::from_bytes(row.get(0).map_err(|_| StoreError::RowId)?);
    let created_ns = row.get(13).map_err(|_| StoreError::Row {
        id,
        column: "created_ns",
    })?;
    Ok(Cursor { created_ns, id })
}

/// A job from its [`COLUMNS`], without values of secrets; and those, sealed, if it has not ended.
pub(super) fn decode(row: &Row<'_>) -> Result<(JobView, Option<String>), StoreError> {
    let id = JobId::from_bytes(row.get(0).map_err(|_| StoreError::RowId)?);
    let refuse = |column| StoreError::Row { id, column };
    let text = |index, column| row.get::<_, String>(index).map_err(|_| refuse(column));
    let bytes = |index, column| {
        let number: i64 = row.get(index).map_err(|_| refuse(column))?;
        u64::try_from(number).map_err(|_| refuse(column))
    };
    let spec: SpecRecord = parse(&text(5, "spec")?).ok_or(refuse("spec"))?;
    let name = row.get(2).map_err(|_| refuse("name"))?;
    let caveats: Vec<CaveatRecord> = parse(&text(6, "caveats")?).ok_or(refuse("caveats"))?;
    let transitions: Vec<TransitionRecord> =
        parse(&text(7, "transitions")?).ok_or(refuse("transitions"))?;
    let outcome: Option<String> = row.get(8).map_err(|_| refuse("outcome"))?;
    let outcome: Option<OutcomeRecord> = outcome
        .map(|text| parse(&text).ok_or(refuse("outcome")))
        .transpose()?;
    let ending: Option<String> = row.get(14).map_err(|_| refuse("ending"))?;
    let ending: Option<ReasonRecord> = ending
        .map(|text| parse(&text).ok_or(refuse("ending")))
        .transpose()?;
    let view = JobView {
        id,
        owner: text(1, "owner")?,
        state: parse_state(&text(3, "state")?).ok_or(refuse("state"))?,
        work: parse_work(&text(4, "work")?).ok_or(refuse("work"))?,
        spec: Arc::new(spec.into_spec(name).ok_or(refuse("spec"))?),
        caveats: caveats.into_iter().map(|record| record.0).collect(),
        transitions: transitions.into_iter().map(|record| record.0).collect(),
        ending: ending.map(|record| record.0),
        outcome: outcome.map(|record| record.0),
        log: LogTotals {
            stdout_bytes: bytes(9, "stdout_bytes")?,
            stderr_bytes: bytes(10, "stderr_bytes")?,
            dropped_bytes: bytes(11, "dropped_bytes")?,
        },
        schedule_id: None,
        next_run_ns: None,
        last_run_ns: None,
        // What was waited for says nothing once somebody else looks.
        waits_for: None,
    };
    let schedule_id: Option<[u8; 16]> = row.get(15).map_err(|_| refuse("schedule_id"))?;
    let view = JobView {
        schedule_id: schedule_id.map(JobId::from_bytes),
        next_run_ns: row.get(16).map_err(|_| refuse("next_run_ns"))?,
        last_run_ns: row.get(17).map_err(|_| refuse("last_run_ns"))?,
        ..view
    };
    let secrets = row.get(12).map_err(|_| refuse("secrets"))?;
    Ok((view, secrets))
}

impl SpecRecord {
    /// `None` when bytes that are no text are not encoded as such.
    fn into_spec(self, name: Option<String>) -> Option<Spec> {
        Some(Spec {
            name,
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
            volumes: self
                .volumes
                .into_iter()
                .map(AttachmentRecord::into_attachment)
                .collect::<Option<_>>()?,
            limits: self.limits,
            timeout: self.timeout_ns.map(Duration::from_nanos),
            grace: Duration::from_nanos(self.grace_ns),
            uploads: self.uploads,
            schedule: self.schedule.map(|record| record.0),
            priority: self.priority,
        })
    }
}

/// How a state is called in the store; the same word as in JSON.
pub(super) const fn state_text(state: State) -> &'static str {
    match state {
        State::Scheduled => "scheduled",
        State::Queued => "queued",
        State::Initializing => "initializing",
        State::Running => "running",
        State::Stopping => "stopping",
        State::Completed => "completed",
        State::Failed => "failed",
        State::Stopped => "stopped",
        State::Timeout => "timeout",
        State::Canceled => "canceled",
    }
}

const fn work_text(work: WorkKind) -> &'static str {
    match work {
        WorkKind::Memory => "memory",
        WorkKind::Disk => "disk",
    }
}

fn parse_state(text: &str) -> Option<State> {
    StateMirror::deserialize(StrDeserializer::<TextError>::new(text)).ok()
}

fn parse_work(text: &str) -> Option<WorkKind> {
    WorkKindMirror::deserialize(StrDeserializer::<TextError>::new(text)).ok()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("keys are text and nothing in a record can refuse")
}

fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// SQLite's integers have a sign; no file is longer than they can say.
pub(super) fn to_integer(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

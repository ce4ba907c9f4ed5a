//! The two records of a job, and their lines.
//!
//! ```text
//! {"accepted":{"v":1,"id":"…","owner":"ann","argv":["true"],…}}     once, before it may run
//! {"ended":{"v":1,"id":"…","state":"completed","outcome":{…},…}}    once, when its output is complete
//! ```
//! Bytes that are no text are written as `{"base64":"…"}`; values of secrets are not written at all.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::job::{
    ByteString, Caveat, EnvEntry, JobId, JobView, LimitKind, Limits, LogTotals, Outcome, Reason,
    Schedule, Spec, State, Transition, Usage, User, WorkKind,
};

/// Version of both records.
const VERSION: u32 = 1;
/// What stands for the value of a secret.
const SECRET: &[u8] = b"***";

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleRecord>,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_run_ns: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_run_ns: Option<i64>,
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
            schedule: spec.schedule.clone().map(ScheduleRecord),
            priority: spec.priority,
            schedule_id: view.schedule_id.map(|id| id.to_string()),
            next_run_ns: view.next_run_ns,
            last_run_ns: view.last_run_ns,
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
            schedule: self.schedule.map(|record| record.0),
            priority: self.priority,
        };
        let schedule_id = match self.schedule_id {
            Some(id) => Some(JobId::parse(&id)?),
            None => None,
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
            schedule_id,
            next_run_ns: self.next_run_ns,
            last_run_ns: self.last_run_ns,
            // What was waited for says nothing once somebody else looks.
            waits_for: None,
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

/// Bytes of a user: as text where they are text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Encoded { base64: String },
}

impl Text {
    fn from_bytes(bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Plain(text.to_owned()),
            Err(_) => Self::Encoded {
                base64: STANDARD.encode(bytes),
            },
        }
    }

    fn into_bytes(self) -> Option<ByteString> {
        match self {
            Self::Plain(text) => Some(text.into_bytes()),
            Self::Encoded { base64 } => STANDARD.decode(base64).ok(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Variable {
    name: String,
    value: Text,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    secret: bool,
}

impl Variable {
    fn from_entry(entry: &EnvEntry) -> Self {
        let value = if entry.is_secret {
            SECRET
        } else {
            &entry.value
        };
        Self {
            name: entry.name.clone(),
            value: Text::from_bytes(value),
            secret: entry.is_secret,
        }
    }

    fn into_entry(self) -> Option<EnvEntry> {
        Some(EnvEntry {
            name: self.name,
            value: self.value.into_bytes()?,
            is_secret: self.secret,
        })
    }
}

/// Durations of jobs are bounded by a year; 64 bits of nanoseconds hold 584.
fn to_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct ScheduleRecord(#[serde(with = "ScheduleMirror")] Schedule);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Schedule", rename_all = "snake_case")]
enum ScheduleMirror {
    Once {
        at_ns: i64,
    },
    Every {
        #[serde(
            rename = "every_ns",
            serialize_with = "write_ns",
            deserialize_with = "read_ns"
        )]
        every: Duration,
        from_ns: i64,
    },
    Cron {
        expression: String,
        zone: String,
    },
}

fn write_ns<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(to_ns(*duration))
}

fn read_ns<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_nanos)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct TransitionRecord(#[serde(with = "TransitionMirror")] Transition);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Transition")]
struct TransitionMirror {
    #[serde(with = "StateMirror")]
    state: State,
    wall_ns: i64,
    mono_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "State", rename_all = "snake_case")]
enum StateMirror {
    Scheduled,
    Queued,
    Initializing,
    Running,
    Stopping,
    Completed,
    Failed,
    Stopped,
    Timeout,
    Canceled,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "WorkKind", rename_all = "snake_case")]
enum WorkKindMirror {
    Memory,
    Disk,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "User")]
struct UserMirror {
    uid: u32,
    gid: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
struct LimitsMirror {
    cpu_percent: Option<u32>,
    memory_bytes: Option<u64>,
    io_bytes_per_second: Option<u64>,
    pids: Option<u64>,
    cores: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct CaveatRecord(#[serde(with = "CaveatMirror")] Caveat);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Caveat")]
struct CaveatMirror {
    #[serde(with = "LimitKindMirror")]
    limit: LimitKind,
    is_partly: bool,
    note: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "LimitKind", rename_all = "snake_case")]
enum LimitKindMirror {
    Cpu,
    Memory,
    Io,
    Pids,
    Cores,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "LogTotals")]
struct LogTotalsMirror {
    stdout_bytes: u64,
    stderr_bytes: u64,
    dropped_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Outcome")]
struct OutcomeMirror {
    #[serde(with = "ReasonMirror")]
    reason: Reason,
    exit_code: Option<i32>,
    signal: Option<i32>,
    #[serde(with = "UsageMirror")]
    usage: Usage,
    wall_ms: u64,
    queued_ms: u64,
    start_micros: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Usage")]
struct UsageMirror {
    cpu_user_us: u64,
    cpu_system_us: u64,
    throttled_us: Option<u64>,
    memory_bytes: Option<u64>,
    memory_peak_bytes: Option<u64>,
    oom_kills: Option<u64>,
    io_read_bytes: Option<u64>,
    io_write_bytes: Option<u64>,
    pids: Option<u64>,
    pids_peak: Option<u64>,
    pids_refused: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Reason", rename_all = "snake_case")]
enum ReasonMirror {
    Exited,
    Signaled,
    OutOfMemory,
    Timeout,
    Stopped { by: String },
    Canceled,
    LogLimit,
    StartFailed { step: String, errno: i32 },
    CommandNotFound,
    CommandNotExecutable { errno: i32 },
    HostLost,
    DaemonDown,
}

#[cfg(test)]
pub(super) mod tests;

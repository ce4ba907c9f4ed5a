//! How the types of a job are written as JSON.
//!
//! They stay free of any format: each has a private mirror here, which does not compile when the two differ.
//! Bytes that are no text are written as `{"base64":"…"}`; values of secrets are not written at all.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::job::{
    Attachment, ByteString, Caveat, EnvEntry, LimitKind, Limits, Outcome, Reason, Schedule, State,
    Transition, Usage, User, VolumeName, WorkKind,
};
use std::time::Duration;

/// What stands for the value of a secret.
pub(super) const SECRET: &[u8] = b"***";

/// Bytes of a user: as text where they are text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    Plain(String),
    Encoded { base64: String },
}

impl Text {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        match str::from_utf8(bytes) {
            Ok(text) => Self::Plain(text.to_owned()),
            Err(_) => Self::Encoded {
                base64: STANDARD.encode(bytes),
            },
        }
    }

    pub(super) fn into_bytes(self) -> Option<ByteString> {
        match self {
            Self::Plain(text) => Some(text.into_bytes()),
            Self::Encoded { base64 } => STANDARD.decode(base64).ok(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Variable {
    name: String,
    value: Text,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    secret: bool,
}

impl Variable {
    pub(super) fn from_entry(entry: &EnvEntry) -> Self {
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

    pub(super) fn into_entry(self) -> Option<EnvEntry> {
        Some(EnvEntry {
            name: self.name,
            value: self.value.into_bytes()?,
            is_secret: self.secret,
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AttachmentRecord {
    volume: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

impl AttachmentRecord {
    pub(super) fn new(attachment: &Attachment) -> Self {
        Self {
            volume: attachment.volume.to_string(),
            read_only: attachment.is_read_only,
        }
    }

    /// `None` when that is no name of a volume.
    pub(super) fn into_attachment(self) -> Option<Attachment> {
        Some(Attachment {
            volume: VolumeName::parse(&self.volume).ok()?,
            is_read_only: self.read_only,
        })
    }
}

/// Durations of jobs are bounded by a year; 64 bits of nanoseconds hold 584.
pub(super) fn to_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(super) fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct ScheduleRecord(#[serde(with = "ScheduleMirror")] pub(super) Schedule);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Schedule", rename_all = "snake_case")]
pub(super) enum ScheduleMirror {
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
pub(super) struct TransitionRecord(#[serde(with = "TransitionMirror")] pub(super) Transition);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Transition")]
pub(super) struct TransitionMirror {
    #[serde(with = "StateMirror")]
    state: State,
    wall_ns: i64,
    mono_ns: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "State", rename_all = "snake_case")]
pub(super) enum StateMirror {
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
pub(super) enum WorkKindMirror {
    Memory,
    Disk,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "User")]
pub(super) struct UserMirror {
    uid: u32,
    gid: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Limits")]
pub(super) struct LimitsMirror {
    cpu_percent: Option<u32>,
    memory_bytes: Option<u64>,
    io_bytes_per_second: Option<u64>,
    pids: Option<u64>,
    cores: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct CaveatRecord(#[serde(with = "CaveatMirror")] pub(super) Caveat);

#[derive(Serialize, Deserialize)]
#[serde(remote = "Caveat")]
pub(super) struct CaveatMirror {
    #[serde(with = "LimitKindMirror")]
    limit: LimitKind,
    is_partly: bool,
    note: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "LimitKind", rename_all = "snake_case")]
pub(super) enum LimitKindMirror {
    Cpu,
    Memory,
    Io,
    Pids,
    Cores,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Outcome")]
pub(super) struct OutcomeMirror {
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
pub(super) struct UsageMirror {
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
pub(super) enum ReasonMirror {
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

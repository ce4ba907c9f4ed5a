//! The vocabulary of jobs: ids, what was asked, states, outcomes, refusals, roles.
//!
//! Plain values that every other room may name. No I/O, no clock, no wire types; it names no room but
//! `limits`.

mod finding;
mod id;
mod outcome;
mod refusal;
mod request;
mod role;
mod schedule;
mod spec;
mod state;
pub mod units;
mod usage;
mod view;
mod volume;

pub use finding::{Finding, Verdict};
pub use id::{IdError, JobId, ShardIndex};
pub use outcome::{LogTotals, Outcome, Reason};
pub use refusal::{Refusal, RefusalCode};
pub use request::{Accepted, Cursor, Deleted, IdempotencyKey, ListQuery};
pub use role::{Peer, Role, RoleError};
pub use schedule::{Schedule, ScheduleError};
pub use spec::{
    ByteString, EnvEntry, ExtraEntry, LogQuery, Remark, Spec, StopSignal, Stream, Streams,
    TreeEntry, User,
};
pub use state::{State, Transition};
pub use usage::{Caveat, LimitKind, Limits, Sample, Stall, Usage};
pub use view::{Chunk, JobView, NodeView, WorkKind};
pub use volume::{
    Attachment, VolumeKind, VolumeName, VolumeNameError, VolumeSize, VolumeSizeError, VolumeSpec,
    VolumeView,
};

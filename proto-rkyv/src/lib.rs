//! The wire between `rnx` and `joblet`: frames, messages and their versions.
//!
//! One bidirectional QUIC stream carries one request. Everything on it is a *frame*: a fixed 40-byte
//! header ([`Header`]) and a payload of `len` raw bytes. A frame of kind [`Kind::Control`] holds one rkyv
//! archive of a [`Request`] or [`Reply`]; every other kind holds bytes that are never inside an archive, so
//! job output and uploads are neither copied nor serialised by us.
//!
//! Versions are negotiated by ALPN ([`ALPN`]); a header that names another version is refused.
//!
//! This crate does no I/O, knows no clock and contains no unsafe code. It never names a room of the daemon.
#![forbid(unsafe_code)]

mod bulk;
pub mod code;
mod frame;
mod message;

pub use bulk::{BulkError, count, join, split};
pub use frame::{FrameError, HEADER_BYTES, Header, Kind, Piece, Reader, encode, header_bytes};
// By name: the derives also make `Archived*` and `*Resolver` types, which are nobody's business.
pub use message::{
    After, Attachment, Caveat, Copy, Cursor, Finding, Id, Job, JobRef, LimitKind, Limits, List,
    Log, LogTotals, Metrics, Node, Outcome, Pressure, Reason, Refusal, RefusalCode, Remark, Reply,
    Request, Sample, Schedule, Stall, State, Stop, StopSignal, Streams, Submit, Transition, Upload,
    Usage, Verdict, Volume, VolumeCreate, VolumeKind, VolumeRead, VolumeWrite, Work,
};

/// ALPN of version 1, the only one there is.
pub const ALPN: &[u8] = b"joblet/1";
/// The version that every header carries.
pub const VERSION: u8 = 1;
/// Largest archive in a control frame.
pub const CONTROL_BYTES_MAX: u32 = 64 << 10;
/// Largest payload of any other frame.
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// Largest sum of all `Argv`, `Env` and `SecretEnv` payloads of one submit.
pub const SUBMIT_BYTES_MAX: u32 = 4 << 20;

const _: () = assert!(CONTROL_BYTES_MAX <= DATA_BYTES_MAX && DATA_BYTES_MAX <= SUBMIT_BYTES_MAX);

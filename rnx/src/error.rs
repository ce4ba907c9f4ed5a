//! Why a request did not do what was asked.

use proto_rkyv::{BulkError, FrameError, Refusal};
use thiserror::Error;

use crate::{archive::ArchiveError, connect::ConnectError, upload::UploadError};

/// Why a request failed. Only [`RequestError::Refused`] leaves it certain that the server did nothing; after
/// the others a submitted job may or may not exist.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The server refused, with a code, a message and perhaps a hint.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The connection is gone, or was never accepted.
    #[error(transparent)]
    Connection(#[from] ConnectError),
    /// The server gave up this request without a reply.
    #[error("the server aborted the request (code {code})")]
    Aborted {
        /// Its code.
        code: u64,
    },
    /// The server ended the stream too early.
    #[error("the server's answer ends too early")]
    Truncated,
    /// The server sent bytes that are no frame of this version.
    #[error("the server's answer is malformed")]
    Frame(#[from] FrameError),
    /// The server sent an argument list or environment that is none.
    #[error("the server's answer is malformed")]
    Bulk(#[from] BulkError),
    /// The server sent a frame that does not belong in this answer.
    #[error("the server's answer holds something else than {expected}")]
    Unexpected {
        /// What belongs there.
        expected: &'static str,
    },
    /// Argument list and environment together are too large to be sent.
    #[error("arguments and environment are {bytes} bytes, at most {max} can be sent")]
    SpecTooLarge {
        /// What they are.
        bytes: usize,
        /// The limit.
        max: u32,
    },
    /// The request without argument list and environment is too large to be sent.
    #[error("the request is too large")]
    RequestTooLarge(#[source] FrameError),
    /// A file to upload could not be read, or changed meanwhile.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// An archive to send is none, is cut short, or would write elsewhere.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

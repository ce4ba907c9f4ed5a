//! The sending side of an upload: entries and bytes, to where the job is.
//!
//! ```text
//! job that runs now     DirectSink ─► socket whose other end init's uploader reads
//! job that runs later   SpoolSink  ─► file ─► (each time it runs) the same socket
//! ```
//! Which one it is decides whoever makes the submission; a front does not see the difference. The daemon holds
//! one socket buffer or one chunk of the contents and no more.

mod direct;
pub(super) mod progress;
mod recent;
pub(super) mod wire;

use std::os::fd::OwnedFd;

use bytes::Bytes;

use self::direct::DirectSink;
use super::spool::SpoolSink;
use crate::job::{Refusal, TreeEntry};

/// Takes a tree entry by entry; a file's bytes follow its entry.
#[derive(Debug)]
pub struct UploadSink(Kind);

#[derive(Debug)]
enum Kind {
    Direct(DirectSink),
    Spool(SpoolSink),
}

impl UploadSink {
    /// Into the socket of a job whose sandbox is being made.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Refusal> {
        DirectSink::new(socket).map(|sink| Self(Kind::Direct(sink)))
    }

    /// The next entry. The last file must be complete.
    ///
    /// # Errors
    /// `Invalid` when the last file is short; `Failed` when the job's side is gone; of a spool also `Busy` when the
    /// disk is full.
    pub async fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        match &mut self.0 {
            Kind::Direct(sink) => sink.entry(entry).await,
            Kind::Spool(sink) => sink.entry(entry).await,
        }
    }

    /// Some bytes of the last file.
    ///
    /// # Errors
    /// `Invalid` when there are more than its entry said; `Failed` when the job's side is gone; of a spool also
    /// `Busy` when the disk is full.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        match &mut self.0 {
            Kind::Direct(sink) => sink.data(bytes).await,
            Kind::Spool(sink) => sink.data(bytes).await,
        }
    }

    /// No more entries: waits until everything is written.
    pub(super) async fn finish(self) -> Result<(), Refusal> {
        match self.0 {
            Kind::Direct(sink) => sink.finish().await,
            Kind::Spool(sink) => sink.finish().await,
        }
    }
}

impl From<SpoolSink> for UploadSink {
    fn from(sink: SpoolSink) -> Self {
        Self(Kind::Spool(sink))
    }
}

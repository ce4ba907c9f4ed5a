//! An upload straight into the sandbox of a job that runs now.

use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::{
    progress::Progress,
    recent::Recent,
    wire::{self, Uploader, UploaderError},
};
use crate::job::{Refusal, TreeEntry};

/// Sends entries and bytes to init's uploader as they come.
#[derive(Debug)]
pub(super) struct DirectSink {
    uploader: Uploader,
    progress: Progress,
    /// Names the entry that failed.
    recent: Recent,
}

impl DirectSink {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Refusal> {
        let uploader = Uploader::new(socket).map_err(|error| error.refusal(None))?;
        Ok(Self {
            recent: Recent::new(uploader.unread_bytes_max()),
            uploader,
            progress: Progress::default(),
        })
    }

    pub(super) async fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.progress.begin(entry)?;
        self.recent.begin(self.progress.path());
        self.send(&wire::header(entry)).await
    }

    pub(super) async fn data(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.progress.advance(bytes.len())?;
        self.send(&bytes).await
    }

    pub(super) async fn finish(self) -> Result<(), Refusal> {
        self.progress.check_complete()?;
        let answered = match self.uploader.send_all(&wire::end()).await {
            Ok(()) => self.uploader.answer().await,
            Err(error) => Err(error),
        };
        answered.map_err(|error| self.refusal(&error))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let sent = self.uploader.send_all(bytes).await;
        sent.map_err(|error| self.refusal(&error))?;
        self.recent.advance(bytes.len());
        Ok(())
    }

    fn refusal(&self, error: &UploaderError) -> Refusal {
        let path = match error {
            UploaderError::Refused(answer) => self.recent.path(answer.index),
            UploaderError::Gone | UploaderError::Silent | UploaderError::Socket(_) => None,
        };
        error.refusal(path)
    }
}

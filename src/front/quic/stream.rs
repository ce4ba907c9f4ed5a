//! The two halves of one request stream, for the task that serves it.
//!
//! Dropping a half that is not finished gives it up: the sending side is reset, the receiving side stopped.
//! So a task that ends early leaves nothing behind, and its peer is told.

use std::{future::poll_fn, rc::Rc};

use bytes::Bytes;
use proto_rkyv::code;
use quinn_proto::{ConnectionError, StreamId, VarInt};
use thiserror::Error;

use super::connection::Link;

/// Why a stream cannot be read or written any more.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The peer gave up sending.
    #[error("peer reset the stream with code {0}")]
    Reset(u64),
    /// The peer does not want to receive any more.
    #[error("peer stopped the stream with code {0}")]
    Stopped(u64),
    /// It is finished already.
    #[error("the stream is closed")]
    Closed,
    /// Its connection is over.
    #[error("connection lost")]
    Lost(#[source] ConnectionError),
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    link: Rc<Link>,
    id: StreamId,
    is_open: bool,
}

impl RecvHalf {
    pub(super) fn new(link: Rc<Link>, id: StreamId) -> Self {
        Self {
            link,
            id,
            is_open: true,
        }
    }

    /// The next bytes in order, as they came; `None` when the peer has finished the stream.
    ///
    /// # Errors
    /// [`StreamError`]; also when asked again after the end.
    ///
    /// # Cancel
    /// Loses nothing.
    pub(crate) async fn read_chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        if !self.is_open {
            return Err(self.link.closed());
        }
        let read = poll_fn(|cx| self.link.poll_read(self.id, usize::MAX, cx)).await;
        // After the end or a reset quinn-proto has forgotten the stream.
        self.is_open = matches!(read, Ok(Some(_)));
        read
    }

    /// Tells the peer that the rest is not wanted, with `code`.
    pub(crate) fn stop(&mut self, code: u32) {
        if std::mem::replace(&mut self.is_open, false) {
            // Fails only when the peer has finished or reset it in the meantime.
            let _ = self
                .link
                .connection()
                .recv_stream(self.id)
                .stop(VarInt::from_u32(code));
            self.link.mark_dirty();
        }
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        if !self.link.is_lost() {
            self.stop(code::STREAM_DONE);
        }
        self.link.drop_half(self.id);
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendHalf {
    link: Rc<Link>,
    id: StreamId,
    is_open: bool,
}

impl SendHalf {
    pub(super) fn new(link: Rc<Link>, id: StreamId) -> Self {
        Self {
            link,
            id,
            is_open: true,
        }
    }

    /// Writes all of `chunks` by reference, waiting for room as the peer reads. Leaves them empty.
    ///
    /// # Errors
    /// [`StreamError`] when the peer does not take them any more; some may have been sent.
    ///
    /// # Cancel
    /// What was written is gone from `chunks`, the rest is still there.
    pub(crate) async fn write_chunks(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        if !self.is_open {
            return Err(self.link.closed());
        }
        poll_fn(|cx| self.link.poll_write(self.id, chunks, cx)).await
    }

    /// Ends the stream in order: what was written is delivered first.
    pub(crate) fn finish(&mut self) {
        if std::mem::replace(&mut self.is_open, false) {
            // Fails only when the peer has stopped it: then there is nobody to tell.
            let _ = self.link.connection().send_stream(self.id).finish();
            self.link.mark_dirty();
        }
    }

    /// Gives the stream up: what was not delivered yet never will be.
    pub(crate) fn reset(&mut self, code: u32) {
        if std::mem::replace(&mut self.is_open, false) {
            let _ = self
                .link
                .connection()
                .send_stream(self.id)
                .reset(VarInt::from_u32(code));
            self.link.mark_dirty();
        }
    }

    /// Returns when nobody will read what is written any more: the peer stopped the stream or the connection
    /// is lost. For tasks that wait for something else than the peer.
    ///
    /// # Cancel
    /// Nothing happens.
    pub(crate) async fn gone(&self) -> StreamError {
        poll_fn(|cx| self.link.poll_gone(self.id, cx)).await
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.link.is_lost() {
            self.reset(code::STREAM_CANCELED);
        }
        self.link.drop_half(self.id);
    }
}

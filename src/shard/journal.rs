//! Writes the journal of one shard: records are gathered and appended through the ring, in order.
//!
//! Until the database comes nothing waits for a record but a shutdown. When the disk takes no more, records
//! wait in memory, in bounds, and go on exactly where they stopped, so that no line is ever torn.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use bytes::{Buf, Bytes};

use crate::{
    job::JobView,
    limits,
    rt::{self, Notify},
    store,
};

/// Appends to one journal file.
#[derive(Debug, Clone)]
pub(super) struct JournalWriter(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    buffer: RefCell<Vec<u8>>,
    is_idle: Cell<bool>,
    /// The last write failed and is tried again later.
    is_stuck: Cell<bool>,
    more: Notify,
    flushed: Notify,
}

impl JournalWriter {
    /// A writer; [`JournalWriter::serve`] does the work.
    pub(super) fn new() -> Self {
        Self(Rc::new(Inner {
            is_idle: Cell::new(true),
            ..Inner::default()
        }))
    }

    pub(super) fn accepted(&self, view: &JobView) {
        self.append(&store::encode_accepted(view));
    }

    pub(super) fn ended(&self, view: &JobView) {
        self.append(&store::encode_ended(view));
    }

    fn append(&self, record: &[u8]) {
        let mut buffer = self.0.buffer.borrow_mut();
        if self.0.is_stuck.get() && buffer.len() + record.len() > limits::JOURNAL_PENDING_BYTES {
            tracing::error!(bytes = record.len(), "a record of the journal is lost");
            return;
        }
        buffer.extend_from_slice(record);
        self.0.is_idle.set(false);
        self.0.more.notify_one();
    }

    /// Appends to `file` (which is O_APPEND), for ever.
    pub(super) async fn serve(self, file: rt::File) {
        loop {
            let batch = std::mem::take(&mut *self.0.buffer.borrow_mut());
            if batch.is_empty() {
                self.0.is_idle.set(true);
                self.0.flushed.notify_one();
                self.0.more.notified().await;
                continue;
            }
            self.write(&file, batch.into()).await;
        }
    }

    async fn write(&self, file: &rt::File, mut rest: Bytes) {
        while !rest.is_empty() {
            let (written, back) = file.write_at(rest, 0).await;
            rest = back;
            match written {
                Ok(bytes) => {
                    rest.advance(bytes);
                    self.0.is_stuck.set(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !self.0.is_stuck.replace(true) {
                        tracing::error!(%error, "the journal cannot be written, its records wait");
                    }
                    self.0.flushed.notify_one();
                    rt::sleep(limits::JOURNAL_RETRY).await;
                }
            }
        }
    }

    /// Returns when everything appended so far is in the file, or when the disk has taken nothing for two
    /// tries.
    pub(super) async fn flushed(&self) {
        let give_up = rt::now() + 2 * limits::JOURNAL_RETRY;
        while !self.0.is_idle.get() {
            if self.0.is_stuck.get() && rt::now() >= give_up {
                tracing::error!("the journal cannot be written, the last records are lost");
                return;
            }
            let _ = rt::timeout(limits::JOURNAL_RETRY, self.0.flushed.notified()).await;
        }
    }
}

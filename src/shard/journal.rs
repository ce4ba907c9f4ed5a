//! Writes the journal of one shard: records are gathered and appended through the ring, in order.
//!
//! Until the database comes nothing waits for a record but a shutdown.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::{
    job::JobView,
    rt::{self, Notify},
    store::journal,
};

/// Appends to one journal file.
#[derive(Debug, Clone)]
pub(super) struct JournalWriter(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    buffer: RefCell<Vec<u8>>,
    is_idle: Cell<bool>,
    more: Notify,
    flushed: Notify,
}

impl JournalWriter {
    /// A writer; [`JournalWriter::serve`] does the work.
    pub(super) fn new() -> Self {
        Self(Rc::new(Inner { is_idle: Cell::new(true), ..Inner::default() }))
    }

    pub(super) fn accepted(&self, view: &JobView) {
        self.append(&journal::encode_accepted(view));
    }

    pub(super) fn ended(&self, view: &JobView) {
        self.append(&journal::encode_ended(view));
    }

    fn append(&self, record: &[u8]) {
        self.0.buffer.borrow_mut().extend_from_slice(record);
        self.0.is_idle.set(false);
        self.0.more.notify();
    }

    /// Appends to `file` from `offset` on, for ever. A record that cannot be written is reported; the next
    /// one is tried all the same.
    pub(super) async fn serve(self, file: rt::File, mut offset: u64) {
        loop {
            let batch = std::mem::take(&mut *self.0.buffer.borrow_mut());
            if batch.is_empty() {
                self.0.is_idle.set(true);
                self.0.flushed.notify();
                self.0.more.notified().await;
                continue;
            }
            let len = batch.len() as u64;
            let (result, _) = file.write_all_at(batch, offset).await;
            match result {
                Ok(()) => offset += len,
                Err(error) => tracing::error!(%error, bytes = len, "records of the journal are lost"),
            }
        }
    }

    /// Returns when everything appended so far is in the file.
    pub(super) async fn flushed(&self) {
        while !self.0.is_idle.get() {
            self.0.flushed.notified().await;
        }
    }
}

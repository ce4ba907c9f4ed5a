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
    store,
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
        self.append(&store::encode_accepted(view));
    }

    pub(super) fn ended(&self, view: &JobView) {
        self.append(&store::encode_ended(view));
    }

    fn append(&self, record: &[u8]) {
        self.0.buffer.borrow_mut().extend_from_slice(record);
        self.0.is_idle.set(false);
        self.0.more.notify_one();
    }

    /// Appends to `file` (which is O_APPEND), for ever. A record that cannot be written is reported; the
    /// next one is tried all the same.
    pub(super) async fn serve(self, file: rt::File) {
        loop {
            let batch = std::mem::take(&mut *self.0.buffer.borrow_mut());
            if batch.is_empty() {
                self.0.is_idle.set(true);
                self.0.flushed.notify_one();
                self.0.more.notified().await;
                continue;
            }
            let bytes = batch.len();
            if let Err(error) = file.write_all_at(batch.into(), 0).await {
                tracing::error!(%error, bytes, "records of the journal are lost");
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

//! Writes the index of one job: records wait in memory, at most one write is in flight, and what came
//! meanwhile goes with the next one. Readers are told only of records that are in the file.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;

use super::{
    JobFiles, LogError, Progress, Recovered, Snapshot,
    record::{Header, Record, position_of},
};
use crate::{
    limits,
    rt::{Event, File},
};

pub(super) struct Index {
    /// Records that stand in the file.
    written: Cell<u64>,
    /// Bytes that they describe.
    written_bytes: Cell<u64>,
    /// What the header in the file says, when there is one.
    dropped_written: Cell<Option<u64>>,
    pending: RefCell<Vec<Record>>,
    file: RefCell<Option<Rc<File>>>,
    is_writing: Cell<bool>,
}

impl Index {
    pub(super) fn new(from: &Recovered) -> Self {
        let exists = from.records > 0 || from.totals.dropped_bytes > 0;
        Self {
            written: Cell::new(from.records),
            written_bytes: Cell::new(from.totals.stdout_bytes + from.totals.stderr_bytes),
            dropped_written: Cell::new(exists.then_some(from.totals.dropped_bytes)),
            pending: RefCell::default(),
            file: RefCell::default(),
            is_writing: Cell::new(false),
        }
    }

    pub(super) fn push(&self, record: Record) {
        self.pending.borrow_mut().push(record);
    }

    /// Bytes of the file once everything pending is written.
    pub(super) fn bytes(&self) -> u64 {
        position_of(self.written.get() + self.pending.borrow().len() as u64)
    }

    /// Whether so much waits that no more may be stored.
    pub(super) fn is_full(&self) -> bool {
        self.pending.borrow().len() >= limits::INDEX_PENDING_MAX
    }

    pub(super) fn is_writing(&self) -> bool {
        self.is_writing.get()
    }

    /// Whether the file lacks something.
    pub(super) fn is_behind(&self, dropped_bytes: u64) -> bool {
        !self.pending.borrow().is_empty() || self.dropped_written.get().unwrap_or(0) != dropped_bytes
    }

    /// Takes the right to write, which the caller uses with [`Index::write_out`].
    pub(super) fn begin(&self) -> bool {
        !self.is_writing.replace(true)
    }

    /// Writes until nothing is pending, telling `progress` after each write. What fails stays pending.
    pub(super) async fn write_out(
        &self,
        files: &JobFiles,
        dropped: &Cell<u64>,
        progress: &Progress,
        settled: &Event,
    ) -> Result<(), LogError> {
        debug_assert!(self.is_writing.get(), "`begin` comes first");
        let mut result = Ok(());
        while result.is_ok() && self.is_behind(dropped.get()) {
            result = self.write_some(files, dropped.get(), progress).await;
        }
        self.is_writing.set(false);
        settled.notify_all();
        result
    }

    async fn write_some(
        &self,
        files: &JobFiles,
        dropped_bytes: u64,
        progress: &Progress,
    ) -> Result<(), LogError> {
        let path = files.index();
        let open = self.file.borrow().clone();
        let file = match open {
            Some(file) => file,
            None => {
                let file = files.create(&path).await?;
                self.file.replace(Some(file.clone()));
                file
            }
        };
        let failed = |source| LogError::Write { path: path.clone(), source };
        if self.dropped_written.get() != Some(dropped_bytes) {
            let header = Bytes::copy_from_slice(&Header { dropped_bytes }.encode());
            file.write_all_at(header, 0).await.map_err(failed)?;
            self.dropped_written.set(Some(dropped_bytes));
        }
        let batch: Vec<u8> = self.pending.borrow().iter().flat_map(Record::encode).collect();
        let count = batch.len() / super::record::RECORD_BYTES;
        if count > 0 {
            file.write_all_at(batch.into(), position_of(self.written.get())).await.map_err(failed)?;
        }
        let bytes: u64 = self.pending.borrow_mut().drain(..count).map(|r| u64::from(r.len)).sum();
        self.written.set(self.written.get() + count as u64);
        self.written_bytes.set(self.written_bytes.get() + bytes);
        progress.update(Snapshot {
            records: self.written.get(),
            bytes: self.written_bytes.get(),
            dropped_bytes,
            is_ended: progress.snapshot().is_ended,
        });
        Ok(())
    }

    /// Closes the file and frees what an idle job need not hold.
    pub(super) fn close(&self) {
        if !self.is_writing.get() {
            self.file.replace(None);
            self.pending.borrow_mut().shrink_to_fit();
        }
    }
}

//! How far a job's files may be read: the hinge between the one who writes and those who follow.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use super::{LogError, Place, reader::Reader};
use crate::rt::Watch;

/// What stands in the files: everything up to here can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Index records.
    pub records: u64,
    /// Bytes of both streams that those records describe.
    pub bytes: u64,
    /// Bytes that were dropped so far.
    pub dropped_bytes: u64,
    /// Whether nothing will follow.
    pub is_ended: bool,
}

impl Snapshot {
    /// The later one of two of the same job: nothing in them ever goes back.
    #[must_use]
    pub fn newest(self, other: Self) -> Self {
        Self {
            records: self.records.max(other.records),
            bytes: self.bytes.max(other.bytes),
            dropped_bytes: self.dropped_bytes.max(other.dropped_bytes),
            is_ended: self.is_ended || other.is_ended,
        }
    }
}

/// The progress of one job as one shard knows it.
///
/// The owner's is moved by its capture. Another shard has a copy that is moved by
/// [`Progress::update`] with snapshots from the owner, in order.
#[derive(Debug, Default)]
pub struct Progress {
    watch: Watch<Snapshot>,
    watching: Cell<usize>,
    reader: RefCell<Weak<Reader>>,
    /// The reader of a job that has ended: what it has found need not be looked for again.
    ended: RefCell<Option<Rc<Reader>>>,
}

impl Progress {
    /// Starts at `snapshot`.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Rc<Self> {
        Rc::new(Self {
            watch: Watch::new(snapshot),
            ..Self::default()
        })
    }

    /// Of a job that has ended: what its index says.
    ///
    /// # Errors
    /// [`LogError`] when there is output and it cannot be read.
    pub async fn ended(place: &Place) -> Result<Rc<Self>, LogError> {
        let reader = Rc::new(Reader::new(place));
        let progress = Self::new(reader.ended_snapshot().await?);
        progress.reader.replace(Rc::downgrade(&reader));
        progress.ended.replace(Some(reader));
        Ok(progress)
    }

    /// As it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.watch.get()
    }

    /// Moves on and wakes who waits, if anything is new.
    pub fn update(&self, snapshot: Snapshot) {
        if snapshot != self.watch.get() {
            self.watch.set(snapshot);
        }
    }

    /// Says that nothing will follow. Twice is fine.
    pub fn end(&self) {
        self.update(Snapshot {
            is_ended: true,
            ..self.snapshot()
        });
    }

    /// Grows with each change: what [`Progress::changed`] compares.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.watch.version()
    }

    /// Waits for a version other than `seen` and returns it.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn changed(&self, seen: u64) -> u64 {
        self.watch.changed(seen).await
    }

    /// Somebody wants to see output at once, until the returned value is dropped: batching gets shorter.
    pub fn watching(self: &Rc<Self>) -> Watching {
        self.watching.set(self.watching.get() + 1);
        Watching(self.clone())
    }

    /// Whether somebody does.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watching.get() > 0
    }

    /// The opened output that followers of this shard share.
    pub(super) fn reader(&self, place: &Place) -> Rc<Reader> {
        let mut shared = self.reader.borrow_mut();
        if let Some(reader) = shared.upgrade() {
            return reader;
        }
        let reader = Rc::new(Reader::new(place));
        *shared = Rc::downgrade(&reader);
        reader
    }
}

/// See [`Progress::watching`].
#[derive(Debug)]
pub struct Watching(Rc<Progress>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watching.set(self.0.watching.get() - 1);
    }
}

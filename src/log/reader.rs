//! The output of one job opened for reading, shared by its followers on one shard, and what they read last.
//!
//! Many followers at the tail of one job are woken by the same progress and ask for the same bytes: the first
//! one reads them, the others get a reference.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    path::Path,
    rc::Rc,
};

use bytes::Bytes;

use super::{
    LogError, Place, Snapshot,
    record::{Header, RECORD_BYTES, Record, position_of, records_in},
    source::Source,
};
use crate::{
    job::{Stream, Streams},
    limits,
    rt::Gate,
};

pub(super) struct Reader {
    place: Place,
    index: RefCell<Option<Source>>,
    stdout: RefCell<Option<Source>>,
    stderr: RefCell<Option<Source>>,
    newest_records: RefCell<Option<(u64, Rc<[Record]>)>>,
    newest: RefCell<VecDeque<(Stream, u64, Bytes)>>,
    /// One opens, the others wait and share.
    opening: Gate,
    /// Reads of streams that were made, not shared.
    pub(super) reads: Cell<u64>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            index: RefCell::default(),
            stdout: RefCell::default(),
            stderr: RefCell::default(),
            newest_records: RefCell::default(),
            newest: RefCell::default(),
            opening: Gate::new(1),
            reads: Cell::new(0),
        }
    }

    /// What the index of an ended job says.
    pub(super) async fn ended_snapshot(&self) -> Result<Snapshot, LogError> {
        let path = self.place.files().index();
        let mut snapshot = Snapshot {
            is_ended: true,
            ..Snapshot::default()
        };
        let index = match self.index().await {
            Ok(index) => index,
            Err(LogError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(snapshot);
            }
            Err(error) => return Err(error),
        };
        let failed = |source| LogError::Read {
            path: path.clone(),
            source,
        };
        let header = index
            .read_range(0, RECORD_BYTES, true)
            .await
            .map_err(failed)?;
        let header = Header::decode(&header).ok_or(LogError::Corrupt {
            path: path.clone(),
            record: 0,
        })?;
        snapshot.dropped_bytes = header.dropped_bytes;
        snapshot.records = records_in(index.size().await.map_err(failed)?);
        if let Some(last) = snapshot.records.checked_sub(1) {
            snapshot.bytes = self.record(last).await?.end(Streams::All);
        }
        Ok(snapshot)
    }

    /// One record.
    pub(super) async fn record(&self, number: u64) -> Result<Record, LogError> {
        let records = self.records(number, 1, true).await?;
        records.first().copied().ok_or_else(|| self.corrupt(number))
    }

    /// `count` records from `first`, which must exist. `is_fresh` ones have just been written.
    pub(super) async fn records(
        &self,
        first: u64,
        count: u64,
        is_fresh: bool,
    ) -> Result<Rc<[Record]>, LogError> {
        if let Some((known, records)) = &*self.newest_records.borrow()
            && *known == first
            && records.len() as u64 == count
        {
            return Ok(records.clone());
        }
        let index = self.index().await?;
        let len = usize::try_from(count).expect("callers ask for a bounded number") * RECORD_BYTES;
        let raw = index.read_range(position_of(first), len, is_fresh).await;
        let raw = raw.map_err(|source| LogError::Read {
            path: self.place.files().index(),
            source,
        })?;
        let decoded: Option<Rc<[Record]>> =
            raw.chunks_exact(RECORD_BYTES).map(Record::decode).collect();
        let records = decoded
            .filter(|r| r.len() as u64 == count)
            .ok_or_else(|| self.corrupt(first))?;
        if is_fresh {
            self.newest_records.replace(Some((first, records.clone())));
        }
        Ok(records)
    }

    /// Exactly `len` bytes of a stream from `offset`; the index says that they exist.
    pub(super) async fn bytes(
        &self,
        stream: Stream,
        offset: u64,
        len: u64,
        is_fresh: bool,
    ) -> Result<Bytes, LogError> {
        let path = self.place.files().stream(stream);
        let source = self.open(self.slot(stream), &path).await?;
        if is_fresh && let Some(bytes) = self.known(stream, offset, len) {
            return Ok(bytes);
        }
        let size = usize::try_from(len).expect("callers ask for a bounded number");
        let read = source.read_range(offset, size, is_fresh).await;
        let bytes = read.map_err(|source| LogError::Read {
            path: path.clone(),
            source,
        })?;
        self.reads.set(self.reads.get() + 1);
        if bytes.len() != size {
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(LogError::Read { path, source });
        }
        if is_fresh {
            let mut newest = self.newest.borrow_mut();
            newest.push_front((stream, offset, bytes.clone()));
            newest.truncate(limits::FOLLOW_SHARED_BLOCKS);
        }
        Ok(bytes)
    }

    /// The index and the files contradict each other at `record`.
    pub(super) fn corrupt(&self, record: u64) -> LogError {
        LogError::Corrupt {
            path: self.place.files().index(),
            record,
        }
    }

    fn known(&self, stream: Stream, offset: u64, len: u64) -> Option<Bytes> {
        self.newest
            .borrow()
            .iter()
            .find_map(|(known, from, bytes)| {
                let start = usize::try_from(offset.checked_sub(*from)?).ok()?;
                let end = start.checked_add(usize::try_from(len).ok()?)?;
                (*known == stream && end <= bytes.len()).then(|| bytes.slice(start..end))
            })
    }

    async fn index(&self) -> Result<Source, LogError> {
        let path = self.place.files().index();
        self.open(&self.index, &path).await
    }

    fn slot(&self, stream: Stream) -> &RefCell<Option<Source>> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    async fn open(&self, slot: &RefCell<Option<Source>>, path: &Path) -> Result<Source, LogError> {
        if let Some(source) = &*slot.borrow() {
            return Ok(source.clone());
        }
        let _pass = self.opening.enter().await;
        if let Some(source) = &*slot.borrow() {
            return Ok(source.clone());
        }
        let opened = match Source::open(path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.move_on().await?;
                slot.borrow().clone().ok_or(error)
            }
            opened => opened,
        };
        let source = opened.map_err(|source| LogError::Open {
            path: path.to_path_buf(),
            source,
        })?;
        slot.replace(Some(source.clone()));
        Ok(source)
    }

    /// Goes on with what was in the files, if it is elsewhere.
    async fn move_on(&self) -> Result<(), LogError> {
        if let Some(whole) = self.place.moved().await? {
            let parts = [
                (&self.stdout, whole.stdout),
                (&self.stderr, whole.stderr),
                (&self.index, whole.index),
            ];
            for (slot, bytes) in parts {
                slot.replace(Some(Source::Bytes(bytes.into())));
            }
        }
        Ok(())
    }
}

//! The open files of one job for reading, shared by its followers on one shard, and what they read last.
//!
//! Many followers at the tail of one job are woken by the same progress and ask for the same bytes: the first
//! one reads them, the others get a reference.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

use super::{
    LogError, Snapshot,
    files::{index_path, stream_path},
    record::{Header, RECORD_BYTES, Record, position_of, records_in},
};
use crate::{
    job::{Stream, Streams},
    limits,
    rt::{File, Gate, OpenHow},
};

pub(super) struct Reader {
    dir: PathBuf,
    index: RefCell<Option<Rc<File>>>,
    stdout: RefCell<Option<Rc<File>>>,
    stderr: RefCell<Option<Rc<File>>>,
    newest_records: RefCell<Option<(u64, Rc<[Record]>)>>,
    newest: RefCell<VecDeque<(Stream, u64, Bytes)>>,
    /// One opens, the others wait and share.
    opening: Gate,
    /// Reads of streams that were made, not shared.
    pub(super) reads: Cell<u64>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            index: RefCell::default(),
            stdout: RefCell::default(),
            stderr: RefCell::default(),
            newest_records: RefCell::default(),
            newest: RefCell::default(),
            opening: Gate::new(1),
            reads: Cell::new(0),
        }
    }

    /// What the files of an ended job say.
    pub(super) async fn ended_snapshot(&self) -> Result<Snapshot, LogError> {
        let path = index_path(&self.dir);
        let mut snapshot = Snapshot { is_ended: true, ..Snapshot::default() };
        let file = match self.index_file().await {
            Ok(file) => file,
            Err(LogError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(snapshot);
            }
            Err(error) => return Err(error),
        };
        let failed = |source| LogError::Read { path: path.clone(), source };
        let header = file.read_range(0, RECORD_BYTES, true).await.map_err(failed)?;
        let header = Header::decode(&header).ok_or(LogError::Corrupt { path: path.clone(), record: 0 })?;
        snapshot.dropped_bytes = header.dropped_bytes;
        snapshot.records = records_in(file.size().await.map_err(failed)?);
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
        let file = self.index_file().await?;
        let len = usize::try_from(count).expect("callers ask for a bounded number") * RECORD_BYTES;
        let raw = file.read_range(position_of(first), len, is_fresh).await;
        let raw = raw.map_err(|source| LogError::Read { path: index_path(&self.dir), source })?;
        let decoded: Option<Rc<[Record]>> = raw.chunks_exact(RECORD_BYTES).map(Record::decode).collect();
        let records = decoded.filter(|r| r.len() as u64 == count).ok_or_else(|| self.corrupt(first))?;
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
        let path = stream_path(&self.dir, stream);
        let file = self.open(self.slot(stream), &path).await?;
        if is_fresh && let Some(bytes) = self.known(stream, offset, len) {
            return Ok(bytes);
        }
        let size = usize::try_from(len).expect("callers ask for a bounded number");
        let read = file.read_range(offset, size, is_fresh).await;
        let bytes = Bytes::from(read.map_err(|source| LogError::Read { path: path.clone(), source })?);
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
        LogError::Corrupt { path: index_path(&self.dir), record }
    }

    fn known(&self, stream: Stream, offset: u64, len: u64) -> Option<Bytes> {
        self.newest.borrow().iter().find_map(|(known, from, bytes)| {
            let start = usize::try_from(offset.checked_sub(*from)?).ok()?;
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            (*known == stream && end <= bytes.len()).then(|| bytes.slice(start..end))
        })
    }

    async fn index_file(&self) -> Result<Rc<File>, LogError> {
        self.open(&self.index, &index_path(&self.dir)).await
    }

    fn slot(&self, stream: Stream) -> &RefCell<Option<Rc<File>>> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    async fn open(&self, slot: &RefCell<Option<Rc<File>>>, path: &Path) -> Result<Rc<File>, LogError> {
        if let Some(file) = &*slot.borrow() {
            return Ok(file.clone());
        }
        let _pass = self.opening.enter().await;
        if let Some(file) = &*slot.borrow() {
            return Ok(file.clone());
        }
        let opened = File::open(path, OpenHow::Read).await;
        let file = Rc::new(opened.map_err(|source| LogError::Open { path: path.to_path_buf(), source })?);
        slot.replace(Some(file.clone()));
        Ok(file)
    }
}

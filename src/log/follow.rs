//! Reads the output of a job in the order of capture: a cursor over its files, or what was in them.
//!
//! History and live are the same code; only the wait at the end differs. A follower holds one block at most,
//! however slow its reader, and it can neither lose bytes nor hold up the job. It works on any shard, and
//! on the files of an ended job alone.

use std::{collections::VecDeque, rc::Rc};

use bytes::Bytes;

use super::{LogError, Place, Progress, Watching, reader::Reader, record::Record, tail};
use crate::{
    job::{Chunk, LogQuery, Stream, Streams},
    limits,
};

/// A cursor over a job's output.
#[derive(Debug)]
pub struct Follower {
    reader: Rc<Reader>,
    progress: Rc<Progress>,
    streams: Streams,
    /// Only output at or after this time.
    since_ns: u64,
    cursor: Cursor,
    /// Records to stop at, when not following.
    until: Option<u64>,
    ready: VecDeque<Chunk>,
    _watching: Option<Watching>,
}

/// What has been given so far.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    /// The next record to look at.
    record: u64,
    /// The position in the selected streams from which on bytes are given.
    position: u64,
}

impl Follower {
    /// Begins where `query` says, in the output at `place`. `progress` is the job's on this shard, or
    /// [`Progress::ended`] of an ended one.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn open(
        place: &Place,
        query: LogQuery,
        progress: Rc<Progress>,
    ) -> Result<Self, LogError> {
        let reader = progress.reader(place);
        let snapshot = progress.snapshot();
        let streams = query.streams;
        let since_ns = query
            .since_ns
            .and_then(|ns| u64::try_from(ns).ok())
            .unwrap_or(0);
        let mut position = query.offset;
        if let Some(lines) = query.tail_lines {
            position =
                position.max(tail::last_lines(&reader, streams, snapshot.records, lines).await?);
        }
        let mut record = tail::first_not(&reader, snapshot.records, |record| {
            record.end(streams) <= position
        })
        .await?;
        if since_ns > 0 {
            let late = tail::first_not(&reader, snapshot.records, |record| {
                record.time_ns < since_ns
            })
            .await?;
            record = record.max(late);
        }
        Ok(Self {
            streams,
            since_ns,
            cursor: Cursor { record, position },
            until: (!query.follow).then_some(snapshot.records),
            ready: VecDeque::new(),
            _watching: query.follow.then(|| progress.watching()),
            reader,
            progress,
        })
    }

    /// The next piece; `None` when all that was asked for has been given.
    ///
    /// # Errors
    /// [`LogError`]; the same piece is tried again by the next call.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Chunk>, LogError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            let version = self.progress.version();
            let snapshot = self.progress.snapshot();
            let end = self.until.unwrap_or(snapshot.records);
            if self.cursor.record < end {
                self.fill(end, !snapshot.is_ended && end == snapshot.records)
                    .await?;
            } else if self.until.is_some() || snapshot.is_ended {
                return Ok(None);
            } else {
                self.progress.changed(version).await;
            }
        }
    }

    /// Reads the next block of the records before `end`, of which the last may have just been written.
    async fn fill(&mut self, end: u64, is_live: bool) -> Result<(), LogError> {
        let count = (end - self.cursor.record).min(limits::FOLLOW_READ_RECORDS);
        let is_fresh = is_live && self.cursor.record + count == end;
        let records = self
            .reader
            .records(self.cursor.record, count, is_fresh)
            .await?;
        let block = self.choose(&records);
        let stdout = self.read(&block, Stream::Stdout, is_fresh).await?;
        let stderr = self.read(&block, Stream::Stderr, is_fresh).await?;
        for piece in merged(&block.pieces) {
            let base = block.start(piece.stream).unwrap_or(piece.offset);
            let bytes = match piece.stream {
                Stream::Stdout => &stdout,
                Stream::Stderr => &stderr,
            };
            let start = usize::try_from(piece.offset - base).expect("within one block");
            let len = usize::try_from(piece.len).expect("within one block");
            self.ready.push_back(Chunk {
                stream: piece.stream,
                offset: piece.offset,
                time_ns: piece.time_ns,
                bytes: bytes.slice(start..start + len),
            });
        }
        self.cursor = block.after;
        Ok(())
    }

    /// What of `records`, which begin at the cursor, comes next.
    fn choose(&self, records: &[Record]) -> Block {
        let mut block = Block {
            pieces: Vec::new(),
            after: self.cursor,
        };
        let mut bytes = 0;
        for record in records {
            let position = record.position(self.streams);
            let len = u64::from(record.len);
            let skipped = block.after.position.saturating_sub(position);
            let is_wanted = self.streams.includes(record.stream) && record.time_ns >= self.since_ns;
            if is_wanted && skipped < len {
                let taken = (len - skipped).min(limits::FOLLOW_READ_BYTES - bytes);
                if taken == 0 {
                    break;
                }
                bytes += taken;
                let offset = record.offset + skipped;
                block.pieces.push(Piece {
                    stream: record.stream,
                    offset,
                    len: taken,
                    time_ns: record.time_ns,
                });
                block.after.position = position + skipped + taken;
                if skipped + taken < len {
                    break;
                }
            }
            block.after.record += 1;
        }
        block
    }

    /// All bytes of one stream in `block`: they lie side by side in its file.
    async fn read(&self, block: &Block, stream: Stream, is_fresh: bool) -> Result<Bytes, LogError> {
        let Some(start) = block.start(stream) else {
            return Ok(Bytes::new());
        };
        let mut end = start;
        for piece in block.pieces.iter().filter(|piece| piece.stream == stream) {
            if piece.offset != end {
                return Err(self.reader.corrupt(self.cursor.record));
            }
            end += piece.len;
        }
        self.reader
            .bytes(stream, start, end - start, is_fresh)
            .await
    }
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    stream: Stream,
    offset: u64,
    len: u64,
    time_ns: u64,
}

struct Block {
    pieces: Vec<Piece>,
    after: Cursor,
}

impl Block {
    fn start(&self, stream: Stream) -> Option<u64> {
        self.pieces
            .iter()
            .find(|piece| piece.stream == stream)
            .map(|piece| piece.offset)
    }
}

/// Neighbours of one stream and about one time, as long as they are small.
fn merged(pieces: &[Piece]) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match out.last_mut() {
            Some(last)
                if last.stream == piece.stream
                    && last.offset + last.len == piece.offset
                    && last.len + piece.len <= limits::FOLLOW_MERGE_BYTES
                    && piece.time_ns.saturating_sub(last.time_ns) <= limits::FOLLOW_MERGE_NS =>
            {
                last.len += piece.len;
            }
            _ => out.push(*piece),
        }
    }
    out
}

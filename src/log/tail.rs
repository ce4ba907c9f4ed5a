//! Where to begin: positions, times and last lines, found without reading everything.

use std::ops::Range;

use super::{LogError, reader::Reader, record::Record};
use crate::{
    job::{Stream, Streams},
    limits,
};

/// The first of `count` records for which `is_before` no longer holds. It must hold for a beginning only.
pub(super) async fn first_not(
    reader: &Reader,
    count: u64,
    is_before: impl Fn(&Record) -> bool,
) -> Result<u64, LogError> {
    let mut range = 0..count;
    while !range.is_empty() {
        let middle = range.start + (range.end - range.start) / 2;
        if is_before(&reader.record(middle).await?) {
            range.start = middle + 1;
        } else {
            range.end = middle;
        }
    }
    Ok(range.start)
}

/// The position in `streams` at which the last `lines` lines of the first `count` records begin. Bytes after
/// the last newline are a line.
pub(super) async fn last_lines(
    reader: &Reader,
    streams: Streams,
    count: u64,
    lines: u64,
) -> Result<u64, LogError> {
    let Some(last) = count.checked_sub(1) else {
        return Ok(0);
    };
    let end = reader.record(last).await?.end(streams);
    let mut search = Search { end, wanted: lines };
    if lines == 0 {
        return Ok(end);
    }
    let mut above = count;
    while above > 0 {
        let below = above.saturating_sub(limits::FOLLOW_READ_RECORDS);
        let records = reader.records(below, above - below, false).await?;
        let mut batch = Batch::default();
        for record in records.iter().rev().filter(|record| streams.includes(record.stream)) {
            let mut rest = u64::from(record.len);
            while rest > 0 {
                let len = rest.min(limits::FOLLOW_READ_BYTES - batch.bytes);
                rest -= len;
                let piece = Piece {
                    stream: record.stream,
                    offset: record.offset + rest,
                    position: record.position(streams) + rest,
                    len,
                };
                batch.add(piece);
                if batch.bytes == limits::FOLLOW_READ_BYTES {
                    if let Some(found) = batch.search(reader, &mut search).await? {
                        return Ok(found);
                    }
                    batch = Batch::default();
                }
            }
        }
        if let Some(found) = batch.search(reader, &mut search).await? {
            return Ok(found);
        }
        above = below;
    }
    Ok(0)
}

struct Search {
    end: u64,
    wanted: u64,
}

impl Search {
    /// `bytes` lie at `position`, right before what was looked at last.
    fn backwards(&mut self, bytes: &[u8], position: u64) -> Option<u64> {
        for (index, _) in bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + index as u64 + 1;
            // The newline at the very end closes the last line and opens none.
            if after < self.end {
                self.wanted -= 1;
                if self.wanted == 0 {
                    return Some(after);
                }
            }
        }
        None
    }
}

struct Piece {
    stream: Stream,
    offset: u64,
    position: u64,
    len: u64,
}

/// Pieces that are read together, last one first. Those of one stream lie side by side in its file.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    stdout: Option<Range<u64>>,
    stderr: Option<Range<u64>>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, piece: Piece) {
        let range = match piece.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let end = range.as_ref().map_or(piece.offset + piece.len, |range| range.end);
        *range = Some(piece.offset..end);
        self.bytes += piece.len;
        self.pieces.push(piece);
    }

    async fn search(self, reader: &Reader, search: &mut Search) -> Result<Option<u64>, LogError> {
        let stdout = read(reader, Stream::Stdout, self.stdout.as_ref()).await?;
        let stderr = read(reader, Stream::Stderr, self.stderr.as_ref()).await?;
        for piece in &self.pieces {
            let (bytes, range) = match piece.stream {
                Stream::Stdout => (&stdout, &self.stdout),
                Stream::Stderr => (&stderr, &self.stderr),
            };
            let start = piece.offset - range.as_ref().map_or(0, |range| range.start);
            let slice = usize::try_from(start)
                .ok()
                .zip(usize::try_from(start + piece.len).ok())
                .and_then(|(start, end)| bytes.get(start..end));
            let found = search.backwards(slice.ok_or_else(|| reader.corrupt(0))?, piece.position);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

async fn read(reader: &Reader, stream: Stream, range: Option<&Range<u64>>) -> Result<bytes::Bytes, LogError> {
    match range {
        // Contiguous unless somebody else wrote the index; never more than was asked for.
        Some(range) if range.end - range.start <= limits::FOLLOW_READ_BYTES => {
            reader.bytes(stream, range.start, range.end - range.start, false).await
        }
        Some(_) => Err(reader.corrupt(0)),
        None => Ok(bytes::Bytes::new()),
    }
}

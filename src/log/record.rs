//! The index on disk: a header and records of 40 bytes each, little-endian.
//!
//! ```text
//! header  magic [8]  version u32  record_bytes u32  dropped u64           zero [16]
//! record  at u64     offset u64   time_ns u64       len u32  stream u8  flags u8  zero [10]
//! ```
//! `at` is the position of the first byte in the sequence of both streams, `offset` the one in its own. Since
//! one is the sum of the offsets in both, every record tells the position in either stream, and each of
//! position, offset and time can be searched by halving. `dropped` is overwritten in place.

use crate::job::{Stream, Streams};

/// Size of a record and of the header.
pub(super) const RECORD_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"jobletix";
const VERSION: u32 = 1;
const FLAG_RECOVERED: u8 = 1;

/// Position of record `number` in the file, bytes.
pub(super) const fn position_of(number: u64) -> u64 {
    (number + 1) * RECORD_BYTES as u64
}

/// How many whole records a file of `bytes` holds.
pub(super) const fn records_in(bytes: u64) -> u64 {
    (bytes / RECORD_BYTES as u64).saturating_sub(1)
}

/// One piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) at: u64,
    pub(super) offset: u64,
    pub(super) time_ns: u64,
    pub(super) len: u32,
    pub(super) stream: Stream,
    /// Its time is when it was found after a crash.
    pub(super) is_recovered: bool,
}

impl Record {
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut raw = [0; RECORD_BYTES];
        raw[0..8].copy_from_slice(&self.at.to_le_bytes());
        raw[8..16].copy_from_slice(&self.offset.to_le_bytes());
        raw[16..24].copy_from_slice(&self.time_ns.to_le_bytes());
        raw[24..28].copy_from_slice(&self.len.to_le_bytes());
        // Zero is no stream, so that a hole in the file is no record.
        raw[28] = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        raw[29] = if self.is_recovered { FLAG_RECOVERED } else { 0 };
        raw
    }

    /// `None` when it cannot be one.
    pub(super) fn decode(raw: &[u8]) -> Option<Self> {
        let stream = match raw.get(28)? {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let record = Self {
            at: u64_at(raw, 0)?,
            offset: u64_at(raw, 8)?,
            time_ns: u64_at(raw, 16)?,
            len: u32::from_le_bytes(raw.get(24..28)?.try_into().ok()?),
            stream,
            is_recovered: raw.get(29)? & FLAG_RECOVERED != 0,
        };
        let is_possible = record.len > 0 && record.offset <= record.at && record.at < u64::MAX >> 1;
        is_possible.then_some(record)
    }

    /// Bytes of `streams` before this record.
    pub(super) fn position(&self, streams: Streams) -> u64 {
        match (streams, self.stream) {
            (Streams::All, _) => self.at,
            (Streams::Stdout, Stream::Stdout) | (Streams::Stderr, Stream::Stderr) => self.offset,
            (Streams::Stdout, Stream::Stderr) | (Streams::Stderr, Stream::Stdout) => self.at - self.offset,
        }
    }

    /// Bytes of `streams` before the end of this record.
    pub(super) fn end(&self, streams: Streams) -> u64 {
        let len = if streams.includes(self.stream) { u64::from(self.len) } else { 0 };
        self.position(streams) + len
    }
}

/// What stands before the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) dropped_bytes: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; RECORD_BYTES] {
        let mut raw = [0; RECORD_BYTES];
        raw[0..8].copy_from_slice(&MAGIC);
        raw[8..12].copy_from_slice(&VERSION.to_le_bytes());
        raw[12..16].copy_from_slice(&40_u32.to_le_bytes());
        raw[16..24].copy_from_slice(&self.dropped_bytes.to_le_bytes());
        raw
    }

    /// `None` when it is not one of this version.
    pub(super) fn decode(raw: &[u8]) -> Option<Self> {
        let fresh = Self::default().encode();
        (raw.get(..16)? == &fresh[..16]).then(|| Some(Self { dropped_bytes: u64_at(raw, 16)? }))?
    }
}

fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(raw.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk_and_knows_its_place_in_either_stream() {
        let stream = Stream::Stderr;
        let record = Record { at: 100, offset: 30, time_ns: 7, len: 5, stream, is_recovered: true };
        assert_eq!(Record::decode(&record.encode()), Some(record));
        assert_eq!((record.position(Streams::All), record.end(Streams::All)), (100, 105));
        assert_eq!((record.position(Streams::Stdout), record.end(Streams::Stdout)), (70, 70));
        assert_eq!((record.position(Streams::Stderr), record.end(Streams::Stderr)), (30, 35));
    }

    #[test]
    fn holes_and_foreign_bytes_are_neither_records_nor_headers() {
        assert_eq!(Record::decode(&[0; RECORD_BYTES]), None);
        assert_eq!(Record::decode(&[0xff; RECORD_BYTES]), None);
        assert_eq!(Record::decode(&[1; 20]), None);
        assert_eq!(Header::decode(&[0; RECORD_BYTES]), None);
        let header = Header { dropped_bytes: 9 };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        assert_eq!(header.encode().len(), RECORD_BYTES);
    }
}

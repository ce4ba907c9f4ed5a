//! Brings a job's files in order after a crash. Blocking: for start-up and the blocking pool.
//!
//! The pipe forgets exactly the bytes that its file got, also when the daemon was killed in the middle, so
//! the sizes of the files are the truth and the index follows: a torn record is cut off, bytes beyond the
//! last record get one, and records beyond the files (a power cut) are cut back and counted as dropped. After a
//! power cut a file may also be longer than what was written: see [`cut_unwritten`]. Call either only when no former
//! daemon can still be writing: its lock is taken.
//!
//! Stored bytes are exact. Dropped ones are as the index says, which is written behind the dropping: what was
//! thrown away between its last write and the death of the daemon is known to nobody and missing from the
//! count. That can only be where the limit or the disk's reserve was reached.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::{
    LogError, Snapshot,
    files::{index_path, stream_path},
    record::{Header, RECORD_BYTES, Record, position_of, records_in},
};
use crate::job::{LogTotals, Stream, Streams};

/// Within so many bytes at the end of a file its length may say more than there is.
const FILE_BLOCK_BYTES: u64 = 4_096;
/// Longest record that recovery makes, bytes.
const REST_BYTES_MAX: u64 = 1 << 30;

/// Where the output of a job stands, and what had to be done to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovered {
    /// Bytes stored and dropped.
    pub totals: LogTotals,
    /// Records in the index.
    pub records: u64,
    /// Time of the last one, nanoseconds since the epoch.
    pub last_time_ns: u64,
    /// Records made for bytes that had none.
    pub added_records: u64,
    /// Bytes that records described and the files have lost. They are counted as dropped.
    pub lost_bytes: u64,
}

impl Recovered {
    /// What a reader may read.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            records: self.records,
            bytes: self.totals.stdout_bytes + self.totals.stderr_bytes,
            dropped_bytes: self.totals.dropped_bytes,
            is_ended: false,
        }
    }
}

/// Makes index and streams in `dir` agree. A job without files has none afterwards.
///
/// `now_ns` is the time given to bytes whose own is not known.
///
/// # Errors
/// [`LogError::Open`], [`LogError::Read`], [`LogError::Write`].
pub fn recover(dir: &Path, now_ns: u64) -> Result<Recovered, LogError> {
    let sizes = Ends {
        stdout: size(dir, Stream::Stdout)?,
        stderr: size(dir, Stream::Stderr)?,
    };
    let path = index_path(dir);
    let exists = path.try_exists().map_err(|source| LogError::Open {
        path: path.clone(),
        source,
    })?;
    if !exists && sizes == Ends::default() {
        return Ok(Recovered::default());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(|source| LogError::Open {
        path: path.clone(),
        source,
    })?;
    Index { file, path: &path }.agree_with(sizes, now_ns)
}

/// Cuts zero bytes off the ends of the streams in `dir`, within their last blocks, after the host has died with its
/// memory; call it before [`recover`]. Returns how many.
///
/// A file system may have a length on the disk whose bytes never got there: ext4 has it when a file grew within a
/// block. They read as zeros that no job has written, and nothing tells them from zeros that one has: what is cut was
/// lost or cannot be told from it, and counts as dropped where the index knows of it.
///
/// # Errors
/// [`LogError::Open`], [`LogError::Read`], [`LogError::Write`].
pub fn cut_unwritten(dir: &Path) -> Result<u64, LogError> {
    let mut cut = 0;
    for stream in [Stream::Stdout, Stream::Stderr] {
        let length = size(dir, stream)?;
        if length == 0 {
            continue;
        }
        let path = stream_path(dir, stream);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(source) => return Err(LogError::Open { path, source }),
        };
        let from = (length - 1) / FILE_BLOCK_BYTES * FILE_BLOCK_BYTES;
        let mut block = Vec::new();
        let read = (&file)
            .seek(SeekFrom::Start(from))
            .and_then(|_| (&file).take(FILE_BLOCK_BYTES).read_to_end(&mut block));
        if let Err(source) = read {
            return Err(LogError::Read { path, source });
        }
        let zeros = block.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        if zeros > 0 {
            let cut_to = file.set_len(length - zeros);
            cut_to.map_err(|source| LogError::Write { path, source })?;
            cut += zeros;
        }
    }
    Ok(cut)
}

fn size(dir: &Path, stream: Stream) -> Result<u64, LogError> {
    let path = stream_path(dir, stream);
    match path.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(LogError::Open { path, source }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Ends {
    stdout: u64,
    stderr: u64,
}

impl Ends {
    fn after(record: &Record) -> Self {
        Self {
            stdout: record.end(Streams::Stdout),
            stderr: record.end(Streams::Stderr),
        }
    }

    fn fits_in(self, sizes: Self) -> bool {
        self.stdout <= sizes.stdout && self.stderr <= sizes.stderr
    }

    /// By how much this is beyond `other`, both streams together.
    fn beyond(self, other: Self) -> u64 {
        self.stdout.saturating_sub(other.stdout) + self.stderr.saturating_sub(other.stderr)
    }
}

struct Index<'a> {
    file: File,
    path: &'a Path,
}

impl Index<'_> {
    fn agree_with(&self, sizes: Ends, now_ns: u64) -> Result<Recovered, LogError> {
        let header = self.read(0)?.and_then(|raw| Header::decode(&raw));
        let mut found = Recovered::default();
        if let Some(header) = header {
            found.totals.dropped_bytes = header.dropped_bytes;
            found.records = records_in(self.len()?);
        }
        // Backwards to the last record that the files bear out; almost always the first one looked at.
        let (mut last, mut farthest) = (None, Ends::default());
        while found.records > 0 {
            let record = self
                .read(position_of(found.records - 1))?
                .and_then(|raw| Record::decode(&raw));
            if let Some(record) = record {
                let ends = Ends::after(&record);
                farthest.stdout = farthest.stdout.max(ends.stdout);
                farthest.stderr = farthest.stderr.max(ends.stderr);
                if ends.fits_in(sizes) {
                    last = Some(record);
                    break;
                }
            }
            found.records -= 1;
        }
        found.lost_bytes = farthest.beyond(sizes);
        found.totals.dropped_bytes += found.lost_bytes;
        found.last_time_ns = last.map_or(0, |record| record.time_ns);
        self.write(
            0,
            &Header {
                dropped_bytes: found.totals.dropped_bytes,
            }
            .encode(),
        )?;
        let path = self.path.to_path_buf();
        self.file
            .set_len(position_of(found.records))
            .map_err(|source| LogError::Write { path, source })?;
        let ends = last.as_ref().map_or(Ends::default(), Ends::after);
        self.add_rest(&mut found, ends, sizes, now_ns)?;
        found.totals.stdout_bytes = sizes.stdout;
        found.totals.stderr_bytes = sizes.stderr;
        Ok(found)
    }

    fn add_rest(
        &self,
        found: &mut Recovered,
        mut ends: Ends,
        sizes: Ends,
        now_ns: u64,
    ) -> Result<(), LogError> {
        while ends != sizes {
            let (stream, offset, rest) = if ends.stdout < sizes.stdout {
                (Stream::Stdout, ends.stdout, sizes.stdout - ends.stdout)
            } else {
                (Stream::Stderr, ends.stderr, sizes.stderr - ends.stderr)
            };
            let len = u32::try_from(rest.min(REST_BYTES_MAX)).expect("bounded by 1 GiB");
            let time_ns = now_ns.max(found.last_time_ns);
            let at = ends.stdout + ends.stderr;
            let record = Record {
                at,
                offset,
                time_ns,
                len,
                stream,
                is_recovered: true,
            };
            self.write(position_of(found.records), &record.encode())?;
            ends = Ends::after(&record);
            found.records += 1;
            found.added_records += 1;
            found.last_time_ns = time_ns;
        }
        Ok(())
    }

    fn len(&self) -> Result<u64, LogError> {
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(|source| LogError::Read {
                path: self.path.to_path_buf(),
                source,
            })?
            .len())
    }

    /// `None` beyond the end.
    fn read(&self, at: u64) -> Result<Option<[u8; RECORD_BYTES]>, LogError> {
        let mut raw = [0; RECORD_BYTES];
        match self.file.read_exact_at(&mut raw, at) {
            Ok(()) => Ok(Some(raw)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(source) => Err(LogError::Read {
                path: self.path.to_path_buf(),
                source,
            }),
        }
    }

    fn write(&self, at: u64, raw: &[u8]) -> Result<(), LogError> {
        let written = self.file.write_all_at(raw, at);
        written.map_err(|source| LogError::Write {
            path: self.path.to_path_buf(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn rec(at: u64, stream: Stream, offset: u64, len: u32) -> Record {
        Record {
            at,
            offset,
            time_ns: 100 + at,
            len,
            stream,
            is_recovered: false,
        }
    }

    struct Case<'a> {
        stdout: usize,
        stderr: usize,
        records: &'a [Record],
        torn: usize,
        dropped: u64,
    }

    #[expect(clippy::disallowed_methods, reason = "a test lays out files")]
    #[test]
    fn zeros_are_cut_off_the_ends_of_files_within_a_block() {
        for (written, zeros, cut) in [
            (0, 0, 0),
            (7, 0, 0),
            (7, 9, 9),
            (4_096, 3, 3),
            (100, 4_096, 100),
            (4_095, 1, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("stdout");
            fs::write(&path, [vec![b'o'; written], vec![0; zeros]].concat()).unwrap();
            assert_eq!(cut_unwritten(dir.path()).unwrap(), cut);
            let left = fs::metadata(&path).unwrap().len();
            assert_eq!(left, (written + zeros) as u64 - cut);
        }
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(cut_unwritten(nothing.path()).unwrap(), 0);
    }

    #[expect(clippy::disallowed_methods, reason = "a test lays out files")]
    fn recovered(case: &Case<'_>) -> (Recovered, Vec<Record>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stdout"), vec![b'o'; case.stdout]).unwrap();
        fs::write(dir.path().join("stderr"), vec![b'e'; case.stderr]).unwrap();
        let mut index = Header {
            dropped_bytes: case.dropped,
        }
        .encode()
        .to_vec();
        case.records
            .iter()
            .for_each(|record| index.extend(record.encode()));
        index.extend(vec![9; case.torn]);
        fs::write(dir.path().join("index"), index).unwrap();
        let found = recover(dir.path(), 5_000).unwrap();
        let again = recover(dir.path(), 6_000).unwrap();
        assert_eq!(
            again,
            Recovered {
                added_records: 0,
                lost_bytes: 0,
                ..found
            },
            "twice is as once"
        );
        let index = fs::read(dir.path().join("index")).unwrap();
        assert_eq!(index.len() as u64, position_of(found.records));
        let mut end = 0;
        let records: Vec<_> = index[RECORD_BYTES..]
            .chunks(RECORD_BYTES)
            .map(|raw| Record::decode(raw).unwrap())
            .inspect(|record| {
                assert_eq!(
                    std::mem::replace(&mut end, record.end(Streams::All)),
                    record.at
                )
            })
            .collect();
        assert_eq!(end, (case.stdout + case.stderr) as u64);
        (found, records)
    }

    #[test]
    fn files_in_order_stay_as_they_are() {
        let records = [rec(0, Stream::Stdout, 0, 10), rec(10, Stream::Stderr, 0, 5)];
        let case = Case {
            stdout: 10,
            stderr: 5,
            records: &records,
            torn: 0,
            dropped: 7,
        };
        let (found, after) = recovered(&case);
        assert_eq!(after, records);
        assert_eq!(
            (found.added_records, found.lost_bytes, found.last_time_ns),
            (0, 0, 110)
        );
        assert_eq!(
            found.totals,
            LogTotals {
                stdout_bytes: 10,
                stderr_bytes: 5,
                dropped_bytes: 7
            }
        );
    }

    #[test]
    fn a_torn_record_is_cut_and_the_rest_of_both_streams_gets_records() {
        let records = [rec(0, Stream::Stdout, 0, 10)];
        let case = Case {
            stdout: 12,
            stderr: 5,
            records: &records,
            torn: 17,
            dropped: 0,
        };
        let (found, after) = recovered(&case);
        assert_eq!(
            (found.records, found.added_records, found.last_time_ns),
            (3, 2, 5_000)
        );
        assert_eq!(
            (after[1].stream, after[1].offset, after[1].len),
            (Stream::Stdout, 10, 2)
        );
        assert_eq!(
            (after[2].stream, after[2].offset, after[2].len),
            (Stream::Stderr, 0, 5)
        );
        assert!(!after[0].is_recovered && after[1].is_recovered && after[1].time_ns == 5_000);
    }

    #[test]
    fn records_beyond_the_files_are_cut_back_and_counted_as_dropped() {
        let records = [
            rec(0, Stream::Stdout, 0, 10),
            rec(10, Stream::Stderr, 0, 5),
            rec(15, Stream::Stdout, 10, 20),
            rec(35, Stream::Stderr, 5, 5),
        ];
        let case = Case {
            stdout: 13,
            stderr: 10,
            records: &records,
            torn: 0,
            dropped: 1,
        };
        let (found, after) = recovered(&case);
        assert_eq!((found.lost_bytes, found.totals.dropped_bytes), (17, 18));
        assert_eq!(&after[..2], &records[..2]);
        assert_eq!(
            (after[2].offset, after[2].len, after[3].offset, after[3].len),
            (10, 3, 5, 5)
        );
    }

    #[test]
    fn an_index_that_is_missing_or_unreadable_is_made_anew() {
        let (found, after) = recovered(&Case {
            stdout: 3,
            stderr: 0,
            records: &[],
            torn: 0,
            dropped: 0,
        });
        assert_eq!((found.records, after[0].len), (1, 3));
        let dir = tempfile::tempdir().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test lays out files")]
        fs::write(dir.path().join("index"), [0; 85]).unwrap();
        assert_eq!(recover(dir.path(), 1).unwrap(), Recovered::default());
        assert_eq!(dir.path().join("index").metadata().unwrap().len(), 40);
    }

    #[test]
    fn a_job_without_output_gets_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let job = dir.path().join("none");
        assert_eq!(recover(&job, 1).unwrap(), Recovered::default());
        assert!(!job.exists());
    }
}

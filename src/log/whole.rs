//! All output of a job that has ended, small enough to be in memory and so to be kept elsewhere than in files.
//!
//! It is taken off the files only when they say exactly what was counted: files that a full disk has left
//! incomplete stay, with whatever is in them.

use std::{fs, io, path::Path};

use super::{
    JobFiles, LogError, Recovered,
    files::{index_path, stream_path},
    record::{Header, RECORD_BYTES, Record, position_of},
};
use crate::{
    job::{LogTotals, Stream},
    rt::{File, OpenHow},
};

/// The contents of the three files of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whole {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The index, from its header on.
    pub index: Vec<u8>,
}

/// How large a [`Whole`] is to be, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    stdout: usize,
    stderr: usize,
    index: usize,
}

impl Sizes {
    /// Those of a job with `totals`, when it has files at all and is small: when `fits` takes the bytes of both
    /// streams and of the index.
    pub(super) fn small(
        totals: LogTotals,
        index_bytes: u64,
        fits: fn(usize, usize) -> bool,
    ) -> Option<Self> {
        let sizes = Self {
            stdout: totals.stdout_bytes.try_into().ok()?,
            stderr: totals.stderr_bytes.try_into().ok()?,
            index: index_bytes.try_into().ok()?,
        };
        let has_files = totals != LogTotals::default();
        let bytes = sizes.stdout.checked_add(sizes.stderr)?;
        (has_files && fits(bytes, sizes.index)).then_some(sizes)
    }
}

impl Whole {
    /// Reads the files of a drained job, without a trip through the ring for what is in the page cache; `None` when
    /// they say something else than `totals`.
    pub(super) async fn read(
        files: &JobFiles,
        sizes: Sizes,
        totals: LogTotals,
    ) -> Result<Option<Self>, LogError> {
        let whole = Self {
            stdout: read(&files.stream(Stream::Stdout), sizes.stdout).await?,
            stderr: read(&files.stream(Stream::Stderr), sizes.stderr).await?,
            index: read(&files.index(), sizes.index).await?,
        };
        Ok(Some(whole).filter(|whole| whole.says(totals)))
    }

    /// The same for a job that was found ended, whose files in `dir` were brought in order. Blocks.
    ///
    /// # Errors
    /// [`LogError::Read`].
    pub fn found(
        dir: &Path,
        recovered: &Recovered,
        fits: fn(usize, usize) -> bool,
    ) -> Result<Option<Self>, LogError> {
        let totals = recovered.totals;
        if Sizes::small(totals, position_of(recovered.records), fits).is_none() {
            return Ok(None);
        }
        let read = |path: &Path| match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|source| LogError::Read {
                path: path.to_path_buf(),
                source,
            }),
        };
        let whole = Self {
            stdout: read(&stream_path(dir, Stream::Stdout))?,
            stderr: read(&stream_path(dir, Stream::Stderr))?,
            index: read(&index_path(dir))?,
        };
        Ok(Some(whole).filter(|whole| whole.says(totals)))
    }

    /// Whether index and streams agree with each other and with `totals`.
    fn says(&self, totals: LogTotals) -> bool {
        let (header, records) = self.index.split_at(RECORD_BYTES.min(self.index.len()));
        let header = Header::decode(header);
        let (mut stdout, mut stderr) = (0, 0);
        let mut records = records.chunks_exact(RECORD_BYTES);
        let follows = |raw: &[u8]| {
            let Some(record) = Record::decode(raw) else {
                return false;
            };
            let end = match record.stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            let is_next = record.offset == *end;
            *end += u64::from(record.len);
            is_next && record.at + u64::from(record.len) == stdout + stderr
        };
        records.all(follows)
            && records.remainder().is_empty()
            && header.is_some_and(|header| header.dropped_bytes == totals.dropped_bytes)
            && [self.stdout.len() as u64, stdout] == [totals.stdout_bytes; 2]
            && [self.stderr.len() as u64, stderr] == [totals.stderr_bytes; 2]
    }
}

/// The first `len` bytes of a file that has just been written; it need not exist for none.
async fn read(path: &Path, len: usize) -> Result<Vec<u8>, LogError> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let opened = File::open(path, OpenHow::Read).await;
    let file = opened.map_err(|source| LogError::Open {
        path: path.to_path_buf(),
        source,
    })?;
    let read = file.read_range(0, len, true).await;
    read.map_err(|source| LogError::Read {
        path: path.to_path_buf(),
        source,
    })
}

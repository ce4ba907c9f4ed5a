//! Where the output of a job lies: in its files, or, when it was small and the job has ended, elsewhere.
//!
//! Output moves at most once, and whole: it is elsewhere before the first of its files goes. So whoever misses a
//! file asks there, in the middle of reading too, and goes on at the same byte.

use std::{fmt, future::Future, io, pin::Pin, rc::Rc};

use bytes::Bytes;

use super::{JobFiles, LogError, Whole};
use crate::{
    job::Refusal,
    rt::{File, OpenHow},
};

/// The answer of a [`Moved`].
pub type Found = Pin<Box<dyn Future<Output = Result<Option<Whole>, Refusal>>>>;

/// Looks for the output of one job where it has moved to.
pub type Moved = Rc<dyn Fn() -> Found>;

/// Where the output of one job lies.
#[derive(Clone)]
pub struct Place {
    files: JobFiles,
    moved: Moved,
}

impl Place {
    /// In `files`, or where `moved` looks when they are gone.
    #[must_use]
    pub fn new(files: JobFiles, moved: Moved) -> Self {
        Self { files, moved }
    }

    /// In files in `dir` and nowhere else.
    #[cfg(test)]
    pub(super) fn only_in(dir: &std::path::Path) -> Self {
        Self::new(JobFiles::at(dir), Rc::new(|| Box::pin(async { Ok(None) })))
    }

    /// The files, which need not exist.
    #[must_use]
    pub fn files(&self) -> &JobFiles {
        &self.files
    }

    /// What is no longer in files; nothing when it has not moved.
    pub(super) async fn moved(&self) -> Result<Option<Whole>, LogError> {
        (self.moved)().await.map_err(LogError::Moved)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// One of the three files of a job, or the bytes that were in it.
#[derive(Debug, Clone)]
pub(super) enum Source {
    File(Rc<File>),
    Bytes(Bytes),
}

impl Source {
    /// Opens the file at `path`.
    pub(super) async fn open(path: &std::path::Path) -> io::Result<Self> {
        let file = File::open(path, OpenHow::Read).await?;
        Ok(Self::File(Rc::new(file)))
    }

    /// As [`File::read_range`].
    pub(super) async fn read_range(
        &self,
        offset: u64,
        len: usize,
        is_fresh: bool,
    ) -> io::Result<Bytes> {
        match self {
            Self::File(file) => file
                .read_range(offset, len, is_fresh)
                .await
                .map(Bytes::from),
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).map_or(bytes.len(), |at| at.min(bytes.len()));
                let end = start.saturating_add(len).min(bytes.len());
                Ok(bytes.slice(start..end))
            }
        }
    }

    /// Size, bytes.
    pub(super) async fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.size().await,
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }
}

//! Where the output of a job lies.

use std::{
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::LogError;
use crate::{
    job::{JobId, Stream},
    rt::{self, File, OpenHow},
};

/// The directory of one job's output. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFiles {
    dir: Box<Path>,
}

impl JobFiles {
    /// Where job `id` of the base directory `base` has its output.
    #[must_use]
    pub fn new(base: &Path, id: JobId) -> Self {
        Self {
            dir: jobs_dir(base).join(id.to_string()).into(),
        }
    }

    /// In `dir`, wherever that is.
    #[cfg(test)]
    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of one stream.
    #[must_use]
    pub fn stream(&self, stream: Stream) -> PathBuf {
        stream_path(&self.dir, stream)
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> PathBuf {
        index_path(&self.dir)
    }

    /// All that there may be.
    fn all_three(&self) -> [PathBuf; 3] {
        [
            self.stream(Stream::Stdout),
            self.stream(Stream::Stderr),
            self.index(),
        ]
    }

    /// Has the disk keep what was written, names and all; that there is nothing is fine.
    ///
    /// # Errors
    /// [`LogError::Flush`], [`LogError::Blocking`].
    pub async fn flush(&self) -> Result<(), LogError> {
        let (files, dir) = (self.all_three(), self.dir.clone());
        let flushed = rt::blocking("flush log", move || {
            for path in files
                .iter()
                .map(AsRef::as_ref)
                .chain([&*dir])
                .chain(dir.parent())
            {
                match fs::File::open(path).and_then(|file| file.sync_all()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            Ok(())
        });
        flushed.await?.map_err(|source| LogError::Flush {
            path: self.dir.to_path_buf(),
            source,
        })
    }

    /// Removes everything of this job; that there is nothing is fine.
    ///
    /// # Errors
    /// [`LogError::Remove`], [`LogError::Blocking`].
    pub async fn remove(&self) -> Result<(), LogError> {
        let files = self.clone();
        rt::blocking("remove log", move || files.remove_now()).await?
    }

    /// The same, here and now. Blocks.
    ///
    /// # Errors
    /// [`LogError::Remove`].
    pub fn remove_now(&self) -> Result<(), LogError> {
        // By name: looking what is there would cost as much as removing it.
        for path in self.all_three() {
            gone(&path, fs::remove_file(&path))?;
        }
        gone(&self.dir, fs::remove_dir(&self.dir))
    }

    /// The jobs that have a directory in `base`. Blocks.
    ///
    /// # Errors
    /// [`LogError::Read`].
    pub fn all(base: &Path) -> Result<Vec<JobId>, LogError> {
        let path = jobs_dir(base);
        let read = || {
            let mut found = Vec::new();
            for entry in fs::read_dir(&path)? {
                // What else is there is not ours.
                found.extend(entry?.file_name().to_str().and_then(JobId::parse));
            }
            Ok(found)
        };
        read().map_err(|source| LogError::Read { path, source })
    }

    /// Opens a file of this job for capture; makes it, and the directory, when it is not there.
    pub(super) async fn create(&self, path: &Path) -> Result<Rc<File>, LogError> {
        let failed = |source| LogError::Open {
            path: path.to_path_buf(),
            source,
        };
        match File::open(path, OpenHow::Create).await {
            Ok(file) => Ok(Rc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match rt::ring().mkdir(&self.dir).await {
                    // The other stream may have been faster.
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(failed(error));
                    }
                    Ok(()) | Err(_) => {}
                }
                File::open(path, OpenHow::Create)
                    .await
                    .map(Rc::new)
                    .map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// That there was nothing to remove is fine.
fn gone(path: &Path, removed: io::Result<()>) -> Result<(), LogError> {
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LogError::Remove {
            path: path.to_path_buf(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The directory of all jobs.
pub(super) fn jobs_dir(base: &Path) -> PathBuf {
    base.join("jobs")
}

pub(super) fn stream_path(dir: &Path, stream: Stream) -> PathBuf {
    dir.join(match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    })
}

pub(super) fn index_path(dir: &Path) -> PathBuf {
    dir.join("index")
}

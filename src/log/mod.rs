//! The output of jobs: captured without passing through us, followed by offset, exact to the byte.
//!
//! - [`Recorder`] and [`Capture`] move a job's pipes into its files inside the kernel: a byte is in the pipe
//!   or in the file and never only in our memory, so a crash loses none.
//! - [`recover`] brings the files of a job in order after a crash.
//! - [`DiskGuard`] keeps part of the disk free, whatever all jobs write together.
//! - [`Progress`] says how far a job's files may be read; [`Follower`] reads them, history and live alike.
//! - [`Whole`] is small output of an ended job, off its files; [`Place`] tells followers where it went.
//!
//! `BASE/jobs/<id>/` holds `stdout`, `stderr` and `index`; none exists before the first byte. What a job
//! produced is what is stored plus what is dropped, exactly.

mod capture;
mod disk;
mod files;
mod follow;
mod index;
mod progress;
mod reader;
mod record;
mod recover;
mod source;
mod stream;
#[cfg(test)]
mod succession;
mod tail;
#[cfg(test)]
mod tests;
mod whole;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use capture::{Capture, Limits, Pipes, Policy, Recorder};
pub use disk::{DiskGuard, Grant};
pub use files::JobFiles;
pub use follow::Follower;
pub use progress::{Progress, Snapshot, Watching};
pub use recover::{Recovered, cut_unwritten, recover};
pub use source::{Found, Moved, Place};
pub use whole::Whole;

use crate::{job::Refusal, rt::BlockingError};

/// What went wrong with a job's output.
#[derive(Debug, Error)]
pub enum LogError {
    /// A file or directory cannot be opened or made.
    #[error("open {}", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The files contradict each other: somebody else changed them.
    #[error("{} says something else than the files beside it, at record {record}", .path.display())]
    Corrupt {
        /// The index.
        path: PathBuf,
        /// The record that is wrong.
        record: u64,
    },
    /// What was written does not get to the disk.
    #[error("flush {}", .path.display())]
    Flush {
        /// The job's directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A job's directory cannot be removed.
    #[error("remove {}", .path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Free space of a file system cannot be found out.
    #[error("look at free space of {}", .path.display())]
    FreeSpace {
        /// A directory on it.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Where the output of an ended job has moved to cannot be read.
    #[error("look for output that is in files no more")]
    Moved(#[source] Refusal),
    /// The blocking pool did not do it.
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    /// A pipe cannot be waited for.
    #[error("wait for a job's output")]
    Pipe(#[source] io::Error),
}

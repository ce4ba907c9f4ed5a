//! What can go wrong: with a database that is opened, and with one change or one question.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::job::{JobId, VolumeName};

/// Why a database cannot be used. Nothing of it was changed, moved or mended.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file, or the log beside it, cannot be used.
    #[error("{verb} {}", .path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{} is no database of joblet: {why}; it was not touched, move it away to start without history",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// A newer joblet has written it.
    #[error(
        "{} has format {found}, this joblet knows formats up to {known}; it was not touched, start the newer \
         joblet again",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest format that we know.
        known: i64,
    },
    /// It cannot be trusted any more.
    #[error(
        "{path} is damaged: {damage}; it was not touched. Copy it away with {path}-wal and {path}-shm, then \
         `sqlite3 COPY .recover | sqlite3 NEW.db` saves what can be read; start with that file in its place, or \
         without one",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in the words of SQLite.
        damage: String,
    },
    /// SQLite refused for another reason.
    #[error("{verb} {}", .path.display())]
    Sqlite {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// Tells damage and strange files from the rest.
    pub(super) fn from_sqlite(
        verb: &'static str,
        path: &Path,
    ) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::Foreign {
                path: path.to_owned(),
                why: "its first bytes are not those of SQLite",
            },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged {
                path: path.to_owned(),
                damage: source.to_string(),
            },
            Some(_) | None => Self::Sqlite {
                verb,
                path: path.to_owned(),
                source,
            },
        }
    }

    pub(super) fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            verb,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why one change was not made or one question not answered.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// The key is remembered for another request.
    #[error("idempotency key {key:?} was used for another request, job {id}")]
    KeyConflict {
        /// The key.
        key: String,
        /// The job of the other request.
        id: JobId,
    },
    /// A job with this id is there.
    #[error("job {id} is in the store already")]
    Exists {
        /// Which.
        id: JobId,
    },
    /// There is no such job.
    #[error("job {id} is not in the store")]
    Unknown {
        /// Which.
        id: JobId,
    },
    /// The job has ended: only its deletion can follow.
    #[error("job {id} has ended")]
    HasEnded {
        /// Which.
        id: JobId,
    },
    /// A job cannot end without an outcome.
    #[error("job {id} has no outcome")]
    NoOutcome {
        /// Which.
        id: JobId,
    },
    /// Output that belongs into files.
    #[error("output of job {id} is too large for the store: {bytes} bytes, {index_bytes} of index")]
    OutputTooLarge {
        /// Whose.
        id: JobId,
        /// Bytes of both streams.
        bytes: usize,
        /// Bytes of the index.
        index_bytes: usize,
    },
    /// More jobs than one change deletes.
    #[error("{count} jobs are more than one change deletes, {most}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// No space is left on the file system; try again when there is.
    #[error("the store has no space left on its disk")]
    Full,
    /// The database was damaged while it was in use.
    #[error("the store is damaged")]
    Damaged {
        /// Where.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// SQLite refused for another reason.
    #[error("{verb} the store")]
    Sqlite {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A job that is there but says what it cannot say.
    #[error("{column} of job {id} cannot be read")]
    Row {
        /// Which.
        id: JobId,
        /// The column.
        column: &'static str,
    },
    /// A row without a job's id.
    #[error("a row of the store has no job id")]
    RowId,
    /// A volume with this name is there.
    #[error("volume {name} is in the store already")]
    VolumeExists {
        /// Which.
        name: VolumeName,
    },
    /// There is no such volume.
    #[error("volume {name} is not in the store")]
    VolumeUnknown {
        /// Which.
        name: VolumeName,
    },
    /// A volume that is there but says what it cannot say.
    #[error("{column} of volume {name:?} cannot be read")]
    VolumeRow {
        /// Which, as it stands there.
        name: String,
        /// The column.
        column: &'static str,
    },
    /// The value of a secret cannot be sealed.
    #[error("seal {name} of job {id}")]
    Seal {
        /// Of which job.
        id: JobId,
        /// Which variable.
        name: String,
    },
    /// The value of a secret was sealed with another key, or changed since.
    #[error("unseal {name} of job {id}: the key is another one, or the value was changed")]
    Unseal {
        /// Of which job.
        id: JobId,
        /// Which variable.
        name: String,
    },
}

impl StoreError {
    /// Tells a full disk and damage from the rest.
    pub(super) fn from_sqlite(verb: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::SystemIoFailure) if ran_out_of_space(&source) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged {
                source: Arc::new(source),
            },
            Some(_) | None => Self::Sqlite {
                verb,
                source: Arc::new(source),
            },
        }
    }

    /// Whether nothing can be said about the transaction in which it happened but that it has failed.
    pub(super) fn fails_the_batch(&self) -> bool {
        match self {
            Self::Full | Self::Damaged { .. } | Self::Sqlite { .. } => true,
            Self::KeyConflict { .. }
            | Self::Exists { .. }
            | Self::Unknown { .. }
            | Self::HasEnded { .. }
            | Self::NoOutcome { .. }
            | Self::OutputTooLarge { .. }
            | Self::TooMany { .. }
            | Self::Row { .. }
            | Self::RowId
            | Self::VolumeExists { .. }
            | Self::VolumeUnknown { .. }
            | Self::VolumeRow { .. }
            | Self::Seal { .. }
            | Self::Unseal { .. } => false,
        }
    }
}

/// Whether the index of the log could not grow: SQLite does not say "full" there, and there is no other reason for
/// it on a file system that works.
fn ran_out_of_space(error: &rusqlite::Error) -> bool {
    error
        .sqlite_error()
        .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE)
}

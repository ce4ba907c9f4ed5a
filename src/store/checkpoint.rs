//! How the write-ahead log stays short.
//!
//! Moving the log into the file waits for the disk, so a thread of its own does it. That never gets to the end of a
//! log that never stops growing, and only a log that was moved whole starts anew; so beyond
//! [`limits::STORE_WAL_BYTES`] the thread that writes moves the rest itself. That is little, and what was moved before
//! has been synced, so it waits for little.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rusqlite::Connection;

use super::{OpenError, schema};
use crate::limits;

const MOVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";
const MOVE_AND_CUT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// A frame of the log, bytes: a page and its header.
const FRAME_BYTES: u64 = 4_096 + 24;

/// The log of the database, as the thread that writes sees it.
#[derive(Debug)]
pub(super) struct Log {
    nudge: SyncSender<()>,
    thread: JoinHandle<File>,
    /// Bytes of the log when the other thread last looked.
    bytes: Arc<AtomicU64>,
    /// Bytes since the other thread was asked.
    since_asked: usize,
}

/// What a move came to.
struct Moved {
    /// Bytes of the log.
    bytes: u64,
    /// Whether all of it is in the file.
    is_whole: bool,
}

impl Log {
    /// Starts the thread that moves it. `file` is the database: to close it takes the locks away that SQLite holds on
    /// it for this whole process, so [`Log::finish`] gives it back, to be dropped after the last connection.
    pub(super) fn start(path: &Path, file: File) -> Result<Self, OpenError> {
        let connection = schema::open_second(path)?;
        let (nudge, asked) = sync_channel(1);
        let bytes = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&bytes);
        let thread = thread::Builder::new()
            .name("store-log".into())
            .spawn(move || {
                while let Ok(()) = asked.recv() {
                    let Some(moved) = move_log(&connection, MOVE) else {
                        continue;
                    };
                    seen.store(moved.bytes, Ordering::Relaxed);
                    // SQLite syncs the file only with the last frame, and that one the other thread waits for.
                    if !moved.is_whole
                        && let Err(error) = file.sync_data()
                    {
                        tracing::warn!(%error, "the store cannot be synced");
                    }
                }
                drop(connection);
                file
            })
            .map_err(OpenError::io("start the second thread of", path))?;
        Ok(Self {
            nudge,
            thread,
            bytes,
            since_asked: 0,
        })
    }

    /// Says that the log has grown by so many bytes, roughly, in a transaction of `writer`.
    pub(super) fn grow(&mut self, writer: &Connection, bytes: usize) {
        self.since_asked += bytes;
        if self.bytes.load(Ordering::Relaxed) >= limits::STORE_WAL_BYTES {
            // Nothing while the other thread is at it: then after the next transaction.
            if move_log(writer, MOVE).is_some_and(|moved| moved.is_whole) {
                self.bytes.store(0, Ordering::Relaxed);
                self.since_asked = 0;
            }
        } else if self.since_asked >= limits::STORE_CHECKPOINT_BYTES {
            self.since_asked = 0;
            // Full: it has been asked already.
            let _ = self.nudge.try_send(());
        }
    }

    /// Moves all of it, and leaves an empty one. Gives the database file back.
    pub(super) fn finish(self, writer: &Connection) -> Option<File> {
        let file = self.stop();
        move_log(writer, MOVE_AND_CUT);
        file
    }

    /// Ends the other thread and leaves the log as it is. Gives the database file back.
    pub(super) fn stop(self) -> Option<File> {
        drop(self.nudge);
        let file = self.thread.join();
        if file.is_err() {
            tracing::error!("the thread of the store's log has panicked");
        }
        file.ok()
    }
}

/// Moves what it can; `None` when that was nothing. What is not moved stays in the log, and is as safe there.
fn move_log(connection: &Connection, how: &str) -> Option<Moved> {
    let moved = connection.query_row(how, [], |row| {
        let is_busy: bool = row.get(0)?;
        let (there, moved): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok((!is_busy).then_some(Moved {
            bytes: u64::try_from(there).unwrap_or(0) * FRAME_BYTES,
            is_whole: there == moved,
        }))
    });
    moved.unwrap_or_else(|error| {
        tracing::warn!(%error, "the log of the store cannot be moved into its file");
        None
    })
}

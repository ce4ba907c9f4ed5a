//! How the write-ahead log stays short.
//!
//! Moving the log into the file waits for the disk, so a thread of its own does it. That never gets to the end of a
//! log that never stops growing, and only a log that was moved whole starts anew; so beyond
//! [`limits::STORE_WAL_BYTES`] the thread that writes moves the rest itself.

use std::{
    path::Path,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use rusqlite::Connection;

use super::{OpenError, schema};
use crate::limits;

const MOVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";
const MOVE_AND_CUT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// The log of the database, as the thread that writes sees it.
#[derive(Debug)]
pub(super) struct Log {
    nudge: SyncSender<()>,
    thread: JoinHandle<()>,
    /// Bytes since the other thread was asked.
    since_asked: usize,
    /// Bytes since we moved it ourselves.
    since_moved: usize,
}

impl Log {
    /// Starts the thread that moves it.
    pub(super) fn start(path: &Path) -> Result<Self, OpenError> {
        let connection = schema::open_second(path)?;
        let (nudge, asked) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("store-log".into())
            .spawn(move || {
                while let Ok(()) = asked.recv() {
                    move_log(&connection, MOVE);
                }
            })
            .map_err(OpenError::io("start the second thread of", path))?;
        Ok(Self {
            nudge,
            thread,
            since_asked: 0,
            since_moved: 0,
        })
    }

    /// Says that the log has grown by so many bytes, roughly, in a transaction of `writer`.
    pub(super) fn grow(&mut self, writer: &Connection, bytes: usize) {
        self.since_asked += bytes;
        self.since_moved += bytes;
        if self.since_moved >= limits::STORE_WAL_BYTES {
            // Not whole while the other thread is at it: then after the next transaction.
            if move_log(writer, MOVE) {
                (self.since_moved, self.since_asked) = (0, 0);
            }
        } else if self.since_asked >= limits::STORE_CHECKPOINT_BYTES {
            self.since_asked = 0;
            // Full: it has been asked already.
            let _ = self.nudge.try_send(());
        }
    }

    /// Moves all of it, and leaves an empty one.
    pub(super) fn finish(self, writer: &Connection) {
        drop(self.nudge);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the store's log has panicked");
        }
        move_log(writer, MOVE_AND_CUT);
    }
}

/// Whether all of the log is in the file now. What is not stays in the log, and is as safe there.
fn move_log(connection: &Connection, how: &str) -> bool {
    let moved = connection.query_row(how, [], |row| {
        let is_busy: bool = row.get(0)?;
        let (there, moved): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(!is_busy && there == moved)
    });
    moved.unwrap_or_else(|error| {
        tracing::warn!(%error, "the log of the store cannot be moved into its file");
        false
    })
}

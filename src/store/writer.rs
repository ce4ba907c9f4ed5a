//! The thread that alone writes: it takes every change that waits, makes them in one transaction, commits, and then
//! tells each caller.
//!
//! ```text
//! shards ──Writer──► bounded queue ──► store ──COMMIT──► done(result), one a change, in order
//!                                        │ every few MiB
//!                                        └─► store-log: moves the write-ahead log into the file
//! ```
//! Group commit needs no timer: while one transaction is written, changes gather for the next. What SQLite refuses
//! fails all of its batch, because nobody can say what of it is on the disk; the next batch tries afresh. What we
//! refuse (a conflict, an unknown job) fails alone. The log is moved by a thread of its own, as it waits for the
//! disk, and a submit does not.

use std::{
    fmt,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use rusqlite::Connection;

use super::{
    Change, Done, Durability, OpenError, SealKey, StoreError, apply::Statements, checkpoint::Log,
    schema,
};
use crate::limits;

/// What a changed row adds to the log beside its bytes: a page each of the table and of its indexes.
const ROW_PAGES_BYTES: usize = 6 * 4_096;

/// What is called with the answer to a change, on the store's thread: it must not wait.
pub type Answer = Box<dyn FnOnce(Result<Done, StoreError>) + Send>;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database file; its directory must be ours alone.
    pub path: PathBuf,
    /// What secrets of jobs that have not ended are sealed with.
    pub key: SealKey,
    /// What an answered change survives.
    pub durability: Durability,
}

/// Hands changes to the store. When the last one is dropped, the store does what waits and ends.
#[derive(Clone)]
pub struct Writer {
    queue: Arc<SyncSender<Message>>,
}

/// A change that was not taken; its answer is dropped without being called.
#[derive(Debug)]
pub enum Rejected {
    /// Too many wait, [`limits::STORE_QUEUE_CHANGES`]: try again when some have been answered.
    Full(Change),
    /// The store has ended.
    Closed(Change),
}

/// The store's thread, for whoever ends the daemon.
#[derive(Debug)]
pub struct Store {
    queue: Weak<SyncSender<Message>>,
    thread: JoinHandle<()>,
}

enum Message {
    Change(Change, Answer),
    Close,
}

impl Store {
    /// Opens the database, makes it or brings it to the newest format, and starts the thread that writes it. The
    /// caller holds the lock of the base directory: nobody else may have it open for writing.
    ///
    /// # Errors
    /// [`OpenError`]: the files are as they were.
    pub fn open(options: Options) -> Result<(Writer, Self), OpenError> {
        let (connection, file) = schema::open(&options.path, options.durability)?;
        let log = Log::start(&options.path, file)?;
        let (queue, waiting) = sync_channel(limits::STORE_QUEUE_CHANGES);
        let (report, ready) = sync_channel(1);
        let path = options.path.clone();
        let key = options.key;
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let file = serve(&connection, key, &report, &waiting, log);
                // In this order: see `Log::start`.
                drop(connection);
                drop(file);
            })
            .map_err(OpenError::io("start the thread of", &options.path))?;
        let prepared = ready.recv().expect("the thread reports before it ends");
        prepared.map_err(OpenError::from_sqlite("prepare", &path))?;
        let queue = Arc::new(queue);
        let store = Self {
            queue: Arc::downgrade(&queue),
            thread,
        };
        Ok((Writer { queue }, store))
    }

    /// Lets the store do what waits, moves the whole log into the file and waits for the thread to end. Changes
    /// that come later are [`Rejected::Closed`]. Blocks.
    pub fn close(self) {
        if let Some(queue) = self.queue.upgrade() {
            // Refused: it has ended already.
            let _ = queue.send(Message::Close);
        }
        if self.thread.join().is_err() {
            tracing::error!("the store's thread has panicked");
        }
    }
}

impl Writer {
    /// Puts a change behind those that wait; never blocks. `done` is called once, on the store's thread, after the
    /// change was committed or has failed; changes of one caller are made in their order.
    ///
    /// # Errors
    /// [`Rejected`], which gives the change back.
    pub fn submit(&self, change: Change, done: Answer) -> Result<(), Rejected> {
        self.queue
            .try_send(Message::Change(change, done))
            .map_err(|refused| match refused {
                TrySendError::Full(Message::Change(change, _)) => Rejected::Full(change),
                TrySendError::Disconnected(Message::Change(change, _)) => Rejected::Closed(change),
                TrySendError::Full(Message::Close) | TrySendError::Disconnected(Message::Close) => {
                    unreachable!("what comes back is what was sent")
                }
            })
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// What came of one batch.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Batch {
    /// Bytes that it has written, roughly.
    bytes: usize,
    /// Whether jobs were deleted.
    has_deleted: bool,
    /// Whether the store is to end.
    is_last: bool,
}

/// The life of the thread: reports whether it can work, and works until nobody asks any more.
fn serve(
    connection: &Connection,
    key: SealKey,
    report: &SyncSender<rusqlite::Result<()>>,
    queue: &Receiver<Message>,
    mut log: Log,
) -> Option<File> {
    let mut statements = match Statements::prepare(connection, key) {
        Ok(statements) => statements,
        Err(error) => {
            let file = log.stop();
            // Whoever opens us waits for it.
            let _ = report.send(Err(error));
            return file;
        }
    };
    let _ = report.send(Ok(()));
    while let Ok(first) = queue.recv() {
        let batch = make_batch(&mut statements, first, queue);
        log.grow(connection, batch.bytes);
        if batch.has_deleted
            && let Err(error) = give_back(connection)
        {
            // The next deletion tries again.
            tracing::warn!(%error, "the store cannot give free space back");
        }
        if batch.is_last {
            break;
        }
    }
    // What came in while the last batch was made.
    while let Ok(first) = queue.try_recv() {
        make_batch(&mut statements, first, queue);
    }
    drop(statements);
    log.finish(connection)
}

/// Makes `first` and what waits behind it in one transaction, and answers each.
fn make_batch(statements: &mut Statements<'_>, first: Message, queue: &Receiver<Message>) -> Batch {
    let mut batch = Batch::default();
    let mut answers = Vec::new();
    let mut failure = statements.begin().err();
    let mut next = Some(first);
    while let Some(message) = next.take() {
        match message {
            Message::Close => batch.is_last = true,
            Message::Change(change, done) => {
                let answer = match &failure {
                    Some(failure) => Err(failure.clone()),
                    None => batch.make(statements, &change),
                };
                failure = failure.or_else(|| answer.as_ref().err().cloned().filter(is_of_all));
                answers.push((answer, done));
            }
        }
        let goes_on = failure.is_none()
            && !batch.is_last
            && answers.len() < limits::STORE_BATCH_CHANGES
            && batch.bytes < limits::STORE_BATCH_BYTES;
        if goes_on {
            next = queue.try_recv().ok();
        }
    }
    let failure = failure.or_else(|| statements.commit().err());
    if failure.is_some() {
        statements.rollback();
    }
    for (answer, done) in answers {
        done(match &failure {
            Some(failure) => Err(failure.clone()),
            None => answer,
        });
    }
    batch
}

/// Whether nothing can be said about the transaction but that it has failed.
fn is_of_all(error: &StoreError) -> bool {
    error.fails_the_batch()
}

impl Batch {
    fn make(
        &mut self,
        statements: &mut Statements<'_>,
        change: &Change,
    ) -> Result<Done, StoreError> {
        let (done, bytes) = statements.apply(change)?;
        // The pages of the table and of five indexes that the row is on.
        self.bytes += bytes + ROW_PAGES_BYTES;
        self.has_deleted |= match &done {
            Done::Deleted { count } => *count > 0,
            Done::Pruned { ids } => !ids.is_empty(),
            Done::Accepted
            | Done::Duplicate { .. }
            | Done::Updated
            | Done::Ended { .. }
            | Done::Forgotten { .. }
            | Done::VolumeNoted => false,
        };
        Ok(done)
    }
}

/// Gives some of the free pages back, when there are many.
fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let free: u32 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    if free <= limits::STORE_FREE_PAGES {
        return Ok(());
    }
    let mut give = connection.prepare(&format!(
        "PRAGMA incremental_vacuum({})",
        limits::STORE_VACUUM_PAGES
    ))?;
    // A step for each page.
    let mut pages = give.query([])?;
    while pages.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests;

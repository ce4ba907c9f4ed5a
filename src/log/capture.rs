//! Captures the output of one job on the shard that owns it.
//!
//! Each stream has a task (`stream.rs`); what they share is here: limits, totals, the index.
//!
//! ```text
//! Capturing ── drain() ──► Draining ──► both streams at their end, index written: totals are final
//!     └──── dropped ─────► Abandoned    bytes stay in the pipes for whoever holds them
//! ```

use std::{
    cell::Cell,
    fmt,
    fs::DirBuilder,
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    DiskGuard, JobFiles, LogError, Progress, Recovered, Whole,
    files::jobs_dir,
    index::Index,
    record::Record,
    stream::{self, StreamTask},
    whole::Sizes,
};
use crate::{
    job::{JobId, LogTotals, Stream},
    limits,
    rt::{self, Event, File, Gate, Ready, Ring},
    sys::uring::Owner,
};

/// What all captures of a shard share.
pub struct Recorder {
    base: PathBuf,
    pub(super) ring: Rc<Ring>,
    pub(super) gate: Gate,
    pub(super) nowhere: Owner,
    pub(super) disk: Arc<DiskGuard>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// For the calling shard. Makes `BASE/jobs` if it is not there.
    ///
    /// # Errors
    /// [`LogError::Open`].
    ///
    /// # Panics
    /// Outside a shard.
    pub fn new(base: &Path, disk: Arc<DiskGuard>) -> Result<Rc<Self>, LogError> {
        let jobs = jobs_dir(base);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&jobs);
        made.map_err(|source| LogError::Open { path: jobs, source })?;
        let null = Path::new("/dev/null");
        let nowhere = std::fs::OpenOptions::new().write(true).open(null);
        let nowhere = nowhere.and_then(|file| File::from_fd(file.into()));
        Ok(Rc::new(Self {
            base: base.to_path_buf(),
            ring: rt::ring(),
            gate: Gate::new(limits::SPLICES_IN_FLIGHT),
            nowhere: Rc::new(nowhere.map_err(|source| LogError::Open {
                path: null.to_path_buf(),
                source,
            })?),
            disk,
        }))
    }

    /// Begins, or goes on with, the capture of a job. `from` is what [`super::recover`] found, or the default
    /// for a new job; `progress` is moved on as output arrives.
    ///
    /// # Errors
    /// [`LogError::Pipe`].
    pub fn capture(
        self: &Rc<Self>,
        id: JobId,
        pipes: Pipes,
        limits: Limits,
        from: &Recovered,
        progress: Rc<Progress>,
    ) -> Result<Capture, LogError> {
        progress.update(from.snapshot());
        let shared = Rc::new(Shared::new(self.clone(), id, limits, from, progress));
        let streams = [
            (Stream::Stdout, pipes.stdout),
            (Stream::Stderr, pipes.stderr),
        ];
        for (stream, pipe) in streams {
            let pipe = Rc::new(Ready::new(pipe).map_err(LogError::Pipe)?);
            shared.begin_stream();
            drop(rt::spawn(stream::capture(StreamTask {
                job: shared.clone(),
                pipe,
                stream,
            })));
        }
        Ok(Capture(shared))
    }
}

/// The read ends of a job's output, blocking or not.
#[derive(Debug)]
pub struct Pipes {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// How much of a job's output is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of both streams.
    pub bytes: u64,
    /// What happens beyond.
    pub policy: Policy,
}

/// What happens to output beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It is dropped and counted.
    #[default]
    Drop,
    /// The same, and [`Capture::limit_hit`] ends: the job is to be stopped.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Capturing,
    Draining,
    Abandoned,
}

/// What both streams of a job share.
pub(super) struct Shared {
    pub(super) recorder: Rc<Recorder>,
    pub(super) files: JobFiles,
    limits: Limits,
    stdout_bytes: Cell<u64>,
    stderr_bytes: Cell<u64>,
    dropped_bytes: Cell<u64>,
    /// Bytes that splices in flight may store.
    pub(super) reserved_bytes: Cell<u64>,
    last_time_ns: Cell<u64>,
    index: Index,
    pub(super) progress: Rc<Progress>,
    phase: Cell<Phase>,
    pub(super) phase_changed: Event,
    /// Something ended that somebody may wait for: a splice, a stream, a write of the index.
    pub(super) settled: Event,
    running: Cell<usize>,
    bursts: Cell<usize>,
    is_limit_hit: Cell<bool>,
    has_warned: Cell<bool>,
}

impl Shared {
    fn new(
        recorder: Rc<Recorder>,
        id: JobId,
        limits: Limits,
        from: &Recovered,
        progress: Rc<Progress>,
    ) -> Self {
        Self {
            files: JobFiles::new(&recorder.base, id),
            recorder,
            limits,
            stdout_bytes: Cell::new(from.totals.stdout_bytes),
            stderr_bytes: Cell::new(from.totals.stderr_bytes),
            dropped_bytes: Cell::new(from.totals.dropped_bytes),
            reserved_bytes: Cell::new(0),
            last_time_ns: Cell::new(from.last_time_ns),
            index: Index::new(from),
            progress,
            phase: Cell::new(Phase::Capturing),
            phase_changed: Event::new(),
            settled: Event::new(),
            running: Cell::new(0),
            bursts: Cell::new(0),
            is_limit_hit: Cell::new(false),
            has_warned: Cell::new(false),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(super) fn stored(&self, stream: Stream) -> &Cell<u64> {
        match stream {
            Stream::Stdout => &self.stdout_bytes,
            Stream::Stderr => &self.stderr_bytes,
        }
    }

    /// Bytes that may still be stored, not counting what splices in flight may take.
    pub(super) fn room(&self) -> u64 {
        let stored = self.stdout_bytes.get() + self.stderr_bytes.get();
        let index_free = limits::INDEX_FREE_BYTES + stored / 2;
        let index_charge = self.index.bytes().saturating_sub(index_free);
        self.limits
            .bytes
            .saturating_sub(stored + index_charge + self.reserved_bytes.get())
    }

    /// Whether the index takes no more.
    pub(super) fn is_index_full(&self) -> bool {
        self.index.is_full()
    }

    /// `bytes` have been moved into the file of `stream`.
    pub(super) fn on_stored(self: &Rc<Self>, stream: Stream, bytes: u32) {
        // The wall clock may be set back; the index is searched by time.
        let time_ns = rt::wall_ns().max(self.last_time_ns.get());
        self.last_time_ns.set(time_ns);
        let at = self.stdout_bytes.get() + self.stderr_bytes.get();
        let offset = self.stored(stream).get();
        self.index.push(Record {
            at,
            offset,
            time_ns,
            len: bytes,
            stream,
            is_recovered: false,
        });
        self.stored(stream).set(offset + u64::from(bytes));
        self.write_index_soon();
    }

    /// `bytes` have been thrown away; by the limit or for want of disk.
    pub(super) fn on_dropped(self: &Rc<Self>, bytes: u64, is_by_limit: bool) {
        self.dropped_bytes.set(self.dropped_bytes.get() + bytes);
        if is_by_limit && self.limits.policy == Policy::Stop && !self.is_limit_hit.replace(true) {
            self.settled.notify_all();
        }
        self.write_index_soon();
    }

    fn write_index_soon(self: &Rc<Self>) {
        if self.index.begin() {
            let job = self.clone();
            drop(rt::spawn(async move { job.write_index().await }));
        }
    }

    /// The caller has the right to write from [`Index::begin`].
    async fn write_index(&self) {
        let written = self
            .index
            .write_out(
                &self.files,
                &self.dropped_bytes,
                &self.progress,
                &self.settled,
            )
            .await;
        if let Err(error) = written {
            self.warn(&error);
        }
        if self.bursts.get() == 0 {
            self.index.close();
        }
    }

    /// Says once a job that its output cannot be stored; the totals say how much was dropped.
    pub(super) fn warn(&self, error: &dyn std::error::Error) {
        if !self.has_warned.replace(true) {
            let source = error.source().map(tracing::field::display);
            tracing::warn!(dir = %self.files.dir().display(), %error, source, "output is dropped");
        }
    }

    pub(super) fn begin_burst(&self) {
        self.bursts.set(self.bursts.get() + 1);
    }

    pub(super) fn end_burst(&self) {
        self.bursts.set(self.bursts.get() - 1);
        if self.bursts.get() == 0 {
            self.index.close();
        }
    }

    pub(super) fn begin_stream(&self) {
        self.running.set(self.running.get() + 1);
    }

    pub(super) fn end_stream(&self) {
        self.running.set(self.running.get() - 1);
        self.settled.notify_all();
    }

    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.running.get() == 0
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.phase_changed.notify_all();
    }
}

/// The capture of one job. Dropping it leaves what is in the pipes where it is; its progress is ended by whoever
/// made that.
pub struct Capture(Rc<Shared>);

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture")
            .field("dir", &self.0.files.dir())
            .field("phase", &self.0.phase.get())
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Output so far.
    #[must_use]
    pub fn totals(&self) -> LogTotals {
        LogTotals {
            stdout_bytes: self.0.stdout_bytes.get(),
            stderr_bytes: self.0.stderr_bytes.get(),
            dropped_bytes: self.0.dropped_bytes.get(),
        }
    }

    /// What followers wait for. [`Progress::end`] it when the job's outcome is stored.
    #[must_use]
    pub fn progress(&self) -> Rc<Progress> {
        self.0.progress.clone()
    }

    /// Where the files are.
    #[must_use]
    pub fn files(&self) -> &JobFiles {
        &self.0.files
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> Rc<Shared> {
        self.0.clone()
    }

    /// Ends when output has exceeded the limit under [`Policy::Stop`]; at once if it has before.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn limit_hit(&self) {
        while !self.0.is_limit_hit.get() {
            self.0.settled.listen().await;
        }
    }

    /// Takes what is in the pipes now and returns the final totals. Call it when no process of the job is left.
    ///
    /// Never waits for the end of a pipe: whoever else holds a write end neither delays it nor is waited for,
    /// since all bytes of the job itself are in the pipe already. At most one pipe's capacity is taken.
    ///
    /// # Cancel
    /// Draining goes on; call it again for the totals.
    pub async fn drain(&self) -> LogTotals {
        self.0.enter(Phase::Draining);
        while self.0.running.get() > 0 || self.0.index.is_writing() {
            self.0.settled.listen().await;
        }
        // Once more what a full disk did not take; otherwise nothing is left and this does nothing.
        if self.0.index.is_behind(self.0.dropped_bytes.get()) && self.0.index.begin() {
            self.0.write_index().await;
        }
        self.totals()
    }
}

impl Capture {
    /// All output of a job that was drained, when it has any and `fits` takes the bytes of both streams and of the
    /// index; `None` too when the files do not hold it exactly, after a full disk.
    ///
    /// # Errors
    /// [`LogError::Open`], [`LogError::Read`].
    pub async fn whole(&self, fits: fn(usize, usize) -> bool) -> Result<Option<Whole>, LogError> {
        let job = &self.0;
        let totals = self.totals();
        if job.index.is_behind(totals.dropped_bytes) {
            return Ok(None);
        }
        match Sizes::small(totals, job.index.bytes(), fits) {
            Some(sizes) => Whole::read(&job.files, sizes, totals).await,
            None => Ok(None),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.0.phase.get() == Phase::Capturing {
            self.0.enter(Phase::Abandoned);
        }
    }
}

/// A splice target that is an open file of ours.
pub(super) fn owner(file: &Rc<File>) -> Owner {
    file.clone()
}

/// Whether `error` says that the pipe is empty.
pub(super) fn is_empty(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

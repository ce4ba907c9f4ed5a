//! One stream of one job: pipe to file inside the kernel.
//!
//! ```text
//! idle ── readable ──► burst: splice ─ ≥ 64 KiB ─► splice at once
//!  ▲                     │      └──── less ──────► pause, then wait for more
//!  └── silent for 5 s ───┘ (file closed, big pipe given back)
//! ```
//! Always wait first and never block in the splice: a splice that waits holds a kernel thread. The future of
//! a splice is never dropped half-way: its count would be lost. Calls that take the pipe's mutex are made
//! only between splices. An idle stream costs one small future; everything else lives in the burst.

use std::rc::Rc;

use super::capture::{Phase, Shared, is_empty, owner};
use crate::{
    job::Stream,
    limits,
    rt::{Either, File, Ready, or, sleep},
    sys::{pipe, uring::Splice},
};

pub(super) struct StreamTask {
    pub(super) job: Rc<Shared>,
    pub(super) pipe: Rc<Ready>,
    pub(super) stream: Stream,
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.job.end_stream();
    }
}

/// Runs until the end of the pipe, or of the job.
pub(super) async fn capture(task: StreamTask) {
    loop {
        if task.job.phase() == Phase::Capturing {
            match or(task.pipe.readable(), task.job.phase_changed.listen()).await {
                Either::Left(Ok(())) | Either::Right(()) => {}
                Either::Left(Err(error)) => {
                    task.job.warn(&error);
                    return;
                }
            }
        }
        if Box::pin(Burst::new(&task).run()).await == Flow::End {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Idle,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    Bytes(u64),
    Empty,
    End,
}

/// The time in which a stream has something to say.
struct Burst<'a> {
    task: &'a StreamTask,
    file: Option<Rc<File>>,
    is_pipe_big: bool,
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.task.job.end_burst();
    }
}

impl<'a> Burst<'a> {
    fn new(task: &'a StreamTask) -> Self {
        task.job.begin_burst();
        Self { task, file: None, is_pipe_big: false }
    }

    async fn run(mut self) -> Flow {
        loop {
            match self.task.job.phase() {
                Phase::Capturing => {}
                Phase::Draining => {
                    self.drain().await;
                    return Flow::End;
                }
                Phase::Abandoned => return Flow::End,
            }
            match self.move_some(u64::from(limits::SPLICE_ALONE_BYTES)).await {
                Moved::End => return Flow::End,
                Moved::Bytes(bytes) if bytes >= limits::SPLICE_BUSY_BYTES => self.grow_pipe(),
                moved @ (Moved::Bytes(_) | Moved::Empty) => {
                    if moved != Moved::Empty {
                        self.pause().await;
                    }
                    if self.is_silent().await {
                        return Flow::Idle;
                    }
                }
            }
        }
    }

    /// Lets more come together, unless the job ends.
    async fn pause(&self) {
        let job = &self.task.job;
        let is_watched = job.progress.is_watched();
        let pace = if is_watched { limits::SPLICE_PACE_WATCHED } else { limits::SPLICE_PACE };
        if job.phase() == Phase::Capturing {
            or(sleep(pace), job.phase_changed.listen()).await;
        }
    }

    /// Waits for more; whether none has come for long.
    async fn is_silent(&mut self) -> bool {
        let job = &self.task.job;
        if job.phase() != Phase::Capturing {
            return false;
        }
        let news = or(self.task.pipe.readable(), job.phase_changed.listen());
        if matches!(or(news, sleep(limits::LOG_IDLE_CLOSE)).await, Either::Left(_)) {
            return false;
        }
        if self.is_pipe_big {
            // Refused when something has just come: then it keeps its size.
            let _ = pipe::set_capacity(&*self.task.pipe, limits::PIPE_BYTES);
        }
        true
    }

    /// A full pipe has been seen: a bigger one costs the job fewer stops.
    fn grow_pipe(&mut self) {
        if !self.is_pipe_big {
            self.is_pipe_big = true;
            // Refused when the host's share for pipes is used up: it works as it is.
            let _ = pipe::set_capacity(&*self.task.pipe, limits::PIPE_BUSY_BYTES);
        }
    }

    /// Takes what is in the pipe now: no more than it can hold, whoever else may be writing.
    async fn drain(&mut self) {
        let capacity = pipe::capacity(&*self.task.pipe).unwrap_or(limits::PIPE_BUSY_BYTES);
        let mut rest = capacity as u64;
        while rest > 0 {
            match self.move_some(rest).await {
                Moved::Bytes(bytes) => rest = rest.saturating_sub(bytes),
                Moved::Empty | Moved::End => return,
            }
        }
    }

    /// Moves at most `most` bytes to where they belong.
    async fn move_some(&mut self, most: u64) -> Moved {
        let job = self.task.job.clone();
        loop {
            if job.room() == 0 {
                if job.reserved_bytes.get() == 0 {
                    return self.discard(most, true).await;
                }
                // The other stream may not use all that it has reserved.
                job.settled.listen().await;
                continue;
            }
            if job.is_index_full() {
                return self.discard(most, false).await;
            }
            let file = match self.open().await {
                Ok(Some(file)) => file,
                Ok(None) => return self.nothing(),
                Err(error) => {
                    job.warn(&error);
                    return self.discard(most, false).await;
                }
            };
            if let Some(moved) = self.store(&file, most).await {
                return moved;
            }
        }
    }

    /// `None` when the room has gone meanwhile.
    async fn store(&mut self, file: &Rc<File>, most: u64) -> Option<Moved> {
        let job = &self.task.job;
        let recorder = &job.recorder;
        let pass = recorder.gate.enter().await;
        let is_alone = recorder.gate.is_alone();
        let len = if is_alone { limits::SPLICE_ALONE_BYTES } else { limits::SPLICE_BYTES };
        let want = u64::from(len).min(most).min(job.room());
        if want == 0 {
            return None;
        }
        let grant = recorder.disk.take(want);
        let len = u32::try_from(grant.bytes()).expect("at most what was wanted, 1 MiB");
        if len == 0 {
            drop(pass);
            return Some(self.discard(most, false).await);
        }
        job.reserved_bytes.set(job.reserved_bytes.get() + u64::from(len));
        let offset = Some(job.stored(self.task.stream).get());
        let splice = Splice { from: self.task.pipe.clone(), to: owner(file), offset, len };
        let moved = recorder.ring.splice(splice).await;
        drop(pass);
        job.reserved_bytes.set(job.reserved_bytes.get() - u64::from(len));
        grant.settle(*moved.as_ref().unwrap_or(&0) as u64);
        let answer = match moved {
            Ok(0) => Moved::End,
            Ok(bytes) => {
                let bytes = u32::try_from(bytes).expect("no more than was asked for");
                job.on_stored(self.task.stream, bytes);
                Moved::Bytes(u64::from(bytes))
            }
            Err(error) if is_empty(&error) => Moved::Empty,
            Err(error) => {
                // Mostly a full disk. What fitted was stored; the rest is still in the pipe.
                job.warn(&error);
                job.settled.notify_all();
                return Some(self.discard(most, false).await);
            }
        };
        job.settled.notify_all();
        Some(answer)
    }

    /// Throws away at most `most` bytes and counts them.
    async fn discard(&self, most: u64, is_by_limit: bool) -> Moved {
        let job = &self.task.job;
        let recorder = &job.recorder;
        let _pass = recorder.gate.enter().await;
        let len = u32::try_from(most).unwrap_or(u32::MAX).min(limits::DISCARD_BYTES);
        let splice = Splice { from: self.task.pipe.clone(), to: recorder.nowhere.clone(), offset: None, len };
        match recorder.ring.splice(splice).await {
            Ok(0) => Moved::End,
            Ok(bytes) => {
                job.on_dropped(bytes as u64, is_by_limit);
                Moved::Bytes(bytes as u64)
            }
            Err(error) if is_empty(&error) => Moved::Empty,
            Err(error) => {
                job.warn(&error);
                Moved::End
            }
        }
    }

    /// The file of this stream; `None` when it does not exist yet and there is nothing to put into it.
    async fn open(&mut self) -> Result<Option<Rc<File>>, super::LogError> {
        if let Some(file) = &self.file {
            return Ok(Some(file.clone()));
        }
        let job = &self.task.job;
        let is_new = job.stored(self.task.stream).get() == 0;
        if is_new && pipe::available(&*self.task.pipe).is_ok_and(|bytes| bytes == 0) {
            return Ok(None);
        }
        let file = job.files.create(&job.files.stream(self.task.stream)).await?;
        self.file = Some(file.clone());
        Ok(Some(file))
    }

    /// What it means that a pipe which was readable holds nothing: its end. While draining: that it is empty.
    fn nothing(&self) -> Moved {
        match self.task.job.phase() {
            Phase::Capturing => Moved::End,
            Phase::Draining | Phase::Abandoned => Moved::Empty,
        }
    }
}

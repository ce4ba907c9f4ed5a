//! A job's output for a reader on any shard.
//!
//! The files are read where the reader is; only the news that there is more crosses the mailbox. Each
//! shard keeps one mirror of a foreign job's progress for all its readers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
};

use super::{desk::chain, driver::Shard, handle::unknown};
use crate::{
    job::{Chunk, JobId, LogQuery, Refusal, RefusalCode, ShardIndex},
    log::{Follower, LogError, Progress, Snapshot},
    rt,
};

/// A cursor over a job's output.
#[derive(Debug)]
pub struct Output {
    follower: Follower,
    /// Keeps the mirror of a foreign job alive while somebody reads.
    _mirror: Option<Rc<Mirror>>,
}

/// What one shard knows of the progress of a job that another shard owns.
#[derive(Debug)]
pub(super) struct Mirror {
    progress: Rc<Progress>,
    id: JobId,
    shard: Weak<Shard>,
}

/// Mirrors of one shard, and who watches its own jobs.
#[derive(Debug, Default)]
pub(super) struct Watches {
    mirrors: RefCell<HashMap<JobId, Weak<Mirror>>>,
    /// Mirrors that are asked for: by how many, and what came before they were made.
    openings: RefCell<HashMap<JobId, (usize, Snapshot)>>,
    forwarded: RefCell<Forwarded>,
}

/// Own jobs that other shards mirror; the flag ends the forwarding.
type Forwarded = HashMap<(JobId, ShardIndex), Rc<Cell<bool>>>;

impl Output {
    pub(super) async fn open(
        shard: &Rc<Shard>,
        id: JobId,
        query: LogQuery,
    ) -> Result<Self, Refusal> {
        let owner = id.owner(shard.shards);
        let (progress, mirror) = if owner == shard.index {
            (shard.progress(id).await?, None)
        } else {
            let mirror = shard.mirror(id, owner).await?;
            (Rc::clone(&mirror.progress), Some(mirror))
        };
        let follower = Follower::open(&shard.log_dir(id), query, progress).await;
        let follower = follower.map_err(|error| unreadable(id, &error))?;
        Ok(Self {
            follower,
            _mirror: mirror,
        })
    }

    /// The next piece, in the order of capture; `None` when all that was asked for has been given.
    ///
    /// # Errors
    /// A file of the log that cannot be read.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Refusal> {
        let next = self.follower.next().await;
        next.map_err(|error| Refusal::new(RefusalCode::Failed, chain(&error)))
    }
}

fn unreadable(id: JobId, error: &LogError) -> Refusal {
    Refusal::new(
        RefusalCode::Failed,
        format!("log of job {id}: {}", chain(error)),
    )
}

impl Shard {
    /// The progress of a job of ours: live, or at its end.
    async fn progress(&self, id: JobId) -> Result<Rc<Progress>, Refusal> {
        if let Some(progress) = self.live_progress(id) {
            return Ok(progress);
        }
        self.view(id).ok_or_else(|| unknown(&id.to_string()))?;
        Progress::from_files(&self.log_dir(id))
            .await
            .map_err(|error| unreadable(id, &error))
    }

    /// One mirror a foreign job, fed by its owner while anybody holds it.
    async fn mirror(self: &Rc<Self>, id: JobId, owner: ShardIndex) -> Result<Rc<Mirror>, Refusal> {
        if let Some(mirror) = self
            .watches
            .mirrors
            .borrow()
            .get(&id)
            .and_then(Weak::upgrade)
        {
            return Ok(mirror);
        }
        let from = self.index;
        let opening = Opening::new(self, id);
        let first = self
            .on(owner, move |there| {
                Box::pin(async move { there.forward_progress(id, from).await })
            })
            .await??;
        // Another reader may have been here while we waited.
        if let Some(mirror) = self
            .watches
            .mirrors
            .borrow()
            .get(&id)
            .and_then(Weak::upgrade)
        {
            return Ok(mirror);
        }
        let mirror = Rc::new(Mirror {
            progress: Progress::new(first.newest(opening.newest())),
            id,
            shard: Rc::downgrade(self),
        });
        self.watches
            .mirrors
            .borrow_mut()
            .insert(id, Rc::downgrade(&mirror));
        Ok(mirror)
    }

    /// Sends every change of an own job's progress to shard `to` until it ends or nobody listens there.
    async fn forward_progress(
        self: &Rc<Self>,
        id: JobId,
        to: ShardIndex,
    ) -> Result<Snapshot, Refusal> {
        let progress = self.progress(id).await?;
        let first = progress.snapshot();
        if first.is_ended {
            return Ok(first);
        }
        let wanted = Rc::new(Cell::new(true));
        if let Some(former) = self
            .watches
            .forwarded
            .borrow_mut()
            .insert((id, to), Rc::clone(&wanted))
        {
            former.set(false);
        }
        let shard = Rc::clone(self);
        rt::spawn(async move {
            let _watching = progress.watching();
            let mut last = first;
            while wanted.get() && !last.is_ended {
                let version = progress.version();
                if progress.snapshot() == last {
                    progress.changed(version).await;
                    continue;
                }
                last = progress.snapshot();
                shard
                    .remote
                    .post(to, Box::new(move |there| there.update_mirror(id, last)));
            }
            let mut forwarded = shard.watches.forwarded.borrow_mut();
            if forwarded
                .get(&(id, to))
                .is_some_and(|flag| Rc::ptr_eq(flag, &wanted))
            {
                forwarded.remove(&(id, to));
            }
        });
        Ok(first)
    }

    fn update_mirror(&self, id: JobId, snapshot: Snapshot) {
        if let Some(mirror) = self
            .watches
            .mirrors
            .borrow()
            .get(&id)
            .and_then(Weak::upgrade)
        {
            mirror.progress.update(snapshot);
        } else if let Some((_, newest)) = self.watches.openings.borrow_mut().get_mut(&id) {
            *newest = newest.newest(snapshot);
        }
    }
}

/// A mirror that is asked for. News of its job may come in one batch with the answer, before who asked runs.
struct Opening {
    shard: Rc<Shard>,
    id: JobId,
}

impl Opening {
    fn new(shard: &Rc<Shard>, id: JobId) -> Self {
        shard.watches.openings.borrow_mut().entry(id).or_default().0 += 1;
        Self {
            shard: Rc::clone(shard),
            id,
        }
    }

    fn newest(&self) -> Snapshot {
        let openings = self.shard.watches.openings.borrow();
        openings
            .get(&self.id)
            .map_or_else(Snapshot::default, |(_, newest)| *newest)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut openings = self.shard.watches.openings.borrow_mut();
        if let Some((count, _)) = openings.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                openings.remove(&self.id);
            }
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let Some(shard) = self.shard.upgrade() else {
            return;
        };
        let is_last = {
            let mut mirrors = shard.watches.mirrors.borrow_mut();
            let is_last = mirrors
                .get(&self.id)
                .is_some_and(|mirror| mirror.strong_count() == 0);
            if is_last {
                mirrors.remove(&self.id);
            }
            is_last
        };
        if is_last {
            let (id, from) = (self.id, shard.index);
            shard.remote.post(
                id.owner(shard.shards),
                Box::new(move |there| {
                    if let Some(wanted) = there.watches.forwarded.borrow_mut().remove(&(id, from)) {
                        wanted.set(false);
                    }
                }),
            );
        }
    }
}

//! A job's output for a reader on any shard.
//!
//! Files, or the store once they are gone, are read where the reader is; only the news that there is more crosses the mailbox. Each
//! shard keeps one mirror of a foreign job's progress for all its readers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
};

use super::{desk::chain, driver::Shard};
use crate::{
    job::{Chunk, JobId, LogQuery, Refusal, RefusalCode, ShardIndex},
    log::{Follower, LogError, Progress, Snapshot},
    rt::{self, Either, Notify},
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
    /// What feeds it: asked for by who made this mirror, and ended with it.
    forwarding: Forwarding,
}

/// Mirrors of one shard, and who watches its own jobs.
#[derive(Debug, Default)]
pub(super) struct Watches {
    mirrors: RefCell<HashMap<JobId, Weak<Mirror>>>,
    /// Mirrors that are asked for: by how many, and what came before they were made.
    openings: RefCell<HashMap<JobId, (usize, Snapshot)>>,
    /// Number of the next forwarding that is asked for.
    next: Cell<u64>,
    forwarded: RefCell<Forwarded>,
}

/// Who asked for a forwarding: a shard, and its own number for it.
type Listener = (ShardIndex, u64);

/// Forwardings of own jobs to other shards. Each is ended by who asked for it and by nobody else, so that
/// readers that come and go at the same time do not end each other's.
#[derive(Debug, Default)]
struct Forwarded(HashMap<Listener, Rc<Notify>>);

impl Forwarded {
    /// Notes a forwarding; what is returned is called when it is to end.
    fn begin(&mut self, listener: Listener) -> Rc<Notify> {
        let over = Rc::new(Notify::new());
        let former = self.0.insert(listener, Rc::clone(&over));
        debug_assert!(former.is_none(), "a shard uses a number once");
        over
    }

    /// Ends one. It may have ended by itself.
    fn end(&mut self, listener: Listener) {
        if let Some(over) = self.0.remove(&listener) {
            over.notify_one();
        }
    }
}

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
        let follower = Follower::open(&shard.place_of(id), query, progress).await;
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
    async fn progress(self: &Rc<Self>, id: JobId) -> Result<Rc<Progress>, Refusal> {
        if let Some(progress) = self.live_progress(id) {
            return Ok(progress);
        }
        self.look(id).await?;
        Progress::ended(&self.place_of(id))
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
        let opening = Opening::new(self, id);
        let forwarding = Forwarding::new(self, id);
        let listener = forwarding.listener;
        let first = self
            .on(owner, move |there| {
                // At once: the word that ends it may be the next that comes.
                let over = there.watches.forwarded.borrow_mut().begin(listener);
                Box::pin(async move { there.forward_progress(id, listener, over).await })
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
            forwarding,
        });
        self.watches
            .mirrors
            .borrow_mut()
            .insert(id, Rc::downgrade(&mirror));
        Ok(mirror)
    }

    /// Sends every change of an own job's progress to a listener until the job ends or `over` is called.
    async fn forward_progress(
        self: &Rc<Self>,
        id: JobId,
        listener: Listener,
        over: Rc<Notify>,
    ) -> Result<Snapshot, Refusal> {
        let progress = self.progress(id).await;
        let progress = match progress {
            Ok(progress) if !progress.snapshot().is_ended => progress,
            ended_or_unknown => {
                self.watches.forwarded.borrow_mut().end(listener);
                return ended_or_unknown.map(|progress| progress.snapshot());
            }
        };
        let first = progress.snapshot();
        let shard = Rc::clone(self);
        rt::spawn(async move {
            let _watching = progress.watching();
            let (to, _) = listener;
            let mut last = first;
            while !last.is_ended {
                let version = progress.version();
                if progress.snapshot() == last {
                    match rt::or(over.notified(), progress.changed(version)).await {
                        Either::Left(()) => return,
                        Either::Right(_) => continue,
                    }
                }
                last = progress.snapshot();
                shard
                    .remote
                    .post(to, Box::new(move |there| there.update_mirror(id, last)));
            }
            shard.watches.forwarded.borrow_mut().end(listener);
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

/// One shard's wish to hear of a foreign job's progress; the owner stops telling when this is dropped.
#[derive(Debug)]
struct Forwarding {
    id: JobId,
    listener: Listener,
    shard: Weak<Shard>,
}

impl Forwarding {
    fn new(shard: &Rc<Shard>, id: JobId) -> Self {
        let next = &shard.watches.next;
        Self {
            id,
            listener: (shard.index, next.replace(next.get() + 1)),
            shard: Rc::downgrade(shard),
        }
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        if let Some(shard) = self.shard.upgrade() {
            let listener = self.listener;
            shard.remote.post(
                self.id.owner(shard.shards),
                Box::new(move |there| there.watches.forwarded.borrow_mut().end(listener)),
            );
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let Some(shard) = self.forwarding.shard.upgrade() else {
            return;
        };
        let mut mirrors = shard.watches.mirrors.borrow_mut();
        let id = self.forwarding.id;
        if mirrors
            .get(&id)
            .is_some_and(|mirror| mirror.strong_count() == 0)
        {
            mirrors.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::on_shard;

    #[test]
    fn a_forwarding_is_ended_by_who_asked_for_it_and_by_nobody_else() {
        on_shard(|| async {
            let mut forwarded = Forwarded::default();
            let [first, second, other] =
                [(1, 0), (1, 1), (2, 0)].map(|listener| (listener, forwarded.begin(listener)));
            forwarded.end(first.0);
            first.1.notified().await;
            forwarded.end(first.0);
            forwarded.end((1, 7));
            for (_, over) in [&second, &other] {
                let ended = rt::or(over.notified(), std::future::ready(())).await;
                assert_eq!(ended, Either::Right(()), "somebody else's was ended");
            }
            forwarded.end(second.0);
            second.1.notified().await;
            assert_eq!(forwarded.0.len(), 1);
        });
    }
}

//! The way every job ends: output brought home, then everything it held given back.

use std::{cell::RefCell, collections::VecDeque, fs::File, os::fd::OwnedFd, rc::Rc, time::Instant};

use super::{body::Body, desk::chain, driver::Shard, effect::Event, seats::MemoryCgroup};
use crate::{
    cgroup::CgroupError,
    config::Durability,
    job::{JobId, LogTotals, Refusal, RefusalCode, Usage, WorkKind},
    limits,
    rt::{self, Notify},
    volume::WorkImage,
};

/// Disk images of ended jobs that may still be copied from, oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    images: RefCell<VecDeque<(Instant, JobId, WorkImage)>>,
    changed: Notify,
}

impl Shard {
    /// Brings all output into the files, and takes it off them again when it is small. The job's processes are dead, or never were.
    pub(super) fn drain(self: &Rc<Self>, id: JobId) {
        let shard = Rc::clone(self);
        rt::spawn(async move {
            shard.wait_until_empty(id).await;
            let capture = shard
                .bodies
                .borrow()
                .get(&id)
                .and_then(|body| body.capture.clone());
            let totals = match &capture {
                Some(capture) => capture.drain().await,
                None => LogTotals::default(),
            };
            if let Some(body) = shard.bodies.borrow().get(&id) {
                body.progress.end();
            }
            let output = match capture {
                Some(capture) => shard.small_output(id, &capture).await,
                None => None,
            };
            if output.is_none() {
                shard.flush_log(id, totals).await;
            }
            if let Some(body) = shard.bodies.borrow_mut().get_mut(&id) {
                body.output = output;
            }
            shard.feed(Event::Drained(id, totals, shard.usage(id)));
        });
    }

    /// Finds out whether a job whose command has ended has no process left but its init, as its cgroup says, and so
    /// ends now. init takes a while to die, because the kernel waits for grace periods when a mount namespace goes;
    /// what can be told of the job does not depend on it. Where it holds a volume or a disk image, whoever hears of
    /// the end may remove that, so there the end waits.
    pub(super) fn note_if_reaped(&self, id: JobId) -> bool {
        let mut bodies = self.bodies.borrow_mut();
        let Some(body) = bodies.get_mut(&id) else {
            return false;
        };
        let is_bound_to_disk = body.has_volumes || body.image.is_some();
        body.is_reaped = !is_bound_to_disk
            && body.has_leaf
            && body
                .pid
                .is_some_and(|pid| self.host.cgroups.holds_only(id, pid));
        body.is_reaped
    }

    /// Has the disk keep the files of a job's output before the store says how much there is, where that is to survive
    /// a loss of power.
    async fn flush_log(&self, id: JobId, totals: LogTotals) {
        if self.host.durability != Durability::Power || totals == LogTotals::default() {
            return;
        }
        if let Err(error) = self.files(id).flush().await {
            tracing::error!(job_id = %id, error = chain(&error), "a loss of power may cost output of a job");
        }
    }

    /// What a job's cgroup has counted.
    fn usage(&self, id: JobId) -> Option<Usage> {
        if !self.bodies.borrow().get(&id)?.has_leaf {
            return None;
        }
        match self.host.cgroups.usage_in_all(id) {
            Ok(usage) => Some(usage),
            Err(error) => {
                tracing::warn!(job_id = %id, %error, "what a job used is not known");
                None
            }
        }
    }

    /// Waits until no process is left in a job's cgroup, killing what is. For the init of a job that is reaped only
    /// the removal of the cgroup waits.
    pub(super) async fn wait_until_empty(&self, id: JobId) {
        let may_hold = |body: &Body| body.has_leaf && !body.is_reaped;
        if self.bodies.borrow().get(&id).is_some_and(may_hold) {
            self.empty_leaf(id).await;
        }
    }

    async fn empty_leaf(&self, id: JobId) {
        let mut pause = limits::LEAF_RETRY_FIRST;
        loop {
            match self.host.cgroups.populated(id) {
                Ok(false) | Err(CgroupError::Missing(_)) => return,
                Ok(true) => self.kill_leaf(id),
                Err(error) => {
                    tracing::error!(job_id = %id, %error, "a job's cgroup cannot be read");
                    return;
                }
            }
            rt::sleep(pause).await;
            pause = (pause * 2).min(limits::LEAF_RETRY_LAST);
        }
    }

    /// Gives back what a job held.
    pub(super) fn release(self: &Rc<Self>, id: JobId) {
        self.timers.clear_all(id);
        self.alarms.clear(id);
        let Some(body) = self.bodies.borrow_mut().remove(&id) else {
            return;
        };
        body.progress.end();
        if body.has_volumes {
            self.release_volumes(id);
        }
        if let Some(link) = body.link {
            link.forget(id);
            // Its keeper holds the end until the store has it.
            self.hold(id, link);
        }
        // At once: who hears of the end may copy from it.
        let too_many = body.image.and_then(|image| self.keep(id, image));
        let shard = Rc::clone(self);
        // A daemon that goes down with its last job gives this back first.
        let waiting = self.records.begin();
        rt::spawn(async move {
            if body.is_reaped {
                shard.empty_leaf(id).await;
            }
            if body.has_leaf {
                shard.remove_leaf(id, body.seat, body.memory).await;
            }
            if let Some(ids) = body.ids {
                shard.desk.free_ids(ids);
            }
            if let Some(image) = too_many {
                shard.discard(image).await;
            }
            drop(waiting);
        });
    }

    /// Removes a leaf. Its processes are dead; the kernel may need a moment to let go of them.
    /// `seat` is the name that its cgroups of version 1 still have, if they do not have the job's.
    /// `memory` tells that one of them is for memory; it goes with them.
    pub(super) async fn remove_leaf(
        &self,
        id: JobId,
        seat: Option<String>,
        memory: Option<MemoryCgroup>,
    ) {
        let mut pause = limits::LEAF_RETRY_FIRST;
        for _ in 0..limits::LEAF_RETRIES {
            match self
                .remove_cgroups(id, seat.clone(), memory.is_some())
                .await
            {
                Ok(()) | Err(CgroupError::Missing(_)) => return,
                Err(CgroupError::Busy { .. }) => {
                    let _ = self.host.cgroups.kill(id);
                    rt::sleep(pause).await;
                    pause = (pause * 2).min(limits::LEAF_RETRY_LAST);
                }
                Err(error) => {
                    tracing::error!(job_id = %id, %error, "a cgroup could not be removed");
                    return;
                }
            }
        }
        tracing::error!(job_id = %id, "a cgroup stays busy and is left to the next start");
    }

    /// Keeps the image of a job that has ended; the oldest one when there are too many, which is to be discarded.
    fn keep(&self, id: JobId, image: WorkImage) -> Option<WorkImage> {
        let until = rt::now() + self.host.work_keep;
        let mut images = self.kept.images.borrow_mut();
        images.push_back((until, id, image));
        self.kept.changed.notify_one();
        let has_too_many = images.len() > self.host.work_keep_jobs;
        let (.., oldest) = has_too_many.then(|| images.pop_front()).flatten()?;
        Some(oldest)
    }

    /// Discards kept images when their time is over, for ever.
    pub(super) async fn serve_kept(self: Rc<Self>) {
        loop {
            let first = self.kept.images.borrow().front().map(|(until, ..)| *until);
            match first {
                None => self.kept.changed.notified().await,
                Some(until) if until > rt::now() => rt::sleep_until(until).await,
                Some(_) => {
                    let due = self.kept.images.borrow_mut().pop_front();
                    if let Some((_, _, image)) = due {
                        self.discard(image).await;
                    }
                }
            }
        }
    }

    /// Discards the kept image of one job, if there is one.
    pub(super) fn discard_kept_of(self: &Rc<Self>, id: JobId) {
        let image = {
            let mut images = self.kept.images.borrow_mut();
            let at = images.iter().position(|(_, kept, _)| *kept == id);
            at.and_then(|at| images.remove(at))
        };
        if let Some((_, _, image)) = image {
            let shard = Rc::clone(self);
            rt::spawn(async move { shard.discard(image).await });
        }
    }

    /// Discards all kept images now.
    pub(super) async fn discard_kept(&self) {
        loop {
            let next = self.kept.images.borrow_mut().pop_front();
            let Some((_, _, image)) = next else { return };
            self.discard(image).await;
        }
    }

    pub(super) async fn discard(&self, image: WorkImage) {
        // Dropping it here would unmount on the shard's own thread.
        if let Err(error) = rt::blocking("discard a disk image", move || image.discard()).await {
            tracing::error!(%error, "a disk image is left to the next start");
        }
    }

    /// Removes a job's output.
    pub(super) fn delete_output(self: &Rc<Self>, id: JobId) {
        let files = self.files(id);
        rt::spawn(async move {
            if let Err(error) = files.remove().await {
                tracing::warn!(job_id = %id, error = chain(&error), "output of a forgotten job is left");
            }
        });
    }

    /// A directory descriptor of a job's `/work`, to be read beneath.
    pub(super) async fn open_work(self: &Rc<Self>, id: JobId) -> Result<OwnedFd, Refusal> {
        let view = self.look(id).await?;
        let gone =
            |why: &str| Refusal::new(RefusalCode::Conflict, format!("/work of job {id} {why}"));
        let copy = |image: &WorkImage| image.tree.try_clone();
        let opened = if let Some(image) = self
            .bodies
            .borrow()
            .get(&id)
            .and_then(|body| body.image.as_ref())
        {
            Some(copy(image))
        } else {
            self.kept
                .images
                .borrow()
                .iter()
                .find(|(_, kept, _)| *kept == id)
                .map(|(.., image)| copy(image))
        };
        if let Some(opened) = opened {
            return opened.map_err(|error| {
                Refusal::new(RefusalCode::Failed, format!("/work of job {id}: {error}"))
            });
        }
        if view.outcome.is_some() {
            return Err(match view.work {
                WorkKind::Memory => gone("was in memory and ended with it")
                    .hint("give the job a /work on disk with --work-size, it is kept for a while"),
                WorkKind::Disk => gone("has been discarded"),
            });
        }
        let pid = self.bodies.borrow().get(&id).and_then(|body| body.pid);
        let Some(pid) = pid else {
            return Err(gone("does not exist yet"));
        };
        // The pid may have been reused, so the process must be in the job's cgroup after its root was opened.
        let work = File::open(format!("/proc/{pid}/root/work"))
            .map_err(|_| gone("is gone: the job is just ending"))?;
        match self.host.cgroups.holds(id, pid) {
            true => Ok(work.into()),
            false => Err(gone("is gone: the job is just ending")),
        }
    }
}

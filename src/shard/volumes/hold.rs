//! A job has its volumes from before it is submitted until nothing of it is left.
//!
//! Until its submit was taken the one who makes it answers for them, then its shard does. They are given back when
//! the store has its end and before anybody is told of that.

use std::rc::Rc;

use super::KEEPER;
use crate::{
    job::{Attachment, JobId, JobView, Reason, Refusal},
    shard::driver::Shard,
};

/// The volumes of a job that is on its way to its shard. They are given back when this is dropped.
#[must_use]
pub(in crate::shard) struct Hold {
    shard: Rc<Shard>,
    /// `None` when there are none, or when its shard answers for them.
    job: Option<JobId>,
}

impl Hold {
    /// The job's shard answers for them from now on.
    pub(in crate::shard) fn pass_on(mut self) {
        self.job = None;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(job) = self.job {
            self.shard.release_volumes(job);
        }
    }
}

impl Shard {
    /// Gives a job that does not exist yet its volumes.
    ///
    /// # Errors
    /// `NotFound` with the first that is not there; `Busy` when the first shard does not keep up.
    pub(in crate::shard) async fn hold_volumes(
        self: &Rc<Self>,
        job: JobId,
        volumes: &[Attachment],
    ) -> Result<Hold, Refusal> {
        let mut hold = Hold {
            shard: Rc::clone(self),
            job: None,
        };
        if volumes.is_empty() {
            return Ok(hold);
        }
        // From here on, so that a caller who goes away meanwhile leaves nothing held.
        hold.job = Some(job);
        let volumes = volumes.to_vec();
        self.on(KEEPER, move |there| {
            let held = there.shelf.registry.borrow_mut().hold(job, &volumes);
            there.shelf.held.notify_one();
            Box::pin(async move { held })
        })
        .await??;
        Ok(hold)
    }

    /// Takes back the volumes of a job, soon. Twice is as good as once.
    pub(in crate::shard) fn release_volumes(self: &Rc<Self>, job: JobId) {
        self.post_or_run(KEEPER, move |there| there.release_here(job));
    }

    fn release_here(&self, job: JobId) {
        let written = self.shelf.registry.borrow_mut().release(job);
        self.trim_volumes(written);
    }

    /// Takes back the volumes of a job that has ended, and waits until they can be removed.
    pub(in crate::shard) async fn give_volumes_back(self: &Rc<Self>, ended: &JobView) {
        if ended.spec.volumes.is_empty() {
            return;
        }
        let job = ended.id;
        let released = self.on(KEEPER, move |there| {
            there.release_here(job);
            Box::pin(async {})
        });
        if released.await.is_err() {
            self.release_volumes(job);
        }
    }

    /// Whether a job of this shard is over, though it has not given its volumes back when this is called; when this
    /// returns it has.
    pub(super) async fn is_leaving(self: &Rc<Self>, job: JobId) -> bool {
        let Some(view) = self.live_view(job) else {
            // It is on its way here, or what it held is on its way back and arrives before our answer.
            return false;
        };
        // Nobody cancels what has begun, but for whom it was submitted is gone.
        let is_over = view.outcome.is_some() || view.ending == Some(Reason::Canceled);
        if is_over {
            let _ = self.ended(job).await;
        }
        is_over
    }
}

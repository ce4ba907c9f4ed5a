//! Deleting ended jobs: on request, and by themselves when there are more than are to be remembered.

use std::rc::Rc;

use super::{driver::Shard, records::refused};
use crate::{
    job::{JobId, Refusal},
    limits, rt,
    store::{Change, Done},
};

impl Shard {
    /// Deletes jobs that have ended, with their output and what is kept of their `/work`; how many there were.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn delete(self: &Rc<Self>, ids: Vec<JobId>) -> Result<u64, Refusal> {
        let mut count = 0;
        for some in ids.chunks(limits::STORE_DELETE_JOBS) {
            let ids = some.to_vec();
            let done = self.records.submit(Change::Delete { ids }).await;
            if let Done::Deleted { count: deleted } = done.map_err(|error| refused(&error))? {
                count += deleted as u64;
            }
            some.iter().for_each(|id| self.delete_rest(*id));
        }
        Ok(count)
    }

    /// What of a deleted job is not in the store.
    fn delete_rest(self: &Rc<Self>, id: JobId) {
        self.delete_output(id);
        self.post_or_run(id.owner(self.shards), move |owner| {
            owner.discard_kept_of(id)
        });
    }

    /// Forgets what is too old or too much, for ever. One shard does it for all.
    pub(super) async fn serve_pruning(self: Rc<Self>) {
        loop {
            rt::sleep(limits::PRUNE_INTERVAL).await;
            while self.prune_some().await == Some(limits::STORE_DELETE_JOBS) {}
            let now_ns = self.moment().wall_ns;
            if let Err(error) = self.records.submit(Change::ForgetKeys { now_ns }).await {
                tracing::warn!(%error, "expired idempotency keys are not forgotten");
            }
        }
    }

    /// Forgets a batch of ended jobs; how many there were.
    async fn prune_some(self: &Rc<Self>) -> Option<usize> {
        let retention = &self.host.retention;
        let now_ns = self.moment().wall_ns;
        let age_ns = retention
            .age
            .map(|age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
        let change = Change::Prune {
            keep_jobs: retention.jobs,
            ended_before_ns: age_ns.map(|age_ns| now_ns.saturating_sub(age_ns)),
            keep_bytes: retention.bytes,
        };
        match self.records.submit(change).await {
            Ok(Done::Pruned { ids }) => {
                ids.iter().for_each(|id| self.delete_rest(*id));
                Some(ids.len())
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "old jobs are not forgotten");
                None
            }
        }
    }
}

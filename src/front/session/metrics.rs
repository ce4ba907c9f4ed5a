//! A look at a job, or one after another until it has ended.

use std::{pin::pin, time::Duration};

use proto_rkyv::Reply;

use super::{Broken, Session, race};
use crate::{
    front::{authorise::Operation, convert},
    job::{JobId, Sample},
};

impl Session {
    pub(super) async fn metrics(&mut self, metrics: proto_rkyv::Metrics) -> Result<(), Broken> {
        let view = self.job(Operation::Metrics, &metrics.job).await?;
        let interval = convert::sample_interval(metrics.interval_ms)?;
        if metrics.follow && view.outcome.is_none() {
            return self.watch(view.id, interval).await;
        }
        for sample in self.handle.samples(view.id).await? {
            self.sample(&sample).await?;
        }
        Ok(())
    }

    /// One sample at once, one after each interval, and the last one when the job has ended.
    async fn watch(&mut self, id: JobId, interval: Duration) -> Result<(), Broken> {
        let handle = self.handle.clone();
        let mut ended = pin!(handle.ended(id));
        loop {
            let sample = handle.sample(id).await?;
            self.sample(&sample).await?;
            let wait = race::within(interval, ended.as_mut());
            if let Some(end) = self.outgoing.unless_gone(wait).await? {
                end?;
                return self.sample(&handle.sample(id).await?).await;
            }
        }
    }

    async fn sample(&mut self, sample: &Sample) -> Result<(), Broken> {
        let sample = convert::sample(sample);
        self.outgoing.reply(&Reply::Sample(Box::new(sample))).await
    }
}

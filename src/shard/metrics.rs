//! Looks at live jobs: taken only while somebody asks, the newest kept with the job.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use super::driver::Shard;
use crate::{
    cgroup::CgroupError,
    job::{JobId, JobView, Outcome, Refusal, RefusalCode, Sample, Usage},
    limits, rt,
};

/// The newest looks at one job, oldest first, each newer than the one before.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<Sample>);

impl Samples {
    fn keep(&mut self, sample: Sample) {
        // Two readers may have looked at once, and the later one was told first.
        if self
            .0
            .back()
            .is_some_and(|newest| newest.wall_ns >= sample.wall_ns)
        {
            return;
        }
        if self.0.len() == limits::SAMPLES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// The newest, unless it is too old to be given again.
    fn fresh(&self, now_ns: i64) -> Option<Sample> {
        let newest = self.0.back().copied()?;
        let age = u64::try_from(now_ns.saturating_sub(newest.wall_ns)).ok()?;
        (u128::from(age) < limits::SAMPLE_AGE_MAX.as_nanos()).then_some(newest)
    }
}

impl Shard {
    /// What a job has used by now, at most [`limits::SAMPLE_AGE_MAX`] ago; of one that has ended, what it used
    /// in all.
    pub(super) async fn sample(self: &Rc<Self>, id: JobId) -> Result<Sample, Refusal> {
        let view = self.look(id).await?;
        if let Some(outcome) = &view.outcome {
            return Ok(last(&view, outcome));
        }
        let now_ns = self.moment().wall_ns;
        if let Some(body) = self.bodies.borrow().get(&id)
            && let Some(fresh) = body.samples.fresh(now_ns)
        {
            return Ok(fresh);
        }
        // The kernel adds up what all processors have counted, which takes a while on a large host.
        let host = Arc::clone(&self.host);
        let read = rt::blocking("read a job's usage", move || {
            (host.cgroups.usage(id), host.cgroups.pressure(id))
        });
        let (usage, pressure) = match read.await {
            Ok((Ok(usage), pressure)) => (usage, pressure),
            // It has no cgroup yet, or none any more.
            Ok((Err(CgroupError::Missing(_)), _)) => (Usage::default(), None),
            Ok((Err(error), _)) => return Err(unread(id, &error)),
            Err(error) => return Err(unread(id, &error)),
        };
        let sample = Sample {
            wall_ns: self.moment().wall_ns,
            usage,
            pressure,
        };
        if let Some(body) = self.bodies.borrow_mut().get_mut(&id) {
            body.samples.keep(sample);
        }
        Ok(sample)
    }

    /// The looks at a job that were kept and one of now, oldest first; of a job that has ended only that.
    pub(super) async fn samples(self: &Rc<Self>, id: JobId) -> Result<Vec<Sample>, Refusal> {
        let now = self.sample(id).await?;
        let bodies = self.bodies.borrow();
        let kept = bodies.get(&id).map(|body| &body.samples.0);
        let before = kept.into_iter().flatten();
        let mut samples: Vec<Sample> = before
            .filter(|sample| sample.wall_ns < now.wall_ns)
            .copied()
            .collect();
        samples.push(now);
        Ok(samples)
    }
}

/// The end of a job as the last look at it.
fn last(view: &JobView, outcome: &Outcome) -> Sample {
    Sample {
        wall_ns: view.transitions.last().map_or(0, |last| last.wall_ns),
        usage: outcome.usage,
        pressure: None,
    }
}

fn unread(id: JobId, error: &dyn std::error::Error) -> Refusal {
    tracing::warn!(job_id = %id, %error, "what a job uses cannot be read");
    let message = format!("what job {id} uses cannot be read: {error}");
    Refusal::new(RefusalCode::Failed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ns: i64) -> Sample {
        Sample {
            wall_ns,
            usage: Usage::default(),
            pressure: None,
        }
    }

    #[test]
    fn the_newest_samples_are_kept_in_their_order() {
        let mut samples = Samples::default();
        let count = i64::try_from(limits::SAMPLES_KEPT).unwrap();
        for wall_ns in 0..count + 2 {
            samples.keep(at(wall_ns));
            samples.keep(at(wall_ns / 2));
        }
        let kept: Vec<i64> = samples.0.iter().map(|sample| sample.wall_ns).collect();
        assert_eq!(kept, (2..count + 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_sample_is_given_again_while_it_is_fresh() {
        let mut samples = Samples::default();
        assert_eq!(samples.fresh(0), None);
        samples.keep(at(1_000));
        let age = i64::try_from(limits::SAMPLE_AGE_MAX.as_nanos()).unwrap();
        assert_eq!(samples.fresh(1_000 + age - 1), Some(at(1_000)));
        assert_eq!(samples.fresh(1_000 + age), None);
        assert_eq!(samples.fresh(999), None, "a clock that was set back");
    }
}

//! Looks at the host's disk while jobs may fill volumes on it, and has those frozen and thawed that
//! [`super::space`] says.
//!
//! A frozen job's processes do not run; stopping it lets it go on first, so that it has its grace, and killing it
//! kills it as it is. Its time limit goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    keep::FAILING,
    space::{Decision, Seen, decide, next_look},
};
use crate::{
    cgroup::CgroupError,
    job::{JobId, State, VolumeName, VolumeSpec},
    limits, rt,
    shard::driver::Shard,
};

/// What a frozen job waits for.
const FROZEN: &str =
    "frozen: the host's disk is full; it goes on when there is space above limits.disk_reserve";

/// What the guard remembers from one look to the next.
#[derive(Debug, Default)]
struct Watch {
    /// Jobs that may take space of the host, when the volumes were looked at last.
    takers: BTreeSet<JobId>,
    looked: Option<Instant>,
    /// When deleted files were last asked to give their space back.
    trimmed: Option<Instant>,
    /// Volumes whose file system was seen to have stopped.
    failing: BTreeSet<VolumeName>,
    frozen: BTreeSet<JobId>,
}

/// Whether something was so long ago, or never.
fn is_over(last: Option<Instant>, interval: Duration) -> bool {
    last.is_none_or(|last| rt::now().duration_since(last) >= interval)
}

impl Shard {
    /// Guards the disk, for ever. Only on the first shard.
    pub(in crate::shard) async fn guard_space(self: Rc<Self>) {
        let mut watch = Watch::default();
        for shard in 0..self.shards {
            // Those that a former daemon left frozen.
            let frozen = self.on(shard, |there| {
                let frozen = there.frozen_jobs();
                Box::pin(async move { frozen })
            });
            watch.frozen.extend(frozen.await.unwrap_or_default());
        }
        loop {
            let written = self.shelf.registry.borrow().written();
            if written.is_empty() && watch.frozen.is_empty() {
                self.shelf.held.notified().await;
                continue;
            }
            let reserve_bytes = self.host.disk.reserve_bytes();
            let free_bytes = match self.host.disk.free_bytes() {
                Ok(free_bytes) => free_bytes,
                Err(error) => {
                    tracing::warn!(%error, "free space is not known");
                    rt::sleep(limits::SPACE_LOOK_LONGEST).await;
                    continue;
                }
            };
            let is_stale = is_over(watch.looked, limits::SPACE_LOOK_LONGEST);
            if is_stale || free_bytes < reserve_bytes {
                watch.takers = self.space_takers(written, &mut watch.failing).await;
                watch.looked = Some(rt::now());
            }
            if free_bytes < reserve_bytes && is_over(watch.trimmed, limits::SPACE_TRIM_INTERVAL) {
                self.trim_all_volumes();
                watch.trimmed = Some(rt::now());
            }
            let decision = decide(Seen {
                free_bytes,
                reserve_bytes,
                takers: &watch.takers,
                frozen: &watch.frozen,
            });
            self.carry_out(decision, &mut watch.frozen).await;
            rt::sleep(next_look(free_bytes, reserve_bytes)).await;
        }
    }

    /// Jobs that may write to a volume that does not have all of its space. Says which have failed.
    async fn space_takers(
        self: &Rc<Self>,
        written: Vec<(VolumeSpec, Vec<JobId>)>,
        failing: &mut BTreeSet<VolumeName>,
    ) -> BTreeSet<JobId> {
        let host = Arc::clone(&self.host);
        let look = move || -> Vec<_> {
            let usage = |(spec, jobs)| {
                let usage = host.volumes.usage(&spec);
                (spec, jobs, usage)
            };
            written.into_iter().map(usage).collect()
        };
        let seen = match rt::blocking("look at volumes", look).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(%error, "volumes are not looked at");
                return BTreeSet::new();
            }
        };
        let mut takers = BTreeSet::new();
        for (spec, jobs, usage) in seen {
            // One that cannot be looked at cannot be said to have all of its space.
            let takes = usage
                .as_ref()
                .map_or(true, |usage| usage.unallocated_bytes > 0);
            if takes {
                takers.extend(jobs);
            }
            let is_failing = usage.is_ok_and(|usage| usage.is_failing);
            if !is_failing {
                failing.remove(&spec.name);
            } else if failing.insert(spec.name.clone()) {
                tracing::error!(volume = %spec.name, "{FAILING}");
            }
        }
        takers
    }

    /// Tells the shards of the jobs, and notes what came of it.
    async fn carry_out(self: &Rc<Self>, decision: Decision, frozen: &mut BTreeSet<JobId>) {
        for (jobs, is_frozen) in [(decision.thaw, false), (decision.freeze, true)] {
            let mut of_shard: BTreeMap<_, Vec<JobId>> = BTreeMap::new();
            for job in jobs {
                of_shard
                    .entry(job.owner(self.shards))
                    .or_default()
                    .push(job);
            }
            for (shard, jobs) in of_shard {
                let done = self.on(shard, move |there| {
                    let done = there.set_frozen(jobs, is_frozen);
                    Box::pin(async move { done })
                });
                // Who was not told is told at the next look.
                for job in done.await.unwrap_or_default() {
                    if is_frozen {
                        frozen.insert(job);
                    } else {
                        frozen.remove(&job);
                    }
                }
            }
        }
    }

    /// Freezes jobs of this shard that run, or lets jobs go on; those of which that is true now.
    fn set_frozen(&self, jobs: Vec<JobId>, is_frozen: bool) -> Vec<JobId> {
        let set = |id: &JobId| {
            // Of one that is being made the spawner waits, and one that is being ended has its grace.
            let runs = || {
                self.live_view(*id)
                    .is_some_and(|view| view.state == State::Running)
            };
            if is_frozen && !runs() {
                return false;
            }
            if !self.bodies.borrow().contains_key(id) {
                return true;
            }
            match self.host.cgroups.freeze(*id, is_frozen) {
                Ok(()) => {
                    let what = if is_frozen { "frozen" } else { "thawed" };
                    tracing::warn!(job_id = %id, "a job is {what}: space on the host's disk");
                }
                Err(CgroupError::Missing(_)) => {}
                Err(error) => {
                    tracing::error!(job_id = %id, %error, "a job is neither frozen nor thawed");
                    return false;
                }
            }
            if let Some(body) = self.bodies.borrow_mut().get_mut(id) {
                body.is_frozen = is_frozen;
            }
            true
        };
        jobs.into_iter().filter(set).collect()
    }

    /// Lets a job go on that is to hear a signal.
    pub(in crate::shard) fn thaw(&self, id: JobId) {
        let is_frozen = self
            .bodies
            .borrow()
            .get(&id)
            .is_some_and(|body| body.is_frozen);
        if is_frozen {
            self.set_frozen(vec![id], false);
        }
    }

    fn frozen_jobs(&self) -> Vec<JobId> {
        let bodies = self.bodies.borrow();
        let frozen = bodies.iter().filter(|(_, body)| body.is_frozen);
        frozen.map(|(id, _)| *id).collect()
    }

    /// What a job waits for that stands still.
    pub(in crate::shard) fn why_frozen(&self, id: JobId) -> Option<String> {
        let bodies = self.bodies.borrow();
        let body = bodies.get(&id).filter(|body| body.is_frozen);
        body.map(|_| FROZEN.to_owned())
    }
}

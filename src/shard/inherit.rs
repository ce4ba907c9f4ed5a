//! What a former daemon of this base directory left: jobs to go on with, jobs to make again, jobs that are lost.
//!
//! ```text
//! store: jobs that have not ended ─┐
//! keepers: jobs they hold ─────────┼─► whereabouts of each ─► shards
//! cgroups: what ever ran ──────────┘        └─► everything of ours that belongs to none of them goes
//! ```
//! It runs before any thread of ours, in the hands of whoever holds the lock of the base directory.

use std::collections::{HashMap, HashSet};

use super::{
    desk::chain,
    effect::{FoundJob, Whereabouts},
    topology::StartError,
};
use crate::{
    cgroup::{Spared, Tree},
    host::{self, Base},
    job::{JobId, JobView, ShardIndex},
    log::{self, JobFiles, Recovered},
    rt,
    sandbox::{
        adopt::{self, AdoptedKeeper, HeldJob},
        identity::{self, IdRange},
    },
    volume::WorkImage,
};

/// Everything that is taken over.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    pub(super) keepers: Vec<Heirloom>,
    pub(super) jobs: Vec<Inherited>,
    /// Host ids that live jobs use.
    pub(super) ids: Vec<(JobId, IdRange)>,
}

/// A keeper, the shard that hears it, and what it has to be told at once.
#[derive(Debug)]
pub(super) struct Heirloom {
    pub(super) keeper: AdoptedKeeper,
    /// Jobs it holds that are nobody's: their record never got into the store, or their end already has.
    pub(super) strangers: Vec<JobId>,
}

/// A job that a former daemon had accepted.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) found: FoundJob,
    /// What its keeper gave for it, with the keeper's place in [`Inheritance::keepers`].
    pub(super) held: Option<(usize, HeldJob)>,
    pub(super) ids: Option<IdRange>,
    pub(super) image: Option<WorkImage>,
    pub(super) log: Recovered,
}

/// Takes over what `live`, the accepted jobs that have not ended, still have, and removes what else is left.
///
/// # Errors
/// [`StartError`]; nothing that lives is lost by it.
pub(super) fn take_over(base: &Base, live: Vec<JobView>) -> Result<Inheritance, StartError> {
    let instance = base.instance().to_string();
    let mut keepers = Vec::new();
    for met in adopt::keepers(&base.run())? {
        match met {
            Ok(keeper) => keepers.push(keeper),
            // Its jobs are found in their cgroups, ended and said to be lost.
            Err(error) => tracing::error!(error = chain(&error), "a keeper is not taken over"),
        }
    }
    let accepted: HashSet<JobId> = live.iter().map(|job| job.id).collect();
    let (heirlooms, mut held) = divide(keepers, &accepted);
    let spared = Spared {
        jobs: held.keys().copied().collect(),
        keepers: heirlooms
            .iter()
            .map(|heirloom| heirloom.keeper.keeper.pid)
            .collect(),
    };
    let trees = Tree::all(&instance)?;
    for (id, (_, job)) in &held {
        if job.pid != 0 {
            Tree::name_seat(*id, job.pid)?;
        }
    }
    let mut jobs = Vec::new();
    let mut ids = Vec::new();
    for view in live {
        let id = view.id;
        let held = held.remove(&id);
        let whereabouts = match &held {
            Some(_) => Whereabouts::Held,
            None if has_run(&trees, id)? => Whereabouts::Lost,
            None => Whereabouts::NotBegun,
        };
        let pid = held.as_ref().map(|(_, job)| job.pid).filter(|pid| *pid > 0);
        let range = pid.and_then(identity::range_of);
        ids.extend(range.map(|range| (id, range)));
        let image = pid.and_then(|pid| adopt_image(base, id, pid));
        jobs.push(Inherited {
            log: recover_log(base, id),
            found: FoundJob { view, whereabouts },
            held,
            ids: range,
            image,
        });
    }
    for job in &mut jobs {
        job.found.view.log = job.log.totals;
    }
    let used: Vec<IdRange> = ids.iter().map(|(_, range)| *range).collect();
    let report = host::recover(base.root(), &instance, &spared, &used)?;
    tracing::info!(
        held = spared.jobs.len(),
        accepted = jobs.len(),
        ?report,
        "what a former daemon left is taken over"
    );
    Ok(Inheritance {
        keepers: heirlooms,
        jobs,
        ids,
    })
}

/// What keepers hold of accepted jobs, and what else they hold.
fn divide(
    keepers: Vec<AdoptedKeeper>,
    accepted: &HashSet<JobId>,
) -> (Vec<Heirloom>, HashMap<JobId, (usize, HeldJob)>) {
    let mut heirlooms = Vec::new();
    let mut held = HashMap::new();
    for mut keeper in keepers {
        let mut strangers = Vec::new();
        let place = heirlooms.len();
        for job in std::mem::take(&mut keeper.jobs) {
            if job.state.released {
                continue; // Only its process is still to be reaped.
            }
            if accepted.contains(&job.id) {
                held.insert(job.id, (place, job));
            } else {
                strangers.push(job.id);
            }
        }
        heirlooms.push(Heirloom { keeper, strangers });
    }
    (heirlooms, held)
}

fn has_run(trees: &[Tree], id: JobId) -> Result<bool, StartError> {
    for tree in trees {
        if tree.has_run(id)? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn adopt_image(base: &Base, id: JobId, pid: u32) -> Option<WorkImage> {
    match WorkImage::adopt(base.root(), id, pid) {
        Ok(image) => image,
        Err(error) => {
            tracing::error!(job_id = %id, error = chain(&error), "/work of a job cannot be reached");
            None
        }
    }
}

fn recover_log(base: &Base, id: JobId) -> Recovered {
    match log::recover(JobFiles::new(base.root(), id).dir(), rt::wall_ns()) {
        Ok(recovered) => recovered,
        Err(error) => {
            tracing::error!(job_id = %id, error = chain(&error), "the log of a job cannot be read");
            Recovered::default()
        }
    }
}

impl Inheritance {
    /// The shard of `shards` that hears the keeper in `place`: that of most of its jobs' ids would be any, so they
    /// are dealt out.
    pub(super) const fn shard_of(place: usize, shards: usize) -> ShardIndex {
        place % shards
    }
}

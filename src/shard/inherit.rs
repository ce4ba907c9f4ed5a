//! What a former daemon of this base directory left: jobs to go on with, jobs to make again, jobs that are lost.
//!
//! ```text
//! store: jobs that have not ended ─┐
//! keepers: jobs they hold ─────────┼─► whereabouts of each ─► shards
//! cgroups: what ever ran ──────────┘        └─► everything of ours that belongs to none of them goes
//! ```
//! It runs before any thread of ours, in the hands of whoever holds the lock of the base directory.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
};

use super::{
    body::Body,
    desk::{Link, chain},
    driver::Shard,
    effect::{Event, FoundJob, Whereabouts},
    places::demand,
    queue::{Budget, Queue},
    reactor::is_parked,
    small::from_whole,
    spool,
    topology::StartError,
};
use crate::{
    cgroup::{Spared, Tree},
    host::{self, Base},
    job::{Attachment, JobId, JobView, Reason, ShardIndex},
    limits,
    log::{self, JobFiles, Pipes, Recovered, Whole},
    rt,
    sandbox::{
        adopt::{self, AdoptedKeeper, HeldJob, HeldPipes},
        crew::Helper,
        identity::{self, IdRange},
    },
    store::{Change, Done, Live, Reader, SmallOutput, StoreError, Writer},
    volume::WorkImage,
};

/// Everything that is taken over.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    pub(super) keepers: Vec<Heirloom>,
    pub(super) jobs: Vec<Inherited>,
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
    /// The process id of the keeper that holds it, and what that gave for it.
    pub(super) held: Option<(u32, HeldJob)>,
    pub(super) ids: Option<IdRange>,
    pub(super) image: Option<WorkImage>,
    pub(super) log: Recovered,
    /// All output of a job that is known to have ended, when it is small.
    pub(super) output: Option<SmallOutput>,
}

impl Inherited {
    fn lost(base: &Base, view: JobView) -> Self {
        let log = recover_log(base, view.id);
        let output = small_output(base, view.id, &log);
        Self {
            found: FoundJob {
                view,
                whereabouts: Whereabouts::Lost,
                has_spool: false,
            },
            held: None,
            ids: None,
            image: None,
            output,
            log,
        }
    }
}

/// Takes over what the accepted jobs that have not ended still have, and removes what else is left.
///
/// # Errors
/// [`StartError`]; nothing that lives is lost by it.
pub(super) fn take_over(
    base: &Base,
    reader: &Reader,
    writer: &Writer,
) -> Result<Inheritance, StartError> {
    let Live { jobs: live, broken } = reader.live()?;
    let mut jobs = Vec::new();
    for (id, error) in broken {
        // It cannot go on: whatever of it runs is ended with all that nobody has accepted.
        tracing::error!(job_id = %id, error = chain(&error), "a job cannot go on as the store has it");
        if let Ok(Some(view)) = reader.get(id) {
            jobs.push(Inherited::lost(base, view));
        }
    }
    let instance = base.instance().to_string();
    // One that is there and cannot be taken over holds jobs that run: better no daemon than a daemon that ends them.
    let keepers: Vec<AdoptedKeeper> = adopt::keepers(&base.run())?
        .into_iter()
        .collect::<Result<_, _>>()?;
    if keepers
        .iter()
        .any(|keeper| keeper.jobs.iter().any(|job| job.is_incomplete))
    {
        return Err(StartError::Incomplete);
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
    let mut used = HashSet::new();
    for view in live {
        let id = view.id;
        let held = held.remove(&id);
        let whereabouts = match &held {
            Some(_) => Whereabouts::Held,
            None if is_parked(view.state) => Whereabouts::NotBegun,
            // Without a tree the host was started anew, and nothing shows what ran before.
            None if trees.is_empty() || has_run(&trees, id)? => Whereabouts::Lost,
            None => Whereabouts::NotBegun,
        };
        let pid = held.as_ref().map(|(_, job)| job.pid).filter(|pid| *pid > 0);
        let range = pid.and_then(identity::range_of);
        used.extend(range);
        let image = pid.and_then(|pid| adopt_image(base, id, pid));
        if whereabouts == Whereabouts::Lost && trees.is_empty() {
            cut_unwritten(base, id);
        }
        let log = recover_log(base, id);
        let output = match whereabouts {
            Whereabouts::Lost => small_output(base, id, &log),
            Whereabouts::Held | Whereabouts::NotBegun => None,
        };
        jobs.push(Inherited {
            output,
            log,
            found: FoundJob {
                has_spool: base.spool().join(spool_of(&view).to_string()).exists(),
                view,
                whereabouts,
            },
            held,
            ids: range,
            image,
        });
    }
    let spooled = jobs.iter().map(|job| spool_of(&job.found.view)).collect();
    if let Err(error) = spool::clean(&base.spool(), &spooled) {
        tracing::error!(%error, "spools of jobs that are gone are left");
    }
    for job in &mut jobs {
        job.found.view.log = job.log.totals;
    }
    mark_lost(&mut jobs, writer)?;
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
    })
}

/// Writes down which jobs are lost, before what shows it is removed: the next daemon would find that they never
/// began if this one died meanwhile, and run them once more.
fn mark_lost(jobs: &mut [Inherited], writer: &Writer) -> Result<(), StartError> {
    let (sender, answers) = mpsc::channel::<Result<Done, StoreError>>();
    let mut open = 0;
    let hear = || match answers.recv() {
        Ok(answer) => answer.map(drop).map_err(StartError::MarkLost),
        Err(_) => Err(StartError::StoreEnded),
    };
    for job in jobs {
        let FoundJob {
            view, whereabouts, ..
        } = &mut job.found;
        if *whereabouts != Whereabouts::Lost || view.ending.is_some() {
            continue;
        }
        view.ending = Some(Reason::HostLost);
        if open == limits::STORE_QUEUE_CHANGES {
            hear()?;
            open -= 1;
        }
        let sender = sender.clone();
        let answer = move |answer| _ = sender.send(answer);
        let job = Box::new(view.clone());
        writer
            .submit(Change::Update { job }, Box::new(answer))
            .map_err(|_| StartError::StoreEnded)?;
        open += 1;
    }
    (0..open).try_for_each(|_| hear())
}

/// What keepers hold of accepted jobs, and what else they hold.
fn divide(
    keepers: Vec<AdoptedKeeper>,
    accepted: &HashSet<JobId>,
) -> (Vec<Heirloom>, HashMap<JobId, (u32, HeldJob)>) {
    let mut heirlooms = Vec::new();
    let mut held = HashMap::new();
    for mut keeper in keepers {
        let mut strangers = Vec::new();
        let pid = keeper.keeper.pid;
        for job in std::mem::take(&mut keeper.jobs) {
            if job.state.released {
                continue; // Only its process is still to be reaped.
            }
            if accepted.contains(&job.id) {
                held.insert(job.id, (pid, job));
            } else {
                strangers.push(job.id);
            }
        }
        heirlooms.push(Heirloom { keeper, strangers });
    }
    (heirlooms, held)
}

/// Whose spool a job is made from.
fn spool_of(view: &JobView) -> JobId {
    view.schedule_id.unwrap_or(view.id)
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

/// Takes away what a host that was started anew has put at the end of a job's output.
fn cut_unwritten(base: &Base, id: JobId) {
    match log::cut_unwritten(JobFiles::new(base.root(), id).dir()) {
        Ok(0) => {}
        Ok(bytes) => tracing::warn!(job_id = %id, bytes, "output never got to the disk"),
        Err(error) => {
            tracing::error!(job_id = %id, error = chain(&error), "the log of a job cannot be mended");
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

/// All output of a job that nobody captures any more, when it is small.
fn small_output(base: &Base, id: JobId, log: &Recovered) -> Option<SmallOutput> {
    let files = JobFiles::new(base.root(), id);
    match Whole::found(files.dir(), log, SmallOutput::fits) {
        Ok(whole) => whole.map(from_whole),
        Err(error) => {
            tracing::warn!(job_id = %id, error = chain(&error), "output of a job stays in files");
            None
        }
    }
}

/// What one shard takes over.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Keepers to hear, with what each has to be told at once.
    pub(super) heard: Vec<Heirloom>,
    /// Keepers that other shards hear, and that hold jobs of this one: process id and socket.
    pub(super) told: Vec<(u32, OwnedFd)>,
    pub(super) jobs: Vec<Inherited>,
}

impl Inheritance {
    /// Host ids of the jobs that shard `shard` of `shards` owns.
    pub(super) fn ids_of(&self, shard: ShardIndex, shards: usize) -> Vec<IdRange> {
        self.jobs
            .iter()
            .filter(|job| job.found.view.id.owner(shards) == shard)
            .filter_map(|job| job.ids)
            .collect()
    }

    /// The daemon's queue with the jobs that run already.
    pub(super) fn queue(&self, budget: Budget) -> Queue {
        let mut queue = Queue::new(budget);
        for job in &self.jobs {
            let view = &job.found.view;
            if job.found.whereabouts == Whereabouts::Held {
                let arrived_ns = view.transitions.first().map_or(0, |first| first.wall_ns);
                queue.restore_running(demand(view.id, &view.owner, &view.spec, arrived_ns));
            }
        }
        queue
    }

    /// Jobs that have volumes, and which.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (JobId, &[Attachment])> {
        let views = self.jobs.iter().map(|job| &job.found.view);
        views
            .filter(|view| view.outcome.is_none())
            .map(|view| (view.id, &view.spec.volumes[..]))
    }

    /// Deals everything out: a job to the shard that owns it, a keeper to the next in turn.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(super) fn deal(self, shards: usize) -> io::Result<Vec<Share>> {
        let mut shares: Vec<Share> = (0..shards).map(|_| Share::default()).collect();
        for (place, heirloom) in self.keepers.into_iter().enumerate() {
            let hearer = place % shards;
            for (_, share) in shares
                .iter_mut()
                .enumerate()
                .filter(|(shard, _)| *shard != hearer)
            {
                let socket = heirloom.keeper.keeper.socket.try_clone()?;
                share.told.push((heirloom.keeper.keeper.pid, socket));
            }
            shares[hearer].heard.push(heirloom);
        }
        for job in self.jobs {
            shares[job.found.view.id.owner(shards)].jobs.push(job);
        }
        Ok(shares)
    }
}

impl Shard {
    /// Takes a share over: afterwards every job of it is the reactor's, and the events of its keepers come in.
    ///
    /// # Errors
    /// A socket that cannot be watched.
    pub(super) fn inherit(self: &Rc<Self>, share: Share) -> io::Result<()> {
        let of_keeper = |jobs: &[Inherited], keeper: u32| -> Vec<JobId> {
            jobs.iter()
                .filter(|job| job.held.as_ref().is_some_and(|(pid, _)| *pid == keeper))
                .map(|job| job.found.view.id)
                .collect()
        };
        let mut links = HashMap::new();
        let mut heard = Vec::new();
        for Heirloom { keeper, strangers } in share.heard {
            let Helper { pid, .. } = keeper.keeper;
            let socket = keeper.keeper.socket.try_clone()?;
            let jobs = of_keeper(&share.jobs, pid);
            let link = self.take_on(pid, &socket, jobs, Some(keeper.keeper))?;
            links.insert(pid, Rc::clone(&link));
            heard.push((link, strangers));
        }
        for (pid, socket) in share.told {
            let jobs = of_keeper(&share.jobs, pid);
            links.insert(pid, self.take_on(pid, &socket, jobs, None)?);
        }
        for job in share.jobs {
            self.inherit_job(job, &links);
        }
        for (link, strangers) in heard {
            self.hear_adopted(link, strangers);
        }
        Ok(())
    }

    fn inherit_job(self: &Rc<Self>, job: Inherited, links: &HashMap<u32, Rc<Link>>) {
        let id = job.found.view.id;
        let spec = Arc::clone(&job.found.view.spec);
        let mut body = Body::new();
        body.ids = job.ids;
        body.image = job.image;
        body.output = job.output;
        body.has_volumes = !spec.volumes.is_empty();
        let pipes = job.held.map(|(keeper, held)| {
            body.has_leaf = true;
            // It is thawed, or stays so, as the disk now is.
            body.is_frozen = body.has_volumes && self.host.cgroups.is_frozen(id).unwrap_or(false);
            body.has_memory_limit = spec.limits.memory_bytes.is_some();
            body.link = links.get(&keeper).map(Rc::clone);
            body.pid = Some(held.pid).filter(|pid| *pid > 0);
            // One that has started was let go; of any other nobody knows.
            body.control = held.control.filter(|_| !held.state.started);
            (held.pipes, held.state)
        });
        let progress = Rc::clone(&body.progress);
        self.bodies.borrow_mut().insert(id, body);
        if let Some((pipes, state)) = pipes {
            if !state.started && !state.gone && !state.failed {
                self.bound_again(id, &spec);
            }
            if let Some(HeldPipes { stdout, stderr }) = pipes {
                let pipes = Pipes { stdout, stderr };
                let limits = self.host.log_limits;
                match self.recorder.capture(id, pipes, limits, &job.log, progress) {
                    Ok(capture) => self.go_on_capturing(id, Rc::new(capture)),
                    Err(error) => {
                        tracing::error!(job_id = %id, error = chain(&error), "output of a job is not read");
                    }
                }
            }
        }
        let is_held = job.found.whereabouts == Whereabouts::Held;
        if job.found.has_spool && job.found.view.schedule_id.is_none() {
            self.spooled.borrow_mut().insert(id);
        }
        self.feed(Event::Found(Box::new(job.found)));
        if is_held {
            self.watch_memory_again(id);
        }
    }
}

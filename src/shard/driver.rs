//! The driver: performs what the reactor decides and feeds it what came of that.
//!
//! Everything here lives on one thread. An event that arrives while effects are being performed queues
//! behind them, so effects of one event are never interleaved with those of another.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use hdrhistogram::Histogram;

use super::{
    alarms::Alarms,
    body::Body,
    core::{Core, CoreLimits},
    desk::{Desk, Link},
    effect::{Effect, Event, Moment, NewJob},
    front_door::FrontDoor,
    handle::Settings,
    history::Archive,
    output::Watches,
    queue::Queue,
    reactor,
    records::Records,
    remote::Remote,
    retire::Kept,
    seats::Seats,
    small::Emptied,
    spool::{SPOOL, Spool},
    timers::Timers,
    topology::Host,
    volumes::Shelf,
};
use crate::{
    job::{Accepted, JobId, JobView, LogTotals, NodeView, Refusal, RefusalCode, ShardIndex},
    log::{Progress, Recorder},
    rt::{self, Notify, OneshotSender, oneshot},
    sandbox::wire::KeeperCommand,
    store::Key,
};

/// One shard: its jobs, and everything that is needed to run them.
pub(crate) struct Shard {
    pub(crate) index: ShardIndex,
    pub(crate) shards: usize,
    /// What all shards share, read-only.
    pub(super) host: Arc<Host>,
    pub(super) remote: Remote,
    pub(super) desk: Desk,
    pub(super) recorder: Rc<Recorder>,
    pub(super) timers: Timers,
    pub(super) alarms: Alarms,
    /// The daemon's queue, on the shard that keeps it; empty on the others.
    pub(super) queue: RefCell<Queue>,
    pub(super) watches: Watches,
    pub(super) records: Rc<Records>,
    pub(super) archive: Rc<Archive>,
    /// What the driver holds of each job that has not ended.
    pub(super) bodies: RefCell<HashMap<JobId, Body>>,
    core: RefCell<Core>,
    events: RefCell<VecDeque<Event>>,
    is_feeding: Cell<bool>,
    waiters: RefCell<HashMap<JobId, Vec<OneshotSender<JobView>>>>,
    /// Who waits to hear that a submitted job is accepted.
    submitters: RefCell<HashMap<JobId, OneshotSender<Result<Accepted, Refusal>>>>,
    /// Keepers that hold the end of a job until the store has it.
    holders: RefCell<HashMap<JobId, Rc<Link>>>,
    starts: RefCell<Histogram<u64>>,
    all_ended: Notify,
    has_all_ended: Cell<bool>,
    pub(super) kept: Kept,
    pub(super) emptied: Emptied,
    pub(super) spool: Spool,
    /// Jobs of this shard that have a spool of their own.
    pub(super) spooled: RefCell<HashSet<JobId>>,
    pub(super) seats: Seats,
    pub(super) front: FrontDoor,
    /// All volumes, on the shard that keeps them; empty on the others.
    pub(super) shelf: Shelf,
}

/// What a shard is made from.
#[derive(Debug)]
pub(super) struct ShardParts {
    pub(super) index: ShardIndex,
    pub(super) host: Arc<Host>,
    pub(super) limits: CoreLimits,
    pub(super) remote: Remote,
    pub(super) desk: Desk,
    pub(super) recorder: Rc<Recorder>,
    pub(super) records: Rc<Records>,
    pub(super) archive: Archive,
    pub(super) seats: Seats,
    pub(super) queue: Queue,
    pub(super) shelf: Shelf,
}

impl Shard {
    pub(super) fn new(parts: ShardParts) -> Rc<Self> {
        let core = Core::new(parts.limits);
        let spool = Spool::new(
            &parts.host.base_dir.join(SPOOL),
            Arc::clone(&parts.host.disk),
            parts.host.durability,
        );
        Rc::new(Self {
            index: parts.index,
            shards: parts.host.shards,
            host: parts.host,
            remote: parts.remote,
            desk: parts.desk,
            recorder: parts.recorder,
            timers: Timers::default(),
            alarms: Alarms::default(),
            queue: RefCell::new(parts.queue),
            watches: Watches::default(),
            records: parts.records,
            archive: Rc::new(parts.archive),
            bodies: RefCell::default(),
            core: RefCell::new(core),
            events: RefCell::default(),
            is_feeding: Cell::new(false),
            waiters: RefCell::default(),
            submitters: RefCell::default(),
            holders: RefCell::default(),
            starts: RefCell::new(empty_histogram()),
            all_ended: Notify::default(),
            has_all_ended: Cell::new(false),
            kept: Kept::default(),
            emptied: Emptied::default(),
            spool,
            spooled: RefCell::default(),
            seats: parts.seats,
            front: FrontDoor::default(),
            shelf: parts.shelf,
        })
    }

    /// Feeds one event and performs what follows from it.
    pub(crate) fn feed(self: &Rc<Self>, event: Event) {
        self.events.borrow_mut().push_back(event);
        self.work_off();
    }

    /// Feeds a submit; `key` goes to the store with the job's record.
    ///
    /// # Errors
    /// The reactor's refusal.
    pub(super) fn submit(self: &Rc<Self>, new: NewJob, key: Option<Key>) -> Result<(), Refusal> {
        let id = new.id;
        let has_volumes = !new.spec.volumes.is_empty();
        let mut effects = Vec::new();
        let event = Event::Submit(Box::new(new));
        reactor::on(
            &mut self.core.borrow_mut(),
            self.moment(),
            event,
            &mut effects,
        )?;
        // From here on it can be followed.
        {
            let mut bodies = self.bodies.borrow_mut();
            let body = bodies.entry(id).or_insert_with(Body::new);
            (body.key, body.has_volumes) = (key, has_volumes);
        }
        self.perform_all(effects);
        Ok(())
    }

    fn work_off(self: &Rc<Self>) {
        if self.is_feeding.replace(true) {
            return;
        }
        loop {
            let Some(event) = self.events.borrow_mut().pop_front() else {
                break;
            };
            tracing::trace!(shard = self.index, ?event);
            let mut effects = Vec::new();
            let result = reactor::on(
                &mut self.core.borrow_mut(),
                self.moment(),
                event,
                &mut effects,
            );
            debug_assert!(result.is_ok(), "only a submit can be refused");
            for effect in effects {
                self.perform(effect);
            }
        }
        self.is_feeding.set(false);
        self.publish_load();
    }

    fn perform_all(self: &Rc<Self>, effects: Vec<Effect>) {
        let is_outer = !self.is_feeding.replace(true);
        for effect in effects {
            self.perform(effect);
        }
        if is_outer {
            self.is_feeding.set(false);
            self.work_off();
        }
    }

    pub(super) fn perform(self: &Rc<Self>, effect: Effect) {
        if self.holds_back(&effect) {
            return;
        }
        match effect {
            Effect::Prepare(id) => self.prepare(id),
            Effect::Go(id) => self.go(id),
            Effect::Signal(id, signal) => self.signal(id, signal),
            Effect::Kill(id) => self.kill(id),
            Effect::SetTimer(id, timer, at) => self.timers.set(id, timer, at),
            Effect::Drain(id) => self.drain(id),
            Effect::RecordAccepted(id) => self.record_accepted(id),
            Effect::Answer(id, result) => {
                let existing = false;
                self.answer_submitter(id, result.map(|()| Accepted { id, existing }));
            }
            Effect::RecordProgress(id) => self.record_progress(id),
            Effect::RecordBegun(id) => self.record_begun(id),
            Effect::SetAlarm(id, wall_ns) => self.alarms.set(id, wall_ns),
            Effect::Ask(id) => self.ask(id),
            Effect::Claim(id) => self.claim(id),
            Effect::GiveBack(id) => self.give_back(id),
            Effect::Repeat(id, due_ns) => self.repeat(id, due_ns),
            Effect::RecordEnded(id) => self.record_ended(id),
            Effect::Release(id) => self.release(id),
            Effect::Forget(id) => self.forget(id),
            Effect::DeleteOutput(id) => {
                // Of a job whose client went away during its uploads: it has no end to wait for.
                self.waiters.borrow_mut().remove(&id);
                self.delete_output(id);
            }
            Effect::AllEnded => {
                self.has_all_ended.set(true);
                self.all_ended.notify_one();
            }
        }
    }

    fn record_ended(self: &Rc<Self>, id: JobId) {
        let started = self
            .live_view(id)
            .and_then(|view| view.outcome?.start_micros);
        if let Some(micros) = started {
            let _ = self.starts.borrow_mut().record(micros * 1_000);
        }
        self.record_outcome(id);
    }

    /// Tells everybody who waits for a job how it has ended.
    pub(super) fn wake_waiters(&self, view: &JobView) {
        let waiters = self.waiters.borrow_mut().remove(&view.id);
        for waiter in waiters.unwrap_or_default() {
            let _ = waiter.send(view.clone());
        }
    }

    pub(super) fn answer_submitter(&self, id: JobId, result: Result<Accepted, Refusal>) {
        let submitter = self.submitters.borrow_mut().remove(&id);
        if let Some(submitter) = submitter {
            let _ = submitter.send(result);
        }
    }

    /// Says that the client of `id` has given everything, and waits until the store keeps the job.
    pub(super) async fn accept(self: &Rc<Self>, id: JobId) -> Result<Accepted, Refusal> {
        let accepted = Accepted {
            id,
            existing: false,
        };
        if self.live_view(id).is_none() {
            return Ok(accepted); // It has ended, and the store has it.
        }
        let (sender, receiver) = oneshot();
        self.submitters.borrow_mut().insert(id, sender);
        self.feed(Event::Accept(id));
        receiver
            .await
            .unwrap_or_else(|| Err(Refusal::new(RefusalCode::Busy, "the daemon is going down")))
    }

    /// Notes the keeper that holds the end of a job.
    pub(super) fn hold(&self, id: JobId, link: Rc<Link>) {
        self.holders.borrow_mut().insert(id, link);
    }

    /// Has the keeper forget a job, whose end the store has, and removes what it might have been made from.
    fn forget(self: &Rc<Self>, id: JobId) {
        if self.spooled.borrow_mut().remove(&id) {
            self.remove_spool(id);
        }
        let holder = self.holders.borrow_mut().remove(&id);
        if let Some(link) = holder {
            link.command(KeeperCommand::Release { id });
        }
    }

    /// One job that has not ended, or whose end is not in the store yet, as the reactor sees it.
    pub(super) fn live_view(&self, id: JobId) -> Option<JobView> {
        self.core.borrow().view(id)
    }

    /// One job as it is now, with the output it has so far.
    pub(crate) fn view(&self, id: JobId) -> Option<JobView> {
        let mut view = self.core.borrow().view(id)?;
        if view.outcome.is_none() {
            view.log = self.live_log(id);
            view.waits_for = view.waits_for.or_else(|| self.why_frozen(id));
        }
        Some(view)
    }

    fn live_log(&self, id: JobId) -> LogTotals {
        let bodies = self.bodies.borrow();
        bodies
            .get(&id)
            .and_then(|body| body.capture.as_ref())
            .map_or_else(LogTotals::default, |capture| capture.totals())
    }

    pub(super) fn live_progress(&self, id: JobId) -> Option<Rc<Progress>> {
        self.bodies
            .borrow()
            .get(&id)
            .map(|body| Rc::clone(&body.progress))
    }

    /// Every job that has not ended or whose end is not in the store yet, in no order.
    pub(super) fn list(&self) -> Vec<JobView> {
        let mut views: Vec<JobView> = self.core.borrow().views().collect();
        for view in &mut views {
            if view.outcome.is_none() {
                view.log = self.live_log(view.id);
                view.waits_for = view.waits_for.take().or_else(|| self.why_frozen(view.id));
            }
        }
        views
    }

    pub(super) fn find(&self, prefix: &str, max: usize) -> Vec<JobId> {
        self.core.borrow().find(prefix, max)
    }

    /// Waits until a job has ended and the store has its end: what is told here is what every later daemon says.
    pub(super) async fn ended(self: &Rc<Self>, id: JobId) -> Result<JobView, Refusal> {
        if self.live_view(id).is_none() {
            let view = self.look(id).await?;
            if view.outcome.is_some() {
                return Ok(view);
            }
        }
        let (sender, receiver) = oneshot();
        {
            let mut waiters = self.waiters.borrow_mut();
            let of_job = waiters.entry(id).or_default();
            // Those whose peer has gone would otherwise stay as long as the job lives.
            of_job.retain(|waiter| !waiter.is_abandoned());
            of_job.push(sender);
        }
        receiver.await.ok_or_else(|| {
            let message = format!("job {id} was discarded before it began");
            Refusal::new(RefusalCode::Conflict, message)
        })
    }

    /// What was asked of a job, with what its `/work` is made of.
    pub(super) fn recipe(
        &self,
        id: JobId,
    ) -> Option<(Arc<crate::job::Spec>, crate::job::WorkKind)> {
        let core = self.core.borrow();
        Some((core.spec(id)?, core.work(id)?))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.host.settings
    }

    /// Jobs that have not ended.
    pub(super) fn live(&self) -> usize {
        self.core.borrow().live()
    }

    /// Nanoseconds from a submit's arrival to execve, of the jobs that have ended.
    pub(super) fn starts(&self) -> Histogram<u64> {
        self.starts.borrow().clone()
    }

    pub(super) fn node(&self, jobs_live: u64, start_ns: (u64, u64, u64)) -> NodeView {
        NodeView {
            instance: self.host.instance.clone(),
            hostname: self.host.hostname.clone(),
            kernel: self.host.kernel.clone(),
            shards: self.shards,
            jobs_live,
            start_ns,
        }
    }

    /// The shard for a new job: this one, unless another has clearly less to start.
    pub(super) fn place(&self) -> ShardIndex {
        let load = |shard: ShardIndex| self.host.loads[shard].load(Ordering::Relaxed);
        let least = (0..self.shards)
            .min_by_key(|shard| load(*shard))
            .unwrap_or(self.index);
        if load(self.index) <= load(least) + PLACEMENT_SLACK {
            self.index
        } else {
            least
        }
    }

    fn publish_load(&self) {
        let load = u32::try_from(self.core.borrow().starting()).unwrap_or(u32::MAX);
        self.host.loads[self.index].store(load, Ordering::Relaxed);
    }

    /// Runs `work` on `shard`, soon; nothing comes back.
    pub(super) fn post_or_run(
        self: &Rc<Self>,
        shard: ShardIndex,
        work: impl FnOnce(&Rc<Self>) + Send + 'static,
    ) {
        if shard == self.index {
            work(self)
        } else {
            self.remote.post(shard, Box::new(work))
        }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment {
            instant: rt::now(),
            wall_ns: i64::try_from(rt::wall_ns()).unwrap_or(i64::MAX),
            mono_ns: rt::mono_ns(),
        }
    }

    /// CLOCK_MONOTONIC of an instant in the near past.
    pub(super) fn mono_ns_of(&self, instant: Instant) -> u64 {
        let ago = rt::now().saturating_duration_since(instant);
        rt::mono_ns().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(0))
    }

    /// Ends every job and returns when the last one has ended.
    pub(super) async fn shut_down(self: Rc<Self>) {
        self.feed(Event::Shutdown);
        self.all_ended().await;
    }

    /// Admits nothing more and returns when the last job has ended.
    pub(super) async fn run_dry(self: Rc<Self>) {
        self.feed(Event::Close);
        self.all_ended().await;
    }

    async fn all_ended(&self) {
        while !self.has_all_ended.get() {
            self.all_ended.notified().await;
        }
        self.records.settled().await;
    }
}

/// So many more starts may a shard have than the least loaded one before its new jobs go there: a hop costs
/// about as much as a tenth of a start.
const PLACEMENT_SLACK: u32 = 1;

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3)
        .expect("the bounds are in order and three digits are allowed")
}

/// How much each shard has to start, read by all.
pub(super) type Loads = Box<[AtomicU32]>;

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

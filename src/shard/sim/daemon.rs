//! The daemon's side: shards, each with a reactor, and the performing of what that decides.
//!
//! It stands for the driver, effect by effect, as `driver.rs`, `launch.rs`, `retire.rs`, `records.rs` and `desk.rs`
//! perform them. Before each event and each effect the daemon may die.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    agenda::{Channel, ClientIndex, Life, MS, Step, US},
    client::refused,
    crew::{Command, KeeperId},
    faults::Planted,
    kernel::Incarnation,
    making::Task,
    store::{Answer, Change},
    trace::{Done, Said},
    world::World,
};
use crate::{
    job::{JobId, Reason, Refusal, ShardIndex},
    shard::{
        core::{Core, CoreLimits, Job},
        effect::{Effect, Event, Moment, NewJob, Timer},
        reactor,
    },
};

/// What the driver holds of a job.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) has_leaf: bool,
    /// It was ended before its init had died.
    pub(super) is_reaped: bool,
    /// Our end of init's control socket, until the go is given.
    pub(super) control: Option<Incarnation>,
    pub(super) link: Option<KeeperId>,
    pub(super) key: Option<u32>,
    /// Its output is read.
    pub(super) has_capture: bool,
}

/// One shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) core: Core,
    pub(super) bodies: BTreeMap<JobId, Body>,
    /// Timers that are set: which job's, 0 for the timeout and 1 for the grace, and their number.
    pub(super) timers: BTreeMap<(JobId, u8), u64>,
    pub(super) waiters: BTreeMap<JobId, Vec<ClientIndex>>,
    pub(super) submitters: BTreeMap<JobId, ClientIndex>,
    pub(super) holders: BTreeMap<JobId, KeeperId>,
    /// The keeper of the crew that makes jobs.
    pub(super) current: Option<KeeperId>,
    pub(super) has_all_ended: bool,
}

impl Shard {
    pub(super) fn new(limits: CoreLimits) -> Self {
        Self {
            core: Core::new(limits),
            bodies: BTreeMap::new(),
            timers: BTreeMap::new(),
            waiters: BTreeMap::new(),
            submitters: BTreeMap::new(),
            holders: BTreeMap::new(),
            current: None,
            has_all_ended: false,
        }
    }
}

/// What a shard knows of a keeper.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Recipes that the spawner has not answered for, oldest first.
    pub(super) pending: Vec<JobId>,
    pub(super) jobs: BTreeSet<JobId>,
    pub(super) is_spent: bool,
}

/// A daemon that lives.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) life: Life,
    pub(super) shards: Vec<Shard>,
    pub(super) links: BTreeMap<(ShardIndex, KeeperId), Link>,
    /// Which shard hears a keeper.
    pub(super) hearers: BTreeMap<KeeperId, ShardIndex>,
}

const fn place(timer: Timer) -> u8 {
    match timer {
        Timer::Timeout => 0,
        Timer::Grace => 1,
    }
}

impl World {
    pub(super) fn moment(&self) -> Moment {
        let now = self.agenda.now();
        Moment {
            instant: self.epoch + Duration::from_nanos(now),
            wall_ns: i64::try_from(now).expect("a run is short"),
            mono_ns: self.mono_ns(now),
        }
    }

    pub(super) fn is_alive(&self, life: Life) -> bool {
        self.daemon
            .as_ref()
            .is_some_and(|daemon| daemon.life == life)
    }

    /// A shard of the daemon that lives.
    pub(super) fn shard(&mut self, shard: ShardIndex) -> &mut Shard {
        &mut self.daemon.as_mut().expect("it lives").shards[shard]
    }

    pub(super) fn owner(&self, id: JobId) -> ShardIndex {
        id.owner(self.daemon.as_ref().expect("it lives").shards.len())
    }

    /// A job that a shard of this daemon has in memory.
    pub(super) fn live_job(&self, life: Life, id: JobId) -> Option<(ShardIndex, &Job)> {
        let daemon = self.daemon.as_ref().filter(|daemon| daemon.life == life)?;
        let shard = id.owner(daemon.shards.len());
        Some((shard, daemon.shards[shard].core.jobs.get(&id)?))
    }

    pub(super) fn wait_at(&mut self, shard: ShardIndex, id: JobId, index: ClientIndex) {
        self.shard(shard).waiters.entry(id).or_default().push(index);
    }

    /// Whether the daemon has the control socket of this try.
    pub(super) fn daemon_controls(&self, number: Incarnation) -> bool {
        self.daemon
            .iter()
            .flat_map(|daemon| &daemon.shards)
            .any(|shard| {
                let mut bodies = shard.bodies.values();
                bodies.any(|body| body.control == Some(number))
            })
    }

    /// A front's submit.
    pub(super) fn submit(
        &mut self,
        life: Life,
        shard: ShardIndex,
        new: NewJob,
        key: Option<u32>,
    ) -> Result<(), Refusal> {
        let (id, now) = (new.id, self.moment());
        let event = Event::Submit(Box::new(new));
        let said = format_args!("s{shard} ◄ {}", Said(&event)).to_string();
        self.trace.note(self.agenda.now(), format_args!("{said}"));
        let mut effects = Vec::new();
        reactor::on(&mut self.shard(shard).core, now, event, &mut effects)?;
        let body = Body {
            key,
            ..Body::default()
        };
        self.shard(shard).bodies.insert(id, body);
        self.perform_all(life, shard, effects);
        Ok(())
    }

    /// The client has given everything.
    pub(super) fn accept(&mut self, life: Life, shard: ShardIndex, id: JobId, index: ClientIndex) {
        if !self.is_alive(life) {
            return;
        }
        if self.shard(shard).core.view(id).is_none() {
            return self.reply(index, Ok(id)); // It has ended, and the store has it.
        }
        self.shard(shard).submitters.insert(id, index);
        self.feed(life, shard, Event::Accept(id));
    }

    /// Feeds an event and performs what follows, unless the daemon is dead or dies of it.
    pub(super) fn feed(&mut self, life: Life, shard: ShardIndex, event: Event) {
        if !self.is_alive(life) {
            return;
        }
        let now = self.moment();
        self.trace.note(
            self.agenda.now(),
            format_args!("s{shard} ◄ {}", Said(&event)),
        );
        if self.is_struck() {
            return self.crash();
        }
        let mut effects = Vec::new();
        let taken = reactor::on(&mut self.shard(shard).core, now, event, &mut effects);
        assert!(taken.is_ok(), "only a submit can be refused");
        self.perform_all(life, shard, effects);
    }

    fn perform_all(&mut self, life: Life, shard: ShardIndex, effects: Vec<Effect>) {
        for effect in effects {
            if !self.is_alive(life) {
                return;
            }
            if self.is_struck() {
                return self.crash();
            }
            let now = self.agenda.now();
            self.trace
                .note(now, format_args!("s{shard} ► {}", Done(&effect)));
            self.perform(life, shard, effect);
        }
    }

    fn perform(&mut self, life: Life, shard: ShardIndex, effect: Effect) {
        match effect {
            Effect::Prepare(id) => self.work(life, shard, id, Task::FindCrew(0), 200 * US),
            Effect::Go(id) => {
                let body = self.shard(shard).bodies.get_mut(&id);
                if let Some(number) = body.and_then(|body| body.control.take()) {
                    self.ledger.let_go.insert(id);
                    self.give_go(number);
                }
            }
            Effect::Signal(id, signal) => {
                self.ledger.signals(id);
                let link = self.shard(shard).bodies.get(&id).and_then(|body| body.link);
                if let Some(keeper) = link {
                    self.command(keeper, Command::Signal(id, signal));
                }
            }
            Effect::Kill(id) => {
                self.ledger.signals(id);
                self.kill(shard, id);
            }
            Effect::SetTimer(id, timer, at) => {
                let now = self.moment().instant;
                let after = u64::try_from(at.saturating_duration_since(now).as_nanos());
                self.timer += 1;
                let number = self.timer;
                self.shard(shard).timers.insert((id, place(timer)), number);
                let late = self.delay(0, 100 * US);
                let due = Step::Due(life, shard, id, timer, number);
                self.agenda
                    .after(after.expect("a run is short") + late, due);
            }
            Effect::Drain(id) => self.work(life, shard, id, Task::Drain, MS),
            Effect::RecordAccepted(id) => {
                if let Some(view) = self.shard(shard).core.view(id) {
                    let body = self.shard(shard).bodies.get_mut(&id);
                    let key = body.and_then(|body| body.key.take());
                    self.submit_change(life, shard, Change::Accept(Box::new(view), key));
                }
            }
            Effect::Answer(id, result) => self.answer_submitter(shard, id, result.map(|()| id)),
            Effect::RecordProgress(id) => {
                if let Some(view) = self.shard(shard).core.view(id) {
                    self.ledger.noted.insert(id);
                    self.submit_change(life, shard, Change::Update(Box::new(view)));
                }
            }
            Effect::RecordBegun(id) => self.record_begun(life, shard, id),
            Effect::SetAlarm(id, wall_ns) => {
                let ahead = wall_ns - self.moment().wall_ns;
                let late = self.delay(0, MS);
                let due = Step::Feed(life, shard, Event::Due(id));
                self.agenda
                    .after(u64::try_from(ahead).unwrap_or(0) + late, due);
            }
            Effect::Ask(id) => self
                .agenda
                .after(MS, Step::Feed(life, shard, Event::Granted(id))),
            Effect::Claim(_) | Effect::GiveBack(_) => {} // no queue is configured
            Effect::Repeat(..) => unreachable!("no client asks for a schedule"),
            Effect::RecordEnded(id) => self.record_ended(life, shard, id),
            Effect::Release(id) => self.release(life, shard, id),
            Effect::Forget(id) => {
                if let Some(keeper) = self.shard(shard).holders.remove(&id) {
                    self.command(keeper, Command::Release(id));
                }
            }
            Effect::DeleteOutput(id) => _ = self.shard(shard).waiters.remove(&id),
            Effect::AllEnded => {
                self.shard(shard).has_all_ended = true;
                let shards = self.daemon.iter().flat_map(|daemon| &daemon.shards);
                let is_over = shards.clone().all(|shard| shard.has_all_ended);
                // It ends, and the next one has the jobs whose time has not come.
                if is_over && shards.into_iter().any(|shard| shard.core.scheduled > 0) {
                    self.agenda.after(5 * MS, Step::Crash);
                }
            }
        }
    }

    /// Lets a task of a shard go on a little later.
    pub(super) fn work(&mut self, life: Life, shard: ShardIndex, id: JobId, task: Task, most: u64) {
        let delay = self.delay(5 * US, most);
        self.agenda.after(delay, Step::Work(life, shard, id, task));
    }

    pub(super) fn command(&mut self, keeper: KeeperId, command: Command) {
        let delay = self.dice.between(5 * US, 2 * MS);
        let commanded = Step::Commanded(keeper, command);
        self.agenda
            .through(Channel::ToKeeper(keeper), delay, commanded);
    }

    pub(super) fn kill(&mut self, shard: ShardIndex, id: JobId) {
        if self
            .shard(shard)
            .bodies
            .get(&id)
            .is_some_and(|body| body.has_leaf)
        {
            self.kill_leaf(id);
        }
    }

    fn answer_submitter(&mut self, shard: ShardIndex, id: JobId, result: Result<JobId, Refusal>) {
        if result.is_err() {
            self.ledger.refused.insert(id);
        }
        if let Some(index) = self.shard(shard).submitters.remove(&id) {
            self.reply(index, result.map_err(drop));
        }
    }

    fn record_ended(&mut self, life: Life, shard: ShardIndex, id: JobId) {
        let Some(view) = self.shard(shard).core.view(id) else {
            return;
        };
        self.ledger.ended(&view);
        if view
            .outcome
            .as_ref()
            .is_some_and(|end| end.reason == Reason::HostLost)
        {
            let is_held = self.keepers.values().any(|keeper| keeper.holds(id));
            if is_held || !self.ledger.bereft.contains(&id) {
                self.ledger.lost_alive.insert(id);
            }
        }
        if self.planted == Planted::EarlyRelease {
            let holder = self.shard(shard).holders.remove(&id);
            let link = self.shard(shard).bodies.get(&id).and_then(|body| body.link);
            if let Some(keeper) = holder.or(link) {
                self.command(keeper, Command::Release(id));
            }
        }
        self.submit_change(life, shard, Change::End(Box::new(view)));
    }

    fn wake_waiters(&mut self, shard: ShardIndex, id: JobId) {
        let Some(view) = self.shard(shard).core.view(id) else {
            return;
        };
        for index in self.shard(shard).waiters.remove(&id).unwrap_or_default() {
            self.tell_client(index, &view);
        }
    }

    /// Gives back what a job held.
    fn release(&mut self, life: Life, shard: ShardIndex, id: JobId) {
        let it = self.shard(shard);
        it.timers.remove(&(id, 0));
        it.timers.remove(&(id, 1));
        let Some(body) = it.bodies.remove(&id) else {
            return;
        };
        if let Some(keeper) = body.link {
            it.holders.insert(id, keeper);
            if let Some(link) = self.link(shard, keeper) {
                link.jobs.remove(&id);
            }
        }
        if body.has_leaf {
            self.work(life, shard, id, Task::RemoveLeaf, MS);
        }
    }

    pub(super) fn on_due(
        &mut self,
        life: Life,
        shard: ShardIndex,
        id: JobId,
        timer: Timer,
        number: u64,
    ) {
        if self.is_alive(life) && self.shard(shard).timers.get(&(id, place(timer))) == Some(&number)
        {
            self.shard(shard).timers.remove(&(id, place(timer)));
            self.feed(life, shard, Event::Timer(id, timer));
        }
    }

    pub(super) fn record_begun(&mut self, life: Life, shard: ShardIndex, id: JobId) {
        if let Some(view) = self.shard(shard).core.view(id) {
            self.submit_change(life, shard, Change::Begin(Box::new(view)));
        }
    }

    /// The store's answer to a change arrives.
    pub(super) fn on_stored(&mut self, life: Life, shard: ShardIndex, id: JobId, answer: Answer) {
        if !self.is_alive(life) {
            return;
        }
        match answer {
            Answer::Accepted => self.feed(life, shard, Event::Recorded(id, Ok(()))),
            Answer::Duplicate(first) => {
                self.answer_submitter(shard, id, Ok(first));
                self.ledger.refused.insert(id);
                self.feed(life, shard, Event::Recorded(id, Err(refused())));
            }
            Answer::NotAccepted => self.feed(life, shard, Event::Recorded(id, Err(refused()))),
            Answer::Updated => {}
            Answer::Begun => self.feed(life, shard, Event::Begun(id)),
            Answer::NotBegun => self.work(life, shard, id, Task::OfferBegin, 300 * MS),
            Answer::Ended => {
                self.wake_waiters(shard, id);
                self.feed(life, shard, Event::EndRecorded(id));
            }
            Answer::NotEnded => {
                // A full disk keeps nobody waiting; what is said then may be lost with the daemon.
                self.ledger.unsure.insert(id);
                self.wake_waiters(shard, id);
                if let Some(index) = self.shard(shard).submitters.remove(&id) {
                    self.reply(index, Err(()));
                }
                self.work(life, shard, id, Task::OfferEnd, 300 * MS);
            }
        }
    }
}

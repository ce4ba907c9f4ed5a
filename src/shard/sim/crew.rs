//! Keepers and spawners, as they promise to be: they outlive the daemon and know nothing of what it decides.
//!
//! A spawner makes what it has read even when its daemon is dead, and ends then. A keeper holds every job that was
//! born until it is released, and tells a new daemon all of it once more, in the order of births. It ends when it
//! holds nothing, nobody can be born, and nobody wants it.

use std::collections::VecDeque;

use super::{
    agenda::{Channel, Life, MS, Step, US},
    kernel::{Incarnation, Stage, failure},
    trace::Short,
    world::World,
};
use crate::{
    job::JobId,
    shard::effect::{ExecFailure, Exit, StartFailure},
};

/// Which keeper, counted over the whole run; stands for its process id.
pub(super) type KeeperId = u32;

/// What a keeper tells.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Born(JobId),
    StepFailed(JobId, StartFailure),
    Started(JobId, Result<u64, ExecFailure>),
    Exited(JobId, Exit),
    Gone(JobId),
    SpawnerGone,
    /// Its socket is closed.
    Closed,
}

/// What a keeper is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Signal(JobId, i32),
    Release(JobId),
    Exit,
}

/// A job that a keeper holds.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) job: JobId,
    number: Incarnation,
    failure: Option<StartFailure>,
    pub(super) started: Option<Result<u64, ExecFailure>>,
    exited: Option<Exit>,
    gone: bool,
    pub(super) released: bool,
    /// What its daemon was told: birth, start, exit, end.
    told: [bool; 4],
}

/// The helper that makes jobs.
#[derive(Debug)]
pub(super) enum Spawner {
    Lives {
        queue: VecDeque<Incarnation>,
        making: Option<Incarnation>,
    },
    Gone,
}

/// One keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) is_alive: bool,
    /// The daemon that it tells.
    pub(super) line: Option<Life>,
    pub(super) entries: Vec<Entry>,
    pub(super) spawner: Spawner,
    leaving: bool,
    is_spawner_told: bool,
}

impl Keeper {
    pub(super) const fn new(life: Life) -> Self {
        Self {
            is_alive: true,
            line: Some(life),
            entries: Vec::new(),
            spawner: Spawner::Lives {
                queue: VecDeque::new(),
                making: None,
            },
            leaving: false,
            is_spawner_told: false,
        }
    }

    /// Whether it holds a job that nobody has released.
    pub(super) fn holds(&self, job: JobId) -> bool {
        self.is_alive && self.entries.iter().any(|e| e.job == job && !e.released)
    }

    /// init's control socket, of a job that it holds.
    pub(super) fn control(&self, job: JobId) -> Option<Incarnation> {
        let entry = self.entries.iter().find(|entry| entry.job == job)?;
        (entry.failure.is_none() && entry.started.is_none()).then_some(entry.number)
    }

    /// A new daemon takes it over: it is told everything from the beginning.
    pub(super) fn adopt(&mut self, life: Life) {
        self.line = Some(life);
        self.leaving = false;
        self.is_spawner_told = false;
        for entry in &mut self.entries {
            entry.told = [false; 4];
        }
    }
}

impl Entry {
    /// The next thing that its daemon does not know.
    fn next(&mut self) -> Option<Message> {
        let (job, told) = (self.job, &mut self.told);
        if !std::mem::replace(&mut told[0], true) {
            return Some(match &self.failure {
                Some(failure) => Message::StepFailed(job, failure.clone()),
                None => Message::Born(job),
            });
        }
        if let Some(started) = &self.started
            && !std::mem::replace(&mut told[1], true)
        {
            return Some(Message::Started(job, started.clone()));
        }
        if let Some(exited) = self.exited
            && !std::mem::replace(&mut told[2], true)
        {
            return Some(Message::Exited(job, exited));
        }
        (self.gone && !std::mem::replace(&mut told[3], true)).then_some(Message::Gone(job))
    }
}

impl World {
    pub(super) fn keeper(&mut self, id: KeeperId) -> &mut Keeper {
        self.keepers
            .get_mut(&id)
            .expect("keepers are never forgotten")
    }

    /// A recipe comes to a spawner. `None` when nobody is there to read it.
    pub(super) fn send_recipe(&mut self, keeper: KeeperId, job: JobId) -> Option<Incarnation> {
        let number = self.kernel.conceive(job);
        match &mut self.keeper(keeper).spawner {
            Spawner::Lives { queue, .. } => queue.push_back(number),
            Spawner::Gone => return None,
        }
        self.spawner_goes_on(keeper);
        Some(number)
    }

    fn spawner_goes_on(&mut self, keeper: KeeperId) {
        let delay = self.delay(5 * US, MS);
        self.agenda.after(delay, Step::SpawnerReads(keeper));
    }

    pub(super) fn on_spawner_reads(&mut self, keeper: KeeperId) {
        if let Spawner::Lives { queue, making } = &mut self.keeper(keeper).spawner
            && making.is_none()
            && let Some(number) = queue.pop_front()
        {
            *making = Some(number);
            let delay = self.delay(20 * US, 2 * MS);
            self.agenda.after(delay, Step::SpawnerClones(keeper));
        }
    }

    fn made_by(&mut self, keeper: KeeperId) -> Option<Incarnation> {
        match &self.keeper(keeper).spawner {
            Spawner::Lives { making, .. } => *making,
            Spawner::Gone => None,
        }
    }

    pub(super) fn on_spawner_clones(&mut self, keeper: KeeperId) {
        let Some(number) = self.made_by(keeper) else {
            return;
        };
        let job = self.kernel.tries[&number].job;
        if self.dice.per_mille(20) {
            return self.bear(keeper, number, Some(failure("clone")));
        }
        // Into a cgroup that has been removed nobody is cloned.
        let Some(leaf) = self.kernel.leaves.get_mut(&job) else {
            return self.bear(keeper, number, Some(failure("clone")));
        };
        leaf.members.insert(number);
        leaf.has_run = true;
        self.kernel
            .tries
            .get_mut(&number)
            .expect("it is made")
            .stage = Stage::Cloning;
        let up = self.delay(20 * US, 2 * MS);
        self.agenda.after(up, Step::InitUp(number));
        let born = up + self.delay(0, MS);
        self.agenda.after(born, Step::SpawnerBears(keeper));
    }

    pub(super) fn on_spawner_bears(&mut self, keeper: KeeperId) {
        if let Some(number) = self.made_by(keeper) {
            let failed = self.dice.per_mille(30).then(|| failure("mount"));
            if failed.is_some() {
                self.on_death(number);
            }
            self.bear(keeper, number, failed);
        }
    }

    /// A birth comes to the keeper; the spawner takes the next recipe.
    fn bear(&mut self, keeper: KeeperId, number: Incarnation, failure: Option<StartFailure>) {
        let member = self.kernel.tries.get_mut(&number).expect("it is made");
        let job = member.job;
        member.keeper = Some(keeper);
        let gone = member.stage == Stage::Unread;
        if gone {
            member.stage = Stage::Dead;
        }
        let it = self.keeper(keeper);
        it.entries.push(Entry {
            job,
            number,
            failure,
            started: None,
            exited: None,
            gone,
            released: false,
            told: [false; 4],
        });
        if let Spawner::Lives { making, .. } = &mut it.spawner {
            *making = None;
        }
        self.tell(keeper);
        self.on_keeper_reads(number);
        self.spawner_goes_on(keeper);
    }

    /// A spawner dies in whatever it does.
    pub(super) fn end_spawner(&mut self, keeper: KeeperId) {
        let former = std::mem::replace(&mut self.keeper(keeper).spawner, Spawner::Gone);
        let Spawner::Lives { queue, making } = former else {
            return;
        };
        for number in &queue {
            self.kernel
                .tries
                .get_mut(number)
                .expect("it was sent")
                .stage = Stage::Dead;
        }
        for number in queue.iter().chain(&making) {
            self.ledger.bereft.insert(self.kernel.tries[number].job);
        }
        if let Some(number) = making {
            let member = self.kernel.tries.get_mut(&number).expect("it was sent");
            if member.stage == Stage::Unread {
                member.stage = Stage::Dead;
            } else if !self.daemon_controls(number) {
                self.abandon_init(number);
            }
        }
        self.tell(keeper);
        self.keeper_may_end(keeper);
    }

    pub(super) fn on_keeper_reads(&mut self, number: Incarnation) {
        let member = &self.kernel.tries[&number];
        let Some(keeper) = member.keeper else { return };
        let (started, exited) = (member.started.clone(), member.exited);
        let gone = member.stage == Stage::Dead;
        let it = self.keeper(keeper);
        if !it.is_alive {
            return;
        }
        let Some(entry) = it.entries.iter_mut().find(|entry| entry.number == number) else {
            return;
        };
        if !entry.released {
            (entry.started, entry.exited) = (started, exited);
        }
        entry.gone |= gone;
        if gone && entry.released {
            it.entries.retain(|entry| entry.number != number);
        }
        self.tell(keeper);
        self.keeper_may_end(keeper);
    }

    pub(super) fn on_command(&mut self, keeper: KeeperId, command: Command) {
        if !self.keeper(keeper).is_alive {
            return;
        }
        match command {
            Command::Signal(job, signal) => {
                let it = self.keeper(keeper);
                let entry = it.entries.iter().find(|e| e.job == job && !e.released);
                if let Some(number) = entry.map(|entry| entry.number) {
                    self.signal_init(number, signal);
                }
            }
            Command::Release(job) => self.release_entry(keeper, job),
            Command::Exit => self.keeper(keeper).leaving = true,
        }
        self.keeper_may_end(keeper);
    }

    pub(super) fn release_entry(&mut self, keeper: KeeperId, job: JobId) {
        let it = self.keeper(keeper);
        let Some(entry) = it.entries.iter_mut().find(|entry| entry.job == job) else {
            return;
        };
        entry.released = true;
        let (number, gone) = (entry.number, entry.gone);
        if gone {
            it.entries.retain(|entry| entry.number != number);
        } else if !self.daemon_controls(number) {
            self.abandon_init(number);
        }
    }

    /// Sends what its daemon does not know.
    pub(super) fn tell(&mut self, keeper: KeeperId) {
        let it = self.keeper(keeper);
        let (true, Some(life)) = (it.is_alive, it.line) else {
            return;
        };
        let mut messages = Vec::new();
        for entry in it.entries.iter_mut().filter(|entry| !entry.released) {
            messages.extend(std::iter::from_fn(|| entry.next()));
        }
        if matches!(it.spawner, Spawner::Gone) && !std::mem::replace(&mut it.is_spawner_told, true)
        {
            messages.push(Message::SpawnerGone);
        }
        for message in messages {
            let delay = self.delay(5 * US, 2 * MS);
            self.agenda.through(
                Channel::FromKeeper(keeper),
                delay,
                Step::Heard(life, keeper, message),
            );
        }
    }

    /// It ends by itself when it is of no more use.
    pub(super) fn keeper_may_end(&mut self, keeper: KeeperId) {
        let it = self.keeper(keeper);
        let is_unwanted = it.line.is_none() || (it.leaving && it.is_spawner_told);
        let is_spent = matches!(it.spawner, Spawner::Gone) && it.entries.is_empty();
        if it.is_alive && is_unwanted && is_spent {
            self.end_keeper(keeper);
        }
    }

    /// A keeper dies, and its spawner with it.
    pub(super) fn end_keeper(&mut self, keeper: KeeperId) {
        let it = self.keeper(keeper);
        if !std::mem::replace(&mut it.is_alive, false) {
            return;
        }
        let (line, entries) = (it.line.take(), std::mem::take(&mut it.entries));
        let now = self.agenda.now();
        self.trace.note(now, format_args!("keeper {keeper} ends"));
        self.end_spawner(keeper);
        for entry in entries {
            self.kernel
                .tries
                .get_mut(&entry.number)
                .expect("it was born")
                .keeper = None;
            if !self.daemon_controls(entry.number) {
                self.abandon_init(entry.number);
            }
            self.trace
                .note(now, format_args!("  with {}", Short(entry.job)));
            if !entry.released {
                self.ledger.bereft.insert(entry.job);
            }
        }
        if let Some(life) = line {
            let delay = self.delay(5 * US, 2 * MS);
            let closed = Step::Heard(life, keeper, Message::Closed);
            self.agenda
                .through(Channel::FromKeeper(keeper), delay, closed);
        }
    }
}

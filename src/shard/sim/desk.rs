//! Crews as a shard sees them: what their keepers say, and how they are replaced.
//!
//! It stands for `desk.rs` and `desk/adopted.rs` of the shard.

use super::{
    agenda::{Channel, Life, MS, Step, US},
    crew::{Command, Keeper, KeeperId, Message},
    daemon::Link,
    kernel::failure,
    making::Task,
    world::World,
};
use crate::{
    job::{JobId, ShardIndex},
    shard::effect::Event,
};

impl Message {
    /// The job it is about.
    const fn job(&self) -> Option<JobId> {
        match self {
            Self::Born(id)
            | Self::StepFailed(id, _)
            | Self::Started(id, _)
            | Self::Exited(id, _)
            | Self::Gone(id) => Some(*id),
            Self::SpawnerGone | Self::Closed => None,
        }
    }
}

impl World {
    pub(super) fn link(&mut self, shard: ShardIndex, keeper: KeeperId) -> Option<&mut Link> {
        self.daemon.as_mut()?.links.get_mut(&(shard, keeper))
    }

    /// A shard gets a crew.
    pub(super) fn employ(&mut self, life: Life, shard: ShardIndex) {
        if !self.is_alive(life) {
            return;
        }
        let keeper = KeeperId::try_from(self.keepers.len()).expect("there are few");
        self.keepers.insert(keeper, Keeper::new(life));
        let daemon = self.daemon.as_mut().expect("it lives");
        daemon.links.insert((shard, keeper), Link::default());
        daemon.hearers.insert(keeper, shard);
        self.shard(shard).current = Some(keeper);
    }

    /// A message comes to the shard that hears this keeper.
    pub(super) fn on_heard(&mut self, life: Life, keeper: KeeperId, message: Message) {
        if !self.is_alive(life) {
            return;
        }
        let hearer = self.daemon.as_ref().expect("it lives").hearers[&keeper];
        match message.job().map(|id| self.owner(id)) {
            Some(owner) if owner != hearer => self.pass_on(life, hearer, owner, (keeper, message)),
            Some(_) | None => self.on_message(life, hearer, keeper, message),
        }
    }

    fn pass_on(&mut self, life: Life, from: ShardIndex, to: ShardIndex, mail: (KeeperId, Message)) {
        let delay = self.delay(5 * US, MS);
        let passed = Step::Passed(life, to, mail.0, mail.1);
        self.agenda.through(Channel::Mail(from, to), delay, passed);
    }

    /// A message comes to the shard that it is for.
    pub(super) fn on_message(
        &mut self,
        life: Life,
        shard: ShardIndex,
        keeper: KeeperId,
        message: Message,
    ) {
        if !self.is_alive(life) || self.link(shard, keeper).is_none() {
            return;
        }
        match message {
            // Its start failed with the recipe on its way, and its end is in the store.
            Message::Born(id) | Message::StepFailed(id, _)
                if !self.shard(shard).bodies.contains_key(&id) =>
            {
                self.answered(shard, keeper, id);
                self.command(keeper, Command::Release(id));
            }
            Message::Born(id) => {
                self.answered(shard, keeper, id);
                self.feed(life, shard, Event::Born(id));
            }
            Message::StepFailed(id, why) => {
                self.answered(shard, keeper, id);
                self.kill(shard, id);
                self.feed(life, shard, Event::StepFailed(id, why));
            }
            Message::Started(id, result) => self.feed(life, shard, Event::Started(id, result)),
            Message::Exited(id, exit) => {
                self.feed(life, shard, Event::Exited(id, exit));
                self.look_what_is_left(life, shard, id);
            }
            Message::Gone(id) => {
                if let Some(link) = self.link(shard, keeper) {
                    link.jobs.remove(&id);
                }
                self.feed(life, shard, Event::Gone(id));
            }
            Message::SpawnerGone => self.on_spawner_gone(life, shard, keeper),
            Message::Closed => self.on_keeper_closed(life, shard, keeper),
        }
    }

    /// A command may leave processes behind, which die with init; without them the job has ended.
    fn look_what_is_left(&mut self, life: Life, shard: ShardIndex, id: JobId) {
        if !self.is_alive(life) {
            return;
        }
        let is_reaped = self.dice.per_mille(500);
        let body = self.shard(shard).bodies.get_mut(&id);
        if let Some(body) = body.filter(|body| body.has_leaf && is_reaped) {
            body.is_reaped = true;
            self.feed(life, shard, Event::Reaped(id));
        }
    }

    fn answered(&mut self, shard: ShardIndex, keeper: KeeperId, id: JobId) {
        if let Some(link) = self.link(shard, keeper) {
            link.pending.retain(|pending| *pending != id);
        }
    }

    /// All births have been heard: the oldest recipe may have been begun, no other was read.
    fn on_spawner_gone(&mut self, life: Life, shard: ShardIndex, keeper: KeeperId) {
        self.retire(life, shard, keeper);
        let Some(link) = self.link(shard, keeper) else {
            return;
        };
        link.is_spent = true;
        let pending = std::mem::take(&mut link.pending);
        for id in &pending {
            link.jobs.remove(id);
        }
        let mut pending = pending.into_iter();
        if let Some(begun) = pending.next() {
            self.kill(shard, begun);
            self.feed(life, shard, Event::StepFailed(begun, failure("spawner")));
        }
        for id in pending {
            self.feed(life, shard, Event::Unsent(id));
        }
    }

    /// Nobody will tell how the jobs of this keeper end.
    fn on_keeper_closed(&mut self, life: Life, shard: ShardIndex, keeper: KeeperId) {
        self.retire(life, shard, keeper);
        let Some(link) = self.link(shard, keeper) else {
            return;
        };
        link.is_spent = true;
        link.pending.clear();
        for id in std::mem::take(&mut link.jobs) {
            self.kill(shard, id);
            self.work(life, shard, id, Task::EndOrphan, 5 * MS);
        }
        let daemon = self.daemon.as_ref().expect("it lives");
        if daemon.hearers[&keeper] == shard {
            let others = 0..daemon.shards.len();
            for other in others.filter(|other| *other != shard) {
                if self.link(other, keeper).is_some() {
                    self.pass_on(life, shard, other, (keeper, Message::Closed));
                }
            }
        }
    }

    /// Takes a crew off new work and starts another.
    pub(super) fn retire(&mut self, life: Life, shard: ShardIndex, keeper: KeeperId) {
        if self.shard(shard).current != Some(keeper) {
            return;
        }
        self.shard(shard).current = None;
        self.end_spawner(keeper);
        self.command(keeper, Command::Exit);
        let delay = self.delay(MS, 60 * MS);
        self.agenda.after(delay, Step::NewCrew(life, shard));
    }
}

//! The tasks of a shard that take their time: making a sandbox, bringing output home, giving back.

use super::{
    agenda::{Life, MS, Step, US},
    crew::KeeperId,
    kernel::{Leaf, failure},
    store::Change,
    world::World,
};
use crate::{
    job::{JobId, LogTotals, ShardIndex, Usage},
    shard::effect::{Event, StartFailure},
};

/// So many times is looked for a crew before its job fails.
const CREW_TRIES: u32 = 40;

/// What a task does next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// Undo a former try and wait for a crew; how often that was looked for.
    FindCrew(u32),
    MakeLeaf(KeeperId),
    SendRecipe(KeeperId),
    /// Wait until the leaf is empty, read what is left of the output.
    Drain,
    RemoveLeaf,
    /// Of a job whose keeper is dead.
    EndOrphan,
    /// The store is asked once more to note that a job is being made.
    OfferBegin,
    /// Offer the job's end to the store once more.
    OfferEnd,
}

impl World {
    pub(super) fn on_work(&mut self, life: Life, shard: ShardIndex, id: JobId, task: Task) {
        if !self.is_alive(life) {
            return;
        }
        if self.is_struck() {
            return self.crash();
        }
        match task {
            Task::FindCrew(tries) => self.find_crew(life, shard, id, tries),
            Task::MakeLeaf(keeper) => self.make_leaf(life, shard, id, keeper),
            Task::SendRecipe(keeper) => self.send(life, shard, id, keeper),
            Task::Drain => self.drain(life, shard, id),
            Task::RemoveLeaf => {
                if !self.kernel.remove_leaf(id) {
                    self.kill_leaf(id);
                    self.work(life, shard, id, task, 5 * MS);
                }
            }
            Task::EndOrphan => {
                if self.is_empty(shard, id) {
                    self.feed(life, shard, Event::Orphaned(id));
                } else {
                    self.kill(shard, id);
                    self.work(life, shard, id, task, 5 * MS);
                }
            }
            Task::OfferBegin => self.record_begun(life, shard, id),
            Task::OfferEnd => {
                if let Some(view) = self.shard(shard).core.view(id) {
                    self.submit_change(life, shard, Change::End(Box::new(view)));
                }
            }
        }
    }

    fn prepare_failed(&mut self, life: Life, shard: ShardIndex, id: JobId, why: StartFailure) {
        let delay = self.delay(0, 100 * US);
        let failed = Step::Feed(life, shard, Event::PrepareFailed(id, why));
        self.agenda.after(delay, failed);
    }

    fn find_crew(&mut self, life: Life, shard: ShardIndex, id: JobId, tries: u32) {
        let Some(body) = self.shard(shard).bodies.get_mut(&id) else {
            return self.prepare_failed(life, shard, id, failure("vanished"));
        };
        // What a former try left.
        body.control = None;
        body.has_capture = false;
        if body.has_leaf {
            if self.kernel.remove_leaf(id) {
                self.shard(shard)
                    .bodies
                    .get_mut(&id)
                    .expect("it is there")
                    .has_leaf = false;
            } else {
                self.kill_leaf(id);
            }
            return self.work(life, shard, id, Task::FindCrew(tries), 5 * MS);
        }
        match self.shard(shard).current {
            Some(keeper) => {
                self.shard(shard)
                    .bodies
                    .get_mut(&id)
                    .expect("it is there")
                    .link = Some(keeper);
                self.work(life, shard, id, Task::MakeLeaf(keeper), 500 * US);
            }
            None if tries < CREW_TRIES => {
                self.work(life, shard, id, Task::FindCrew(tries + 1), 10 * MS);
            }
            None => self.prepare_failed(life, shard, id, failure("wait for a crew")),
        }
    }

    fn make_leaf(&mut self, life: Life, shard: ShardIndex, id: JobId, keeper: KeeperId) {
        if self.dice.per_mille(20) || self.kernel.leaves.contains_key(&id) {
            return self.prepare_failed(life, shard, id, failure("make the cgroup"));
        }
        let Some(body) = self.shard(shard).bodies.get_mut(&id) else {
            return self.prepare_failed(life, shard, id, failure("vanished"));
        };
        body.has_leaf = true;
        self.kernel.leaves.insert(id, Leaf::default());
        self.work(life, shard, id, Task::SendRecipe(keeper), 200 * US);
    }

    fn send(&mut self, life: Life, shard: ShardIndex, id: JobId, keeper: KeeperId) {
        if !self.shard(shard).bodies.contains_key(&id) {
            return self.prepare_failed(life, shard, id, failure("vanished"));
        }
        let is_spent = self.link(shard, keeper).is_none_or(|link| link.is_spent);
        let sent = if is_spent {
            None
        } else {
            self.send_recipe(keeper, id)
        };
        let Some(number) = sent else {
            self.retire(life, shard, keeper);
            let delay = self.delay(0, 100 * US);
            return self
                .agenda
                .after(delay, Step::Feed(life, shard, Event::Unsent(id)));
        };
        let link = self.link(shard, keeper).expect("it is not spent");
        link.pending.push(id);
        link.jobs.insert(id);
        // Limits are set while the spawner works; the recipe cannot be taken back.
        if self.dice.per_mille(15) {
            return self.prepare_failed(life, shard, id, failure("set a limit"));
        }
        let body = self.shard(shard).bodies.get_mut(&id).expect("it is there");
        body.control = Some(number);
        body.has_capture = true;
        let delay = self.delay(0, 300 * US);
        self.agenda
            .after(delay, Step::Feed(life, shard, Event::Sent(id)));
    }

    fn is_empty(&mut self, shard: ShardIndex, id: JobId) -> bool {
        let body = self.shard(shard).bodies.get(&id);
        body.is_none_or(|body| !body.has_leaf || body.is_reaped) || !self.kernel.is_populated(id)
    }

    fn drain(&mut self, life: Life, shard: ShardIndex, id: JobId) {
        if !self.is_empty(shard, id) {
            self.kill(shard, id);
            return self.work(life, shard, id, Task::Drain, 5 * MS);
        }
        let has_leaf = self
            .shard(shard)
            .bodies
            .get(&id)
            .is_some_and(|body| body.has_leaf);
        let leaf = self.kernel.leaves.get(&id).filter(|_| has_leaf);
        let usage = leaf.map(|leaf| Usage {
            oom_kills: Some(leaf.oom_kills),
            ..Usage::default()
        });
        self.feed(life, shard, Event::Drained(id, LogTotals::default(), usage));
    }

    /// Memory was out: who listens is told, if anybody does. Looking for whose it was takes a while.
    pub(super) fn tell_out_of_memory(&mut self, id: JobId) {
        self.tell_later(id, Event::OutOfMemory(id));
    }

    /// Output has reached its limit, and somebody reads it.
    pub(super) fn tell_log_full(&mut self, id: JobId) {
        let Some(daemon) = &self.daemon else { return };
        let shard = id.owner(daemon.shards.len());
        if daemon.shards[shard]
            .bodies
            .get(&id)
            .is_some_and(|body| body.has_capture)
        {
            self.tell_later(id, Event::LogLimit(id));
        }
    }

    fn tell_later(&mut self, id: JobId, event: Event) {
        let Some(daemon) = &self.daemon else { return };
        let (life, shard) = (daemon.life, id.owner(daemon.shards.len()));
        let delay = self.delay(5 * US, 20 * MS);
        self.agenda.after(delay, Step::Feed(life, shard, event));
    }
}

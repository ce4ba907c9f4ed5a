//! The death of a daemon and the start of the next one, as `inherit.rs` has it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    agenda::{Life, MS, Step},
    crew::{Command, KeeperId, Spawner},
    daemon::{Body, Daemon, Link, Shard},
    kernel::{Incarnation, Stage},
    trace::Short,
    world::World,
};
use crate::{
    job::{JobId, JobView, Reason},
    shard::{
        core::CoreLimits,
        effect::{Event, FoundJob, Whereabouts},
        reactor::is_parked,
    },
};

/// Few of each, so that jobs wait for one another and shards are full.
const LIMITS: CoreLimits = CoreLimits {
    live_jobs_max: 12,
    starts_max: 2,
    scheduled_max: 12,
    has_queue: false,
};

impl World {
    /// The daemon dies here and now. Helpers, jobs and what the store has committed stay.
    pub(super) fn crash(&mut self) {
        let Some(daemon) = self.daemon.take() else {
            return;
        };
        self.trace.note(
            self.agenda.now(),
            format_args!("daemon {} dies", daemon.life),
        );
        self.store.lose_queue();
        self.ledger.decided.clear();
        for keeper in self.keepers.values_mut() {
            keeper.line = None;
        }
        for id in self.alive_keepers() {
            self.keeper_may_end(id);
        }
        // An init that nobody can say go to any more ends.
        let lonely = self.kernel.tries.iter().filter(|(_, t)| t.keeper.is_none());
        let lonely: Vec<Incarnation> = lonely.map(|(number, _)| *number).collect();
        for number in lonely {
            if !self.is_being_made(number) {
                self.abandon_init(number);
            }
        }
        let row_is_ending = |id: &JobId| {
            self.store
                .rows
                .get(id)
                .is_some_and(|row| row.ending.is_some())
        };
        self.ledger.noted.retain(row_is_ending);
        self.clients_lose_daemon();
        // What it had said to its keepers is with them before the next one asks.
        let most = [6 * MS, 400 * MS][self.dice.place(2)];
        let delay = self.dice.between(3 * MS, most);
        self.agenda.after(delay, Step::Start);
    }

    fn alive_keepers(&self) -> Vec<KeeperId> {
        let alive = self.keepers.iter().filter(|(_, keeper)| keeper.is_alive);
        alive.map(|(id, _)| *id).collect()
    }

    fn is_being_made(&self, number: Incarnation) -> bool {
        self.keepers.values().any(|keeper| match &keeper.spawner {
            Spawner::Lives { making, .. } => *making == Some(number),
            Spawner::Gone => false,
        })
    }

    /// Everything but the disk is gone.
    pub(super) fn lose_power(&mut self) {
        self.crash();
        self.trace
            .note(self.agenda.now(), format_args!("the host loses power"));
        for member in self.kernel.tries.values_mut() {
            (member.stage, member.keeper) = (Stage::Dead, None);
        }
        self.ledger.bereft.extend(self.store.rows.keys());
        self.kernel.leaves.clear();
        self.kernel.has_tree = false;
        for keeper in self.keepers.values_mut() {
            keeper.is_alive = false;
            keeper.entries.clear();
            keeper.spawner = Spawner::Gone;
        }
    }

    /// A daemon starts: it takes over what is there, and removes what belongs to nobody.
    pub(super) fn on_start(&mut self) {
        if self.daemon.is_some() {
            return;
        }
        // Spawners make what they have read, and end; a list of jobs ends only then.
        for id in self.alive_keepers() {
            match &self.keeper(id).spawner {
                Spawner::Lives { queue, making } if queue.is_empty() && making.is_none() => {
                    self.end_spawner(id);
                }
                Spawner::Lives { .. } => return self.agenda.after(MS, Step::Start),
                Spawner::Gone => {}
            }
        }
        self.lives += 1;
        let life = self.lives;
        let shards = 1 + self.dice.place(4);
        self.trace.note(
            self.agenda.now(),
            format_args!("daemon {life} starts with {shards} shards"),
        );
        let live: Vec<JobView> = self.live_rows();
        let accepted: BTreeSet<JobId> = live.iter().map(|view| view.id).collect();
        let (mut keepers, mut held, mut strangers) = (Vec::new(), BTreeMap::new(), Vec::new());
        for id in self.alive_keepers() {
            if self.is_rough() && self.dice.per_mille(20) {
                self.end_keeper(id); // It is not taken over, and all that is nobody's is killed.
                continue;
            }
            for entry in self
                .keeper(id)
                .entries
                .iter()
                .filter(|entry| !entry.released)
            {
                if accepted.contains(&entry.job) {
                    held.insert(entry.job, id);
                } else {
                    strangers.push((id, entry.job));
                }
            }
            keepers.push(id);
        }
        let mut found: Vec<FoundJob> = live
            .into_iter()
            .map(|view| FoundJob {
                whereabouts: self.whereabouts(&view, &held),
                has_spool: false,
                view,
            })
            .collect();
        if !self.mark_lost(&mut found) {
            return self.agenda.after(50 * MS, Step::Start);
        }
        let leaves: Vec<JobId> = self.kernel.leaves.keys().copied().collect();
        for id in leaves.into_iter().filter(|id| !held.contains_key(id)) {
            self.kill_leaf_now(id);
            self.kernel.remove_leaf(id);
        }
        self.kernel.has_tree = true;
        let daemon = Daemon {
            life,
            shards: (0..shards).map(|_| Shard::new(LIMITS)).collect(),
            links: BTreeMap::new(),
            hearers: BTreeMap::new(),
        };
        self.daemon = Some(daemon);
        if self.is_struck() {
            return self.crash();
        }
        self.inherit(life, &keepers, &held, found);
        if !self.is_alive(life) {
            return;
        }
        for (keeper, job) in strangers {
            self.command(keeper, Command::Release(job));
        }
        for keeper in keepers {
            self.keeper(keeper).adopt(life);
            self.command(keeper, Command::Exit);
            self.tell(keeper);
        }
        for shard in 0..shards {
            self.employ(life, shard);
        }
    }

    /// Jobs that have not ended as the store has them, oldest first.
    fn live_rows(&self) -> Vec<JobView> {
        let rows = self.store.rows.values();
        let mut live: Vec<JobView> = rows.filter(|row| row.outcome.is_none()).cloned().collect();
        live.sort_by_key(|row| (row.transitions.first().map(|first| first.wall_ns), row.id));
        live
    }

    fn whereabouts(&self, view: &JobView, held: &BTreeMap<JobId, KeeperId>) -> Whereabouts {
        let id = view.id;
        let has_run = self.kernel.leaves.get(&id).is_some_and(|leaf| leaf.has_run);
        if held.contains_key(&id) {
            Whereabouts::Held
        } else if is_parked(view.state) {
            Whereabouts::NotBegun
        } else if has_run || !self.kernel.has_tree {
            Whereabouts::Lost
        } else {
            Whereabouts::NotBegun
        }
    }

    /// Writes down which jobs are lost, before what shows it is removed. False when the store cannot take it: the
    /// daemon does not start then.
    fn mark_lost(&mut self, found: &mut [FoundJob]) -> bool {
        for job in found {
            if job.whereabouts != Whereabouts::Lost || job.view.ending.is_some() {
                continue;
            }
            if self.store.is_full || self.is_struck() {
                return false;
            }
            job.view.ending = Some(Reason::HostLost);
            if let Some(row) = self.store.rows.get_mut(&job.view.id) {
                row.ending.clone_from(&job.view.ending);
            }
        }
        true
    }

    fn inherit(
        &mut self,
        life: Life,
        keepers: &[KeeperId],
        held: &BTreeMap<JobId, KeeperId>,
        found: Vec<FoundJob>,
    ) {
        let daemon = self.daemon.as_mut().expect("it has just begun");
        let shards = daemon.shards.len();
        for (place, keeper) in keepers.iter().enumerate() {
            daemon.hearers.insert(*keeper, place % shards);
            for shard in 0..shards {
                let of_us = held
                    .iter()
                    .filter(|(job, by)| *by == keeper && job.owner(shards) == shard);
                let link = Link {
                    jobs: of_us.map(|(job, _)| *job).collect(),
                    is_spent: true,
                    ..Link::default()
                };
                daemon.links.insert((shard, *keeper), link);
            }
        }
        for job in found {
            let id = job.view.id;
            let shard = id.owner(shards);
            let holder = held.get(&id).copied();
            let body = Body {
                has_leaf: holder.is_some(),
                is_reaped: false,
                // One that has started was let go; of any other nobody knows.
                control: holder.and_then(|keeper| self.keepers[&keeper].control(id)),
                link: holder,
                key: None,
                has_capture: holder.is_some(),
            };
            self.shard(shard).bodies.insert(id, body);
            self.trace.note(
                self.agenda.now(),
                format_args!("s{shard} inherits {}", Short(id)),
            );
            self.feed(life, shard, Event::Found(Box::new(job)));
            if holder.is_some() {
                self.look_again(life, shard, id);
            }
            if !self.is_alive(life) {
                return;
            }
        }
    }

    /// What the former daemon may have missed is told at once.
    fn look_again(&mut self, life: Life, shard: usize, id: JobId) {
        if self
            .kernel
            .leaves
            .get(&id)
            .is_some_and(|leaf| leaf.oom_kills > 0)
        {
            self.feed(life, shard, Event::OutOfMemory(id));
        }
        if self
            .kernel
            .tries
            .values()
            .any(|t| t.job == id && t.is_log_full)
        {
            let delay = self.delay(0, 20 * MS);
            self.agenda
                .after(delay, Step::Feed(life, shard, Event::LogLimit(id)));
        }
    }
}

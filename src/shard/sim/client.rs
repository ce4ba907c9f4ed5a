//! Clients: they submit, upload, stop and wait, lose their connections and try again.

use std::time::Duration;

use super::{
    agenda::{ClientIndex, Life, MS, Step, US},
    dice::Dice,
    kernel::{Stage, failure},
    world::World,
};
use crate::{
    job::{JobId, JobView, Refusal, RefusalCode, Spec, StopSignal, WorkKind},
    shard::{
        core::{Alive, Phase, Record},
        effect::{Event, ExecFailure, ExitStatus, NewJob, Start},
    },
};

/// What a command does once it may.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// Why it cannot be started.
    pub(super) failure: Option<ExecFailure>,
    /// How long it runs when nobody ends it, nanoseconds.
    pub(super) lives: u64,
    pub(super) ends: ExitStatus,
    /// How it ends of a signal; a code when it has a handler, nothing when it ignores it.
    pub(super) on_signal: Option<ExitStatus>,
    /// When memory is out, nanoseconds after its start.
    pub(super) out_of_memory: Option<u64>,
    /// When it has written too much.
    pub(super) fills_log: Option<u64>,
}

/// One client, and what it wants.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) command: Command,
    spec: Spec,
    /// What makes its submits the same one.
    pub(super) key: Option<u32>,
    /// So many times it submits once more.
    tries_left: u32,
    /// It goes away in the middle of its upload.
    hangs_up: bool,
    /// The job it was told of.
    pub(super) job: Option<JobId>,
    /// It has sent a submit that is not answered.
    pub(super) is_asking: bool,
    /// It wants to know how its job ends and has not been told.
    pub(super) waits: bool,
    stops: u64,
}

impl Client {
    pub(super) fn new(dice: &mut Dice, key: u32) -> Self {
        let mut maybe = |per_mille, value: fn(&mut Dice) -> u64| {
            let value = value(dice);
            dice.per_mille(per_mille).then_some(value)
        };
        let timeout = maybe(250, |dice| dice.between(MS, 1_500 * MS));
        let out_of_memory = maybe(100, |dice| dice.between(0, 200 * MS));
        let fills_log = maybe(100, |dice| dice.between(0, 200 * MS));
        let uploads = maybe(300, |dice| dice.between(0, 1 << 30));
        let on_signal = [
            Some(ExitStatus::Signal(0)),
            Some(ExitStatus::Code(0)),
            Some(ExitStatus::Code(9)),
            None,
        ][dice.place(4)];
        let failure = match dice.between(0, 19) {
            0 => Some(ExecFailure::NotFound),
            1 => Some(ExecFailure::NotExecutable(libc::EACCES)),
            2 => Some(ExecFailure::Step(failure("workdir"))),
            _ => None,
        };
        let long = [5 * MS, 100 * MS, 3_000 * MS][dice.place(3)];
        let ends = [
            ExitStatus::Code(0),
            ExitStatus::Code(3),
            ExitStatus::Signal(11),
        ];
        Self {
            command: Command {
                failure,
                lives: dice.between(50 * US, long),
                ends: ends[dice.place(3)],
                on_signal,
                out_of_memory,
                fills_log,
            },
            spec: spec(
                timeout.map(Duration::from_nanos),
                Duration::from_nanos(dice.between(10 * MS, 800 * MS)),
                uploads,
            ),
            key: dice.per_mille(400).then_some(key),
            tries_left: 4,
            hangs_up: dice.per_mille(300),
            job: None,
            is_asking: false,
            waits: false,
            stops: if dice.per_mille(300) {
                dice.between(1, 2)
            } else {
                0
            },
        }
    }
}

fn spec(timeout: Option<Duration>, grace: Duration, uploads: Option<u64>) -> Spec {
    Spec {
        timeout,
        grace,
        uploads,
        ..Spec::plain()
    }
}

impl World {
    fn client(&mut self, index: ClientIndex) -> &mut Client {
        &mut self.clients[index]
    }

    /// A client submits, if there is somebody to submit to.
    pub(super) fn on_arrive(&mut self, index: ClientIndex) {
        let Some(daemon) = &self.daemon else {
            return self.submit_again(index);
        };
        let (life, shards) = (daemon.life, daemon.shards.len());
        let shard = self.dice.place(shards);
        let id = self.fresh_id(shard);
        self.ledger.owners.insert(id, index);
        let now = self.agenda.now();
        let client = self.client(index);
        client.is_asking = true;
        let (uploads, key) = (client.spec.uploads.is_some(), client.key);
        let new = NewJob {
            id,
            owner: "alice".to_owned(),
            spec: client.spec.clone(),
            work: WorkKind::Memory,
            caveats: Vec::new(),
            arrived_mono_ns: 0,
            schedule_id: None,
            start: Start::Now,
            has_place: false,
        };
        let arrived_mono_ns = self.mono_ns(now);
        // Some run later; uploads of those would lie in a spool, which is no part of this.
        let start = if !uploads && self.dice.per_mille(150) {
            let delay = self.dice.between(0, 200 * MS);
            Start::At(self.moment().wall_ns + i64::try_from(delay).expect("a run is short"))
        } else {
            Start::Now
        };
        let new = NewJob {
            arrived_mono_ns,
            start,
            ..new
        };
        if self.submit(life, shard, new, key).is_err() {
            self.ledger.refused.insert(id);
            return self.on_refused(index);
        }
        if uploads {
            let delay = self.delay(MS, 100 * MS);
            self.agenda.after(delay, Step::Upload(life, index, id));
            let client = self.client(index);
            if client.hangs_up {
                client.tries_left = 0;
                let delay = self.dice.between(0, 150 * MS);
                self.agenda.after(delay, Step::Hangup(life, id));
            }
        } else {
            // In the same turn of the shard's thread: nothing comes between.
            self.accept(life, shard, id, index);
        }
    }

    /// The upload goes on: it is read by init, which answers when everything is written.
    pub(super) fn on_upload(&mut self, life: Life, index: ClientIndex, id: JobId) {
        if !self.is_alive(life) || !self.clients[index].is_asking {
            return;
        }
        let Some((shard, job)) = self.live_job(life, id) else {
            return self.on_refused(index);
        };
        match job.phase {
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Making { .. } => {
                let delay = self.delay(MS, 50 * MS);
                self.agenda.after(delay, Step::Upload(life, index, id));
            }
            Phase::Alive(_) => {
                let waits = |t: &super::kernel::Try| t.job == id && t.stage == Stage::Waits;
                if self.kernel.tries.values().any(waits) {
                    let delay = self.delay(5 * US, 5 * MS);
                    self.agenda.after(delay, Step::Uploaded(life, index, id));
                } else {
                    self.drop_submission(life, shard, id, index);
                }
            }
            // Its writer is gone: the client hears why and the submission is dropped.
            Phase::Draining(_) | Phase::Ended { .. } => {
                self.drop_submission(life, shard, id, index);
            }
        }
    }

    /// Everything is written; what became of the job since then is for its shard to say.
    pub(super) fn on_uploaded(&mut self, life: Life, index: ClientIndex, id: JobId) {
        if self.is_alive(life) && self.clients[index].is_asking {
            let shard = self.owner(id);
            self.accept(life, shard, id, index);
        }
    }

    fn drop_submission(&mut self, life: Life, shard: usize, id: JobId, index: ClientIndex) {
        self.on_refused(index);
        self.feed(life, shard, Event::Abandon(id));
    }

    pub(super) fn on_hangup(&mut self, life: Life, id: JobId) {
        let Some((shard, job)) = self.live_job(life, id) else {
            return;
        };
        // One that ends for another reason is shown with that.
        let never_was = match &job.phase {
            Phase::Scheduled { .. } | Phase::Queued { .. } | Phase::Waiting => true,
            Phase::Making { cause, .. } | Phase::Alive(Alive { cause, .. }) => cause.is_none(),
            Phase::Draining(_) | Phase::Ended { .. } => false,
        };
        if job.record == Record::Open && never_was {
            self.ledger.refused.insert(id);
        }
        let index = self.ledger.owners[&id];
        self.client(index).is_asking = false;
        self.feed(life, shard, Event::Abandon(id));
    }

    /// What the daemon says to a submit is on its way. Whoever is told yes has been promised something.
    pub(super) fn reply(&mut self, index: ClientIndex, result: Result<JobId, ()>) {
        self.client(index).is_asking = false;
        let is_lost = self.is_rough() && self.dice.per_mille(50);
        match result {
            Ok(id) => {
                self.ledger.promised.insert(id);
                if is_lost {
                    return self.submit_again(index);
                }
                let delay = self.delay(20 * US, 5 * MS);
                self.agenda.after(delay, Step::Accepted(index, id));
            }
            Err(()) => self.on_refused(index),
        }
    }

    fn on_refused(&mut self, index: ClientIndex) {
        self.client(index).is_asking = false;
        if self.dice.per_mille(700) {
            self.submit_again(index);
        }
    }

    /// Only a request with a key is repeated by itself: of any other nobody knows whether it was taken.
    fn submit_again(&mut self, index: ClientIndex) {
        let client = self.client(index);
        client.is_asking = false;
        if client.key.is_some() && client.tries_left > 0 {
            client.tries_left -= 1;
            let delay = self.dice.between(MS, 300 * MS);
            self.agenda.after(delay, Step::Arrive(index));
        }
    }

    pub(super) fn on_accepted(&mut self, index: ClientIndex, id: JobId) {
        let client = self.client(index);
        client.job = Some(id);
        client.waits = true;
        let stops = client.stops;
        self.agenda.after(0, Step::Wait(index));
        for _ in 0..stops {
            let delay = self.dice.between(0, 700 * MS);
            self.agenda.after(delay, Step::Stop(index));
        }
    }

    pub(super) fn on_stop(&mut self, index: ClientIndex) {
        let Some((life, id)) = self
            .daemon
            .as_ref()
            .map(|d| d.life)
            .zip(self.clients[index].job)
        else {
            return;
        };
        let shard = self.owner(id);
        let signal = if self.dice.per_mille(500) {
            StopSignal::Term
        } else {
            StopSignal::Int
        };
        let by = "alice".to_owned();
        self.feed(life, shard, Event::Stop { id, by, signal });
    }

    /// Asks how the job ends; the answer comes at once, or when it has.
    pub(super) fn on_wait(&mut self, index: ClientIndex) {
        let Some(id) = self.clients[index]
            .job
            .filter(|_| self.clients[index].waits)
        else {
            return;
        };
        if self.daemon.is_none() {
            let delay = self.dice.between(MS, 200 * MS);
            return self.agenda.after(delay, Step::Wait(index));
        }
        let shard = self.owner(id);
        // Whatever its shard has in memory is not in the store yet.
        let is_live = self.shard(shard).core.view(id).is_some();
        match self.store.rows.get(&id).cloned() {
            Some(_) if is_live => self.wait_at(shard, id, index),
            Some(view) => self.tell_client(index, &view),
            None => self
                .ledger
                .break_rule(format!("{id} was accepted and is not known")),
        }
    }

    /// A client hears how its job ended.
    pub(super) fn tell_client(&mut self, index: ClientIndex, view: &JobView) {
        self.client(index).waits = false;
        self.ledger.told(view);
    }

    /// Every connection breaks.
    pub(super) fn clients_lose_daemon(&mut self) {
        for index in 0..self.clients.len() {
            if self.clients[index].is_asking {
                self.submit_again(index);
            }
            if self.clients[index].waits {
                let delay = self.dice.between(MS, 200 * MS);
                self.agenda.after(delay, Step::Wait(index));
            }
        }
    }
}

pub(super) fn refused() -> Refusal {
    Refusal::new(RefusalCode::Busy, "full")
}

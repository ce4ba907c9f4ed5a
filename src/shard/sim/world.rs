//! One run: everything there is, and the loop that lets it happen.

use std::{collections::BTreeMap, time::Instant};

use super::{
    agenda::{Agenda, ClientIndex, Life, MS, Step},
    client::{Client, Command},
    crew::{Keeper, KeeperId},
    daemon::Daemon,
    dice::Dice,
    faults::{Planted, Weather},
    invariants,
    kernel::Kernel,
    ledger::Ledger,
    store::Store,
    trace::Trace,
};
use crate::{
    job::{JobId, ShardIndex},
    shard::effect::Event,
};

/// Steps of one run at most: more mean that something goes round in circles.
const STEPS_MAX: usize = 60_000;

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) trace: Trace,
    pub(super) agenda: Agenda,
    pub(super) weather: Weather,
    pub(super) planted: Planted,
    pub(super) kernel: Kernel,
    pub(super) keepers: BTreeMap<KeeperId, Keeper>,
    pub(super) store: Store,
    pub(super) clients: Vec<Client>,
    pub(super) daemon: Option<Daemon>,
    pub(super) ledger: Ledger,
    /// How many daemons there were.
    pub(super) lives: Life,
    /// Numbers of timers that were set.
    pub(super) timer: u64,
    /// The instant that virtual time began at; only differences to it count.
    pub(super) epoch: Instant,
    submits: u16,
}

/// What came of a run that broke no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    /// Of its trace.
    pub(super) hash: u64,
    pub(super) steps: usize,
    pub(super) jobs: usize,
    pub(super) runs: usize,
    pub(super) crashes: u32,
}

/// A rule that was broken.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) seed: u64,
    /// Name of the invariant.
    pub(super) rule: &'static str,
    pub(super) what: String,
    /// The last lines of the trace.
    pub(super) trace: String,
}

impl World {
    fn new(seed: u64, planted: Planted) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to start from"
        )]
        let epoch = Instant::now();
        let mut dice = Dice::new(seed);
        let clients = u32::try_from(dice.between(2, 10)).expect("at most 10");
        let clients: Vec<Client> = (0..clients)
            .map(|key| Client::new(&mut dice, key))
            .collect();
        let weather = Weather::new(&mut dice);
        let mut world = Self {
            dice,
            trace: Trace::new(),
            agenda: Agenda::default(),
            weather,
            planted,
            kernel: Kernel::default(),
            keepers: BTreeMap::new(),
            store: Store::default(),
            clients,
            daemon: None,
            ledger: Ledger::default(),
            lives: 0,
            timer: 0,
            epoch,
            submits: 0,
        };
        world.agenda.after(0, Step::Start);
        for index in 0..world.clients.len() {
            let most = [5 * MS, 3_000 * MS][world.dice.place(2)];
            let at = world.dice.between(MS, most);
            world.agenda.after(at, Step::Arrive(index));
        }
        world.brew();
        world
    }

    /// CLOCK_MONOTONIC of a moment: the host was up for a while when the run began.
    pub(super) const fn mono_ns(&self, now: u64) -> u64 {
        now + 1_000_000_000
    }

    /// The next id, owned by `shard`.
    pub(super) fn fresh_id(&mut self, shard: ShardIndex) -> JobId {
        let shards = self.daemon.as_ref().map_or(1, |daemon| daemon.shards.len());
        self.submits += 1;
        let mut raw = [0; 16];
        raw[..2].copy_from_slice(&self.submits.to_be_bytes());
        let low = self.dice.place(256 / shards);
        raw[15] = u8::try_from(low * shards + shard).expect("below 256 as low < 256 / shards");
        JobId::from_bytes(raw)
    }

    /// What the command of a job does.
    pub(super) fn command_of(&self, job: JobId) -> Command {
        let index: ClientIndex = self.ledger.owners[&job];
        self.clients[index].command.clone()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Arrive(client) => self.on_arrive(client),
            Step::Upload(life, client, job) => self.on_upload(life, client, job),
            Step::Uploaded(life, client, job) => self.on_uploaded(life, client, job),
            Step::Hangup(life, job) => self.on_hangup(life, job),
            Step::Accepted(client, job) => self.on_accepted(client, job),
            Step::Wait(client) => self.on_wait(client),
            Step::Stop(client) => self.on_stop(client),
            Step::Feed(life, shard, event) => self.feed(life, shard, event),
            Step::Due(life, shard, job, timer, number) => {
                self.on_due(life, shard, job, timer, number)
            }
            Step::Work(life, shard, job, task) => self.on_work(life, shard, job, task),
            Step::NewCrew(life, shard) => self.employ(life, shard),
            Step::Heard(life, keeper, message) => self.on_heard(life, keeper, message),
            Step::Passed(life, shard, keeper, message) => {
                self.on_message(life, shard, keeper, message)
            }
            Step::Commanded(keeper, command) => self.on_command(keeper, command),
            Step::SpawnerReads(keeper) => self.on_spawner_reads(keeper),
            Step::SpawnerClones(keeper) => self.on_spawner_clones(keeper),
            Step::SpawnerBears(keeper) => self.on_spawner_bears(keeper),
            Step::InitUp(number) => self.on_init_up(number),
            Step::Exec(number) => self.on_exec(number),
            Step::Ends(number, status) => self.on_command_end(number, status),
            Step::OutOfMemory(number) => self.on_out_of_memory(number),
            Step::LogFull(number) => self.on_log_full(number),
            Step::Dies(number) => self.on_death(number),
            Step::KeeperReads(number) => self.on_keeper_reads(number),
            Step::Commit => self.on_commit(),
            Step::Stored(life, shard, job, answer) => self.on_stored(life, shard, job, answer),
            Step::SpawnerFault => {
                if let Some(keeper) = self.some_keeper() {
                    self.end_spawner(keeper);
                }
            }
            Step::KeeperFault => {
                if let Some(keeper) = self.some_keeper() {
                    self.end_keeper(keeper);
                }
            }
            Step::PowerFault => self.lose_power(),
            Step::StoreFull(is_full) => self.store.is_full = is_full,
            Step::Crash => self.crash(),
            Step::Start => self.on_start(),
            Step::Drain => self.feed_all(&Event::Close),
            Step::HandOver => {
                self.feed_all(&Event::Close);
                self.agenda.after(5 * MS, Step::Crash);
            }
            Step::Down => self.feed_all(&Event::Shutdown),
        }
    }

    /// One that lives and has something to lose, if there is any.
    fn some_keeper(&mut self) -> Option<KeeperId> {
        let alive = self.keepers.iter().filter(|(_, keeper)| keeper.is_alive);
        let alive: Vec<KeeperId> = alive.map(|(id, _)| *id).collect();
        (!alive.is_empty()).then(|| alive[self.dice.place(alive.len())])
    }

    fn feed_all(&mut self, event: &Event) {
        let Some(daemon) = &self.daemon else { return };
        let (life, shards) = (daemon.life, daemon.shards.len());
        for shard in 0..shards {
            self.feed(life, shard, event.clone());
        }
    }
}

/// Runs one seed until nothing is left to happen, and holds every step against the invariants.
///
/// # Errors
/// The first rule that is broken.
pub(super) fn simulate(seed: u64, planted: Planted) -> Result<Summary, Box<Broken>> {
    let mut world = World::new(seed, planted);
    let mut steps = 0;
    let check = |world: &World, rules: &[invariants::Rule]| {
        for (rule, holds) in rules {
            holds(world).map_err(|what| {
                let trace = world.trace.tail(400);
                Box::new(Broken {
                    seed,
                    rule,
                    what,
                    trace,
                })
            })?;
        }
        Ok::<_, Box<Broken>>(())
    };
    while let Some(step) = world.agenda.next() {
        steps += 1;
        world.take(step);
        check(&world, invariants::ALWAYS)?;
        if steps >= STEPS_MAX {
            check(&world, invariants::NEVER)?;
        }
    }
    check(&world, invariants::AT_REST)?;
    let runs = world.ledger.runs.values().map(|runs| *runs as usize).sum();
    Ok(Summary {
        hash: world.trace.hash(),
        steps,
        jobs: world.store.rows.len(),
        runs,
        crashes: world.lives - 1,
    })
}

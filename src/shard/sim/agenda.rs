//! Virtual time: what is going to happen, and in which order.
//!
//! Delays come from the dice, so that anything may overtake anything; only what travels through one socket, ring or
//! queue keeps its order: that is a [`Channel`].

use std::collections::BTreeMap;

use super::{
    crew::{Command, KeeperId, Message},
    kernel::Incarnation,
    making::Task,
    store::Answer,
};
use crate::{
    job::{JobId, ShardIndex},
    shard::effect::{Event, ExitStatus, Timer},
};

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000_000;

/// Which daemon: counted from 1, one more with each start.
pub(super) type Life = u32;

/// Position of a client in the list of all.
pub(super) type ClientIndex = usize;

/// What happens at some moment. What belongs to a daemon carries its life, and is nothing once that is over.
#[derive(Debug)]
pub(super) enum Step {
    /// A client sends its submit.
    Arrive(ClientIndex),
    /// A client's upload of this job goes on.
    Upload(Life, ClientIndex, JobId),
    /// A client's upload is written, and it says that this was all.
    Uploaded(Life, ClientIndex, JobId),
    /// The connection of a client that uploads breaks.
    Hangup(Life, JobId),
    /// A client has heard that this job is accepted.
    Accepted(ClientIndex, JobId),
    /// A client asks for the end of its job and waits for it.
    Wait(ClientIndex),
    /// A client asks its job to stop.
    Stop(ClientIndex),
    /// Something comes to a shard that only its own driver could tell.
    Feed(Life, ShardIndex, Event),
    /// A timer falls due, if it is still the one that was set as number so-and-so.
    Due(Life, ShardIndex, JobId, Timer, u64),
    /// A task of a shard goes on.
    Work(Life, ShardIndex, JobId, Task),
    /// A shard has a new crew.
    NewCrew(Life, ShardIndex),
    /// A keeper's message arrives at the shard that hears it.
    Heard(Life, KeeperId, Message),
    /// That shard has passed it on to this one.
    Passed(Life, ShardIndex, KeeperId, Message),
    /// A command arrives at a keeper.
    Commanded(KeeperId, Command),
    /// A spawner reads its next recipe.
    SpawnerReads(KeeperId),
    /// It clones the job's first process.
    SpawnerClones(KeeperId),
    /// It tells the keeper what came of that.
    SpawnerBears(KeeperId),
    /// init executes and looks for a go.
    InitUp(Incarnation),
    /// init has got its go and starts the command.
    Exec(Incarnation),
    /// The command ends.
    Ends(Incarnation, ExitStatus),
    /// Memory runs out in the job.
    OutOfMemory(Incarnation),
    /// The job's output reaches its limit.
    LogFull(Incarnation),
    /// Every process of the job is dead.
    Dies(Incarnation),
    /// The keeper reads what init has written, and whether it has ended.
    KeeperReads(Incarnation),
    /// The store commits what waits.
    Commit,
    /// The store's answer arrives at a shard.
    Stored(Life, ShardIndex, JobId, Answer),
    /// Some spawner is killed.
    SpawnerFault,
    /// Some keeper is killed.
    KeeperFault,
    /// The host loses power.
    PowerFault,
    /// The disk of the store is full, or has space again.
    StoreFull(bool),
    /// The daemon is killed.
    Crash,
    /// A daemon starts.
    Start,
    /// The daemon is asked to admit nothing, and goes when every job has ended.
    Drain,
    /// The daemon is asked to leave its jobs to the next one.
    HandOver,
    /// The daemon is asked to end every job.
    Down,
}

/// What keeps its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Channel {
    /// A keeper's socket, to the daemon.
    FromKeeper(KeeperId),
    /// The same, from the daemon.
    ToKeeper(KeeperId),
    /// The mailbox between two shards.
    Mail(ShardIndex, ShardIndex),
    /// The store's answers to a shard.
    Store(ShardIndex),
}

/// Everything that is going to happen.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    steps: BTreeMap<(u64, u64), Step>,
    channels: BTreeMap<Channel, u64>,
    now: u64,
    next: u64,
}

impl Agenda {
    /// Virtual time, nanoseconds since the run began.
    pub(super) const fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn after(&mut self, delay: u64, step: Step) {
        self.put(self.now + delay, step);
    }

    /// Not before what is in `channel` already.
    pub(super) fn through(&mut self, channel: Channel, delay: u64, step: Step) {
        let last = self.channels.entry(channel).or_default();
        *last = (*last).max(self.now + delay);
        let at = *last;
        self.put(at, step);
    }

    fn put(&mut self, at: u64, step: Step) {
        self.steps.insert((at, self.next), step);
        self.next += 1;
    }

    /// The next step; it is that late then.
    pub(super) fn next(&mut self) -> Option<Step> {
        let ((at, _), step) = self.steps.pop_first()?;
        self.now = at;
        Some(step)
    }
}

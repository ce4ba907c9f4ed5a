//! What must hold: after every step, and when everything has come to rest.

use super::{ledger::Verdict, trace::Short, world::World};
use crate::{
    job::{JobId, State},
    shard::core::{Core, Phase},
};

/// What is wrong, if something is.
pub(super) type Finding = Result<(), String>;

/// A rule and its name.
pub(super) type Rule = (&'static str, fn(&World) -> Finding);

/// Rules that hold after every step.
pub(super) const ALWAYS: &[Rule] = &[
    (
        "no rule is broken where it applies",
        no_rule_is_broken_on_the_spot,
    ),
    ("no command runs twice", no_command_runs_twice),
    ("no command runs unrecorded", no_command_runs_unrecorded),
    ("no refused job runs", no_refused_job_runs),
    ("no promised job is forgotten", no_promised_job_is_forgotten),
    ("no job with a helper is lost", no_job_with_a_helper_is_lost),
    ("what was told stays true", what_was_told_stays_true),
    ("the books add up", the_books_add_up),
    ("running means executed", running_means_executed),
    (
        "an end is noted before its signal",
        an_end_is_noted_before_its_signal,
    ),
];

/// Rules that hold when nothing is left to happen.
pub(super) const AT_REST: &[Rule] = &[
    ("every job has ended", every_job_has_ended),
    ("every client was told", every_client_was_told),
    (
        "what was told is what the store says",
        what_was_told_is_stored,
    ),
    ("refused jobs leave nothing", refused_jobs_leave_nothing),
    ("nothing is left", nothing_is_left),
    (
        "a shard that is closed says when it is empty",
        closed_shards_say_so,
    ),
];

/// What is broken when there is no rest.
pub(super) const NEVER: &[Rule] = &[("it comes to rest", |_| Err("it goes on and on".to_owned()))];

fn cores(world: &World) -> impl Iterator<Item = &Core> {
    world
        .daemon
        .iter()
        .flat_map(|daemon| daemon.shards.iter().map(|shard| &shard.core))
}

fn none(found: Option<impl std::fmt::Display>, what: &str) -> Finding {
    found.map_or(Ok(()), |found| Err(format!("{found} {what}")))
}

fn no_rule_is_broken_on_the_spot(world: &World) -> Finding {
    world.ledger.broken.clone().map_or(Ok(()), Err)
}

fn no_command_runs_twice(world: &World) -> Finding {
    let twice = world.ledger.runs.iter().find(|(_, runs)| **runs > 1);
    none(twice.map(|(id, _)| Short(*id)), "ran more than once")?;
    // A submit that is repeated with its key is the same one.
    for (index, client) in world.clients.iter().enumerate() {
        let mine = |id| world.ledger.owners.get(id) == Some(&index);
        let ran: Vec<_> = world.ledger.runs.keys().filter(|id| mine(*id)).collect();
        if client.key.is_some() && ran.len() > 1 {
            return Err(format!(
                "client {index} has one key and its jobs {ran:?} ran"
            ));
        }
    }
    Ok(())
}

fn no_command_runs_unrecorded(world: &World) -> Finding {
    let mut ran = world.ledger.runs.keys();
    let unknown = ran.find(|id| !world.store.rows.contains_key(id));
    none(unknown.map(|id| Short(*id)), "ran and is not in the store")
}

fn no_refused_job_runs(world: &World) -> Finding {
    let mut refused = world.ledger.refused.iter();
    let ran = refused.find(|id| world.ledger.runs.contains_key(id));
    none(ran.map(|id| Short(*id)), "was refused and ran")
}

fn no_promised_job_is_forgotten(world: &World) -> Finding {
    let mut promised = world.ledger.promised.iter();
    let unknown = promised.find(|id| !world.store.rows.contains_key(id));
    none(
        unknown.map(|id| Short(*id)),
        "was accepted and is not in the store",
    )
}

fn no_job_with_a_helper_is_lost(world: &World) -> Finding {
    let first = world.ledger.lost_alive.first();
    none(
        first.map(|id| Short(*id)),
        "is said to be lost, and its keeper and spawner live",
    )
}

/// What was told of ends that the store had.
fn certainly_told(world: &World) -> impl Iterator<Item = (&JobId, &Verdict)> {
    let told = world.ledger.told.iter();
    told.filter(|(id, _)| !world.ledger.unsure.contains(id))
}

fn what_was_told_stays_true(world: &World) -> Finding {
    for (id, told) in certainly_told(world) {
        let stored = world.store.rows.get(id).and_then(Verdict::of);
        if stored.as_ref().is_some_and(|stored| stored != told) {
            return Err(format!(
                "{} was told to be {told:?} and is stored as {stored:?}",
                Short(*id)
            ));
        }
    }
    Ok(())
}

fn the_books_add_up(world: &World) -> Finding {
    for core in cores(world) {
        let count = |holds: &dyn Fn(&crate::shard::core::Job) -> bool| {
            core.jobs.values().filter(|job| holds(job)).count()
        };
        let slots = count(&|job| job.has_slot);
        let ended = count(&|job| matches!(job.phase, Phase::Ended { .. }));
        let waiting = count(&|job| job.phase == Phase::Waiting);
        let counted = (core.starting, core.ended, core.waiting.len());
        if (slots, ended, waiting) != counted || core.live() + ended != core.jobs.len() {
            return Err(format!(
                "slots, ended and waiting are {slots} {ended} {waiting}, counted {counted:?}"
            ));
        }
        if waiting > 0 && core.starting < core.limits.starts_max {
            return Err("a job waits and there is a slot".to_owned());
        }
    }
    Ok(())
}

fn running_means_executed(world: &World) -> Finding {
    for core in cores(world) {
        let mut running = core.views().filter(|view| view.state == State::Running);
        let lie = running.find(|view| !world.ledger.runs.contains_key(&view.id));
        none(
            lie.map(|view| Short(view.id)),
            "is said to run and does not",
        )?;
    }
    Ok(())
}

fn an_end_is_noted_before_its_signal(world: &World) -> Finding {
    let first = world.ledger.unnoted.first();
    none(
        first.map(|id| Short(*id)),
        "is ended and the store was not told why",
    )
}

fn every_job_has_ended(world: &World) -> Finding {
    let mut rows = world.store.rows.values();
    let live = rows.find(|row| row.outcome.is_none());
    none(live.map(|row| Short(row.id)), "has not ended")
}

fn every_client_was_told(world: &World) -> Finding {
    let waits = world.clients.iter().position(|client| client.waits);
    none(waits, "is a client that still waits")?;
    let asks = world.clients.iter().position(|client| client.is_asking);
    none(asks, "is a client whose submit was never answered")
}

fn what_was_told_is_stored(world: &World) -> Finding {
    for (id, told) in certainly_told(world) {
        let stored = world.store.rows.get(id).and_then(Verdict::of);
        if stored.as_ref() != Some(told) {
            return Err(format!(
                "{} was told to be {told:?} and is stored as {stored:?}",
                Short(*id)
            ));
        }
    }
    Ok(())
}

fn refused_jobs_leave_nothing(world: &World) -> Finding {
    let mut refused = world.ledger.refused.iter();
    let kept = refused.find(|id| world.store.rows.contains_key(id));
    none(kept.map(|id| Short(*id)), "was refused and is in the store")
}

fn nothing_is_left(world: &World) -> Finding {
    none(
        world.kernel.leaves.keys().next().map(|id| Short(*id)),
        "has a leaf",
    )?;
    for (keeper, it) in world.keepers.iter().filter(|(_, it)| it.is_alive) {
        let entry = it.entries.first();
        none(
            entry.map(|entry| Short(entry.job)),
            &format!("is held by keeper {keeper}"),
        )?;
    }
    for shard in world.daemon.iter().flat_map(|daemon| &daemon.shards) {
        none(
            shard.core.jobs.keys().next().map(|id| Short(*id)),
            "is in memory",
        )?;
        none(
            shard.bodies.keys().next().map(|id| Short(*id)),
            "has a body",
        )?;
        none(
            shard.timers.keys().next().map(|(id, _)| Short(*id)),
            "has a timer",
        )?;
        none(
            shard.holders.keys().next().map(|id| Short(*id)),
            "has a holder",
        )?;
        none(
            shard.waiters.keys().next().map(|id| Short(*id)),
            "is waited for",
        )?;
        none(
            shard.submitters.keys().next().map(|id| Short(*id)),
            "has a submitter",
        )?;
    }
    Ok(())
}

fn closed_shards_say_so(world: &World) -> Finding {
    let shards = world.daemon.iter().flat_map(|daemon| &daemon.shards);
    let mut closed = shards.enumerate().filter(|(_, shard)| shard.core.is_closed);
    let silent = closed.find(|(_, shard)| !shard.has_all_ended);
    none(
        silent.map(|(index, _)| index),
        "is a shard that does not say that all has ended",
    )
}

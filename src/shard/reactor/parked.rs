//! Jobs that wait for their time or for the daemon's queue: nothing of the host is theirs yet.
//!
//! ```text
//! scheduled once ─── due ──► queued ─── granted ──► waiting to be made
//! scheduled again and again ─── due ──► a job of its own is submitted; the schedule waits for its next time
//! ```
//! The wall clock decides. What ran is remembered as the moment it ran, so a clock that is set back repeats nothing.

use super::{end_at_once, fill_slots, finish};
use crate::{
    job::{JobId, State},
    shard::{
        core::{Alive, Cause, Core, Phase, Record},
        effect::{Effect, Moment},
    },
};

pub(super) fn on_due(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    // What is due while the daemon ends is due again under the next one.
    if core.is_closed {
        return;
    }
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Scheduled { next_ns } = job.phase else {
        return;
    };
    if job.record != Record::Kept {
        return; // It is set when the store has it.
    }
    if now.wall_ns < next_ns {
        // The clock was set back meanwhile.
        return out.push(Effect::SetAlarm(id, next_ns));
    }
    let Some(schedule) = job.spec.schedule.clone().filter(|one| one.repeats()) else {
        core.scheduled -= 1;
        job.last_run_ns = Some(now.wall_ns);
        job.arrived_mono_ns = now.mono_ns;
        return park_or_make(core, now, id, out);
    };
    out.push(Effect::Repeat(id, next_ns));
    // Never the same time again, wherever the clock is now.
    let last_ns = now.wall_ns.max(next_ns);
    job.last_run_ns = Some(last_ns);
    let created_ns = job.transitions.first().map_or(0, |first| first.wall_ns);
    match schedule.next_run(created_ns, Some(last_ns)) {
        Some(next_ns) => {
            job.phase = Phase::Scheduled { next_ns };
            out.push(Effect::RecordProgress(id));
            out.push(Effect::SetAlarm(id, next_ns));
        }
        None => {
            let over = Alive {
                cause: Some(Cause::Canceled),
                ..Alive::default()
            };
            finish(core, now, id, &over, Default::default(), out);
        }
    }
}

/// Brings a job whose time has come to the daemon's queue, or past it where there is none.
pub(super) fn park_or_make(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    if core.limits.has_queue {
        job.enter(State::Queued, now);
        job.phase = Phase::Queued {
            waits_for: "its turn".to_owned(),
        };
        job.has_place = true;
        core.queued += 1;
        out.push(Effect::RecordProgress(id));
        out.push(Effect::Ask(id));
    } else {
        make(core, now, id, out);
    }
}

fn make(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    job.enter(State::Initializing, now);
    job.phase = Phase::Waiting;
    core.waiting.push_back(id);
    fill_slots(core, out);
}

pub(super) fn on_granted(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    if matches!(job.phase, Phase::Queued { .. }) {
        core.queued -= 1;
        make(core, now, id, out);
    }
}

pub(super) fn on_waits(core: &mut Core, id: JobId, why: String) {
    if let Some(job) = core.jobs.get_mut(&id)
        && let Phase::Queued { waits_for } = &mut job.phase
    {
        *waits_for = why;
    }
}

/// Takes back a job that has not begun; one that has is left alone.
pub(super) fn on_cancel(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get(&id) else {
        return;
    };
    if matches!(job.phase, Phase::Scheduled { .. } | Phase::Queued { .. }) {
        end_at_once(core, now, id, Cause::Canceled, out);
    }
}

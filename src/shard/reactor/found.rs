//! Jobs of a former daemon: what it leaves is taken over, made again, or said to be lost.
//!
//! A keeper that holds a job tells its story from the beginning, so the job stands where it stood when its recipe
//! was sent. A job of which nothing ran yet is made as if it had just been accepted. Of any other nobody knows
//! how it ended.

use std::sync::Arc;

use super::{fill_slots, finish};
use crate::{
    job::{JobId, JobView, Reason, State},
    shard::{
        core::{Alive, Cause, Core, Job, Phase, Record},
        effect::{Effect, FoundJob, Moment, Timer, Whereabouts},
    },
};

pub(super) fn on_found(core: &mut Core, now: Moment, found: FoundJob, out: &mut Vec<Effect>) {
    let FoundJob { view, whereabouts } = found;
    if view.outcome.is_some() || core.jobs.contains_key(&view.id) {
        return;
    }
    let id = view.id;
    let ending = view.ending.as_ref().and_then(cause_of);
    // Uploads of a job whose sandbox is gone are gone with it.
    let is_lost = match whereabouts {
        Whereabouts::Held => false,
        Whereabouts::NotBegun => view.spec.uploads.is_some(),
        Whereabouts::Lost => true,
    };
    let log = view.log;
    let mut job = job(view, now);
    if whereabouts == Whereabouts::Held {
        // Its birth is heard of next, and then it is let go once more: nobody knows whether it was.
        job.phase = Phase::Making {
            sent: false,
            cause: None,
        };
        job.was_ending = ending;
        job.has_slot = true;
        job.made_mono_ns = Some(job.arrived_mono_ns);
        core.starting += 1;
        core.jobs.insert(id, job);
    } else if is_lost || ending.is_some() {
        core.jobs.insert(id, job);
        let alive = Alive {
            cause: ending.or(Some(Cause::HostLost)),
            ..Alive::default()
        };
        finish(core, now, id, &alive, (log, None), out);
    } else {
        core.jobs.insert(id, job);
        core.waiting.push_back(id);
        fill_slots(core, out);
    }
}

/// Goes on with an end that a former daemon had begun; whoever was given time is given it once more.
pub(super) fn end_again(
    core: &mut Core,
    now: Moment,
    id: JobId,
    ending: Cause,
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Alive(alive) = &mut job.phase else {
        return;
    };
    let is_asked = match ending {
        Cause::Timeout | Cause::Stopped { .. } | Cause::DaemonDown => true,
        Cause::LogLimit
        | Cause::OutOfMemory
        | Cause::HostLost
        | Cause::Abandoned
        | Cause::StartFailed(_)
        | Cause::NotFound
        | Cause::NotExecutable(_) => false,
    };
    alive.cause = Some(ending);
    job.enter(State::Stopping, now);
    if is_asked {
        out.push(Effect::Signal(id, libc::SIGTERM));
        let end = now.instant + job.spec.grace;
        out.push(Effect::SetTimer(id, Timer::Grace, end));
    } else {
        out.push(Effect::Kill(id));
    }
}

fn job(view: JobView, now: Moment) -> Job {
    let arrived = view.transitions.first().map(|first| first.mono_ns);
    Job {
        owner: view.owner,
        spec: Arc::clone(&view.spec),
        work: view.work,
        caveats: view.caveats,
        // The clock begins anew with each boot.
        arrived_mono_ns: arrived
            .filter(|at| *at <= now.mono_ns)
            .unwrap_or(now.mono_ns),
        made_mono_ns: None,
        transitions: view
            .transitions
            .into_iter()
            .filter(|transition| transition.state == State::Initializing)
            .collect(),
        record: Record::Kept,
        has_slot: false,
        was_ending: None,
        phase: Phase::Waiting,
    }
}

/// Why the former daemon was ending it.
fn cause_of(ending: &Reason) -> Option<Cause> {
    match ending {
        Reason::Timeout => Some(Cause::Timeout),
        Reason::Stopped { by } => Some(Cause::Stopped { by: by.clone() }),
        Reason::OutOfMemory => Some(Cause::OutOfMemory),
        Reason::LogLimit => Some(Cause::LogLimit),
        Reason::DaemonDown => Some(Cause::DaemonDown),
        Reason::HostLost => Some(Cause::HostLost),
        // Nobody ends a job for these.
        Reason::Exited
        | Reason::Signaled
        | Reason::Canceled
        | Reason::StartFailed { .. }
        | Reason::CommandNotFound
        | Reason::CommandNotExecutable { .. } => None,
    }
}

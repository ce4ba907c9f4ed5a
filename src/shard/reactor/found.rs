//! Jobs of a former daemon: what it leaves is taken over, made again, or said to be lost.
//!
//! A keeper that holds a job tells its story from the beginning, so the job stands where it stood when its recipe
//! was sent. A job of which nothing ran yet is made as if it had just been accepted. Of any other nobody knows
//! how it ended.

use std::sync::Arc;

use super::{finish, parked::park_or_make};
use crate::{
    job::{JobId, JobView, Reason, State},
    shard::{
        core::{Alive, Cause, Core, Job, Phase, Record},
        effect::{Effect, FoundJob, Moment, Timer, Whereabouts},
    },
};

pub(super) fn on_found(core: &mut Core, now: Moment, found: FoundJob, out: &mut Vec<Effect>) {
    let FoundJob {
        view,
        whereabouts,
        has_spool,
    } = found;
    if view.outcome.is_some() || core.jobs.contains_key(&view.id) {
        return;
    }
    let id = view.id;
    let ending = view.ending.as_ref().and_then(cause_of);
    // Uploads of a job whose sandbox is gone are gone with it.
    let is_lost = match whereabouts {
        Whereabouts::Held => false,
        Whereabouts::NotBegun => view.spec.uploads.is_some() && !has_spool,
        Whereabouts::Lost => true,
    };
    let log = view.log;
    let next_ns = (view.state == State::Scheduled)
        .then(|| next_run(&view))
        .flatten();
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
        job.has_place = core.limits.has_queue;
        if !job.has_begun {
            job.enter(State::Initializing, now);
            out.push(Effect::RecordBegun(id));
        }
        core.jobs.insert(id, job);
        if core.limits.has_queue {
            out.push(Effect::Claim(id));
        }
    } else if let (Some(next_ns), false) = (next_ns, is_lost) {
        job.phase = Phase::Scheduled { next_ns };
        core.scheduled += 1;
        core.jobs.insert(id, job);
        out.push(Effect::SetAlarm(id, next_ns));
    } else if is_lost || ending.is_some() {
        core.jobs.insert(id, job);
        let alive = Alive {
            cause: ending.or(Some(Cause::HostLost)),
            ..Alive::default()
        };
        finish(core, now, id, &alive, (log, None), out);
    } else {
        core.jobs.insert(id, job);
        park_or_make(core, now, id, out);
    }
}

/// Whether a job waits, as far as the store knows: then its command was never let go.
pub(in crate::shard) const fn is_parked(state: State) -> bool {
    matches!(state, State::Scheduled | State::Queued)
}

/// When a job that waits for its time runs next.
fn next_run(view: &JobView) -> Option<i64> {
    let created_ns = view.transitions.first().map_or(0, |first| first.wall_ns);
    view.next_run_ns.or_else(|| {
        let schedule = view.spec.schedule.as_ref()?;
        schedule.next_run(created_ns, view.last_run_ns)
    })
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
        | Cause::Canceled
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
            .filter(|transition| match transition.state {
                State::Scheduled | State::Queued | State::Initializing => true,
                // They are told once more.
                State::Running
                | State::Stopping
                | State::Completed
                | State::Failed
                | State::Stopped
                | State::Timeout
                | State::Canceled => false,
            })
            .collect(),
        record: Record::Kept,
        has_slot: false,
        has_begun: !is_parked(view.state),
        has_place: false,
        schedule_id: view.schedule_id,
        last_run_ns: view.last_run_ns,
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

//! The rules of a job's life: a pure function from state and event to effects.
//!
//! It reads no clock, touches no file and never waits. An event that cannot apply any more (a timer of a
//! job that has ended, a second stop) is no error: it does nothing. [`on`] refuses only a submit.

use std::{sync::Arc, time::Duration};

use super::{
    conclude::{Beginning, conclude},
    core::{Alive, Cause, Core, Job, Phase, Record},
    effect::{Effect, Event, ExecFailure, Exit, Moment, NewJob, Start, StartFailure, Timer},
};
use crate::job::{JobId, LogTotals, Refusal, RefusalCode, State, StopSignal, Usage};

mod found;
mod parked;

pub(super) use found::is_parked;

/// Takes one event. Effects are pushed in the order in which they must be performed.
///
/// # Errors
/// A [`Refusal`] for a submit that cannot be admitted; the core is then unchanged.
pub fn on(
    core: &mut Core,
    now: Moment,
    event: Event,
    out: &mut Vec<Effect>,
) -> Result<(), Refusal> {
    core.now_mono_ns = now.mono_ns;
    match event {
        Event::Submit(job) => return on_submit(core, now, *job, out),
        Event::Accept(id) => on_accept(core, id, out),
        Event::Abandon(id) => on_abandon(core, now, id, out),
        Event::Recorded(id, result) => on_recorded(core, now, id, result, out),
        Event::EndRecorded(id) => on_end_recorded(core, id, out),
        Event::Found(job) => found::on_found(core, now, *job, out),
        Event::PrepareFailed(id, failure) | Event::StepFailed(id, failure) => {
            on_start_failed(core, now, id, failure, out);
        }
        Event::Sent(id) => on_sent(core, id, out),
        Event::Born(id) => on_born(core, now, id, out),
        Event::Unsent(id) => on_unsent(core, now, id, out),
        Event::Started(id, result) => on_started(core, now, id, result, out),
        Event::Exited(id, exit) => on_exited(core, id, exit),
        Event::Reaped(id) => on_reaped(core, id, out),
        Event::Gone(id) => on_gone(core, id, out),
        Event::Orphaned(id) => on_orphaned(core, now, id, out),
        Event::Drained(id, log, usage) => on_drained(core, now, id, (log, usage), out),
        // Output can be heard of before its job's birth is.
        Event::LogLimit(id) => end_at_once(core, now, id, Cause::LogLimit, out),
        Event::OutOfMemory(id) => end_at_once(core, now, id, Cause::OutOfMemory, out),
        Event::Stop { id, by, signal } => {
            on_stop(core, now, id, Cause::Stopped { by }, signal, out)
        }
        Event::Begun(id) => parked::on_begun(core, id, out),
        Event::Granted(id) => parked::on_granted(core, now, id, out),
        Event::Waits(id, why) => parked::on_waits(core, id, why),
        Event::Due(id) => parked::on_due(core, now, id, out),
        Event::Cancel(id) => parked::on_cancel(core, now, id, out),
        Event::Timer(id, Timer::Timeout) => {
            on_stop(core, now, id, Cause::Timeout, StopSignal::Term, out)
        }
        Event::Timer(id, Timer::Grace) => on_grace_over(core, id, out),
        Event::Close => on_close(core, out),
        Event::Shutdown => on_shutdown(core, now, out),
    }
    Ok(())
}

fn on_submit(
    core: &mut Core,
    now: Moment,
    new: NewJob,
    out: &mut Vec<Effect>,
) -> Result<(), Refusal> {
    if core.is_closed {
        return Err(Refusal::new(
            RefusalCode::Busy,
            "joblet is going down and admits no jobs",
        ));
    }
    admit(core, &new.start)?;
    let mut job = Job {
        owner: new.owner,
        spec: Arc::new(new.spec),
        work: new.work,
        caveats: new.caveats,
        arrived_mono_ns: new.arrived_mono_ns,
        made_mono_ns: None,
        transitions: Vec::with_capacity(3),
        record: Record::Open,
        has_slot: false,
        has_begun: new.start == Start::Now,
        has_place: new.has_place,
        schedule_id: new.schedule_id,
        last_run_ns: None,
        was_ending: None,
        phase: Phase::Waiting,
    };
    match new.start {
        Start::Now => job.enter(State::Initializing, now),
        Start::Queued(waits_for) => {
            job.enter(State::Queued, now);
            job.phase = Phase::Queued { waits_for };
            core.queued += 1;
        }
        Start::At(next_ns) => {
            job.enter(State::Scheduled, now);
            job.phase = Phase::Scheduled { next_ns };
            core.scheduled += 1;
        }
    }
    let is_waiting = job.phase == Phase::Waiting;
    let replaced = core.jobs.insert(new.id, job);
    debug_assert!(replaced.is_none(), "job ids are unique");
    if is_waiting {
        core.waiting.push_back(new.id);
        fill_slots(core, out);
    }
    Ok(())
}

/// Whether one more job fits.
fn admit(core: &Core, start: &Start) -> Result<(), Refusal> {
    match start {
        Start::Now => {
            let max = core.limits.live_jobs_max;
            if core.held() + core.waiting.len() < max {
                return Ok(());
            }
            Err(Refusal::new(
                RefusalCode::Busy,
                format!("{max} jobs are alive on this shard and no more fit"),
            )
            .hint("wait for some to end; the bound follows from the daemon's limit of open files"))
        }
        // The queue has counted it.
        Start::Queued(_) => Ok(()),
        Start::At(_) => {
            let max = core.limits.scheduled_max;
            if core.scheduled < max {
                return Ok(());
            }
            Err(Refusal::new(
                RefusalCode::Busy,
                format!("{max} jobs are scheduled on this shard and no more fit"),
            )
            .hint("`rnx schedule list` shows those that repeat; remove what is not needed"))
        }
    }
}

/// Lets waiting jobs in, oldest first.
fn fill_slots(core: &mut Core, out: &mut Vec<Effect>) {
    while core.starting < core.limits.starts_max && core.held() < core.limits.live_jobs_max {
        let Some(id) = core.waiting.pop_front() else {
            return;
        };
        let Some(job) = core.jobs.get_mut(&id) else {
            continue;
        };
        job.phase = Phase::Making {
            sent: false,
            cause: None,
        };
        job.has_slot = true;
        job.made_mono_ns = Some(core.now_mono_ns);
        core.starting += 1;
        out.push(Effect::Prepare(id));
    }
}

fn free_slot(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    if let Some(job) = core.jobs.get_mut(&id)
        && std::mem::take(&mut job.has_slot)
    {
        core.starting -= 1;
        fill_slots(core, out);
    }
}

/// The client has given everything. What was accepted is acknowledged, and run, when the store has it.
fn on_accept(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    match job.record {
        // It ended meanwhile, and is recorded with its end.
        Record::Open if matches!(job.phase, Phase::Ended { .. }) => job.record = Record::Closing,
        Record::Open => {
            job.record = Record::Writing;
            out.push(Effect::RecordAccepted(id));
        }
        Record::Writing | Record::Kept | Record::Closing => {}
    }
}

fn on_abandon(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get(&id) else {
        return;
    };
    if job.record == Record::Open {
        end_at_once(core, now, id, Cause::Abandoned, out);
    }
}

fn on_recorded(
    core: &mut Core,
    now: Moment,
    id: JobId,
    result: Result<(), Refusal>,
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    if job.record != Record::Writing {
        return;
    }
    let is_kept = result.is_ok();
    out.push(Effect::Answer(id, result));
    if !is_kept {
        // Nobody was promised anything, and nothing of it has run: whatever it was ending of, it never was.
        if matches!(job.phase, Phase::Ended { .. }) {
            core.ended -= 1;
            return discard(core, id, out);
        }
        job.record = Record::Open;
        match &mut job.phase {
            Phase::Making {
                cause: cause @ Some(_),
                ..
            } => *cause = Some(Cause::Abandoned),
            Phase::Alive(Alive {
                cause: cause @ Some(_),
                ..
            })
            | Phase::Draining(Alive { cause, .. }) => *cause = Some(Cause::Abandoned),
            Phase::Scheduled { .. }
            | Phase::Queued { .. }
            | Phase::Waiting
            | Phase::Making { .. }
            | Phase::Alive(_)
            | Phase::Ended { .. } => {}
        }
        return end_at_once(core, now, id, Cause::Abandoned, out);
    }
    job.record = Record::Kept;
    match &job.phase {
        Phase::Making { cause: None, .. } | Phase::Alive(Alive { cause: None, .. }) => {
            go_if_sent(job, id, out);
        }
        Phase::Making { cause: Some(_), .. } | Phase::Alive(_) => {
            out.push(Effect::RecordProgress(id));
        }
        Phase::Scheduled { next_ns } => out.push(Effect::SetAlarm(id, *next_ns)),
        Phase::Ended { .. } => out.push(Effect::RecordEnded(id)),
        Phase::Queued { .. } | Phase::Waiting | Phase::Draining(_) => {}
    }
}

/// Lets a job go that has waited for nothing but the store.
fn go_if_sent(job: &Job, id: JobId, out: &mut Vec<Effect>) {
    let is_sent = match &job.phase {
        Phase::Making { sent, cause } => *sent && cause.is_none(),
        Phase::Alive(alive) => alive.cause.is_none() && alive.started_mono_ns.is_none(),
        Phase::Scheduled { .. }
        | Phase::Queued { .. }
        | Phase::Waiting
        | Phase::Draining(_)
        | Phase::Ended { .. } => false,
    };
    if is_sent && job.record == Record::Kept && job.has_begun {
        out.push(Effect::Go(id));
    }
}

/// The store has the outcome: the keeper need not hold it any more, and neither need we.
fn on_end_recorded(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get(&id) else {
        return;
    };
    if !matches!(job.phase, Phase::Ended { .. }) || job.record == Record::Writing {
        return;
    }
    if job.record == Record::Closing {
        out.push(Effect::Answer(id, Ok(())));
    }
    core.jobs.remove(&id);
    core.ended -= 1;
    out.push(Effect::Release(id));
    out.push(Effect::Forget(id));
    tell_when_all_ended(core, out);
}

/// Jobs whose time has not come are left to the next daemon.
fn tell_when_all_ended(core: &Core, out: &mut Vec<Effect>) {
    if core.is_closed && core.jobs.len() == core.scheduled {
        out.push(Effect::AllEnded);
    }
}

fn on_sent(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Making { sent, cause } = &mut job.phase else {
        return;
    };
    *sent = true;
    if cause.is_some() {
        out.push(Effect::Kill(id));
    } else if job.record == Record::Kept && job.has_begun {
        out.push(Effect::Go(id));
    }
}

fn on_born(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Making { sent, cause } = &mut job.phase else {
        return;
    };
    let (is_known_sent, cause) = (*sent, cause.take());
    if let Some(ending) = job.was_ending.take() {
        job.phase = Phase::Alive(Alive::default());
        free_slot(core, id, out);
        return found::end_again(core, now, id, ending, out);
    }
    if cause.is_some() {
        // It was killed before it was born: the first kill found an empty cgroup.
        out.push(Effect::Kill(id));
    } else if job.record == Record::Kept && job.has_begun && !is_known_sent {
        // Its birth came in before the word that its recipe was sent.
        out.push(Effect::Go(id));
    }
    job.phase = Phase::Alive(Alive {
        cause,
        ..Alive::default()
    });
    free_slot(core, id, out);
}

fn on_unsent(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Making { sent, cause } = &mut job.phase else {
        return;
    };
    *sent = false;
    match cause.take() {
        None => out.push(Effect::Prepare(id)),
        Some(cause) => finish(
            core,
            now,
            id,
            &Alive {
                cause: Some(cause),
                ..Alive::default()
            },
            Default::default(),
            out,
        ),
    }
}

fn on_start_failed(
    core: &mut Core,
    now: Moment,
    id: JobId,
    failure: StartFailure,
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Making { cause, .. } = &mut job.phase else {
        // It was born before the word came that a limit of it could not be set: it is never let go.
        if matches!(job.phase, Phase::Alive(_)) {
            end_at_once(core, now, id, Cause::StartFailed(failure), out);
        }
        return;
    };
    let cause = cause.take().unwrap_or(Cause::StartFailed(failure));
    job.phase = Phase::Draining(Alive {
        cause: Some(cause),
        ..Alive::default()
    });
    out.push(Effect::Drain(id));
    free_slot(core, id, out);
}

fn on_started(
    core: &mut Core,
    now: Moment,
    id: JobId,
    result: Result<u64, ExecFailure>,
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Alive(alive) = &mut job.phase else {
        return;
    };
    match result {
        Ok(at) => {
            alive.started_mono_ns = Some(at);
            if alive.cause.is_none() {
                job.enter(State::Running, stamped(now, at));
                if let Some(timeout) = job.spec.timeout {
                    let end = now.instant + timeout.saturating_sub(since(now, at));
                    out.push(Effect::SetTimer(id, Timer::Timeout, end));
                }
            }
        }
        // init ends by itself now; what we were about to do to the job no longer matters.
        Err(failure) => {
            alive.cause.get_or_insert(match failure {
                ExecFailure::NotFound => Cause::NotFound,
                ExecFailure::NotExecutable(errno) => Cause::NotExecutable(errno),
                ExecFailure::Step(failure) => Cause::StartFailed(failure),
            });
        }
    }
}

fn on_exited(core: &mut Core, id: JobId, exit: Exit) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    if let Phase::Alive(alive) = &mut job.phase {
        alive.exit.get_or_insert(exit);
    }
}

/// How the command ended is known and nothing of the job runs any more. That its init, which is ours, takes a while to
/// die is nobody's business but of whoever gives back what it lives in.
fn on_reaped(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let has_exited = core
        .jobs
        .get(&id)
        .is_some_and(|job| matches!(&job.phase, Phase::Alive(alive) if alive.exit.is_some()));
    if has_exited {
        on_gone(core, id, out);
    }
}

fn on_gone(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Alive(alive) = &mut job.phase else {
        return;
    };
    job.phase = Phase::Draining(std::mem::take(alive));
    out.push(Effect::Drain(id));
}

fn on_orphaned(core: &mut Core, now: Moment, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    match &mut job.phase {
        Phase::Making { cause, .. } => {
            let cause = cause.take().unwrap_or(Cause::HostLost);
            job.phase = Phase::Draining(Alive {
                cause: Some(cause),
                ..Alive::default()
            });
        }
        Phase::Alive(alive) => {
            let mut alive = std::mem::take(alive);
            if alive.exit.is_none() {
                alive.cause.get_or_insert(Cause::HostLost);
            }
            job.phase = Phase::Draining(alive);
        }
        Phase::Scheduled { .. }
        | Phase::Queued { .. }
        | Phase::Waiting
        | Phase::Draining(_)
        | Phase::Ended { .. } => return,
    }
    job.enter(State::Stopping, now);
    out.push(Effect::Drain(id));
    free_slot(core, id, out);
}

fn on_stop(
    core: &mut Core,
    now: Moment,
    id: JobId,
    cause: Cause,
    signal: StopSignal,
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Alive(alive) = &mut job.phase else {
        return end_at_once(core, now, id, cause, out);
    };
    if alive.exit.is_some() {
        return; // It ends by itself, and that came first.
    }
    if alive.started_mono_ns.is_none() {
        return end_at_once(core, now, id, cause, out);
    }
    let is_timeout = cause == Cause::Timeout;
    if alive.cause.is_some() {
        // A second stop may bring another signal; the cause and the grace stay with the first.
        if !is_timeout {
            out.push(Effect::Signal(id, number(signal)));
        }
        return;
    }
    alive.cause = Some(cause);
    job.enter(State::Stopping, now);
    out.push(Effect::RecordProgress(id));
    out.push(Effect::Signal(id, number(signal)));
    out.push(Effect::SetTimer(
        id,
        Timer::Grace,
        now.instant + job.spec.grace,
    ));
}

/// Ends a job without asking it: its command has not started, or has lost the right to be asked.
fn end_at_once(core: &mut Core, now: Moment, id: JobId, why: Cause, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    match &mut job.phase {
        Phase::Scheduled { .. } | Phase::Queued { .. } | Phase::Waiting => {
            // A job that never began is taken back, whoever asks for its end.
            let why = if matches!(why, Cause::Stopped { .. }) {
                Cause::Canceled
            } else {
                why
            };
            core.waiting.retain(|waiting| *waiting != id);
            finish(
                core,
                now,
                id,
                &Alive {
                    cause: Some(why),
                    ..Alive::default()
                },
                Default::default(),
                out,
            );
        }
        Phase::Making { sent, cause } => {
            if cause.is_none() {
                *cause = Some(why);
                // It may have been let go, by us or by a former daemon; and it is not to be made again.
                if job.record == Record::Kept {
                    out.push(Effect::RecordProgress(id));
                }
                if *sent {
                    out.push(Effect::Kill(id));
                }
                job.enter(State::Stopping, now);
            }
        }
        Phase::Alive(alive) => {
            if alive.cause.is_none() && alive.exit.is_none() {
                alive.cause = Some(why);
                job.enter(State::Stopping, now);
                if job.record == Record::Kept {
                    out.push(Effect::RecordProgress(id));
                }
                out.push(Effect::Kill(id));
            }
        }
        Phase::Draining(_) | Phase::Ended { .. } => {}
    }
}

fn on_grace_over(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get(&id) else {
        return;
    };
    if let Phase::Alive(_) = job.phase {
        out.push(Effect::Kill(id));
    }
}

fn on_drained(
    core: &mut Core,
    now: Moment,
    id: JobId,
    totals: (LogTotals, Option<Usage>),
    out: &mut Vec<Effect>,
) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    let Phase::Draining(alive) = &mut job.phase else {
        return;
    };
    let alive = std::mem::take(alive);
    finish(core, now, id, &alive, totals, out);
}

fn finish(
    core: &mut Core,
    now: Moment,
    id: JobId,
    alive: &Alive,
    (log, usage): (LogTotals, Option<Usage>),
    out: &mut Vec<Effect>,
) {
    free_slot(core, id, out);
    unpark(core, id, out);
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    if alive.cause == Some(Cause::Abandoned) {
        return discard(core, id, out);
    }
    let beginning = Beginning {
        arrived: job.arrived_mono_ns,
        made: job.made_mono_ns,
    };
    let (state, outcome) = conclude(alive, usage, beginning, now);
    if let Some(at) = alive.started_mono_ns
        && !job
            .transitions
            .iter()
            .any(|transition| transition.state == State::Running)
    {
        // It was being ended when word came that it had started: the record shows both.
        let Moment {
            wall_ns, mono_ns, ..
        } = stamped(now, at);
        let running = crate::job::Transition {
            state: State::Running,
            wall_ns,
            mono_ns,
        };
        job.transitions
            .insert(1.min(job.transitions.len()), running);
    }
    job.enter(state, now);
    job.phase = Phase::Ended { outcome, log };
    core.ended += 1;
    // If the store cannot take the job, it never was, and has no end.
    if job.record != Record::Writing {
        out.push(Effect::RecordEnded(id));
    }
    fill_slots(core, out);
}

/// A job that is over waits neither for its time nor for the queue any more.
fn unpark(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    let Some(job) = core.jobs.get_mut(&id) else {
        return;
    };
    match &job.phase {
        Phase::Scheduled { .. } => core.scheduled -= 1,
        Phase::Queued { .. } => core.queued -= 1,
        Phase::Waiting
        | Phase::Making { .. }
        | Phase::Alive(_)
        | Phase::Draining(_)
        | Phase::Ended { .. } => {}
    }
    if std::mem::take(&mut job.has_place) {
        out.push(Effect::GiveBack(id));
    }
}

/// Forgets a job that never was.
fn discard(core: &mut Core, id: JobId, out: &mut Vec<Effect>) {
    core.jobs.remove(&id);
    out.push(Effect::Release(id));
    out.push(Effect::Forget(id));
    out.push(Effect::DeleteOutput(id));
    fill_slots(core, out);
    tell_when_all_ended(core, out);
}

fn on_close(core: &mut Core, out: &mut Vec<Effect>) {
    if !std::mem::replace(&mut core.is_closed, true) {
        tell_when_all_ended(core, out);
    }
}

fn on_shutdown(core: &mut Core, now: Moment, out: &mut Vec<Effect>) {
    if std::mem::replace(&mut core.is_down, true) {
        return;
    }
    core.is_closed = true;
    let mut live: Vec<JobId> = core
        .jobs
        .iter()
        .filter(|(_, job)| !matches!(job.phase, Phase::Scheduled { .. } | Phase::Ended { .. }))
        .map(|(id, _)| *id)
        .collect();
    live.sort_unstable();
    tell_when_all_ended(core, out);
    for id in live {
        on_stop(core, now, id, Cause::DaemonDown, StopSignal::Term, out);
    }
}

/// How long ago CLOCK_MONOTONIC was `mono_ns`.
const fn since(now: Moment, mono_ns: u64) -> Duration {
    Duration::from_nanos(now.mono_ns.saturating_sub(mono_ns))
}

/// The moment of something that init stamped with `mono_ns`, a little before `now`.
fn stamped(now: Moment, mono_ns: u64) -> Moment {
    let ago = i64::try_from(now.mono_ns.saturating_sub(mono_ns)).unwrap_or(0);
    Moment {
        wall_ns: now.wall_ns - ago,
        mono_ns,
        ..now
    }
}

const fn number(signal: StopSignal) -> i32 {
    match signal {
        StopSignal::Term => libc::SIGTERM,
        StopSignal::Int => libc::SIGINT,
    }
}

#[cfg(test)]
mod tests;

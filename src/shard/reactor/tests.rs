//! Stories of single jobs, and random sequences held against what must always be true.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::{
    job::{Outcome, Reason, Schedule, Spec, WorkKind},
    shard::{
        core::CoreLimits,
        effect::{ExitStatus, FoundJob, Whereabouts},
    },
};

const LIMITS: CoreLimits = CoreLimits {
    live_jobs_max: 8,
    starts_max: 2,
    scheduled_max: 4,
    has_queue: false,
};

fn id(n: u8) -> JobId {
    JobId::from_bytes([n; 16])
}

fn new_job(n: u8, timeout: Option<Duration>) -> Event {
    Event::Submit(Box::new(NewJob {
        id: id(n),
        owner: "alice".to_owned(),
        spec: Spec {
            timeout,
            ..Spec::plain()
        },
        work: WorkKind::Memory,
        caveats: Vec::new(),
        arrived_mono_ns: 1_000,
        schedule_id: None,
        start: Start::Now,
        has_place: false,
    }))
}

/// A job that is not to be made at once.
fn later_job(n: u8, start: Start, schedule: Option<Schedule>) -> Event {
    let mut event = new_job(n, None);
    if let Event::Submit(new) = &mut event {
        new.has_place = matches!(start, Start::Queued(_));
        new.start = start;
        new.spec.schedule = schedule;
    }
    event
}

/// Each minute from the epoch on.
fn every() -> Schedule {
    Schedule::Every {
        every: Duration::from_secs(60),
        from_ns: 0,
    }
}

struct Story {
    core: Core,
    now: Moment,
}

impl Story {
    fn new() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to start from"
        )]
        let instant = Instant::now();
        Self {
            core: Core::new(LIMITS),
            now: Moment {
                instant,
                wall_ns: 1_000_000,
                mono_ns: 2_000,
            },
        }
    }

    fn feed(&mut self, event: Event) -> Vec<Effect> {
        self.now.mono_ns += 1_000;
        let mut out = Vec::new();
        on(&mut self.core, self.now, event, &mut out).unwrap();
        out
    }

    /// The client has given everything and the store keeps the job.
    fn accept(&mut self, n: u8) -> Vec<Effect> {
        assert_eq!(
            self.feed(Event::Accept(id(n))),
            [Effect::RecordAccepted(id(n))]
        );
        let mut effects = self.feed(Event::Recorded(id(n), Ok(())));
        assert_eq!(effects.remove(0), Effect::Answer(id(n), Ok(())));
        effects
    }

    fn running(timeout: Option<Duration>) -> Self {
        let mut story = Self::new();
        story.feed(new_job(1, timeout));
        story.accept(1);
        story.feed(Event::Sent(id(1)));
        story.feed(Event::Born(id(1)));
        story.feed(Event::Started(id(1), Ok(3_000)));
        story
    }

    fn outcome(&self) -> (State, Outcome) {
        let view = self.core.view(id(1)).unwrap();
        (view.state, view.outcome.unwrap())
    }

    /// The killed job ends and leaves nothing, for it was never accepted.
    fn vanish(&mut self) {
        self.feed(Event::Gone(id(1)));
        assert_eq!(
            self.feed(Event::Drained(id(1), LogTotals::default(), None)),
            [
                Effect::Release(id(1)),
                Effect::Forget(id(1)),
                Effect::DeleteOutput(id(1))
            ]
        );
        assert!(self.core.jobs.is_empty());
    }

    fn end(&mut self) -> (State, Outcome) {
        assert_eq!(self.feed(Event::Gone(id(1))), [Effect::Drain(id(1))]);
        assert_eq!(
            self.feed(Event::Drained(id(1), LogTotals::default(), None)),
            [Effect::RecordEnded(id(1))],
            "nothing is given back before the store has the end"
        );
        self.outcome()
    }
}

fn exit(status: ExitStatus) -> Event {
    Event::Exited(
        id(1),
        Exit {
            status,
            cpu_user_us: 5,
            cpu_system_us: 6,
        },
    )
}

#[test]
fn output_beyond_its_limit_ends_a_job_even_before_its_birth_is_heard_of() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.accept(1);
    story.feed(Event::Sent(id(1)));
    assert_eq!(
        story.feed(Event::LogLimit(id(1))),
        [Effect::RecordProgress(id(1)), Effect::Kill(id(1))]
    );
    assert_eq!(story.feed(Event::Born(id(1))), [Effect::Kill(id(1))]);
    story.feed(Event::Started(id(1), Ok(3_000)));
    let (state, outcome) = story.end();
    assert_eq!((state, outcome.reason), (State::Failed, Reason::LogLimit));
    assert_eq!(outcome.signal, Some(libc::SIGKILL));
}

#[test]
fn a_job_goes_from_submit_to_completed() {
    let mut story = Story::new();
    assert_eq!(story.feed(new_job(1, None)), [Effect::Prepare(id(1))]);
    assert_eq!(story.accept(1), []);
    assert_eq!(story.feed(Event::Sent(id(1))), [Effect::Go(id(1))]);
    assert_eq!(story.feed(Event::Born(id(1))), []);
    assert_eq!(story.core.view(id(1)).unwrap().state, State::Initializing);
    assert_eq!(story.feed(Event::Started(id(1), Ok(5_000))), []);
    assert_eq!(story.core.view(id(1)).unwrap().state, State::Running);
    assert_eq!(story.feed(exit(ExitStatus::Code(0))), []);
    let (state, outcome) = story.end();
    assert_eq!(state, State::Completed);
    assert_eq!(outcome.reason, Reason::Exited);
    assert_eq!(
        (outcome.exit_code, outcome.signal, outcome.start_micros),
        (Some(0), None, Some(4))
    );
    assert_eq!((story.core.starting, story.core.live()), (0, 0));
}

#[test]
fn a_job_ends_when_only_its_init_is_left_and_not_before_its_command_has_exited() {
    let mut story = Story::running(None);
    assert_eq!(story.feed(Event::Reaped(id(1))), []);
    assert_eq!(story.feed(exit(ExitStatus::Code(0))), []);
    assert_eq!(story.feed(Event::Reaped(id(1))), [Effect::Drain(id(1))]);
    assert_eq!(story.feed(Event::Gone(id(1))), [], "it is drained once");
    story.feed(Event::Drained(id(1), LogTotals::default(), None));
    assert_eq!(story.outcome().0, State::Completed);
}

#[test]
fn go_waits_until_the_store_keeps_the_job() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    assert_eq!(story.feed(Event::Sent(id(1))), []);
    assert_eq!(story.feed(Event::Born(id(1))), []);
    assert_eq!(
        story.feed(Event::Accept(id(1))),
        [Effect::RecordAccepted(id(1))]
    );
    assert_eq!(story.feed(Event::Accept(id(1))), []);
    assert_eq!(
        story.feed(Event::Recorded(id(1), Ok(()))),
        [Effect::Answer(id(1), Ok(())), Effect::Go(id(1))]
    );
    assert_eq!(story.feed(Event::Recorded(id(1), Ok(()))), []);
}

fn full() -> Refusal {
    Refusal::new(RefusalCode::Busy, "full")
}

#[test]
fn a_job_that_the_store_cannot_take_never_was() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Sent(id(1)));
    story.feed(Event::Accept(id(1)));
    assert_eq!(
        story.feed(Event::Recorded(id(1), Err(full()))),
        [Effect::Answer(id(1), Err(full())), Effect::Kill(id(1))]
    );
    assert_eq!(story.feed(Event::Born(id(1))), [Effect::Kill(id(1))]);
    story.vanish();
}

#[test]
fn a_job_that_ended_during_its_upload_is_accepted_when_the_store_has_its_end() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Sent(id(1)));
    story.feed(Event::Born(id(1)));
    story.end();
    assert_eq!(story.feed(Event::Accept(id(1))), []);
    assert_eq!(
        story.feed(Event::EndRecorded(id(1))),
        [
            Effect::Answer(id(1), Ok(())),
            Effect::Release(id(1)),
            Effect::Forget(id(1))
        ]
    );
}

/// A job whose start has failed and that is drained before the store has said whether it keeps it.
fn ended_unrecorded() -> Story {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Accept(id(1)));
    let failure = StartFailure {
        step: "x".to_owned(),
        errno: 1,
    };
    story.feed(Event::PrepareFailed(id(1), failure));
    assert_eq!(
        story.feed(Event::Drained(id(1), LogTotals::default(), None)),
        []
    );
    assert_eq!(story.core.live(), 0);
    story
}

#[test]
fn a_job_that_ended_before_the_store_refused_it_never_was() {
    let mut story = ended_unrecorded();
    assert_eq!(
        story.feed(Event::Recorded(id(1), Err(full()))),
        [
            Effect::Answer(id(1), Err(full())),
            Effect::Release(id(1)),
            Effect::Forget(id(1)),
            Effect::DeleteOutput(id(1))
        ]
    );
    assert_eq!((story.core.jobs.len(), story.core.live()), (0, 0));
}

#[test]
fn a_job_that_ended_before_the_store_kept_it_has_its_end_recorded_then() {
    let mut story = ended_unrecorded();
    assert_eq!(
        story.feed(Event::Recorded(id(1), Ok(()))),
        [Effect::Answer(id(1), Ok(())), Effect::RecordEnded(id(1))]
    );
}

#[test]
fn a_stop_during_the_making_is_noted_so_that_no_daemon_makes_the_job_again() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.accept(1);
    let by = "bob".to_owned();
    let stop = Event::Stop {
        id: id(1),
        by: by.clone(),
        signal: StopSignal::Term,
    };
    assert_eq!(story.feed(stop), [Effect::RecordProgress(id(1))]);
    let mut next = Story::new();
    assert_eq!(
        next.feed(found(
            1,
            Whereabouts::NotBegun,
            Some(Reason::Stopped { by })
        )),
        [Effect::RecordEnded(id(1))]
    );
}

#[test]
fn a_stop_before_the_store_keeps_the_job_is_noted_when_it_does() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Accept(id(1)));
    let stop = Event::Stop {
        id: id(1),
        by: "bob".to_owned(),
        signal: StopSignal::Term,
    };
    assert_eq!(story.feed(stop), []);
    assert_eq!(
        story.feed(Event::Recorded(id(1), Ok(()))),
        [Effect::Answer(id(1), Ok(())), Effect::RecordProgress(id(1))]
    );
}

#[test]
fn a_job_born_before_its_limits_were_refused_is_ended_and_never_let_go() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Accept(id(1)));
    story.feed(Event::Born(id(1)));
    let failure = StartFailure {
        step: "set a limit".to_owned(),
        errno: libc::EIO,
    };
    assert_eq!(
        story.feed(Event::PrepareFailed(id(1), failure)),
        [Effect::Kill(id(1))]
    );
    assert_eq!(
        story.feed(Event::Recorded(id(1), Ok(()))),
        [Effect::Answer(id(1), Ok(())), Effect::RecordProgress(id(1))]
    );
    let (state, outcome) = story.end();
    assert_eq!(state, State::Failed);
    assert!(matches!(outcome.reason, Reason::StartFailed { .. }));
}

#[test]
fn a_job_whose_start_failed_while_the_store_could_not_take_it_never_was() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Accept(id(1)));
    let failure = StartFailure {
        step: "x".to_owned(),
        errno: 1,
    };
    story.feed(Event::PrepareFailed(id(1), failure));
    assert_eq!(
        story.feed(Event::Recorded(id(1), Err(full()))),
        [Effect::Answer(id(1), Err(full()))]
    );
    story.feed(Event::Drained(id(1), LogTotals::default(), None));
    assert!(story.core.jobs.is_empty());
}

#[test]
fn an_ended_job_is_remembered_until_the_store_has_its_end() {
    let mut story = Story::running(None);
    story.feed(exit(ExitStatus::Code(0)));
    story.end();
    assert_eq!((story.core.jobs.len(), story.core.live()), (1, 0));
    assert_eq!(
        story.feed(Event::EndRecorded(id(1))),
        [Effect::Release(id(1)), Effect::Forget(id(1))]
    );
    assert_eq!((story.core.jobs.len(), story.core.live()), (0, 0));
    assert_eq!(story.feed(Event::EndRecorded(id(1))), []);
}

#[test]
fn stop_while_running_sends_term_and_arms_the_grace_timer() {
    let mut story = Story::running(None);
    let stop = Event::Stop {
        id: id(1),
        by: "bob".to_owned(),
        signal: StopSignal::Term,
    };
    let at = story.now.instant + Duration::from_secs(10);
    assert_eq!(
        story.feed(stop),
        [
            Effect::RecordProgress(id(1)),
            Effect::Signal(id(1), libc::SIGTERM),
            Effect::SetTimer(id(1), Timer::Grace, at)
        ]
    );
    assert_eq!(
        story.feed(Event::Timer(id(1), Timer::Grace)),
        [Effect::Kill(id(1))]
    );
    let (state, outcome) = story.end();
    assert_eq!(state, State::Stopped);
    assert_eq!(
        outcome.reason,
        Reason::Stopped {
            by: "bob".to_owned()
        }
    );
    assert_eq!(outcome.signal, Some(libc::SIGKILL));
}

#[test]
fn a_timeout_ends_as_timeout_even_when_the_command_then_exits_by_itself() {
    let mut story = Story::running(Some(Duration::from_secs(1)));
    assert_eq!(story.feed(Event::Timer(id(1), Timer::Timeout)).len(), 3);
    story.feed(exit(ExitStatus::Code(0)));
    let (state, outcome) = story.end();
    assert_eq!((state, outcome.reason), (State::Timeout, Reason::Timeout));
}

#[test]
fn a_stop_that_comes_after_the_exit_changes_nothing() {
    let mut story = Story::running(None);
    story.feed(exit(ExitStatus::Code(3)));
    let stop = Event::Stop {
        id: id(1),
        by: "bob".to_owned(),
        signal: StopSignal::Term,
    };
    assert_eq!(story.feed(stop), []);
    let (state, outcome) = story.end();
    assert_eq!(
        (state, outcome.reason, outcome.exit_code),
        (State::Failed, Reason::Exited, Some(3))
    );
}

#[test]
fn what_init_could_not_start_is_named() {
    fn check(failure: ExecFailure, expected: Reason) {
        let mut story = Story::new();
        story.feed(new_job(1, None));
        story.accept(1);
        story.feed(Event::Sent(id(1)));
        story.feed(Event::Born(id(1)));
        assert_eq!(story.feed(Event::Started(id(1), Err(failure))), []);
        let (state, outcome) = story.end();
        assert_eq!((state, outcome.reason), (State::Failed, expected));
        assert_eq!(
            (outcome.exit_code, outcome.signal, outcome.start_micros),
            (None, None, None)
        );
    }
    check(ExecFailure::NotFound, Reason::CommandNotFound);
    check(
        ExecFailure::NotExecutable(13),
        Reason::CommandNotExecutable { errno: 13 },
    );
    let failure = StartFailure {
        step: "workdir".to_owned(),
        errno: 2,
    };
    check(
        ExecFailure::Step(failure),
        Reason::StartFailed {
            step: "workdir".to_owned(),
            errno: 2,
        },
    );
}

#[test]
fn a_failed_step_ends_the_job_with_its_name_and_frees_the_slot() {
    let mut story = Story::new();
    for n in 1..=3 {
        story.feed(new_job(n, None));
        story.accept(n);
    }
    assert_eq!((story.core.starting, story.core.waiting.len()), (2, 1));
    let failure = StartFailure {
        step: "mount proc".to_owned(),
        errno: libc::EPERM,
    };
    assert_eq!(
        story.feed(Event::StepFailed(id(1), failure.clone())),
        [Effect::Drain(id(1)), Effect::Prepare(id(3))]
    );
    story.feed(Event::Drained(id(1), LogTotals::default(), None));
    let (state, outcome) = story.outcome();
    assert_eq!(state, State::Failed);
    assert_eq!(
        outcome.reason,
        Reason::StartFailed {
            step: failure.step,
            errno: failure.errno
        }
    );
}

#[test]
fn a_job_killed_before_it_is_born_is_killed_again_when_it_is() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.accept(1);
    story.feed(Event::Sent(id(1)));
    let stop = Event::Stop {
        id: id(1),
        by: "bob".to_owned(),
        signal: StopSignal::Term,
    };
    assert_eq!(
        story.feed(stop),
        [Effect::RecordProgress(id(1)), Effect::Kill(id(1))]
    );
    assert_eq!(story.feed(Event::Born(id(1))), [Effect::Kill(id(1))]);
    let (state, _) = story.end();
    assert_eq!(state, State::Stopped);
}

#[test]
fn a_birth_that_comes_before_the_word_that_its_recipe_was_sent_lets_it_go() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.accept(1);
    assert_eq!(story.feed(Event::Born(id(1))), [Effect::Go(id(1))]);
    assert_eq!(story.feed(Event::Sent(id(1))), []);
}

#[test]
fn an_abandoned_upload_leaves_no_trace() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.feed(Event::Sent(id(1)));
    story.feed(Event::Born(id(1)));
    assert_eq!(story.feed(Event::Abandon(id(1))), [Effect::Kill(id(1))]);
    story.vanish();
}

#[test]
fn a_recipe_the_spawner_never_read_is_sent_again() {
    let mut story = Story::new();
    story.feed(new_job(1, None));
    story.accept(1);
    story.feed(Event::Sent(id(1)));
    assert_eq!(story.feed(Event::Unsent(id(1))), [Effect::Prepare(id(1))]);
    assert_eq!(story.feed(Event::Sent(id(1))), [Effect::Go(id(1))]);
}

#[test]
fn a_full_shard_and_a_shard_going_down_refuse() {
    let mut story = Story::new();
    for n in 1..=8 {
        story.feed(new_job(n, None));
    }
    let mut out = Vec::new();
    let refusal = on(&mut story.core, story.now, new_job(9, None), &mut out).unwrap_err();
    assert_eq!((refusal.code, out), (RefusalCode::Busy, vec![]));
    story.feed(Event::Shutdown);
    let refusal = on(
        &mut story.core,
        story.now,
        new_job(9, None),
        &mut Vec::new(),
    )
    .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Busy);
}

fn event() -> impl Strategy<Value = Event> {
    let job = (1u8..=10).prop_map(id);
    prop_oneof![
        (1u8..=10, proptest::bool::ANY)
            .prop_map(|(n, limited)| new_job(n, limited.then_some(Duration::from_secs(1)))),
        (1u8..=10).prop_map(|n| later_job(n, Start::Queued("its turn".to_owned()), None)),
        (1u8..=10, 0i64..4_000_000).prop_map(|(n, at)| later_job(n, Start::At(at), None)),
        (1u8..=10, 0i64..4_000_000).prop_map(|(n, at)| later_job(n, Start::At(at), Some(every()))),
        job.clone().prop_map(Event::Accept),
        job.clone().prop_map(Event::Abandon),
        job.clone().prop_map(|id| Event::Recorded(id, Ok(()))),
        job.clone().prop_map(|id| Event::Recorded(id, Err(full()))),
        job.clone().prop_map(Event::EndRecorded),
        job.clone().prop_map(Event::Granted),
        job.clone().prop_map(Event::Due),
        job.clone().prop_map(Event::Cancel),
        job.clone().prop_map(|id| Event::PrepareFailed(
            id,
            StartFailure {
                step: "x".to_owned(),
                errno: 1
            }
        )),
        job.clone().prop_map(Event::Sent),
        job.clone().prop_map(Event::Born),
        job.clone().prop_map(Event::Unsent),
        job.clone().prop_map(|id| Event::StepFailed(
            id,
            StartFailure {
                step: "x".to_owned(),
                errno: 1
            }
        )),
        job.clone().prop_map(|id| Event::Started(id, Ok(7))),
        job.clone()
            .prop_map(|id| Event::Started(id, Err(ExecFailure::NotFound))),
        job.clone().prop_map(|id| Event::Exited(
            id,
            Exit {
                status: ExitStatus::Code(0),
                cpu_user_us: 0,
                cpu_system_us: 0
            }
        )),
        job.clone().prop_map(Event::Reaped),
        job.clone().prop_map(Event::Gone),
        job.clone().prop_map(Event::Orphaned),
        job.clone()
            .prop_map(|id| Event::Drained(id, LogTotals::default(), None)),
        job.clone().prop_map(Event::LogLimit),
        job.clone().prop_map(|id| Event::Stop {
            id,
            by: "bob".to_owned(),
            signal: StopSignal::Int
        }),
        job.clone().prop_map(|id| Event::Timer(id, Timer::Timeout)),
        job.prop_map(|id| Event::Timer(id, Timer::Grace)),
        Just(Event::Shutdown),
    ]
}

proptest! {
    /// Whatever comes in whatever order: one outcome a job, one release, slots add up, and no command is
    /// let go twice for one recipe or without an acceptance.
    #[test]
    fn random_events_keep_the_books(events in proptest::collection::vec(event(), 0..200)) {
        let mut story = Story::new();
        let mut ended: HashSet<JobId> = HashSet::new();
        let mut released: HashMap<JobId, u32> = HashMap::new();
        for event in events {
            let submitted = if let Event::Submit(job) = &event { Some(job.id) } else { None };
            if submitted.is_some_and(|id| story.core.jobs.contains_key(&id) || ended.contains(&id)) {
                continue;
            }
            let mut out = Vec::new();
            story.now.mono_ns += 1;
            let _ = on(&mut story.core, story.now, event, &mut out);
            if let Some(id) = submitted {
                released.remove(&id);
            }
            for effect in &out {
                if let Effect::RecordEnded(id) = effect {
                    prop_assert!(ended.insert(*id), "{id} ended twice");
                }
                if let Effect::Release(id) = effect {
                    let times = released.entry(*id).or_default();
                    *times += 1;
                    prop_assert_eq!(*times, 1, "released twice");
                }
                if let Effect::Go(id) = effect {
                    prop_assert_eq!(story.core.jobs[id].record, Record::Kept, "go before the store keeps it");
                }
            }
            let slots = story.core.jobs.values().filter(|job| job.has_slot).count();
            prop_assert_eq!(slots, story.core.starting);
            prop_assert!(slots <= LIMITS.starts_max);
            let waiting = story.core.jobs.values().filter(|job| job.phase == Phase::Waiting).count();
            prop_assert_eq!(waiting, story.core.waiting.len());
            let over = story.core.jobs.values().filter(|job| matches!(job.phase, Phase::Ended { .. }));
            prop_assert_eq!(over.count(), story.core.ended);
            let count = |is: fn(&Phase) -> bool| story.core.jobs.values().filter(|job| is(&job.phase)).count();
            prop_assert_eq!(count(|phase| matches!(phase, Phase::Scheduled { .. })), story.core.scheduled);
            prop_assert_eq!(count(|phase| matches!(phase, Phase::Queued { .. })), story.core.queued);
            for (id, job) in &story.core.jobs {
                let is_over = matches!(job.phase, Phase::Ended { .. });
                prop_assert_eq!(is_over, job.state().has_ended(), "state and phase of {} disagree", id);
                // The end of a job that the store may refuse is not offered to it.
                let is_offered = is_over && job.record != Record::Writing;
                prop_assert_eq!(is_offered, ended.contains(id));
            }
        }
    }
}

/// A job of a former daemon as its store has it.
fn found(n: u8, whereabouts: Whereabouts, ending: Option<Reason>) -> Event {
    let mut story = Story::new();
    story.feed(new_job(n, Some(Duration::from_secs(60))));
    let mut view = story.core.view(id(n)).unwrap();
    view.ending = ending;
    Event::Found(Box::new(FoundJob {
        view,
        whereabouts,
        has_spool: false,
    }))
}

#[test]
fn a_job_that_a_keeper_holds_goes_on_where_it_is() {
    let mut story = Story::new();
    assert_eq!(story.feed(found(1, Whereabouts::Held, None)), []);
    // Nobody knows whether it was let go; twice is once.
    assert_eq!(story.feed(Event::Born(id(1))), [Effect::Go(id(1))]);
    story.now.mono_ns = 20_000_000_000;
    let at = story.now.instant + Duration::from_secs(50);
    assert_eq!(
        story.feed(Event::Started(id(1), Ok(10_000_001_000))),
        [Effect::SetTimer(id(1), Timer::Timeout, at)],
        "of its minute ten seconds were over"
    );
    assert_eq!(story.core.view(id(1)).unwrap().state, State::Running);
    story.feed(exit(ExitStatus::Code(4)));
    let (state, outcome) = story.end();
    assert_eq!((state, outcome.exit_code), (State::Failed, Some(4)));
}

#[test]
fn a_job_that_was_being_stopped_is_stopped_with_its_grace_once_more() {
    let mut story = Story::new();
    let by = "bob".to_owned();
    let ending = Some(Reason::Stopped { by: by.clone() });
    story.feed(found(1, Whereabouts::Held, ending));
    let at = story.now.instant + Duration::from_secs(10);
    assert_eq!(
        story.feed(Event::Born(id(1))),
        [
            Effect::Signal(id(1), libc::SIGTERM),
            Effect::SetTimer(id(1), Timer::Grace, at)
        ]
    );
    assert_eq!(story.feed(Event::Started(id(1), Ok(3_000))), []);
    let (state, outcome) = story.end();
    assert_eq!(
        (state, outcome.reason),
        (State::Stopped, Reason::Stopped { by })
    );
}

#[test]
fn a_job_that_had_not_begun_is_made_again_and_one_that_may_have_run_is_lost() {
    let mut story = Story::new();
    assert_eq!(
        story.feed(found(1, Whereabouts::NotBegun, None)),
        [Effect::Prepare(id(1))]
    );
    assert_eq!(story.feed(Event::Sent(id(1))), [Effect::Go(id(1))]);
    assert_eq!(
        story.feed(found(2, Whereabouts::Lost, None)),
        [Effect::RecordEnded(id(2))]
    );
    let view = story.core.view(id(2)).unwrap();
    assert_eq!(view.outcome.unwrap().reason, Reason::HostLost);
}

const MINUTE_NS: i64 = 60_000_000_000;

#[test]
fn a_job_that_is_scheduled_once_is_made_when_its_time_has_come() {
    let mut story = Story::new();
    let at = story.now.wall_ns + 5;
    assert_eq!(story.feed(later_job(1, Start::At(at), None)), []);
    assert_eq!(story.accept(1), [Effect::SetAlarm(id(1), at)]);
    assert_eq!(story.core.view(id(1)).unwrap().next_run_ns, Some(at));
    assert_eq!(
        story.feed(Event::Due(id(1))),
        [Effect::SetAlarm(id(1), at)],
        "the clock was set back"
    );
    story.now.wall_ns = at;
    assert_eq!(
        story.feed(Event::Due(id(1))),
        [Effect::RecordBegun(id(1)), Effect::Prepare(id(1))]
    );
    assert_eq!(story.feed(Event::Due(id(1))), []);
    let view = story.core.view(id(1)).unwrap();
    assert_eq!((view.state, view.next_run_ns), (State::Initializing, None));
    // A daemon that found it waiting in the store would make it again.
    assert_eq!(story.feed(Event::Sent(id(1))), []);
    assert_eq!(story.feed(Event::Begun(id(1))), [Effect::Go(id(1))]);
    assert_eq!(story.feed(Event::Begun(id(1))), []);
}

#[test]
fn a_schedule_that_repeats_stays_and_never_runs_the_same_time_twice() {
    let mut story = Story::new();
    story.feed(later_job(1, Start::At(MINUTE_NS), Some(every())));
    story.accept(1);
    // Down for three of its times: one run, then the next regular time.
    story.now.wall_ns = 3 * MINUTE_NS + 7;
    assert_eq!(
        story.feed(Event::Due(id(1))),
        [
            Effect::Repeat(id(1), MINUTE_NS),
            Effect::RecordProgress(id(1)),
            Effect::SetAlarm(id(1), 4 * MINUTE_NS)
        ]
    );
    story.now.wall_ns = MINUTE_NS;
    assert_eq!(
        story.feed(Event::Due(id(1))),
        [Effect::SetAlarm(id(1), 4 * MINUTE_NS)]
    );
    let view = story.core.view(id(1)).unwrap();
    assert_eq!(view.state, State::Scheduled);
    assert_eq!(view.last_run_ns, Some(3 * MINUTE_NS + 7));
}

#[test]
fn a_queued_job_is_made_when_it_is_granted_and_gives_its_place_back() {
    let mut story = Story::new();
    let why = "2 of 2 jobs run".to_owned();
    assert_eq!(
        story.feed(later_job(1, Start::Queued(why.clone()), None)),
        []
    );
    assert_eq!(story.accept(1), []);
    let view = story.core.view(id(1)).unwrap();
    assert_eq!((view.state, view.waits_for), (State::Queued, Some(why)));
    assert_eq!(
        story.feed(Event::Granted(id(1))),
        [Effect::RecordBegun(id(1)), Effect::Prepare(id(1))]
    );
    assert_eq!(story.feed(Event::Begun(id(1))), []);
    assert_eq!(story.feed(Event::Sent(id(1))), [Effect::Go(id(1))]);
    story.feed(Event::Born(id(1)));
    story.feed(Event::Started(id(1), Ok(3_000)));
    story.feed(exit(ExitStatus::Code(0)));
    story.feed(Event::Gone(id(1)));
    assert_eq!(
        story.feed(Event::Drained(id(1), LogTotals::default(), None)),
        [Effect::GiveBack(id(1)), Effect::RecordEnded(id(1))]
    );
}

#[test]
fn a_job_that_has_not_begun_can_be_canceled_or_stopped_and_one_that_has_only_stopped() {
    for event in [
        Event::Cancel(id(1)),
        Event::Stop {
            id: id(1),
            by: "bob".to_owned(),
            signal: StopSignal::Term,
        },
    ] {
        let mut story = Story::new();
        story.feed(later_job(1, Start::At(MINUTE_NS), Some(every())));
        story.accept(1);
        assert_eq!(story.feed(event), [Effect::RecordEnded(id(1))]);
        let (state, outcome) = story.outcome();
        assert_eq!((state, outcome.reason), (State::Canceled, Reason::Canceled));
    }
    let mut story = Story::running(None);
    assert_eq!(story.feed(Event::Cancel(id(1))), []);
}

#[test]
fn a_daemon_that_ends_leaves_scheduled_jobs_and_ends_queued_ones() {
    let mut story = Story::new();
    story.feed(later_job(1, Start::At(MINUTE_NS), None));
    story.accept(1);
    story.feed(later_job(2, Start::Queued(String::new()), None));
    story.accept(2);
    assert_eq!(
        story.feed(Event::Shutdown),
        [Effect::GiveBack(id(2)), Effect::RecordEnded(id(2))]
    );
    story.now.wall_ns = 2 * MINUTE_NS;
    assert_eq!(story.feed(Event::Due(id(1))), []);
    assert_eq!(
        story.feed(Event::EndRecorded(id(2))),
        [
            Effect::Release(id(2)),
            Effect::Forget(id(2)),
            Effect::AllEnded
        ]
    );
    assert_eq!(story.core.view(id(1)).unwrap().state, State::Scheduled);
}

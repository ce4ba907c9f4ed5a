//! What a request about several jobs asks for, and what it is told.

use std::fmt;

use super::{JobId, JobView, State};

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListQuery {
    /// Only jobs in this state.
    pub state: Option<State>,
    /// Only schedules: jobs that repeat, not their repetitions.
    pub schedules: bool,
    /// At most so many.
    pub limit: usize,
    /// Only jobs behind this place.
    pub before: Option<Cursor>,
}

impl ListQuery {
    /// Whether `job` is asked for, the limit aside.
    #[must_use]
    pub fn includes(&self, job: &JobView) -> bool {
        self.state.is_none_or(|state| state == job.state)
            && (!self.schedules || job.is_schedule())
            && self.before.is_none_or(|before| Cursor::of(job) < before)
    }

    /// Brings jobs into order and to the limit; says where to go on when there were more of them.
    #[must_use]
    pub fn page(&self, mut jobs: Vec<JobView>) -> (Vec<JobView>, Option<Cursor>) {
        jobs.sort_by_cached_key(|job| std::cmp::Reverse(Cursor::of(job)));
        let has_more = jobs.len() > self.limit;
        jobs.truncate(self.limit);
        let next = jobs.last().filter(|_| has_more).map(Cursor::of);
        (jobs, next)
    }
}

/// A place in the list of all jobs. A later one is greater; two of one moment are ordered by their id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// When the job was created, nanoseconds since the epoch.
    pub created_ns: i64,
    /// The job.
    pub id: JobId,
}

impl Cursor {
    /// Where `job` stands.
    #[must_use]
    pub fn of(job: &JobView) -> Self {
        Self {
            created_ns: job.transitions.first().map_or(0, |first| first.wall_ns),
            id: job.id,
        }
    }
}

/// How many jobs were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// So many are gone.
    pub deleted: u64,
    /// So many are still there: they have not ended, or may not be deleted by the one who asked.
    pub skipped: u64,
}

/// What makes two submits of one owner the same.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Chosen by the client.
    pub key: String,
    /// SHA-256 of everything that was asked for: another one under the same key is another request.
    pub fingerprint: [u8; 32],
}

impl fmt::Debug for IdempotencyKey {
    /// Without the fingerprint, from which a short secret in the environment could be guessed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// A job that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub id: JobId,
    /// An earlier submit with the same idempotency key made it.
    pub existing: bool,
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::job::{LogTotals, Schedule, Spec, Transition, WorkKind};

    fn job(id: u8, created_ns: i64, state: State, schedule: Option<Schedule>) -> JobView {
        let spec = Spec {
            schedule,
            ..Spec::plain()
        };
        JobView {
            id: JobId::from_bytes([id; 16]),
            owner: "alice".into(),
            state,
            spec: Arc::new(spec),
            work: WorkKind::Memory,
            caveats: Vec::new(),
            transitions: vec![Transition {
                state,
                wall_ns: created_ns,
                mono_ns: 0,
            }],
            ending: None,
            outcome: None,
            log: LogTotals::default(),
            schedule_id: None,
            next_run_ns: None,
            last_run_ns: None,
            waits_for: None,
        }
    }

    #[test]
    fn pages_hold_every_job_once_also_those_of_one_moment() {
        let jobs: Vec<_> = (0..20)
            .map(|n| job(n, i64::from(n / 7), State::Running, None))
            .collect();
        for limit in 1..=21 {
            let (mut before, mut seen) = (None, Vec::new());
            loop {
                let query = ListQuery {
                    state: None,
                    schedules: false,
                    limit,
                    before,
                };
                let some: Vec<_> = jobs.iter().filter(|j| query.includes(j)).cloned().collect();
                let (page, next) = query.page(some);
                assert!(page.len() <= limit);
                seen.extend(page.iter().map(Cursor::of));
                if next.is_none() {
                    break;
                }
                before = next;
            }
            let mut expected: Vec<_> = jobs.iter().map(Cursor::of).collect();
            expected.reverse();
            assert_eq!(seen, expected, "pages of {limit}");
        }
    }

    #[test]
    fn only_jobs_that_repeat_are_schedules() {
        let every = Schedule::Every {
            every: Duration::from_secs(1),
            from_ns: 0,
        };
        let query = ListQuery {
            state: None,
            schedules: true,
            limit: 9,
            before: None,
        };
        let once = Schedule::Once { at_ns: 5 };
        assert!(!query.includes(&job(1, 0, State::Scheduled, None)));
        assert!(!query.includes(&job(1, 0, State::Scheduled, Some(once))));
        let mut repeating = job(1, 0, State::Scheduled, Some(every));
        assert!(query.includes(&repeating));
        // A repetition was asked for by the same words.
        repeating.schedule_id = Some(JobId::from_bytes([9; 16]));
        assert!(!query.includes(&repeating));
    }

    #[test]
    fn a_fingerprint_is_never_printed() {
        let key = IdempotencyKey {
            key: "k".into(),
            fingerprint: [0xab; 32],
        };
        assert_eq!(format!("{key:?}"), r#"IdempotencyKey { key: "k", .. }"#);
    }
}

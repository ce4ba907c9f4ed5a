//! When a job runs: once at a time, at equal intervals, or by a cron expression. Pure: no clock.
//!
//! ```text
//! submit ─► next_run(submit, None) ─► due ─► run, remember the moment ─► next_run(submit, moment) ─► …
//! ```
//! The rules, whoever keeps the time:
//! - **The wall clock decides.** A schedule is due when the wall clock has reached its next run. Whoever waits
//!   looks at the wall clock again when it has been set.
//! - **Missed runs** (daemon down, clock set forward): a one-shot runs at once; a repetition runs once, however
//!   many times were missed, and then at its next regular time.
//! - **A clock that is set back never repeats an occurrence.** What ran is remembered as the moment it ran, and the
//!   next run is always later than that. Until the clock is there again, nothing runs.
//! - **`Every` counts from the submit**, not from the last run, so delays do not add up.
//!
//! Cron times are those of a time zone, by rules that are part of this program (it reads no file). In the hour
//! that a change of the clocks leaves out, an expression with one minute and one hour runs at the first moment
//! after it, and any other has no such times. In the hour that comes twice, the former runs the first time only,
//! and the latter both times.

use std::time::Duration;

use croner::{Cron, errors::CronError, parser::CronParser};
use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};
use thiserror::Error;

use crate::limits;

const NS: i64 = 1_000_000_000;

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Once.
    Once {
        /// Then, nanoseconds since the epoch.
        at_ns: i64,
    },
    /// Again and again, at equal intervals.
    Every {
        /// The interval.
        every: Duration,
        /// What it counts from, nanoseconds since the epoch: the first run is one interval later.
        from_ns: i64,
    },
    /// Whenever a cron expression matches.
    Cron {
        /// Minute, hour, day of the month, month, day of the week.
        expression: String,
        /// Name of the time zone that it means, as `Europe/Berlin` or `UTC`.
        zone: String,
    },
}

/// Why a schedule makes no sense.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ScheduleError {
    /// Shorter or longer than may be asked for.
    #[error("a schedule of {} seconds", .0.as_secs_f64())]
    Duration(Duration),
    /// Further away than may be asked for.
    #[error("a schedule for a time that is more than a year away")]
    Far,
    /// Long over.
    #[error("a schedule for a time that is more than a day ago")]
    Past,
    /// Not five fields that mean something.
    #[error("cron expression {expression:?} {what}")]
    Expression {
        /// The expression, or its beginning.
        expression: String,
        /// What is wrong with it.
        what: String,
    },
    /// It matches no time.
    #[error("cron expression {0:?} never comes true")]
    Never(String),
    /// There is no such time zone.
    #[error("time zone {0:?} is not known")]
    Zone(String),
}

impl Schedule {
    /// Once, `delay` after `now_ns`.
    ///
    /// # Errors
    /// [`ScheduleError::Duration`] outside of a second to a year.
    pub fn once_after(delay: Duration, now_ns: i64) -> Result<Self, ScheduleError> {
        check_duration(delay)?;
        let delay_ns = i64::try_from(delay.as_nanos()).expect("a year is below 2^63 nanoseconds");
        Ok(Self::Once {
            at_ns: now_ns.saturating_add(delay_ns),
        })
    }

    /// Whether it may be accepted at `now_ns`.
    ///
    /// A time that is just over is accepted and due at once: a submit that is sent again because its answer was
    /// lost must not be refused because time went on.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub fn check(&self, now_ns: i64) -> Result<(), ScheduleError> {
        match self {
            Self::Once { at_ns } => {
                let away = i128::from(*at_ns) - i128::from(now_ns);
                if away > nanos(limits::SCHEDULE_MAX) {
                    return Err(ScheduleError::Far);
                }
                if away < -nanos(limits::SCHEDULE_LATE_MAX) {
                    return Err(ScheduleError::Past);
                }
                Ok(())
            }
            Self::Every { every, .. } => check_duration(*every),
            Self::Cron { expression, zone } => {
                let zone = find_zone(zone)?;
                cron_after(expression, &zone, now_ns)?
                    .map(drop)
                    .ok_or_else(|| ScheduleError::Never(expression.clone()))
            }
        }
    }

    /// Whether it runs more than once.
    #[must_use]
    pub const fn repeats(&self) -> bool {
        match self {
            Self::Once { .. } => false,
            Self::Every { .. } | Self::Cron { .. } => true,
        }
    }

    /// The first time strictly after `now_ns`, nanoseconds since the epoch; `None` when there is none, and for a
    /// schedule that [`Schedule::check`] refuses.
    #[must_use]
    pub fn next_after(&self, now_ns: i64) -> Option<i64> {
        match self {
            Self::Once { at_ns } => (*at_ns > now_ns).then_some(*at_ns),
            Self::Every { every, from_ns } => {
                let (every, from) = (nanos(*every), i128::from(*from_ns));
                let whole = (i128::from(now_ns) - from).checked_div_euclid(every)?;
                i64::try_from(from + every * (whole + 1).max(1)).ok()
            }
            Self::Cron { expression, zone } => {
                let zone = find_zone(zone).ok()?;
                cron_after(expression, &zone, now_ns).ok()?
            }
        }
    }

    /// When it runs next, nanoseconds since the epoch: it is due when the wall clock has reached that, which may
    /// be long ago. `None` when it never runs again.
    ///
    /// `submitted_ns` is when it was submitted and `last_run_ns` the moment its last run was begun.
    #[must_use]
    pub fn next_run(&self, submitted_ns: i64, last_run_ns: Option<i64>) -> Option<i64> {
        match (self, last_run_ns) {
            (Self::Once { at_ns }, None) => Some(*at_ns),
            (Self::Once { .. }, Some(_)) => None,
            (Self::Every { .. } | Self::Cron { .. }, last) => {
                self.next_after(last.map_or(submitted_ns, |last| last.max(submitted_ns)))
            }
        }
    }

    /// The first `count` times from `first_ns` on, which is one of them.
    #[must_use]
    pub fn runs_from(&self, first_ns: i64, count: usize) -> Vec<i64> {
        std::iter::successors(Some(first_ns), |ns| self.next_after(*ns))
            .take(count)
            .collect()
    }
}

const fn nanos(duration: Duration) -> i128 {
    #[expect(
        clippy::cast_possible_wrap,
        reason = "2^64 seconds are below 2^127 nanoseconds"
    )]
    let nanos = duration.as_nanos() as i128;
    nanos
}

fn check_duration(duration: Duration) -> Result<(), ScheduleError> {
    if (limits::SCHEDULE_MIN..=limits::SCHEDULE_MAX).contains(&duration) {
        Ok(())
    } else {
        Err(ScheduleError::Duration(duration))
    }
}

/// An expression that holds in `year` and the [`limits::CRON_YEARS`] after it.
fn parse(expression: &str, year: i16) -> Result<Cron, ScheduleError> {
    let wrong = |what: String| ScheduleError::Expression {
        expression: expression.chars().take(64).collect(),
        what,
    };
    if expression.len() > limits::CRON_BYTES_MAX {
        let max = limits::CRON_BYTES_MAX;
        return Err(wrong(format!("is longer than {max} bytes")));
    }
    // The parser also knows names for whole expressions, seconds, years, counted weekdays and days that must fit
    // both ways. Five fields as every cron has them are what is promised, and some of the others are slow.
    let fields = expression.split_ascii_whitespace().count();
    if fields != 5 {
        return Err(wrong(format!("has {fields} fields instead of 5")));
    }
    if let Some(sign) = expression.chars().find(|sign| "@#+".contains(*sign)) {
        return Err(wrong(format!("has a {sign} in it")));
    }
    // It looks for a match until the year 5000, day by day, which takes longer than a shard may be away.
    let last = i32::from(year) + limits::CRON_YEARS;
    let bounded = format!("0 {expression} {year}-{last}");
    CronParser::new()
        .parse(&bounded)
        .map_err(|error| match error {
            CronError::InvalidPattern(why)
            | CronError::IllegalCharacters(why)
            | CronError::ComponentError(why) => wrong(format!("is not understood: {why}")),
            CronError::EmptyPattern
            | CronError::InvalidDate
            | CronError::InvalidTime
            | CronError::TimeSearchLimitExceeded => wrong("is not understood".to_owned()),
        })
}

fn find_zone(name: &str) -> Result<TimeZone, ScheduleError> {
    let unknown = || ScheduleError::Zone(name.chars().take(64).collect());
    if name.len() > limits::ZONE_BYTES_MAX {
        return Err(unknown());
    }
    TimeZoneDatabase::bundled().get(name).map_err(|_| unknown())
}

/// The first match strictly after `now_ns`.
fn cron_after(
    expression: &str,
    zone: &TimeZone,
    now_ns: i64,
) -> Result<Option<i64>, ScheduleError> {
    // Cron times are whole seconds, so none lies between a moment and the second it is in.
    let now = Timestamp::from_second(now_ns.div_euclid(NS))
        .expect("64 bits of nanoseconds are within the calendar")
        .to_zoned(zone.clone());
    let next = parse(expression, now.year())?.find_next_occurrence(&now, false);
    let ns = next.map(|next| i64::try_from(next.timestamp().as_nanosecond()));
    Ok(ns.ok().and_then(Result::ok))
}

#[cfg(test)]
mod tests;

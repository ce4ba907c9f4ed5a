//! When a job is to run, as people type it, and as it is shown.

use jiff::tz::TimeZone;
use rnx::proto::Schedule;

use crate::{
    amount::{self, Since},
    text,
};

/// Fields of a cron expression.
const CRON_FIELDS: usize = 5;

/// Reads a duration (once, that much later), a time (once, then), `every DURATION`, or a cron expression. Times
/// without a zone and cron expressions are those of our own zone.
pub(crate) fn schedule(text: &str) -> Result<Schedule, String> {
    let now_ns = text::now_ns();
    let zone = TimeZone::system();
    parse(text, now_ns, zone.iana_name().unwrap_or("UTC"))
}

fn parse(text: &str, now_ns: i64, zone: &str) -> Result<Schedule, String> {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    if let [every, interval @ ..] = &words[..]
        && every.eq_ignore_ascii_case("every")
    {
        return Ok(Schedule::Every {
            ms: amount::millis(&interval.join(" "))?,
        });
    }
    match amount::since(text) {
        Ok(Since::Ago(delay)) => {
            let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            return Ok(Schedule::After { ms });
        }
        Ok(Since::At(ns)) if ns > now_ns => return Ok(Schedule::At { ns }),
        Ok(Since::At(ns)) => return Err(format!("{} is over", text::local_time(ns))),
        Err(_) => {}
    }
    if words.len() == CRON_FIELDS {
        return Ok(Schedule::Cron {
            expression: words.join(" "),
            zone: zone.to_owned(),
        });
    }
    Err(format!(
        "{text:?} is no schedule; write for example 168h, 2026-01-31T12:00:00, 'every 24h' or '30 2 * * 1-5'"
    ))
}

/// A schedule as one phrase, near to how it is typed.
pub(crate) fn phrase(schedule: &Schedule) -> String {
    match schedule {
        Schedule::After { ms } => format!("once, {} later", interval(*ms)),
        Schedule::At { ns } => format!("once, at {}", text::local_time(*ns)),
        Schedule::Every { ms } => format!("every {}", interval(*ms)),
        Schedule::Cron { expression, zone } => format!("{expression} ({zone})"),
    }
}

/// A duration that reads back as the same one: `168h`, `90s`.
fn interval(ms: u64) -> String {
    let units = [("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    let unit = units.into_iter().find(|(_, unit)| ms.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// What to tell somebody who has just scheduled a job that runs next at `next_ns`.
pub(crate) fn remark(schedule: &Schedule, id: &str, next_ns: Option<i64>) -> String {
    let when = next_ns.map_or_else(|| "later".to_owned(), text::local_time);
    match schedule {
        Schedule::After { ms } => format!(
            "it runs once, at {when}; to repeat it: --schedule 'every {}'",
            interval(*ms)
        ),
        Schedule::At { .. } => format!(
            "it runs once, at {when}; to repeat it: --schedule 'every 24h', or a cron expression"
        ),
        Schedule::Every { .. } | Schedule::Cron { .. } => {
            format!("it runs next at {when}, and again until `rnx schedule remove {id}`")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000_000_000_000;

    fn cron(expression: &str) -> Schedule {
        Schedule::Cron {
            expression: expression.into(),
            zone: "Europe/Berlin".into(),
        }
    }

    #[test]
    fn every_form_of_the_specification_is_read() {
        let check = |text: &str, expected: Schedule| {
            assert_eq!(parse(text, NOW, "Europe/Berlin"), Ok(expected), "{text}");
        };
        for (text, ms) in [
            ("168h", 604_800_000),
            ("30min", 1_800_000),
            ("2h30m", 9_000_000),
            ("1hour", 3_600_000),
            ("45s", 45_000),
            ("1d", 86_400_000),
        ] {
            check(text, Schedule::After { ms });
            check(&format!("every {text}"), Schedule::Every { ms });
        }
        check("Every 2h 30m", Schedule::Every { ms: 9_000_000 });
        let ns = 1_900_000_000_000_000_000;
        check("2030-03-17T17:46:40Z", Schedule::At { ns });
        check("2030-03-17T18:46:40+01:00", Schedule::At { ns });
        check("*/5 * * * *", cron("*/5 * * * *"));
        check(" 30  2 * * MON-FRI ", cron("30 2 * * MON-FRI"));
        // Five words, all of them durations.
        check("1d 2h 3m 4s 5ms", Schedule::After { ms: 93_784_005 });
    }

    #[test]
    fn times_without_a_zone_are_local_with_a_t_or_a_space() {
        let local = jiff::civil::date(2100, 1, 31).at(12, 0, 0, 0);
        let zoned = local.to_zoned(TimeZone::system()).unwrap();
        let ns = i64::try_from(zoned.timestamp().as_nanosecond()).unwrap();
        for text in ["2100-01-31T12:00:00", "2100-01-31 12:00:00"] {
            assert_eq!(parse(text, NOW, "UTC"), Ok(Schedule::At { ns }));
        }
    }

    #[test]
    fn what_is_over_or_no_schedule_is_refused_in_words() {
        let check = |text: &str, expected: &str| {
            let error = parse(text, NOW, "UTC").unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("2001-01-01T00:00:00Z", " is over");
        check("1700000000", "is no schedule");
        check("tomorrow", "is no schedule");
        check("", "is no schedule");
        check("* * * *", "is no schedule");
        check("@daily", "is no schedule");
        check("every", "is not a duration");
        check("every day", "is not a duration");
    }

    #[test]
    fn a_schedule_is_shown_near_to_how_it_is_typed() {
        let check = |schedule: Schedule, expected: &str| assert_eq!(phrase(&schedule), expected);
        check(Schedule::After { ms: 5_400_000 }, "once, 90min later");
        check(Schedule::Every { ms: 604_800_000 }, "every 168h");
        check(Schedule::Every { ms: 90_500 }, "every 90500ms");
        check(cron("0 9 * * 1"), "0 9 * * 1 (Europe/Berlin)");
    }

    #[test]
    fn a_remark_says_when_and_how_to_go_on() {
        let check = |schedule: Schedule, expected: &str| {
            let remark = remark(&schedule, "J", None);
            assert_eq!(remark, expected);
        };
        check(
            Schedule::After { ms: 604_800_000 },
            "it runs once, at later; to repeat it: --schedule 'every 168h'",
        );
        check(
            Schedule::Every { ms: 1_000 },
            "it runs next at later, and again until `rnx schedule remove J`",
        );
    }

    proptest! {
        #[test]
        fn an_interval_reads_back_as_the_same_one(ms in 0u64..1 << 50) {
            prop_assert_eq!(amount::millis(&interval(ms)), Ok(ms));
        }

        #[test]
        fn any_text_is_a_schedule_or_an_error(text in ".{0,30}") {
            let _ = parse(&text, NOW, "UTC");
        }
    }
}

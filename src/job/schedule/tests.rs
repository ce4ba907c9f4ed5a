//! Times worked out by hand, both sides of every bound, and properties over any schedule.

use jiff::{Timestamp, civil::DateTime};
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;

fn ns(time: &str) -> i64 {
    let time: Timestamp = time.parse().unwrap();
    i64::try_from(time.as_nanosecond()).unwrap()
}

fn cron(expression: &str, zone: &str) -> Schedule {
    Schedule::Cron {
        expression: expression.into(),
        zone: zone.into(),
    }
}

fn every(seconds: u64, from_ns: i64) -> Schedule {
    Schedule::Every {
        every: Duration::from_secs(seconds),
        from_ns,
    }
}

/// The runs after `from`, as local times of `zone` with their offsets.
fn runs(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let schedule = cron(expression, zone);
    let first = schedule.next_after(ns(from)).unwrap();
    schedule
        .runs_from(first, count)
        .into_iter()
        .map(|ns| {
            let time = Timestamp::from_nanosecond(ns.into()).unwrap();
            let zoned = time.to_zoned(find_zone(zone).unwrap());
            zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        })
        .collect()
}

#[test]
fn cron_times_are_those_of_the_zone() {
    let check = |expression: &str, zone: &str, from: &str, expected: &[&str]| {
        let found = runs(expression, zone, from, expected.len());
        assert_eq!(found, expected, "{expression} {zone}");
    };
    let from = "2026-01-31T11:59:30Z";
    check(
        "*/15 * * * *",
        "UTC",
        from,
        &["2026-01-31T12:00:00+00:00", "2026-01-31T12:15:00+00:00"],
    );
    check(
        "30 2 * * 1-5",
        "Europe/Berlin",
        from,
        &["2026-02-02T02:30:00+01:00", "2026-02-03T02:30:00+01:00"],
    );
    check(
        "0 9 1 * *",
        "America/New_York",
        from,
        &["2026-02-01T09:00:00-05:00", "2026-03-01T09:00:00-05:00"],
    );
    // A day of the month or a day of the week, as every cron has it.
    check(
        "0 0 13 * FRI",
        "UTC",
        from,
        &[
            "2026-02-06T00:00:00+00:00",
            "2026-02-13T00:00:00+00:00",
            "2026-02-20T00:00:00+00:00",
            "2026-02-27T00:00:00+00:00",
            "2026-03-06T00:00:00+00:00",
            "2026-03-13T00:00:00+00:00",
        ],
    );
    check(
        "0 0 29 2 *",
        "UTC",
        "2096-03-01T00:00:00Z",
        &["2104-02-29T00:00:00+00:00"],
    );
    // Sunday has two numbers; Nepal is 45 minutes off the hour.
    check(
        "0 0 * * 7",
        "Asia/Kathmandu",
        from,
        &["2026-02-01T00:00:00+05:45", "2026-02-08T00:00:00+05:45"],
    );
}

#[test]
fn the_hour_that_is_left_out_moves_fixed_times_behind_it_and_swallows_wildcards() {
    // On 2026-03-29 clocks in Berlin go from 02:00 to 03:00.
    let before = "2026-03-28T12:00:00Z";
    assert_eq!(
        runs("30 2 * * *", "Europe/Berlin", before, 3),
        [
            "2026-03-29T03:00:00+02:00",
            "2026-03-30T02:30:00+02:00",
            "2026-03-31T02:30:00+02:00"
        ]
    );
    assert_eq!(
        runs("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 4),
        [
            "2026-03-29T01:30:00+01:00",
            "2026-03-29T03:00:00+02:00",
            "2026-03-29T03:30:00+02:00",
            "2026-03-29T04:00:00+02:00"
        ]
    );
}

#[test]
fn the_hour_that_comes_twice_runs_fixed_times_once_and_wildcards_twice() {
    // On 2026-10-25 clocks in Berlin go from 03:00 back to 02:00.
    assert_eq!(
        runs("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
        ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    );
    assert_eq!(
        runs("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 4),
        [
            "2026-10-25T02:30:00+02:00",
            "2026-10-25T02:00:00+01:00",
            "2026-10-25T02:30:00+01:00",
            "2026-10-25T03:00:00+01:00"
        ]
    );
    // Half an hour, on Lord Howe Island, 2026-04-05.
    assert_eq!(
        runs(
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T00:00:00Z",
            2
        ),
        ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]
    );
}

#[test]
fn intervals_count_from_the_submit() {
    let from = ns("2026-01-01T00:00:00Z");
    let schedule = every(3_600, from);
    let check = |now: i64, expected: i64| assert_eq!(schedule.next_after(now), Some(expected));
    check(from, from + HOUR);
    check(from + 1, from + HOUR);
    check(from + HOUR - 1, from + HOUR);
    check(from + HOUR, from + 2 * HOUR);
    check(from + 10 * HOUR + 5, from + 11 * HOUR);
    // Before the submit there is no run, wherever the clock stands.
    check(from - 1, from + HOUR);
    check(from - 99 * HOUR, from + HOUR);
    assert_eq!(every(1, i64::MAX - 5).next_after(i64::MAX), None);
    assert_eq!(every(0, 0).next_after(5), None, "not one to divide by");
}

#[test]
fn missed_runs_are_made_up_once() {
    let submitted = ns("2026-01-01T00:00:00Z");
    let once = Schedule::Once {
        at_ns: submitted + HOUR,
    };
    // Due since an hour after the submit, whenever somebody looks; never again once it ran.
    assert_eq!(once.next_run(submitted, None), Some(submitted + HOUR));
    assert_eq!(once.next_run(submitted, Some(submitted + DAY)), None);

    for schedule in [every(3_600, submitted), cron("0 * * * *", "UTC")] {
        let due = schedule.next_run(submitted, None).unwrap();
        assert_eq!(due, submitted + HOUR);
        // The daemon comes back after ten hours and a half: one run, then the regular eleventh.
        let back = submitted + 10 * HOUR + HOUR / 2;
        assert!(due <= back);
        assert_eq!(
            schedule.next_run(submitted, Some(back)),
            Some(submitted + 11 * HOUR)
        );
    }
}

#[test]
fn a_clock_set_back_never_repeats_an_occurrence() {
    let submitted = ns("2026-01-01T00:00:00Z");
    for schedule in [every(3_600, submitted), cron("0 * * * *", "UTC")] {
        let ran = submitted + 5 * HOUR;
        // Whatever the wall clock says afterwards, the fifth hour is over.
        assert_eq!(
            schedule.next_run(submitted, Some(ran)),
            Some(submitted + 6 * HOUR)
        );
        // Nor does a run that is older than the submit, by a clock that stood wrong, bring any forward.
        assert_eq!(
            schedule.next_run(submitted, Some(submitted - DAY)),
            Some(submitted + HOUR)
        );
    }
}

#[test]
fn both_sides_of_each_bound() {
    let now = ns("2026-01-01T00:00:00Z");
    let year = Duration::from_secs(366 * 24 * 3_600);
    let delays = [
        (Duration::from_secs(1), true),
        (Duration::from_millis(999), false),
        (year, true),
        (year + Duration::from_millis(1), false),
    ];
    for (delay, is_good) in delays {
        assert_eq!(
            Schedule::once_after(delay, now).is_ok(),
            is_good,
            "{delay:?}"
        );
        let repeated = Schedule::Every {
            every: delay,
            from_ns: now,
        };
        assert_eq!(repeated.check(now).is_ok(), is_good, "{delay:?}");
    }
    let year = i64::try_from(year.as_nanos()).unwrap();
    let times = [
        (now + year, Ok(())),
        (now + year + 1, Err(ScheduleError::Far)),
        (now - DAY, Ok(())),
        (now - DAY - 1, Err(ScheduleError::Past)),
        (i64::MAX, Err(ScheduleError::Far)),
        (i64::MIN, Err(ScheduleError::Past)),
    ];
    for (at_ns, expected) in times {
        assert_eq!(Schedule::Once { at_ns }.check(now), expected, "{at_ns}");
    }
}

#[test]
fn expressions_that_mean_nothing_are_refused_in_words() {
    let check = |expression: &str, expected: &str| {
        let error = cron(expression, "UTC").check(0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(cron(expression, "UTC").next_after(0).is_none());
    };
    check("", "has 0 fields instead of 5");
    check("@daily", "has 1 fields instead of 5");
    check("@daily * * * *", "has a @ in it");
    check("0 0 * * 1#2", "has a # in it");
    check("0 0 1 * +1", "has a + in it");
    check("* * * *", "has 4 fields instead of 5");
    check("0 * * * * *", "has 6 fields instead of 5");
    check("60 * * * *", "is not understood");
    check("* 24 * * *", "is not understood");
    check("* * 0 * *", "is not understood");
    check("* * * 13 *", "is not understood");
    check("* * * * 8", "is not understood");
    check("*/0 * * * *", "is not understood");
    check("a b c d e", "is not understood");
    check("5-1 * * * *", "is not understood");
    check("0 0 30 2 *", "never comes true");
    check("0 0 31 2,4,6,9,11 *", "never comes true");
    check(&format!("{} * * * *", "1,".repeat(200)), "is longer than");
    for zone in ["", "Mars/Olympus", "../../etc/passwd", "+01:00"] {
        let error = cron("* * * * *", zone).check(0).unwrap_err();
        assert_eq!(error, ScheduleError::Zone(zone.into()));
    }
    assert_eq!(cron("* * * * *", "europe/berlin").check(0), Ok(()));
}

fn field(values: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = String> {
    let (low, high) = values.clone().into_inner();
    prop_oneof![
        2 => Just("*".to_owned()),
        2 => values.clone().prop_map(|n| n.to_string()),
        1 => (values.clone(), values).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        1 => (1..=(high - low)).prop_map(|n| format!("*/{n}")),
    ]
}

fn any_cron() -> impl Strategy<Value = Schedule> {
    let fields = (
        field(0..=59),
        field(0..=23),
        field(1..=28),
        field(1..=12),
        field(0..=6),
    );
    let zone = prop::sample::select(
        &[
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
        ][..],
    );
    (fields, zone).prop_map(|((minute, hour, day, month, weekday), zone)| {
        cron(&format!("{minute} {hour} {day} {month} {weekday}"), zone)
    })
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        any_cron(),
        (1u64..400_000, 0i64..4_000_000_000).prop_map(|(s, from)| every(s, from * SECOND)),
        (0i64..4_000_000_000).prop_map(|at| Schedule::Once { at_ns: at * SECOND }),
    ]
}

proptest! {
    #[test]
    fn the_next_run_is_later_and_none_lies_between(schedule in any_schedule(), now in 0i64..4_000_000_000, nanos in 0..SECOND) {
        let now = now * SECOND + nanos;
        if let Some(next) = schedule.next_after(now) {
            prop_assert!(next > now);
            prop_assert_eq!(next % SECOND, 0);
            // From any moment before it, it is still the next one.
            for between in [now, now + (next - now) / 2, next - 1] {
                prop_assert_eq!(schedule.next_after(between), Some(next));
            }
        } else {
            prop_assert!(!schedule.repeats());
        }
    }

    #[test]
    fn wherever_the_clock_jumps_no_occurrence_runs_twice(
        schedule in any_schedule(), jumps in prop::collection::vec(-3 * DAY..30 * DAY, 1..40),
    ) {
        let submitted = ns("2026-01-01T00:00:00Z");
        let (mut clock, mut last, mut ran) = (submitted, None, Vec::new());
        for jump in jumps {
            clock += jump;
            // What the owner does each time it wakes up.
            if let Some(due) = schedule.next_run(submitted, last).filter(|due| *due <= clock) {
                ran.push(due);
                last = Some(clock.max(due));
            }
        }
        let mut once = ran.clone();
        once.dedup();
        prop_assert!(ran.is_sorted() && once == ran, "{:?}", ran);
        prop_assert!(schedule.repeats() || ran.len() <= 1);
    }

    #[test]
    fn any_text_is_checked_without_a_panic(expression in ".{0,40}", fields in prop::collection::vec("[0-9*/,LW?A-Z-]{1,6}", 5), zone in ".{0,10}") {
        let _ = cron(&expression, &zone).check(0);
        let _ = cron(&fields.join(" "), "UTC").check(0);
    }

    #[test]
    fn a_cron_time_matches_its_fields(minute in 0i8..60, hour in 0i8..24, from in 0i64..4_000_000_000) {
        let next = cron(&format!("{minute} {hour} * * *"), "UTC").next_after(from * SECOND).unwrap();
        let time: DateTime = Timestamp::from_nanosecond(next.into()).unwrap().to_zoned(TimeZone::UTC).datetime();
        prop_assert_eq!((time.minute(), time.hour(), time.second()), (minute, hour, 0));
        prop_assert!(next - from * SECOND <= DAY);
    }
}

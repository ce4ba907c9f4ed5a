//! When a job runs, how urgently, and which submits are the same one.

use std::time::Duration;

use proto_rkyv::Submit;
use ring::digest;

use super::{Bulk, invalid, too_large};
use crate::{
    job::{IdempotencyKey, Refusal, Schedule, ScheduleError},
    limits,
};

/// What stands before everything that is hashed, so that no other kind of digest can be taken for one of these.
const FINGERPRINT: &[u8] = b"joblet submit 1\n";

/// When a job runs that was submitted at `now_ns`.
///
/// # Errors
/// A refusal that says what would be possible.
pub(super) fn schedule(schedule: proto_rkyv::Schedule, now_ns: i64) -> Result<Schedule, Refusal> {
    let schedule = match schedule {
        proto_rkyv::Schedule::After { ms } => {
            Schedule::once_after(Duration::from_millis(ms), now_ns).map_err(refused)?
        }
        proto_rkyv::Schedule::At { ns } => Schedule::Once { at_ns: ns },
        proto_rkyv::Schedule::Every { ms } => Schedule::Every {
            every: Duration::from_millis(ms),
            from_ns: now_ns,
        },
        proto_rkyv::Schedule::Cron { expression, zone } => Schedule::Cron { expression, zone },
    };
    schedule.check(now_ns).map_err(refused)?;
    Ok(schedule)
}

fn refused(error: ScheduleError) -> Refusal {
    let hint = match error {
        ScheduleError::Duration(_) => "between a second and a year (366 days) are possible",
        ScheduleError::Far => "at most a year (366 days) ahead is possible",
        ScheduleError::Past => "leave --schedule out to run it now",
        ScheduleError::Expression { .. } => {
            "five fields: minute, hour, day of the month, month, day of the week, as in '30 2 * * 1-5'"
        }
        ScheduleError::Never(_) => "there is no such day",
        ScheduleError::Zone(_) => "IANA names are known, such as Europe/Berlin or UTC",
    };
    invalid(error.to_string()).hint(hint)
}

/// A schedule as a peer is told of it.
pub(super) fn schedule_message(schedule: &Schedule) -> proto_rkyv::Schedule {
    match schedule {
        Schedule::Once { at_ns } => proto_rkyv::Schedule::At { ns: *at_ns },
        Schedule::Every { every, .. } => proto_rkyv::Schedule::Every {
            ms: u64::try_from(every.as_millis()).unwrap_or(u64::MAX),
        },
        Schedule::Cron { expression, zone } => proto_rkyv::Schedule::Cron {
            expression: expression.clone(),
            zone: zone.clone(),
        },
    }
}

/// A priority that may be asked for.
pub(super) fn priority(asked: Option<i32>) -> Result<i32, Refusal> {
    let priority = asked.unwrap_or(0);
    if !limits::PRIORITY_RANGE.contains(&priority) {
        return Err(invalid(format!("a priority of {priority}"))
            .hint("between -100 and 100 are possible; the greatest is first"));
    }
    Ok(priority)
}

/// The key of a submit and what it stands for, when it has one. Asked before the submit is taken apart.
///
/// # Errors
/// A key that is empty, too long, or not printable ASCII.
pub(in crate::front) fn idempotency_key(
    submit: &Submit,
    bulk: &Bulk,
) -> Result<Option<IdempotencyKey>, Refusal> {
    let Some(key) = &submit.idempotency_key else {
        return Ok(None);
    };
    if key.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(too_large(format!(
            "idempotency key of {} bytes, at most {} are allowed",
            key.len(),
            limits::IDEMPOTENCY_KEY_BYTES_MAX
        )));
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_graphic())
    {
        return Err(invalid(format!("idempotency key {key:?} is not printable"))
            .hint("use letters, digits and punctuation of ASCII"));
    }
    Ok(Some(IdempotencyKey {
        key: key.clone(),
        fingerprint: fingerprint(submit, bulk),
    }))
}

/// SHA-256 of all that decides what the job is. What the stream carries afterwards does not: whoever waits for a
/// job and whoever does not may mean the same one. Of uploads it is their size.
fn fingerprint(submit: &Submit, bulk: &Bulk) -> [u8; 32] {
    let canonical = Submit {
        idempotency_key: None,
        after: proto_rkyv::After::default(),
        ..submit.clone()
    };
    let request = proto_rkyv::encode(&proto_rkyv::Request::Submit(Box::new(canonical)))
        .expect("it came in one control frame and is not larger than that");
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(FINGERPRINT);
    for part in [&request[..], &bulk.argv, &bulk.env, &bulk.secret_env] {
        // With its length, or bytes could wander from one list to the next.
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    context
        .finish()
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use proto_rkyv::{After, join};

    use super::*;
    use crate::job::RefusalCode;

    const NOW: i64 = 1_800_000_000_000_000_000;

    #[test]
    fn delays_and_intervals_count_from_the_submit() {
        let check = |asked, expected: Schedule| assert_eq!(schedule(asked, NOW), Ok(expected));
        check(
            proto_rkyv::Schedule::After { ms: 1_500 },
            Schedule::Once {
                at_ns: NOW + 1_500_000_000,
            },
        );
        check(
            proto_rkyv::Schedule::At { ns: NOW - 1 },
            Schedule::Once { at_ns: NOW - 1 },
        );
        check(
            proto_rkyv::Schedule::Every { ms: 1_000 },
            Schedule::Every {
                every: Duration::from_secs(1),
                from_ns: NOW,
            },
        );
        let cron = |expression: &str| proto_rkyv::Schedule::Cron {
            expression: expression.into(),
            zone: "Europe/Berlin".into(),
        };
        let shown = schedule(cron("0 9 * * 1"), NOW).unwrap();
        assert_eq!(schedule_message(&shown), cron("0 9 * * 1"));
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused_with_what_can() {
        let check = |asked, message: &str, hint: &str| {
            let refusal = schedule(asked, NOW).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Invalid);
            assert_eq!(refusal.message, message);
            assert!(refusal.hint.as_deref().unwrap().contains(hint));
        };
        check(
            proto_rkyv::Schedule::After { ms: 999 },
            "a schedule of 0.999 seconds",
            "between a second and a year",
        );
        check(
            proto_rkyv::Schedule::Every { ms: 40_000_000_000 },
            "a schedule of 40000000 seconds",
            "between a second and a year",
        );
        check(
            proto_rkyv::Schedule::At { ns: i64::MAX },
            "a schedule for a time that is more than a year away",
            "at most a year",
        );
        check(
            proto_rkyv::Schedule::At { ns: 0 },
            "a schedule for a time that is more than a day ago",
            "leave --schedule out",
        );
        let cron = |expression: &str, zone: &str| proto_rkyv::Schedule::Cron {
            expression: expression.into(),
            zone: zone.into(),
        };
        check(
            cron("0 0 30 2 *", "UTC"),
            "cron expression \"0 0 30 2 *\" never comes true",
            "no such day",
        );
        check(
            cron("* * * *", "UTC"),
            "cron expression \"* * * *\" has 4 fields instead of 5",
            "five fields",
        );
        check(
            cron("* * * * *", "Mars"),
            "time zone \"Mars\" is not known",
            "IANA",
        );
    }

    #[test]
    fn both_sides_of_each_priority() {
        assert_eq!(priority(None), Ok(0));
        for good in [-100, 100] {
            assert_eq!(priority(Some(good)), Ok(good));
        }
        for bad in [-101, 101, i32::MIN] {
            let refusal = priority(Some(bad)).unwrap_err();
            assert_eq!(refusal.message, format!("a priority of {bad}"));
        }
    }

    fn submit(key: &str) -> Submit {
        Submit {
            idempotency_key: Some(key.into()),
            ..Submit::default()
        }
    }

    fn bulk(argv: &[&str], env: &[&str], secret_env: &[&str]) -> Bulk {
        Bulk {
            argv: join(argv),
            env: join(env),
            secret_env: join(secret_env),
        }
    }

    fn fingerprint_of(submit: &Submit, bulk: &Bulk) -> [u8; 32] {
        idempotency_key(submit, bulk).unwrap().unwrap().fingerprint
    }

    #[test]
    fn keys_are_short_and_printable() {
        let check = |key: &str| idempotency_key(&submit(key), &Bulk::default());
        assert_eq!(
            idempotency_key(&Submit::default(), &Bulk::default()),
            Ok(None)
        );
        for good in ["k", "nightly 2026-01-31 #1", &"x".repeat(128)] {
            assert_eq!(check(good).unwrap().unwrap().key, good);
        }
        for bad in ["", "a\n", "\u{7f}", "ä", "\0"] {
            assert_eq!(
                check(bad).unwrap_err().code,
                RefusalCode::Invalid,
                "{bad:?}"
            );
        }
        assert_eq!(
            check(&"x".repeat(129)).unwrap_err().message,
            "idempotency key of 129 bytes, at most 128 are allowed"
        );
    }

    #[test]
    fn a_fingerprint_tells_every_other_request_and_nothing_else() {
        let plain = bulk(&["sh", "-c", "x"], &["A=1"], &["T=s"]);
        let first = fingerprint_of(&submit("k"), &plain);
        // How the client waits, and the key itself, are not what is asked for.
        let waiting = Submit {
            after: After::Follow,
            ..submit("other")
        };
        assert_eq!(fingerprint_of(&waiting, &plain), first);
        let named = Submit {
            name: Some("n".into()),
            ..submit("k")
        };
        let later = Submit {
            schedule: Some(proto_rkyv::Schedule::After { ms: 1_000 }),
            ..submit("k")
        };
        let others = [
            fingerprint_of(&named, &plain),
            fingerprint_of(&later, &plain),
            fingerprint_of(&submit("k"), &bulk(&["sh", "-c", "y"], &["A=1"], &["T=s"])),
            fingerprint_of(&submit("k"), &bulk(&["sh", "-c", "x"], &["A=2"], &["T=s"])),
            fingerprint_of(&submit("k"), &bulk(&["sh", "-c", "x"], &["A=1"], &["T=t"])),
            fingerprint_of(
                &submit("k"),
                &bulk(&["sh", "-c", "x"], &["A=1", "T=s"], &[]),
            ),
            fingerprint_of(
                &submit("k"),
                &bulk(&["sh", "-c", "x", "A=1"], &[], &["T=s"]),
            ),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(*other, first, "{at}");
        }
    }
}

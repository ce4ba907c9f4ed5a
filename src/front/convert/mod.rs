//! Where wire types end: what a peer said becomes what the daemon means, checked, and back.
//!
//! A message that decoded is only well-formed. Every range is checked here, and each refusal names the object
//! and what to do about it. Nothing here waits, and nothing here trusts a length.

mod finding;
mod limit;
mod list;
mod schedule;
mod spec;
mod tree;
mod view;
mod volume;

pub(super) use finding::findings;
pub(super) use list::{deleted, list_query, more};
pub(super) use schedule::idempotency_key;
pub(super) use spec::{Bulk, spec};
pub(super) use tree::{
    UploadStep, Uploads, copy_path, entry_message, extra_message, remark_message, volume_path,
};
#[cfg(test)]
pub(super) use view::tests::largest_job;
pub(super) use view::{environment, job, job_in_full, node, sample, spec_bytes};
pub(super) use volume::{volume_name, volume_spec, volumes, volumes_bytes};

use std::time::Duration;

use crate::{
    job::{LogQuery, Refusal, RefusalCode, State, StopSignal, Streams},
    limits,
};

/// Longest way to write an id.
const JOB_REF_BYTES_MAX: usize = 36;
/// Longest message and hint that are sent; a hint may list candidates.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
const HINT_BYTES_MAX: usize = 16 << 10;

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::Invalid, message)
}

pub(super) fn too_large(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::TooLarge, message)
}

/// A job reference that is short enough to be repeated in a message.
pub(super) fn job_ref(text: &str) -> Result<&str, Refusal> {
    if text.len() <= JOB_REF_BYTES_MAX {
        return Ok(text);
    }
    Err(invalid(format!("job id of {} characters", text.len()))
        .hint("an id has 36 characters; the first few are enough"))
}

pub(super) fn log_query(log: &proto_rkyv::Log) -> LogQuery {
    LogQuery {
        streams: match log.streams {
            proto_rkyv::Streams::All => Streams::All,
            proto_rkyv::Streams::Stdout => Streams::Stdout,
            proto_rkyv::Streams::Stderr => Streams::Stderr,
        },
        follow: log.follow,
        offset: log.offset,
        tail_lines: log.tail_lines,
        since_ns: log.since_ns,
    }
}

/// Time between two samples for one who follows.
pub(super) fn sample_interval(ms: Option<u64>) -> Result<Duration, Refusal> {
    let interval = ms.map_or(limits::SAMPLE_INTERVAL_DEFAULT, Duration::from_millis);
    let allowed = limits::SAMPLE_INTERVAL_MIN..=limits::SAMPLE_INTERVAL_MAX;
    if !allowed.contains(&interval) {
        let message = format!("an interval of {} ms", interval.as_millis());
        return Err(invalid(message).hint("between 100 ms and one hour are possible"));
    }
    Ok(interval)
}

pub(super) const fn stop_signal(signal: proto_rkyv::StopSignal) -> StopSignal {
    match signal {
        proto_rkyv::StopSignal::Term => StopSignal::Term,
        proto_rkyv::StopSignal::Int => StopSignal::Int,
    }
}

pub(super) const fn state(state: proto_rkyv::State) -> State {
    match state {
        proto_rkyv::State::Scheduled => State::Scheduled,
        proto_rkyv::State::Queued => State::Queued,
        proto_rkyv::State::Initializing => State::Initializing,
        proto_rkyv::State::Running => State::Running,
        proto_rkyv::State::Stopping => State::Stopping,
        proto_rkyv::State::Completed => State::Completed,
        proto_rkyv::State::Failed => State::Failed,
        proto_rkyv::State::Stopped => State::Stopped,
        proto_rkyv::State::Timeout => State::Timeout,
        proto_rkyv::State::Canceled => State::Canceled,
    }
}

/// A refusal as a reply. Texts are cut where they would not fit a control frame.
pub(super) fn refusal(refusal: Refusal) -> proto_rkyv::Reply {
    let Refusal {
        code,
        mut message,
        mut hint,
    } = refusal;
    cut(&mut message, MESSAGE_BYTES_MAX);
    if let Some(hint) = &mut hint {
        cut(hint, HINT_BYTES_MAX);
    }
    let code = match code {
        RefusalCode::Invalid => proto_rkyv::RefusalCode::Invalid,
        RefusalCode::NotFound => proto_rkyv::RefusalCode::NotFound,
        RefusalCode::NotPermitted => proto_rkyv::RefusalCode::NotPermitted,
        RefusalCode::Conflict => proto_rkyv::RefusalCode::Conflict,
        RefusalCode::TooLarge => proto_rkyv::RefusalCode::TooLarge,
        RefusalCode::Unsupported => proto_rkyv::RefusalCode::Unsupported,
        RefusalCode::Busy => proto_rkyv::RefusalCode::Busy,
        RefusalCode::Failed => proto_rkyv::RefusalCode::Failed,
    };
    proto_rkyv::Reply::Refused(proto_rkyv::Refusal {
        code,
        message,
        hint,
    })
}

/// Shortens text to at most `bytes_max`, at a character's boundary, and says so with an ellipsis.
fn cut(text: &mut String, bytes_max: usize) {
    const MARK: char = '…';
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - MARK.len_utf8()));
        text.push(MARK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_always_fits_a_control_frame() {
        let long = "ü".repeat(1 << 20);
        let reply = refusal(invalid(long.clone()).hint(long));
        let proto_rkyv::Reply::Refused(sent) = &reply else {
            panic!("{reply:?}")
        };
        assert!(sent.message.len() <= MESSAGE_BYTES_MAX && sent.message.ends_with('…'));
        assert!(proto_rkyv::encode(&reply).is_ok());
        let short = refusal(invalid("volume x not found"));
        let proto_rkyv::Reply::Refused(sent) = short else {
            panic!("a refusal")
        };
        assert_eq!(
            (sent.message.as_str(), sent.hint),
            ("volume x not found", None)
        );
    }

    #[test]
    fn both_sides_of_an_interval_and_its_default() {
        assert_eq!(sample_interval(None), Ok(Duration::from_secs(1)));
        for good in [100, 3_600_000] {
            assert_eq!(sample_interval(Some(good)), Ok(Duration::from_millis(good)));
        }
        for bad in [0, 99, 3_600_001, u64::MAX] {
            let refusal = sample_interval(Some(bad)).unwrap_err();
            assert_eq!(refusal.message, format!("an interval of {bad} ms"));
        }
    }

    #[test]
    fn job_references_are_bounded() {
        assert_eq!(job_ref("0123"), Ok("0123"));
        assert!(job_ref(&"0".repeat(JOB_REF_BYTES_MAX)).is_ok());
        assert_eq!(
            job_ref(&"0".repeat(60_000)).unwrap_err().message,
            "job id of 60000 characters"
        );
    }
}

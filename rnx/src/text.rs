//! Values as people read them.

use jiff::{Timestamp, tz::TimeZone};
use rnx::proto::{Id, Job, LimitKind, State, Verdict, VolumeKind};
use uuid::Uuid;

/// A job id as it is typed.
pub(crate) fn id(id: Id) -> String {
    Uuid::from_bytes(id).to_string()
}

/// A state as the specification spells it.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Scheduled => "SCHEDULED",
        State::Queued => "QUEUED",
        State::Initializing => "INITIALIZING",
        State::Running => "RUNNING",
        State::Stopping => "STOPPING",
        State::Completed => "COMPLETED",
        State::Failed => "FAILED",
        State::Stopped => "STOPPED",
        State::Timeout => "TIMEOUT",
        State::Canceled => "CANCELED",
    }
}

/// A verdict in words.
pub(crate) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Enforced => "enforced",
        Verdict::Partly => "partly",
        Verdict::NotEnforced => "not enforced",
    }
}

/// A limit as one word.
pub(crate) fn limit(limit: LimitKind) -> &'static str {
    match limit {
        LimitKind::Cpu => "cpu",
        LimitKind::Memory => "memory",
        LimitKind::Io => "io",
        LimitKind::Pids => "pids",
        LimitKind::Cores => "cores",
    }
}

/// Core ranges as they are typed: `0-1,4`.
pub(crate) fn cores(ranges: &[(u32, u32)]) -> String {
    let range = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

pub(crate) const fn volume_kind(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::Filesystem => "filesystem",
        VolumeKind::Memory => "memory",
    }
}

/// A path without empty parts and `.`; `None` when it has a `..`. It is relative then, whatever it was.
pub(crate) fn clean_path(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<_> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    (!parts.contains(&&b".."[..])).then(|| parts.join(&b'/'))
}

/// Where a job has a volume.
pub(crate) fn volume_path(name: &str) -> String {
    format!("/volumes/{name}")
}

/// Whether a job in this state has ended.
pub(crate) fn is_end(state: State) -> bool {
    match state {
        State::Completed | State::Failed | State::Stopped | State::Timeout | State::Canceled => {
            true
        }
        State::Scheduled
        | State::Queued
        | State::Initializing
        | State::Running
        | State::Stopping => false,
    }
}

/// When a job was accepted, started and ended, nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) created: Option<i64>,
    pub(crate) started: Option<i64>,
    pub(crate) ended: Option<i64>,
}

impl Times {
    pub(crate) fn of(job: &Job) -> Self {
        let at = |wanted: &dyn Fn(State) -> bool| {
            job.transitions
                .iter()
                .find(|t| wanted(t.state))
                .map(|t| t.wall_ns)
        };
        Self {
            created: job.transitions.first().map(|t| t.wall_ns),
            started: at(&|state| state == State::Running),
            ended: at(&is_end),
        }
    }

    /// How long it ran, or has run by `now_ns`, in milliseconds.
    pub(crate) fn duration_ms(&self, now_ns: i64) -> Option<u64> {
        let end = self.ended.unwrap_or(now_ns);
        u64::try_from(end.saturating_sub(self.started?) / 1_000_000).ok()
    }
}

/// Now, nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A point in time in the local zone, to the second.
pub(crate) fn local_time(ns: i64) -> String {
    let zoned =
        Timestamp::from_nanosecond(i128::from(ns)).map(|time| time.to_zoned(TimeZone::system()));
    zoned.map_or_else(
        |_| "-".into(),
        |zoned| zoned.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A point in time as RFC 3339 in UTC.
pub(crate) fn utc_time(ns: i128) -> String {
    Timestamp::from_nanosecond(ns).map_or_else(|_| "-".into(), |time| format!("{time:.9}"))
}

/// A duration: `0.042s`, `3.5s`, `2m 5s`, `3h 2m`, `2d 4h`.
pub(crate) fn millis(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => {
            let text = format!("{seconds}.{:03}", ms % 1_000);
            format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
        }
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A size in the largest unit that keeps it above one: `64 MB`, `1.5 GB`, `17 B`.
pub(crate) fn bytes(bytes: u64) -> String {
    let unit = [("TB", 40), ("GB", 30), ("MB", 20), ("KB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes >> shift > 0);
    let Some((name, shift)) = unit else {
        return format!("{bytes} B");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

/// Text from elsewhere on one line and without control sequences.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_exact_below_a_minute() {
        let cases = [
            (0, "0s"),
            (42, "0.042s"),
            (1_500, "1.5s"),
            (59_999, "59.999s"),
            (60_000, "1m 0s"),
            (3_599_999, "59m 59s"),
            (3_600_000, "1h 0m"),
            (90_000_000, "1d 1h"),
        ];
        for (ms, expected) in cases {
            assert_eq!(millis(ms), expected);
        }
    }

    #[test]
    fn sizes_count_in_1024() {
        let cases = [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KB"),
            (1_536, "1.5 KB"),
            (64 << 20, "64 MB"),
            (10 << 30, "10 GB"),
            (u64::MAX, "16777215.9 TB"),
        ];
        for (size, expected) in cases {
            assert_eq!(bytes(size), expected);
        }
    }

    #[test]
    fn text_from_elsewhere_cannot_move_the_cursor_or_break_a_line() {
        assert_eq!(
            plain("a\u{1b}[2J\n\u{9b}b\u{7f} ä"),
            "a\\u{1b}[2J\\n\\u{9b}b\\u{7f} ä"
        );
    }

    #[test]
    fn times_are_printed_with_nine_digits_in_utc() {
        assert_eq!(
            utc_time(1_700_000_000_000_000_001),
            "2023-11-14T22:13:20.000000001Z"
        );
    }
}

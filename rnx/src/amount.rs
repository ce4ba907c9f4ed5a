//! Durations, sizes and times as people type them.

use std::time::Duration;

use jiff::{Timestamp, civil, tz::TimeZone};

/// Units of a duration and their length in milliseconds.
const UNITS: &[(&[&str], u64)] = &[
    (&["ms", "msec", "millisecond", "milliseconds"], 1),
    (&["s", "sec", "secs", "second", "seconds"], 1_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000),
    (&["d", "day", "days"], 86_400_000),
    (&["w", "week", "weeks"], 604_800_000),
];

/// Units of a size and their power of 1024.
const SIZES: &[(&[&str], u32)] = &[
    (&["", "b"], 0),
    (&["k", "kb", "kib"], 1),
    (&["m", "mb", "mib"], 2),
    (&["g", "gb", "gib"], 3),
    (&["t", "tb", "tib"], 4),
];

/// A duration such as `45s`, `2h30m`, `1hour` or `250ms`: whole numbers, each with a unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    millis(text).map(Duration::from_millis)
}

/// As [`duration`], in milliseconds.
pub(crate) fn millis(text: &str) -> Result<u64, String> {
    let refused =
        || format!("{text:?} is not a duration; write for example 45s, 30min, 2h30m or 1d");
    let mut rest = text.trim();
    let mut total = 0u64;
    if rest.is_empty() {
        return Err(refused());
    }
    while !rest.is_empty() {
        let (digits, after) = split(rest, |c| c.is_ascii_digit());
        let (unit, after) = split(after, |c| c.is_ascii_alphabetic());
        let count: u64 = digits.parse().map_err(|_| refused())?;
        let length = factor(UNITS, unit).ok_or_else(refused)?;
        let part = count.checked_mul(length).ok_or_else(refused)?;
        total = total.checked_add(part).ok_or_else(refused)?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// A size in bytes: a number, decimals allowed, and `B KB MB GB TB` or none, any case, each 1024 of the one
/// before.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let refused =
        || format!("{text:?} is not a size; write for example 1073741824, 500MB or 1.5GB");
    let (number, unit) = split(text.trim(), |c| c.is_ascii_digit() || c == '.');
    let power = factor(SIZES, unit.trim_start()).ok_or_else(refused)?;
    let scale = 1u128 << (10 * power);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |digits: &str| match digits {
        "" => Ok(0),
        digits if digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse::<u128>().map_err(|_| refused())
        }
        digits => digits.parse::<u128>().map_err(|_| refused()),
    };
    if whole.is_empty() && decimals.is_empty() || decimals.len() > 18 {
        return Err(refused());
    }
    let ten = 10u128.pow(u32::try_from(decimals.len()).map_err(|_| refused())?);
    let whole = digits(whole)?.checked_mul(scale).ok_or_else(refused)?;
    let part = digits(decimals)?.checked_mul(scale).ok_or_else(refused)? / ten;
    whole
        .checked_add(part)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(refused)
}

/// CPU time in percent of one core, up to 100 cores.
pub(crate) fn percent(text: &str) -> Result<u32, String> {
    let number = plain_number(text).filter(|percent| *percent <= 10_000);
    number
        .and_then(|percent| u32::try_from(percent).ok())
        .ok_or_else(|| {
            format!("{text:?} is not a percentage from 0 to 10000; 100 is one core, 0 is unlimited")
        })
}

/// Memory in bytes: a number of MiB, or a size with a unit.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    let refused =
        || format!("{text:?} is no amount of memory; write 512 for MiB, or for example 512M or 2G");
    match plain_number(text) {
        Some(mebibytes) => mebibytes.checked_mul(1 << 20).ok_or_else(refused),
        None if text.ends_with(|c: char| c.is_ascii_alphabetic()) => {
            size(text).map_err(|_| refused())
        }
        None => Err(refused()),
    }
}

/// How many; 0 is unlimited.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    plain_number(text).ok_or_else(|| format!("{text:?} is not a whole number; 0 is unlimited"))
}

fn plain_number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Cores as ranges with both ends in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cores(pub(crate) Vec<(u32, u32)>);

/// `0-3`, `1,3,5`, `0-1,4`. Whether there are such cores only the server knows.
pub(crate) fn cores(text: &str) -> Result<Cores, String> {
    let number = |digits: &str| plain_number(digits).and_then(|core| u32::try_from(core).ok());
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!(
                "{text:?} is no list of cores; write for example 0-3, 1,3,5 or 0-1,4"
            ));
        };
        if first > last {
            return Err(format!(
                "{part} runs backwards; write {last}-{first} for the cores between"
            ));
        }
        Ok((first, last))
    };
    text.split(',')
        .map(range)
        .collect::<Result<_, _>>()
        .map(Cores)
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

fn factor<T: Copy>(units: &[(&[&str], T)], unit: &str) -> Option<T> {
    let unit = unit.to_ascii_lowercase();
    units
        .iter()
        .find(|(names, _)| names.contains(&unit.as_str()))
        .map(|(_, factor)| *factor)
}

/// A point in time, or one that is relative to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then, nanoseconds since the epoch.
    At(i64),
}

impl Since {
    /// Nanoseconds since the epoch, when it is `now_ns`.
    pub(crate) fn nanos(self, now_ns: i64) -> i64 {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => {
                now_ns.saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// A duration ago, RFC 3339, or `YYYY-MM-DD[T| ]HH:MM:SS` in the local zone.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration(text) {
        return Ok(Since::Ago(ago));
    }
    let absolute = text.parse::<Timestamp>().or_else(|_| {
        let local: civil::DateTime = text.parse()?;
        local
            .to_zoned(TimeZone::system())
            .map(|zoned| zoned.timestamp())
    });
    let refused = || {
        format!(
            "{text:?} is neither a duration such as 10min nor a time such as 2026-01-31T12:00:00"
        )
    };
    let nanos = absolute.map_err(|_| refused())?.as_nanosecond();
    i64::try_from(nanos).map(Since::At).map_err(|_| refused())
}

#[cfg(test)]
mod tests;

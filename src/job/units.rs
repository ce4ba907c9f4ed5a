//! Sizes and durations as people write them, and back.
//!
//! A size counts in steps of 1,024 whatever its unit is called; a duration always says its unit.

use std::time::Duration;

const SIZES: [(&str, u64); 5] = [
    ("TB", 1 << 40),
    ("GB", 1 << 30),
    ("MB", 1 << 20),
    ("KB", 1 << 10),
    ("B", 1),
];
const DURATIONS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Reads `1073741824`, `64MB`, `1.5 GB`: bytes. `None` when it is no size or more than 64 bits hold.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / denominator;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Reads `30s`, `10min`, `2h30m`, `1hour`, `1d`, `500ms`, and `0`. `None` when it is no duration.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let tail = tail.trim_start();
        let (unit, tail) = tail.split_at(
            tail.find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len()),
        );
        let scale = match unit.to_ascii_lowercase().as_str() {
            "ms" => 1,
            "s" | "sec" | "second" | "seconds" => 1_000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hour" | "hours" => 3_600_000,
            "d" | "day" | "days" => 86_400_000,
            _ => return None,
        };
        total_ms = total_ms.checked_add(number.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = tail.trim_start();
    }
    Some(Duration::from_millis(total_ms))
}

/// Writes a size in the largest unit that divides it, so that it reads back as the same number.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    in_largest_unit(bytes, &SIZES)
}

/// Writes a duration in the largest unit that divides it. Less than a millisecond is cut off.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    in_largest_unit(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &DURATIONS,
    )
}

fn in_largest_unit(number: u64, units: &[(&str, u64)]) -> String {
    if number == 0 {
        return "0".to_owned();
    }
    units
        .iter()
        .find(|(_, scale)| number.is_multiple_of(*scale))
        .map(|(unit, scale)| format!("{}{unit}", number / scale))
        .expect("the smallest unit is 1 and divides everything")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_the_documentation_says() {
        let check =
            |text: &str, expected: Option<u64>| assert_eq!(parse_size(text), expected, "{text:?}");
        check("0", Some(0));
        check("1073741824", Some(1 << 30));
        check("64MB", Some(64 << 20));
        check("64 mb", Some(64 << 20));
        check("50KB", Some(50 << 10));
        check("1TB", Some(1 << 40));
        check("1.5GB", Some(3 << 29));
        check("2G", Some(2 << 30));
        check("12B", Some(12));
        check("18446744073709551615", Some(u64::MAX));
        for bad in [
            "",
            "MB",
            "-1",
            "1.",
            ".5GB",
            "1..5GB",
            "1.2.3",
            "5XB",
            "1e3",
            "18446744073709551616",
            "99999999TB",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn durations_read_as_the_documentation_says() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(
                parse_duration(text),
                expected.map(Duration::from_millis),
                "{text:?}"
            );
        };
        check("0", Some(0));
        check("30s", Some(30_000));
        check("10min", Some(600_000));
        check("2h30m", Some(9_000_000));
        check("1hour", Some(3_600_000));
        check("1d", Some(86_400_000));
        check("500ms", Some(500));
        check("1h 5 min", Some(3_900_000));
        for bad in [
            "",
            "10",
            "s",
            "1x",
            "-5s",
            "1.5h",
            "18446744073709551615d",
            "5s5",
        ] {
            check(bad, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: u64) {
            proptest::prop_assert_eq!(parse_size(&format_size(bytes)), Some(bytes));
            let duration = Duration::from_millis(bytes);
            proptest::prop_assert_eq!(parse_duration(&format_duration(duration)), Some(duration));
        }
    }
}

//! Durations, sizes and times: both sides of every bound, and text that means nothing.

use proptest::prelude::*;

use super::*;

#[test]
fn durations_take_every_unit_of_the_guide() {
    let check = |text: &str, ms: u64| assert_eq!(millis(text), Ok(ms), "{text}");
    check("168h", 604_800_000);
    check("30min", 1_800_000);
    check("2h30m", 9_000_000);
    check("1hour", 3_600_000);
    check("45s", 45_000);
    check("1d", 86_400_000);
    check("250ms", 250);
    check("1H", 3_600_000);
    check("1h 5s", 3_605_000);
    check("0s", 0);
}

#[test]
fn durations_without_a_unit_or_out_of_range_are_refused() {
    for text in [
        "",
        " ",
        "30",
        "h",
        "1x",
        "-5s",
        "1.5h",
        "5s3",
        "5 s",
        "99999999999999999999s",
        "18446744073709551615h",
        "s5",
        "१s",
    ] {
        assert!(millis(text).is_err(), "{text}");
    }
}

#[test]
fn sizes_count_in_1024_and_take_decimals() {
    let check = |text: &str, bytes: u64| assert_eq!(size(text), Ok(bytes), "{text}");
    check("1073741824", 1 << 30);
    check("50KB", 50 << 10);
    check("100mb", 100 << 20);
    check("5GB", 5 << 30);
    check("1Tb", 1 << 40);
    check("512M", 512 << 20);
    check("1.5GB", 3 << 29);
    check(".5k", 512);
    check("2.", 2);
    check("10 MB", 10 << 20);
    check("7B", 7);
    check(
        "16777215.999TB",
        u64::try_from((16_777_215_999u128 << 40) / 1_000).unwrap(),
    );
}

#[test]
fn sizes_that_are_none_are_refused() {
    for text in [
        "",
        "MB",
        ".",
        "1.2.3",
        "-1",
        "1e6",
        "1PB",
        "16777216TB",
        "0x10",
        "1,5GB",
        "99999999999999999999999999999999999999999",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
}

/// Checks texts that mean something, and texts that mean nothing.
fn check<T: PartialEq + std::fmt::Debug>(
    read: fn(&str) -> Result<T, String>,
    good: &[(&str, T)],
    bad: &[&str],
) {
    for (text, expected) in good {
        assert_eq!(read(text).as_ref(), Ok(expected), "{text}");
    }
    for text in bad {
        let error = read(text).expect_err(text);
        assert!(error.contains(text), "{text:?} is not named: {error}");
    }
}

#[test]
fn percentages_reach_to_a_hundred_cores() {
    check(
        percent,
        &[
            ("0", 0),
            ("1", 1),
            ("50", 50),
            ("800", 800),
            ("10000", 10_000),
        ],
        &[
            "10001",
            "-1",
            "",
            "1.5",
            "50%",
            "+5",
            "4294967297",
            "99999999999999999999",
            "x",
        ],
    );
}

#[test]
fn memory_counts_in_mebibytes_unless_it_has_a_unit() {
    check(
        memory,
        &[
            ("0", 0),
            ("64", 64 << 20),
            ("16384", 16 << 30),
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("1.5GB", 3 << 29),
            ("7B", 7),
            ("100kb", 100 << 10),
        ],
        &[
            "-1",
            "",
            "M",
            "1.5",
            "5X",
            "64 ",
            "1e3",
            "17592186044416",
            "16777216TB",
            "0x10",
        ],
    );
}

#[test]
fn counts_are_whole_numbers() {
    check(
        count,
        &[
            ("0", 0),
            ("4096", 4_096),
            ("18446744073709551615", u64::MAX),
        ],
        &["-1", "", "1.5", "4k", "18446744073709551616", "+1"],
    );
}

#[test]
fn cores_are_numbers_and_ranges() {
    let ranges = |ranges: &[(u32, u32)]| Cores(ranges.to_vec());
    check(
        cores,
        &[
            ("0", ranges(&[(0, 0)])),
            ("0-3", ranges(&[(0, 3)])),
            ("1,3,5", ranges(&[(1, 1), (3, 3), (5, 5)])),
            ("0-1,4", ranges(&[(0, 1), (4, 4)])),
            ("2-2", ranges(&[(2, 2)])),
            ("99", ranges(&[(99, 99)])),
        ],
        &[
            "",
            "-",
            "3-1",
            "0-",
            "-1",
            "0,",
            ",",
            "0,,1",
            "0-1-2",
            "a",
            "0 1",
            "4294967296",
            "all",
        ],
    );
}

#[test]
fn since_is_a_duration_ago_or_a_time() {
    assert_eq!(since("10min"), Ok(Since::Ago(Duration::from_secs(600))));
    assert_eq!(
        since("2026-01-31T12:00:00Z"),
        Ok(Since::At(1_769_860_800_000_000_000))
    );
    assert_eq!(
        since("2026-01-31T13:00:00+01:00"),
        Ok(Since::At(1_769_860_800_000_000_000))
    );
    for local in ["2026-01-31T12:00:00", "2026-01-31 12:00:00"] {
        assert!(matches!(since(local), Ok(Since::At(_))), "{local}");
    }
    for text in ["", "yesterday", "2026-13-01T00:00:00Z", "12"] {
        assert!(since(text).is_err(), "{text}");
    }
    assert_eq!(
        Since::Ago(Duration::from_secs(1)).nanos(3_000_000_000),
        2_000_000_000
    );
    assert_eq!(
        Since::Ago(Duration::from_secs(u64::MAX)).nanos(3),
        3 - i64::MAX
    );
}

proptest! {
    #[test]
    fn nothing_that_is_typed_panics(text in "\\PC{0,24}") {
        let _ = (millis(&text), size(&text), since(&text));
        let _ = (percent(&text), memory(&text), count(&text), cores(&text));
    }

    #[test]
    fn parts_of_a_duration_add_up(h in 0u64..1_000, m in 0u64..1_000, s in 0u64..1_000) {
        prop_assert_eq!(millis(&format!("{h}h{m}m{s}s")), Ok(((h * 60 + m) * 60 + s) * 1_000));
    }
}

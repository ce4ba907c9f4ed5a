//! What a job may use: what its submit asks for, else the configured default, never above the configured
//! maximum.

use std::{collections::BTreeSet, ops::RangeInclusive};

use proto_rkyv::Submit;

use super::{invalid, too_large};
use crate::{
    job::{Limits, Refusal},
    limits,
    shard::Settings,
};

/// One limit with a number, for the words of a refusal.
struct Limit {
    what: &'static str,
    unit: &'static str,
    key: &'static str,
    allowed: RangeInclusive<u64>,
    /// Why there is nothing below the range.
    least: &'static str,
}

const CPU: Limit = Limit {
    what: "a CPU limit",
    unit: "percent",
    key: "jobs.max_cpu",
    allowed: limits::JOB_CPU_PERCENT_RANGE,
    least: "100 is one core",
};
const MEMORY: Limit = Limit {
    what: "a memory limit",
    unit: "bytes",
    key: "jobs.max_memory",
    allowed: limits::JOB_MEMORY_BYTES_RANGE,
    least: "the sandbox of a job itself needs that much",
};
const IO: Limit = Limit {
    what: "an I/O limit",
    unit: "bytes a second",
    key: "jobs.max_iobps",
    allowed: limits::JOB_IOBPS_RANGE,
    least: "files are read and written by the page",
};
const PIDS: Limit = Limit {
    what: "a limit on processes",
    unit: "processes",
    key: "jobs.max_pids",
    allowed: limits::JOB_PIDS_RANGE,
    least: "the job's init is one and its command is another",
};

/// The limits that a submit asks for, with defaults filled in.
///
/// # Errors
/// A refusal that names the first value which is out of range, above a maximum, or no core for jobs.
pub(super) fn job_limits(submit: &Submit, settings: &Settings) -> Result<Limits, Refusal> {
    let (default, max) = (&settings.default_limits, &settings.max_limits);
    let percent = CPU.choose(
        submit.max_cpu.map(u64::from),
        default.cpu_percent.map(u64::from),
        max.cpu_percent.map(u64::from),
    )?;
    Ok(Limits {
        cpu_percent: percent.map(|percent| u32::try_from(percent).unwrap_or(u32::MAX)),
        memory_bytes: MEMORY.choose(
            submit.max_memory_bytes,
            default.memory_bytes,
            max.memory_bytes,
        )?,
        io_bytes_per_second: IO.choose(
            submit.max_iobps,
            default.io_bytes_per_second,
            max.io_bytes_per_second,
        )?,
        pids: PIDS.choose(submit.max_pids, default.pids, max.pids)?,
        cores: submit
            .cpu_cores
            .as_deref()
            .map(|ranges| cores(ranges, settings))
            .transpose()?,
    })
}

impl Limit {
    /// The limit that holds; 0 asks for none.
    fn choose(
        &self,
        asked: Option<u64>,
        default: Option<u64>,
        max: Option<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let (what, unit, key) = (self.what, self.unit, self.key);
        match (asked, max) {
            (None, None) => Ok(default),
            (None, Some(max)) => Ok(Some(default.unwrap_or(max).min(max))),
            (Some(0), None) => Ok(None),
            (Some(0), Some(max)) => Err(too_large(format!(
                "a job without {what} is not allowed here: {key} is {max} {unit}"
            ))),
            (Some(asked), _) if !self.allowed.contains(&asked) => {
                let hint = format!(
                    "between {} and {} are possible, because {}; 0 is unlimited",
                    self.allowed.start(),
                    self.allowed.end(),
                    self.least
                );
                Err(invalid(format!("{what} of {asked} {unit}")).hint(hint))
            }
            (Some(asked), Some(max)) if asked > max => Err(too_large(format!(
                "{what} of {asked} {unit} is above {key} of this server, {max}"
            ))),
            (Some(asked), _) => Ok(Some(asked)),
        }
    }
}

/// The cores of `ranges`, ascending, each once.
fn cores(ranges: &[(u32, u32)], settings: &Settings) -> Result<Vec<u32>, Refusal> {
    let hint = format!("jobs run on cores {}", shown(&ranges_of(&settings.cores)));
    let mut found = BTreeSet::new();
    for (first, last) in ranges {
        if first > last {
            return Err(invalid(format!("cores {first}-{last} run backwards")).hint(hint));
        }
        // Ends at the first core that is none of ours, however long the range is.
        for core in *first..=*last {
            if settings.reserved_cores.contains(&core) {
                return Err(invalid(format!("core {core} is reserved for the daemon")).hint(hint));
            }
            if settings.cores.binary_search(&core).is_err() {
                return Err(invalid(format!("there is no core {core} for jobs here")).hint(hint));
            }
            found.insert(core);
        }
    }
    if found.is_empty() {
        return Err(invalid("the list of cores is empty").hint(hint));
    }
    Ok(found.into_iter().collect())
}

/// Ascending numbers as ranges with both ends in them.
pub(super) fn ranges_of(ascending: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for core in ascending {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*core) => *last = *core,
            Some(_) | None => ranges.push((*core, *core)),
        }
    }
    ranges
}

fn shown(ranges: &[(u32, u32)]) -> String {
    let range = |(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::RefusalCode;

    fn settings(default: Limits, max: Limits) -> Settings {
        Settings {
            default_limits: default,
            max_limits: max,
            cores: [1, 2, 3, 5].into(),
            reserved_cores: [0].into(),
            ..Settings::default()
        }
    }

    fn free() -> Settings {
        settings(Limits::default(), Limits::default())
    }

    /// Checks one submit; a refusal as its code, message and hint.
    fn check(
        settings: &Settings,
        submit: Submit,
        expected: Result<Limits, (RefusalCode, &str, &str)>,
    ) {
        let found = job_limits(&submit, settings);
        let found = found.map_err(|refusal| {
            (
                refusal.code,
                refusal.message,
                refusal.hint.unwrap_or_default(),
            )
        });
        let expected =
            expected.map_err(|(code, message, hint)| (code, message.to_owned(), hint.to_owned()));
        assert_eq!(found, expected, "{submit:?}");
    }

    fn cpu(percent: u32) -> Submit {
        Submit {
            max_cpu: Some(percent),
            ..Submit::default()
        }
    }

    fn memory(bytes: u64) -> Submit {
        Submit {
            max_memory_bytes: Some(bytes),
            ..Submit::default()
        }
    }

    fn iobps(bytes: u64) -> Submit {
        Submit {
            max_iobps: Some(bytes),
            ..Submit::default()
        }
    }

    fn pids(count: u64) -> Submit {
        Submit {
            max_pids: Some(count),
            ..Submit::default()
        }
    }

    fn on(cores: &[(u32, u32)]) -> Submit {
        Submit {
            cpu_cores: Some(cores.to_vec()),
            ..Submit::default()
        }
    }

    #[test]
    fn both_sides_of_every_range_and_zero_is_unlimited() {
        for submit in [Submit::default(), cpu(0), memory(0), iobps(0), pids(0)] {
            check(&free(), submit, Ok(Limits::default()));
        }
        for percent in [1, 800, 10_000] {
            let limits = Limits {
                cpu_percent: Some(percent),
                ..Limits::default()
            };
            check(&free(), cpu(percent), Ok(limits));
        }
        for bytes in [6 << 20, 16 << 30, 1 << 50] {
            let limits = Limits {
                memory_bytes: Some(bytes),
                ..Limits::default()
            };
            check(&free(), memory(bytes), Ok(limits));
        }
        for bytes in [4_096, 1 << 50] {
            let limits = Limits {
                io_bytes_per_second: Some(bytes),
                ..Limits::default()
            };
            check(&free(), iobps(bytes), Ok(limits));
        }
        for count in [2, 4_194_304] {
            let limits = Limits {
                pids: Some(count),
                ..Limits::default()
            };
            check(&free(), pids(count), Ok(limits));
        }
        let refused = |submit, message: &str, hint: &str| {
            check(&free(), submit, Err((RefusalCode::Invalid, message, hint)));
        };
        let hint = "between 1 and 10000 are possible, because 100 is one core; 0 is unlimited";
        refused(cpu(10_001), "a CPU limit of 10001 percent", hint);
        refused(cpu(u32::MAX), "a CPU limit of 4294967295 percent", hint);
        let hint = "between 6291456 and 1125899906842624 are possible, because the sandbox of a job itself \
                    needs that much; 0 is unlimited";
        refused(memory(6_291_455), "a memory limit of 6291455 bytes", hint);
        refused(memory(1), "a memory limit of 1 bytes", hint);
        refused(
            memory(u64::MAX),
            "a memory limit of 18446744073709551615 bytes",
            hint,
        );
        let hint = "between 4096 and 1125899906842624 are possible, because files are read and written by \
                    the page; 0 is unlimited";
        refused(iobps(4_095), "an I/O limit of 4095 bytes a second", hint);
        let hint = "between 2 and 4194304 are possible, because the job's init is one and its command is \
                    another; 0 is unlimited";
        refused(pids(1), "a limit on processes of 1 processes", hint);
        refused(
            pids(4_194_305),
            "a limit on processes of 4194305 processes",
            hint,
        );
    }

    #[test]
    fn a_job_that_asks_for_nothing_gets_the_default_below_the_maximum() {
        let some = |memory_bytes, pids| Limits {
            memory_bytes,
            pids,
            ..Limits::default()
        };
        let default = some(Some(64 << 20), Some(4_096));
        let given = |max: Limits, expected: Limits| {
            check(
                &settings(default.clone(), max),
                Submit::default(),
                Ok(expected),
            );
        };
        given(Limits::default(), default.clone());
        given(
            some(Some(32 << 20), Some(100)),
            some(Some(32 << 20), Some(100)),
        );
        given(some(Some(128 << 20), None), default.clone());
        let max = Limits {
            cpu_percent: Some(200),
            ..Limits::default()
        };
        let expected = Limits {
            cpu_percent: Some(200),
            ..default.clone()
        };
        given(max, expected);
    }

    #[test]
    fn what_is_above_a_maximum_is_refused_and_the_maximum_is_named() {
        let max = Limits {
            cpu_percent: Some(200),
            memory_bytes: Some(1 << 30),
            ..Limits::default()
        };
        let settings = settings(Limits::default(), max.clone());
        check(
            &settings,
            cpu(200),
            Ok(Limits {
                cpu_percent: Some(200),
                ..max.clone()
            }),
        );
        let refused = |submit, message: &str| {
            check(&settings, submit, Err((RefusalCode::TooLarge, message, "")));
        };
        refused(
            cpu(201),
            "a CPU limit of 201 percent is above jobs.max_cpu of this server, 200",
        );
        refused(
            cpu(0),
            "a job without a CPU limit is not allowed here: jobs.max_cpu is 200 percent",
        );
        refused(
            memory(0),
            "a job without a memory limit is not allowed here: jobs.max_memory is 1073741824 bytes",
        );
    }

    #[test]
    fn cores_are_sorted_and_those_that_are_not_for_jobs_are_named() {
        let given = |asked: &[(u32, u32)], cores: &[u32]| {
            let limits = Limits {
                cores: Some(cores.to_vec()),
                ..Limits::default()
            };
            check(&free(), on(asked), Ok(limits));
        };
        given(&[(5, 5), (1, 2), (2, 3)], &[1, 2, 3, 5]);
        given(&[(3, 3), (3, 3)], &[3]);
        let refused = |asked: &[(u32, u32)], message: &str| {
            let hint = "jobs run on cores 1-3,5";
            check(
                &free(),
                on(asked),
                Err((RefusalCode::Invalid, message, hint)),
            );
        };
        refused(&[(99, 99)], "there is no core 99 for jobs here");
        refused(&[(1, u32::MAX)], "there is no core 4 for jobs here");
        refused(
            &[(u32::MAX, u32::MAX)],
            "there is no core 4294967295 for jobs here",
        );
        refused(&[(0, 1)], "core 0 is reserved for the daemon");
        refused(&[(3, 1)], "cores 3-1 run backwards");
        refused(&[], "the list of cores is empty");
    }

    #[test]
    fn numbers_beside_each_other_are_one_range() {
        assert_eq!(ranges_of(&[]), []);
        assert_eq!(ranges_of(&[0, 1, 2, 4, 6, 7]), [(0, 2), (4, 4), (6, 7)]);
        assert_eq!(
            ranges_of(&[u32::MAX - 1, u32::MAX]),
            [(u32::MAX - 1, u32::MAX)]
        );
        assert_eq!(shown(&[(0, 2), (4, 4)]), "0-2,4");
    }
}

//! Whether a job's limits can be kept here, and what is said of those that cannot.

use crate::{
    cgroup::Enforcement,
    job::{Caveat, LimitKind, Limits, Refusal, RefusalCode},
};

/// What does not hold of `limits` in every case, asked of `enforcement` for each that is set. A limit that does
/// not hold at all is named too when nobody asked for it: it is the default, or `best_effort` takes anything.
///
/// # Errors
/// `Unsupported` for a limit that does not hold at all and was asked for.
pub(super) fn admit(
    limits: &Limits,
    default: &Limits,
    best_effort: bool,
    enforcement: impl Fn(LimitKind) -> Enforcement,
) -> Result<Vec<Caveat>, Refusal> {
    const KINDS: [(LimitKind, &str); 5] = [
        (LimitKind::Cpu, "max-cpu"),
        (LimitKind::Memory, "max-memory"),
        (LimitKind::Io, "max-iobps"),
        (LimitKind::Pids, "max-pids"),
        (LimitKind::Cores, "cpu-cores"),
    ];
    let mut caveats = Vec::new();
    let values = numbers(limits).into_iter().zip(numbers(default));
    for ((value, default), (limit, flag)) in values.zip(KINDS) {
        if value.is_none() {
            continue;
        }
        match enforcement(limit) {
            Enforcement::Full { .. } => {}
            Enforcement::Partly { mechanism, note } => caveats.push(Caveat {
                limit,
                is_partly: true,
                note: format!("{mechanism}: {note}"),
            }),
            Enforcement::Missing { reason } if best_effort || value == default => {
                caveats.push(Caveat {
                    limit,
                    is_partly: false,
                    note: reason,
                });
            }
            Enforcement::Missing { reason } => {
                return Err(Refusal::new(
                    RefusalCode::Unsupported,
                    format!("--{flag} cannot be enforced on this host: {reason}"),
                )
                .hint("`rnx doctor` shows what is; `best_effort: true` in the daemon's configuration accepts such jobs"));
            }
        }
    }
    Ok(caveats)
}

/// In the order of the flags above; no list of cores is a default.
fn numbers(limits: &Limits) -> [Option<u64>; 5] {
    [
        limits.cpu_percent.map(u64::from),
        limits.memory_bytes,
        limits.io_bytes_per_second,
        limits.pids,
        limits.cores.as_ref().map(|_| 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Limits {
        Limits {
            cpu_percent: Some(50),
            memory_bytes: Some(1 << 26),
            io_bytes_per_second: Some(1 << 20),
            pids: Some(10),
            cores: Some(vec![0]),
        }
    }

    fn hybrid(limit: LimitKind) -> Enforcement {
        let mechanism = "cgroup v1".to_owned();
        match limit {
            LimitKind::Io => Enforcement::Partly {
                mechanism,
                note: "synced".to_owned(),
            },
            LimitKind::Cores => Enforcement::Missing {
                reason: "no cpuset".to_owned(),
            },
            LimitKind::Cpu | LimitKind::Memory | LimitKind::Pids => Enforcement::Full { mechanism },
        }
    }

    #[test]
    fn a_limit_that_cannot_be_kept_is_refused_by_its_flag() {
        let refusal = admit(&everything(), &Limits::default(), false, hybrid).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Unsupported);
        assert!(refusal.message.contains("--cpu-cores"), "{refusal:?}");
    }

    #[test]
    fn best_effort_takes_it_and_says_so() {
        let caveats = admit(&everything(), &Limits::default(), true, hybrid).unwrap();
        let said: Vec<_> = caveats.iter().map(|c| (c.limit, c.is_partly)).collect();
        assert_eq!(said, [(LimitKind::Io, true), (LimitKind::Cores, false)]);
    }

    #[test]
    fn what_was_not_asked_for_is_not_missed() {
        let missing = |_| Enforcement::Missing {
            reason: String::new(),
        };
        let none = Limits::default();
        assert_eq!(admit(&none, &none, false, missing), Ok(Vec::new()));
    }

    #[test]
    fn a_default_that_cannot_be_kept_refuses_no_job() {
        let missing = |_| Enforcement::Missing {
            reason: "no pids".to_owned(),
        };
        let pids = |pids| Limits {
            pids: Some(pids),
            ..Limits::default()
        };
        let default = pids(4_096);
        assert_eq!(admit(&default, &default, false, missing).unwrap().len(), 1);
        assert!(admit(&pids(10), &default, false, missing).is_err());
    }
}

//! Whether a job's limits can be kept here, and what is said of those that cannot.

use crate::{
    cgroup::Enforcement,
    job::{Caveat, LimitKind, Limits, Refusal, RefusalCode},
};

/// What does not hold of `limits` in every case, asked of `enforcement` for each that is set.
///
/// # Errors
/// `Unsupported` for a limit that does not hold at all, unless `best_effort`.
pub(super) fn admit(
    limits: &Limits,
    best_effort: bool,
    enforcement: impl Fn(LimitKind) -> Enforcement,
) -> Result<Vec<Caveat>, Refusal> {
    let asked = [
        (limits.cpu_percent.is_some(), LimitKind::Cpu, "max-cpu"),
        (
            limits.memory_bytes.is_some(),
            LimitKind::Memory,
            "max-memory",
        ),
        (
            limits.io_bytes_per_second.is_some(),
            LimitKind::Io,
            "max-iobps",
        ),
        (limits.pids.is_some(), LimitKind::Pids, "max-pids"),
        (limits.cores.is_some(), LimitKind::Cores, "cpu-cores"),
    ];
    let mut caveats = Vec::new();
    for (_, limit, flag) in asked.into_iter().filter(|(is_set, ..)| *is_set) {
        match enforcement(limit) {
            Enforcement::Full { .. } => {}
            Enforcement::Partly { mechanism, note } => caveats.push(Caveat {
                limit,
                is_partly: true,
                note: format!("{mechanism}: {note}"),
            }),
            Enforcement::Missing { reason } if best_effort => caveats.push(Caveat {
                limit,
                is_partly: false,
                note: reason,
            }),
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
        let refusal = admit(&everything(), false, hybrid).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Unsupported);
        assert!(refusal.message.contains("--cpu-cores"), "{refusal:?}");
    }

    #[test]
    fn best_effort_takes_it_and_says_so() {
        let caveats = admit(&everything(), true, hybrid).unwrap();
        let said: Vec<_> = caveats.iter().map(|c| (c.limit, c.is_partly)).collect();
        assert_eq!(said, [(LimitKind::Io, true), (LimitKind::Cores, false)]);
    }

    #[test]
    fn what_was_not_asked_for_is_not_missed() {
        let missing = |_| Enforcement::Missing {
            reason: String::new(),
        };
        assert_eq!(admit(&Limits::default(), false, missing), Ok(Vec::new()));
    }
}

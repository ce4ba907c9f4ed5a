//! Who stands still while the host's disk is nearly full: the pure decision.
//!
//! A volume has space of its host only where something was written to it. Below `limits.disk_reserve` a job that
//! goes on writing would bring the host's disk to its end, and the file systems of all volumes to errors; so it
//! is frozen until there is space again, and nothing is lost. Who cannot take space goes on: whoever may only read,
//! and whoever's volumes have all of theirs.

use std::{collections::BTreeSet, time::Duration};

use crate::{job::JobId, limits};

/// What is known of the host's disk and the jobs that write to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// Free space, bytes.
    pub(crate) free_bytes: u64,
    /// `limits.disk_reserve`.
    pub(crate) reserve_bytes: u64,
    /// Jobs that may write to a volume that does not have all of its space.
    pub(crate) takers: &'a BTreeSet<JobId>,
    /// Jobs that are frozen, or may be.
    pub(crate) frozen: &'a BTreeSet<JobId>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Decision {
    /// These are frozen, if they run.
    pub(crate) freeze: Vec<JobId>,
    /// These go on.
    pub(crate) thaw: Vec<JobId>,
}

/// Decides who is frozen and who goes on.
///
/// What is frozen stays so until there is a little more than the reserve: the first block that a job writes would
/// freeze it again otherwise.
#[must_use]
pub(crate) fn decide(seen: Seen<'_>) -> Decision {
    let enough = if seen.frozen.is_empty() {
        seen.reserve_bytes
    } else {
        seen.reserve_bytes
            .saturating_add(margin(seen.reserve_bytes))
    };
    if seen.free_bytes >= enough {
        return Decision {
            freeze: Vec::new(),
            thaw: seen.frozen.iter().copied().collect(),
        };
    }
    // Between the two bounds nobody is frozen who is not.
    let is_low = seen.free_bytes < seen.reserve_bytes;
    Decision {
        freeze: seen
            .takers
            .difference(seen.frozen)
            .copied()
            .filter(|_| is_low)
            .collect(),
        thaw: seen.frozen.difference(seen.takers).copied().collect(),
    }
}

/// When to look again: before a fast disk could have taken what is left above the reserve. Below it everybody who
/// could do harm stands, and the look is for who comes and for space that comes back.
#[must_use]
pub(crate) fn next_look(free_bytes: u64, reserve_bytes: u64) -> Duration {
    let Some(room) = free_bytes.checked_sub(reserve_bytes) else {
        return limits::DISK_CHECK_INTERVAL;
    };
    let lasts = Duration::from_millis(room / limits::DISK_FILLED_PER_MS);
    lasts.clamp(limits::SPACE_LOOK_SHORTEST, limits::SPACE_LOOK_LONGEST)
}

/// Space above the reserve that there has to be before anybody goes on, bytes.
fn margin(reserve_bytes: u64) -> u64 {
    (reserve_bytes / 8).min(limits::DISK_THAW_MARGIN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RESERVE: u64 = 1 << 30;

    fn id(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    fn ids(numbers: &[u8]) -> BTreeSet<JobId> {
        numbers.iter().copied().map(id).collect()
    }

    fn check(free_bytes: u64, takers: &[u8], frozen: &[u8], freeze: &[u8], thaw: &[u8]) {
        let (takers, frozen) = (ids(takers), ids(frozen));
        let decision = decide(Seen {
            free_bytes,
            reserve_bytes: RESERVE,
            takers: &takers,
            frozen: &frozen,
        });
        let (freeze, thaw) = (ids(freeze), ids(thaw));
        assert_eq!(decision.freeze, Vec::from_iter(freeze), "{free_bytes}");
        assert_eq!(decision.thaw, Vec::from_iter(thaw), "{free_bytes}");
    }

    #[test]
    fn below_the_reserve_who_can_take_space_is_frozen_and_nobody_else() {
        check(RESERVE, &[1, 2], &[], &[], &[]);
        check(RESERVE - 1, &[1, 2], &[], &[1, 2], &[]);
        check(RESERVE - 1, &[1, 2], &[1], &[2], &[]);
        check(0, &[], &[], &[], &[]);
    }

    #[test]
    fn who_is_frozen_goes_on_when_there_is_a_little_more_or_nothing_to_take_is_left() {
        let enough = RESERVE + limits::DISK_THAW_MARGIN;
        check(RESERVE, &[1, 2], &[1], &[], &[]);
        check(enough - 1, &[1, 2], &[1], &[], &[]);
        check(enough, &[1, 2], &[1], &[], &[1]);
        check(RESERVE - 1, &[], &[1], &[], &[1]);
    }

    #[test]
    fn without_a_reserve_nobody_is_ever_frozen() {
        let takers = ids(&[1]);
        let none = BTreeSet::new();
        let decision = decide(Seen {
            free_bytes: 0,
            reserve_bytes: 0,
            takers: &takers,
            frozen: &none,
        });
        assert_eq!(decision, Decision::default());
    }

    #[test]
    fn the_nearer_the_reserve_the_sooner_the_next_look() {
        let (shortest, longest) = (limits::SPACE_LOOK_SHORTEST, limits::SPACE_LOOK_LONGEST);
        assert_eq!(next_look(RESERVE - 1, RESERVE), limits::DISK_CHECK_INTERVAL);
        assert_eq!(next_look(RESERVE, RESERVE), shortest);
        assert_eq!(next_look(u64::MAX, RESERVE), longest);
        let near = RESERVE + limits::DISK_FILLED_PER_MS * 100;
        assert_eq!(next_look(near, RESERVE), Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn nobody_is_told_both_and_with_space_nobody_stays_frozen(
            free in 0..4 * RESERVE,
            reserve in 0..2 * RESERVE,
            takers in proptest::collection::btree_set(0..8_u8, 0..8),
            frozen in proptest::collection::btree_set(0..8_u8, 0..8),
        ) {
            let takers: BTreeSet<_> = takers.into_iter().map(id).collect();
            let frozen: BTreeSet<_> = frozen.into_iter().map(id).collect();
            let decision = decide(Seen {
                free_bytes: free, reserve_bytes: reserve, takers: &takers, frozen: &frozen,
            });
            for job in &decision.freeze {
                prop_assert!(takers.contains(job) && !frozen.contains(job));
            }
            for job in &decision.thaw {
                prop_assert!(frozen.contains(job));
            }
            let mut after = frozen.clone();
            after.extend(&decision.freeze);
            for job in &decision.thaw {
                after.remove(job);
            }
            // What is frozen afterwards could take space, and there is little of it.
            prop_assert!(after.is_subset(&takers));
            prop_assert!(after.is_empty() || free < reserve + margin(reserve));
            prop_assert!(free >= reserve || after == takers);
        }
    }
}

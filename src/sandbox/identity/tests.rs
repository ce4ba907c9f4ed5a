//! Leases of host ids: by several daemons, shards and successors.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const FIRST: u32 = 0x8000_0000;

struct Host {
    root: TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            root: TempDir::new().unwrap(),
        }
    }

    fn daemon(&self, instance: &str) -> LeaseOptions {
        let base_dir = self.root.path().join(format!("base-{instance}"));
        fs::create_dir_all(&base_dir).unwrap();
        File::create(base_dir.join("instance"))
            .unwrap()
            .write_all(instance.as_bytes())
            .unwrap();
        LeaseOptions {
            directory: self.root.path().join("ids"),
            instance: instance.to_owned(),
            base_dir,
            first: FIRST,
            count: 3 * ID_SLICE_RANGES,
        }
    }

    fn leases(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root.path().join("ids"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect();
        names.sort();
        names
    }
}

#[test]
fn daemons_and_shards_never_share_a_range_and_a_fourth_finds_none() {
    let host = Host::new();
    let mut held: Vec<_> = ["aaaa", "aaaa", "bbbb"]
        .map(|name| IdRanges::lease(host.daemon(name)).unwrap())
        .into();
    let bases: Vec<u32> = held
        .iter_mut()
        .map(|ranges| ranges.allocate().unwrap().base())
        .collect();
    assert_eq!(bases, [FIRST, FIRST + SLICE_IDS, FIRST + 2 * SLICE_IDS]);
    let refused = IdRanges::lease(host.daemon("cccc")).unwrap_err();
    assert!(
        matches!(refused, IdError::Exhausted { first: FIRST, .. }),
        "{refused}"
    );
    held.pop().unwrap().release().unwrap();
    assert_eq!(
        IdRanges::lease(host.daemon("cccc"))
            .unwrap()
            .allocate()
            .unwrap()
            .base(),
        bases[2]
    );
}

#[test]
fn a_full_slice_is_followed_by_another_and_all_are_released() {
    let host = Host::new();
    let mut ranges = IdRanges::lease(LeaseOptions {
        count: 2 * ID_SLICE_RANGES,
        ..host.daemon("aaaa")
    })
    .unwrap();
    let all: HashSet<IdRange> = (0..2 * ID_SLICE_RANGES)
        .map(|_| ranges.allocate().unwrap())
        .collect();
    assert_eq!(all.len(), ranges.in_use());
    assert!(matches!(ranges.allocate(), Err(IdError::Exhausted { .. })));
    ranges.free(*all.first().unwrap());
    assert_eq!(ranges.allocate().unwrap(), *all.first().unwrap());
    assert_eq!(host.leases(), ["80000000", "81000000"]);
    ranges.release().unwrap();
    assert_eq!(host.leases(), [""; 0]);
}

trait First<T> {
    fn first(&self) -> Option<&T>;
}

impl<T> First<T> for HashSet<T> {
    fn first(&self) -> Option<&T> {
        self.iter().next()
    }
}

#[test]
fn no_more_is_handed_out_than_is_configured_and_spaces_that_overlap_share_no_range() {
    let host = Host::new();
    let lease = |name, shift: u32, count| {
        IdRanges::lease(LeaseOptions {
            first: FIRST + shift * IDS_PER_JOB,
            count,
            ..host.daemon(name)
        })
        .unwrap()
    };
    let mut one = lease("aaaa", 1, 256);
    // The slice in which the first space begins is taken, though this one begins elsewhere in it.
    let mut other = lease("bbbb", 2, 512);
    let count = |ranges: &mut IdRanges| {
        std::iter::from_fn(|| ranges.allocate().ok()).collect::<HashSet<_>>()
    };
    let theirs = count(&mut other);
    let ours = count(&mut one);
    assert!(ours.is_disjoint(&theirs));
    assert_eq!((ours.len(), theirs.len()), (255, 258));
}

#[test]
fn the_end_of_the_id_space_is_not_handed_out() {
    let host = Host::new();
    let first = 0xFFF0_0000;
    let mut ranges = IdRanges::lease(LeaseOptions {
        first,
        count: 8 * ID_SLICE_RANGES,
        ..host.daemon("a")
    })
    .unwrap();
    for number in 0..15 {
        assert_eq!(
            ranges.allocate().unwrap().base(),
            first + number * IDS_PER_JOB
        );
    }
    assert!(matches!(ranges.allocate(), Err(IdError::Exhausted { .. })));
    for first in [0, 1, 65_535, 0xFFFF_0000, u32::MAX] {
        let refused = IdRanges::lease(LeaseOptions {
            first,
            ..host.daemon("b")
        })
        .unwrap_err();
        assert!(matches!(refused, IdError::First(_)), "{first}: {refused}");
    }
}

#[test]
fn a_lease_is_taken_over_only_when_its_daemon_cannot_come_back() {
    let host = Host::new();
    let options = |name| LeaseOptions {
        count: ID_SLICE_RANGES,
        ..host.daemon(name)
    };
    drop(IdRanges::lease(options("aaaa")).unwrap());
    let refused = || IdRanges::lease(options("bbbb")).unwrap_err();
    assert!(
        matches!(refused(), IdError::Exhausted { .. }),
        "it may have jobs still"
    );
    assert!(
        matches!(
            IdRanges::lease(options("aaaa")).unwrap_err(),
            IdError::Exhausted { .. }
        ),
        "nor is it taken by a shard of the same daemon"
    );
    let base = host.daemon("aaaa").base_dir;
    File::create(base.join("instance"))
        .unwrap()
        .write_all(b"dddd")
        .unwrap();
    let taken = IdRanges::lease(options("bbbb")).unwrap();
    drop(taken);
    fs::remove_dir_all(host.daemon("bbbb").base_dir).unwrap();
    drop(IdRanges::lease(options("cccc")).unwrap());
    // An unfinished lease is a crash's.
    File::create(host.root.path().join("ids/80000000")).unwrap();
    drop(IdRanges::lease(options("eeee")).unwrap());
}

#[test]
fn recovery_releases_what_an_instance_leased_and_nothing_else() {
    let host = Host::new();
    for name in ["aaaa", "bbbb", "aaaa"] {
        drop(IdRanges::lease(host.daemon(name)).unwrap());
    }
    let directory = host.root.path().join("ids");
    assert_eq!(release_all(&directory, "aaaa").unwrap(), 2);
    assert_eq!(host.leases(), ["81000000"]);
    assert_eq!(release_all(&directory, "aaaa").unwrap(), 0);
    assert_eq!(
        release_all(Path::new("/nonexistent/ids"), "aaaa").unwrap(),
        0
    );
}

fn set(ranges: &[&[IdRange]]) -> HashSet<IdRange> {
    ranges
        .iter()
        .flat_map(|ranges| ranges.iter().copied())
        .collect()
}

#[test]
fn a_new_daemon_takes_over_ranges_in_use_whatever_its_number_of_shards() {
    for shards in 1..=5 {
        let host = Host::new();
        let options = LeaseOptions {
            count: 8 * ID_SLICE_RANGES,
            ..host.daemon("aaaa")
        };
        let mut dead: Vec<IdRanges> = (0..3)
            .map(|_| IdRanges::lease(options.clone()).unwrap())
            .collect();
        let live: Vec<IdRange> = (0..7)
            .map(|number| dead[number % 2].allocate().unwrap())
            .collect();
        drop(dead);
        let directory = host.root.path().join("ids");
        assert_eq!(
            release_unused(&directory, "aaaa", &set(&[&live])).unwrap(),
            1
        );
        assert_eq!(host.leases(), ["80000000", "81000000"]);
        // Whichever shard a job belongs to now.
        let mut used = vec![Vec::new(); shards];
        for (number, range) in live.iter().enumerate() {
            used[(number * 3) % shards].push(*range);
        }
        let mut adopted = IdRanges::adopt(&options, &used).unwrap();
        assert_eq!(adopted.len(), shards);
        assert_eq!(host.leases().len(), shards.max(2));
        let mut seen = set(&[&live]);
        for (shard, used) in adopted.iter_mut().zip(&used) {
            assert_eq!(shard.in_use(), used.len());
            for _ in 0..ID_SLICE_RANGES - 7 {
                assert!(seen.insert(shard.allocate().unwrap()), "handed out twice");
            }
            for range in used {
                let before = shard.in_use();
                shard.free(*range);
                shard.free(*range);
                assert_eq!(shard.in_use(), before - 1);
            }
        }
        for shard in adopted {
            shard.release().unwrap();
        }
        assert_eq!(host.leases(), [""; 0]);
    }
}

#[test]
fn a_lost_lease_of_a_range_in_use_is_leased_again_unless_another_daemon_was_faster() {
    let host = Host::new();
    let options = host.daemon("aaaa");
    let mut ranges = IdRanges::lease(options.clone()).unwrap();
    let live = ranges.allocate().unwrap();
    ranges.release().unwrap();
    let adopted = IdRanges::adopt(&options, &[vec![live]]).unwrap();
    assert_eq!(host.leases(), ["80000000"]);
    adopted
        .into_iter()
        .for_each(|ranges| ranges.release().unwrap());
    drop(IdRanges::lease(host.daemon("bbbb")).unwrap());
    let refused = IdRanges::adopt(&options, &[vec![live]]).unwrap_err();
    assert!(
        matches!(refused, IdError::Taken { base: FIRST }),
        "{refused}"
    );
}

#[test]
fn a_range_in_use_outside_of_what_is_configured_now_is_not_handed_out_again() {
    let host = Host::new();
    let options = host.daemon("aaaa");
    let live = IdRanges::lease(options.clone())
        .unwrap()
        .allocate()
        .unwrap();
    let elsewhere = LeaseOptions {
        first: FIRST + SLICE_IDS,
        count: ID_SLICE_RANGES,
        ..options
    };
    let mut ranges = IdRanges::adopt(&elsewhere, &[vec![live], vec![]]).unwrap();
    let mut shard = ranges.remove(0);
    shard.free(live);
    assert_eq!(shard.in_use(), 0);
    // Its slice was all that it got, and the other shard has the only one that is configured.
    assert!(matches!(shard.allocate(), Err(IdError::Exhausted { .. })));
    assert!(ranges[0].allocate().is_ok());
}

#[test]
fn the_range_of_a_process_is_read_off_its_maps() {
    let check = |map: &str, base: Option<u32>| {
        assert_eq!(range_in(map).map(IdRange::base), base, "{map}");
    };
    check("         0 2147483648      65536\n", Some(FIRST));
    check("         0          0 4294967295\n", None);
    check("         0 2147483648      65535\n", None);
    check("         1 2147483648      65536\n", None);
    check("         0 2147483649      65536\n", None);
    check("0 2147483648 65536\n65536 0 1\n", None);
    check("", None);
    assert_eq!(range_of(std::process::id()), None);
    assert_eq!(range_of(0), None);
}

#[test]
fn subordinate_ids_of_users_are_refused_by_file_and_line() {
    let host = Host::new();
    let path = host.root.path().join("subuid");
    let check = |line: &str| {
        let text = format!("# comment\nann:100000:65536\n{line}\n");
        File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        check_overlap(&host.daemon("a"), &path)
    };
    let end = u64::from(FIRST) + 3 * u64::from(SLICE_IDS);
    check(&format!("bob:{end}:1")).unwrap();
    check(&format!("bob:{}:65536", FIRST - 65_536)).unwrap();
    check(&format!("bob:{FIRST}:0")).unwrap();
    for line in [
        format!("bob:{}:1", end - 1),
        format!("bob:{}:65537", FIRST - 65_536),
        format!("b:0:{}", 1_u64 << 32),
    ] {
        let error = check(&line).unwrap_err();
        assert!(
            matches!(error, IdError::Overlap { line: 3, .. }),
            "{line}: {error}"
        );
    }
    check_overlap(&host.daemon("a"), Path::new("/nonexistent")).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// However allocation and freeing alternate, doubled and foreign frees included: no range is handed
    /// out while it is in use.
    #[test]
    fn a_range_in_use_is_never_handed_out(steps in prop::collection::vec(any::<(bool, u8)>(), 0..300)) {
        let host = Host::new();
        let mut ranges = IdRanges::lease(host.daemon("aaaa")).unwrap();
        let mut used: Vec<IdRange> = Vec::new();
        for (allocate, which) in steps {
            if allocate {
                let range = ranges.allocate().unwrap();
                prop_assert!(!used.contains(&range));
                used.push(range);
            } else if !used.is_empty() {
                let range = used.remove(usize::from(which) % used.len());
                ranges.free(range);
                ranges.free(range);
            }
            ranges.free(IdRange::from_base(IDS_PER_JOB).unwrap());
            prop_assert_eq!(ranges.in_use(), used.len());
        }
    }
}

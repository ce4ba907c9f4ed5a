//! Host ids of jobs: each job runs on 65,536 ids that no other process of the machine has.
//!
//! A host's id space is shared by every daemon on it, so it is cut into *slices* of 256 ranges, and a
//! daemon owns a slice by a file in `/run/joblet/ids` that names its instance and base directory. The files
//! are made and judged under one lock of that directory. A lease whose base directory is gone, or holds
//! another instance by now, is stale and taken over. `/run` empties at boot, when no job is left either.

use std::{
    collections::{HashSet, VecDeque},
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::limits::{ID_SLICE_RANGES, IDS_END_MAX, IDS_PER_JOB};

/// Ids of one slice.
const SLICE_IDS: u32 = IDS_PER_JOB * ID_SLICE_RANGES;
/// Where leases lie.
pub const LEASE_DIRECTORY: &str = "/run/joblet/ids";
/// Files that give ranges of host ids to users.
const SUBORDINATE_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// The last range holds uid -1, which means "no change" to the kernel and cannot be mapped.
const LAST_BASE: u32 = u32::MAX - 2 * IDS_PER_JOB + 1;
const _: () = assert!(LAST_BASE as u64 + IDS_PER_JOB as u64 == IDS_END_MAX);

/// 65,536 host ids, user and group alike, from a multiple of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdRange(u32);

impl IdRange {
    /// The range that starts at `base`; `None` when no range does: not aligned, the host's own, or the one
    /// with the id -1.
    #[must_use]
    pub const fn from_base(base: u32) -> Option<Self> {
        if base.is_multiple_of(IDS_PER_JOB) && base >= IDS_PER_JOB && base <= LAST_BASE {
            Some(Self(base))
        } else {
            None
        }
    }

    /// The host id that is 0 inside.
    #[must_use]
    pub const fn base(self) -> u32 {
        self.0
    }

    /// The host id of `inside`, an id in the job's user namespace.
    #[must_use]
    pub const fn host_id(self, inside: u16) -> u32 {
        self.0 + inside as u32
    }
}

/// Which part of the host's id space may be used, and by whom.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Directory of lease files, [`LEASE_DIRECTORY`] but for tests.
    pub directory: PathBuf,
    /// The daemon's instance.
    pub instance: String,
    /// Its base directory; `instance` stands in the file of that name in it.
    pub base_dir: PathBuf,
    /// First host id that may be used; a multiple of 65,536.
    pub first: u32,
    /// How many ranges may be used from there; those past the end of the id space are not.
    pub count: u32,
}

impl LeaseOptions {
    /// The ids that may be used.
    fn space(&self) -> Range<u64> {
        let first = u64::from(self.first);
        let end = first + u64::from(self.count) * u64::from(IDS_PER_JOB);
        first..end.min(IDS_END_MAX)
    }
}

/// Why there are no ids.
#[derive(Debug, Error)]
pub enum IdError {
    /// The configured first id is none a range can start with.
    #[error("first host id {0} is not a multiple of 65536 between 65536 and 4294836224")]
    First(u32),
    /// Somebody's subordinate ids lie in the configured space.
    #[error(
        "host ids {first} to {last} overlap line {line} of {}: {text:?}",
        .path.display()
    )]
    Overlap {
        /// First configured id.
        first: u32,
        /// Last configured id.
        last: u32,
        /// `/etc/subuid` or `/etc/subgid`.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// Every slice of the configured space is leased by somebody, or every range of ours is in use.
    #[error("no host ids left: all {count} ranges from {first} are leased or in use")]
    Exhausted {
        /// First configured id.
        first: u32,
        /// Number of configured ranges.
        count: u32,
    },
    /// A file could not be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A lease could not be made or removed.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The ranges one daemon, or one shard of it, may hand out.
#[derive(Debug)]
pub struct IdRanges {
    options: LeaseOptions,
    leased: Vec<PathBuf>,
    /// In the order of their becoming free: an id rests as long as possible before it is used again.
    free: VecDeque<IdRange>,
    used: HashSet<IdRange>,
}

impl IdRanges {
    /// Leases a first slice; more follow when they are needed. Several `IdRanges` of one instance (one a
    /// shard) lease different slices.
    ///
    /// # Errors
    /// [`IdError`].
    pub fn lease(options: LeaseOptions) -> Result<Self, IdError> {
        if IdRange::from_base(options.first).is_none() {
            return Err(IdError::First(options.first));
        }
        for path in SUBORDINATE_FILES {
            check_overlap(&options, Path::new(path))?;
        }
        let mut ranges = Self {
            options,
            leased: Vec::new(),
            free: VecDeque::new(),
            used: HashSet::new(),
        };
        ranges.grow()?;
        Ok(ranges)
    }

    /// A range that nobody uses. When none is free another slice is leased (a file is made in `/run`).
    ///
    /// # Errors
    /// [`IdError::Exhausted`]; [`IdError::Read`] or [`IdError::Write`] when a lease could not be made.
    pub fn allocate(&mut self) -> Result<IdRange, IdError> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let range = self.free.pop_front().ok_or_else(|| self.exhausted())?;
        self.used.insert(range);
        Ok(range)
    }

    /// Gives a range back: no process, file or namespace of its job is left. One that is not in use is
    /// ignored, so that it can never be handed out twice.
    pub fn free(&mut self, range: IdRange) {
        if self.used.remove(&range) {
            self.free.push_back(range);
        }
    }

    /// How many ranges are in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.len()
    }

    /// Gives all slices back. Without this they stay leased until recovery: ids must not be used by others
    /// while a job may still run.
    ///
    /// # Errors
    /// [`IdError::Write`] for the first lease that could not be removed; the others are.
    pub fn release(self) -> Result<(), IdError> {
        let _lock = lock(&self.options.directory)?;
        let removed: Vec<_> = self.leased.iter().map(|path| remove(path)).collect();
        removed.into_iter().collect()
    }

    fn exhausted(&self) -> IdError {
        IdError::Exhausted {
            first: self.options.first,
            count: self.options.count,
        }
    }

    /// Leases the first slice that is nobody's, and takes of it what is configured.
    fn grow(&mut self) -> Result<(), IdError> {
        let _lock = lock(&self.options.directory)?;
        let space = self.options.space();
        // Slices lie at multiples of their size whatever is configured, so that two daemons whose spaces
        // begin at different ids still mean the same slice by the same name.
        let begin = self.options.first - self.options.first % SLICE_IDS;
        for slice in (begin..=LAST_BASE).step_by(SLICE_IDS as usize) {
            if u64::from(slice) >= space.end {
                break;
            }
            let path = self.options.directory.join(format!("{slice:08x}"));
            if claim(&path, &self.options)? {
                let ranges = (0..ID_SLICE_RANGES)
                    .filter_map(|number| IdRange::from_base(slice + number * IDS_PER_JOB))
                    .filter(|range| space.contains(&range.base().into()));
                self.free.extend(ranges);
                self.leased.push(path);
                return Ok(());
            }
        }
        Err(self.exhausted())
    }
}

/// Removes every lease of `instance`, whoever of it made them. Its jobs must have ended. Returns how many.
///
/// # Errors
/// [`IdError`]; a directory that does not exist holds no lease.
pub fn release_all(directory: &Path, instance: &str) -> Result<usize, IdError> {
    if !directory.exists() {
        return Ok(0);
    }
    let _lock = lock(directory)?;
    let read = |source| IdError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut removed = 0;
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if is_slice_name(path.file_name())
            && Lease::read(&path)?.is_some_and(|lease| lease.is_of(instance))
        {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What stands in a lease file: the instance, a line end, the base directory's bytes.
struct Lease {
    instance: Vec<u8>,
    base_dir: PathBuf,
}

impl Lease {
    /// `None` when there is no file, or one that was never finished.
    fn read(path: &Path) -> Result<Option<Self>, IdError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(IdError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
        let (instance, base_dir) = (parts.next().unwrap_or_default(), parts.next());
        Ok(base_dir
            .filter(|base_dir| !base_dir.is_empty())
            .map(|base_dir| Self {
                instance: instance.to_owned(),
                base_dir: PathBuf::from(OsStr::from_bytes(base_dir)),
            }))
    }

    fn is_of(&self, instance: &str) -> bool {
        self.instance == instance.as_bytes()
    }

    /// Whether its daemon can never come back for it.
    fn is_stale(&self) -> bool {
        match fs::read(self.base_dir.join("instance")) {
            // However that file is laid out, the instance stands in it.
            Ok(text) => !text
                .windows(self.instance.len().max(1))
                .any(|part| part == self.instance),
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        }
    }
}

/// Makes a lease file unless somebody holds that slice. The directory is locked.
fn claim(path: &Path, options: &LeaseOptions) -> Result<bool, IdError> {
    let write = |source| IdError::Write {
        path: path.to_owned(),
        source,
    };
    match File::options().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            let mut text = options.instance.clone().into_bytes();
            text.push(b'\n');
            text.extend_from_slice(options.base_dir.as_os_str().as_bytes());
            if let Err(source) = file.write_all(&text) {
                let _ = fs::remove_file(path);
                return Err(write(source));
            }
            Ok(true)
        }
        Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => {
            // Nobody else writes while we hold the lock, so an unfinished file is a crash's.
            let stale = match Lease::read(path)? {
                Some(lease) => !lease.is_of(&options.instance) && lease.is_stale(),
                None => true,
            };
            if !stale {
                return Ok(false);
            }
            remove(path)?;
            claim(path, options)
        }
        Err(source) => Err(write(source)),
    }
}

fn remove(path: &Path) -> Result<(), IdError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IdError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, IdError> {
    let path = directory.join(".lock");
    let write = |source| IdError::Write {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(directory).map_err(write)?;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(write)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| write(error.into()))
}

fn is_slice_name(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| name.len() == 8 && name.as_bytes().iter().all(u8::is_ascii_hexdigit))
}

/// Refuses a configured space in which somebody's subordinate ids lie. A host without the file has none.
fn check_overlap(options: &LeaseOptions, path: &Path) -> Result<(), IdError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(IdError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let space = options.space();
    for (index, line) in text.lines().enumerate() {
        let mut words = line
            .split(':')
            .skip(1)
            .map(|word| word.trim().parse::<u64>());
        let (Some(Ok(start)), Some(Ok(count))) = (words.next(), words.next()) else {
            continue;
        };
        if count > 0 && start < space.end && space.start < start.saturating_add(count) {
            return Err(IdError::Overlap {
                first: options.first,
                last: u32::try_from(space.end - 1).unwrap_or(u32::MAX),
                path: path.to_owned(),
                line: index + 1,
                text: line.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
}

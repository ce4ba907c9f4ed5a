//! Host ids of jobs: each job runs on 65,536 ids that no other process of the machine has.
//!
//! A host's id space is shared by every daemon on it, so it is cut into *slices* of 256 ranges, and a
//! daemon owns a slice by a file in `/run/joblet/ids` that names its instance and base directory. The files
//! are made and judged under one lock of that directory. A lease whose base directory is gone, or holds
//! another instance by now, is stale and taken over. `/run` empties at boot, when no job is left either.
//!
//! Jobs outlive their daemon, so the next one takes over the slices on which some still run, and only those;
//! which range a job has is read off its init.

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
    /// A job of ours runs on ids that another daemon has leased: its lease is lost, and the job must end.
    #[error("host ids from {base} are in use here and leased by others")]
    Taken {
        /// First id of the range.
        base: u32,
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
        check(&options)?;
        let mut ranges = Self::none(options);
        ranges.grow()?;
        Ok(ranges)
    }

    /// Takes over what a dead daemon of the same instance had leased, for as many shards as there are now:
    /// `used` has for each the ranges that its jobs run on. Each shard's are in use with it and freed with it,
    /// whichever slice they lie in; the free ranges of a slice go to one shard, in turn. A shard that gets no
    /// slice leases one.
    ///
    /// Call [`release_unused`] before it, and neither while a daemon of this instance lives.
    ///
    /// # Errors
    /// [`IdError`]. [`IdError::Taken`] when a range in use has no lease and somebody else's stands in its place.
    pub fn adopt(options: &LeaseOptions, used: &[Vec<IdRange>]) -> Result<Vec<Self>, IdError> {
        check(options)?;
        let mut shards: Vec<Self> = used
            .iter()
            .map(|used| Self {
                used: used.iter().copied().collect(),
                ..Self::none(options.clone())
            })
            .collect();
        let all: HashSet<IdRange> = used.iter().flatten().copied().collect();
        let space = options.space();
        for (turn, slice) in adopt_leases(options, &all)?.into_iter().enumerate() {
            let count = shards.len().max(1);
            let Some(shard) = shards.get_mut(turn % count) else {
                break;
            };
            let free = ranges_of(slice, &space).filter(|range| !all.contains(range));
            shard.free.extend(free);
            shard.leased.push(lease_path(options, slice));
        }
        for shard in shards.iter_mut().filter(|shard| shard.leased.is_empty()) {
            shard.grow()?;
        }
        Ok(shards)
    }

    fn none(options: LeaseOptions) -> Self {
        Self {
            options,
            leased: Vec::new(),
            free: VecDeque::new(),
            used: HashSet::new(),
        }
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

    /// Gives a range back: no process, file or namespace of its job is left, which the job's empty cgroup says.
    /// One that is not in use is ignored, so that it can never be handed out twice; so is one outside of what
    /// is configured by now.
    pub fn free(&mut self, range: IdRange) {
        if self.used.remove(&range) && self.options.space().contains(&range.base().into()) {
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
            let path = lease_path(&self.options, slice);
            if claim(&path, &self.options)? {
                self.free.extend(ranges_of(slice, &space));
                self.leased.push(path);
                return Ok(());
            }
        }
        Err(self.exhausted())
    }
}

/// The ids that the process `pid`, a job's init, runs on: its user namespace maps 0 to 65,535 on one range, for
/// users and for groups. `None` when it has ended or is in no namespace of ours.
///
/// # Source
/// user_namespaces(7), "User and group ID mappings".
#[must_use]
pub fn range_of(pid: u32) -> Option<IdRange> {
    let read = |map: &str| range_in(&fs::read_to_string(format!("/proc/{pid}/{map}")).ok()?);
    let users = read("uid_map")?;
    (read("gid_map")? == users).then_some(users)
}

/// The range of a map that is exactly one.
fn range_in(map: &str) -> Option<IdRange> {
    let mut numbers = map.split_whitespace().map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    let (inside, base, count) = (next()?, next()?, next()?);
    let is_one = numbers.next().is_none() && (inside, count) == (0, IDS_PER_JOB);
    IdRange::from_base(base).filter(|_| is_one)
}

/// Removes every lease of `instance`, whoever of it made them. Its jobs must have ended. Returns how many.
///
/// # Errors
/// [`IdError`]; a directory that does not exist holds no lease.
pub fn release_all(directory: &Path, instance: &str) -> Result<usize, IdError> {
    release_unused(directory, instance, &HashSet::new())
}

/// Removes the leases of `instance` in which no range of `used` lies, whoever of it made them. Of its jobs only
/// those of `used` may live. Returns how many.
///
/// # Errors
/// [`IdError`]; a directory that does not exist holds no lease.
pub fn release_unused(
    directory: &Path,
    instance: &str,
    used: &HashSet<IdRange>,
) -> Result<usize, IdError> {
    if !directory.exists() {
        return Ok(0);
    }
    let _lock = lock(directory)?;
    let kept: HashSet<u32> = used.iter().map(|range| slice_of(*range)).collect();
    let mut removed = 0;
    for slice in leases_of(directory, instance)? {
        if !kept.contains(&slice) {
            remove(&directory.join(slice_name(slice)))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The slices that `instance` has leased, in order. The directory is locked.
fn leases_of(directory: &Path, instance: &str) -> Result<Vec<u32>, IdError> {
    let read = |source| IdError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut slices = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if let Some(slice) = slice_in(path.file_name())
            && Lease::read(&path)?.is_some_and(|lease| lease.is_of(instance))
        {
            slices.push(slice);
        }
    }
    slices.sort_unstable();
    Ok(slices)
}

/// The slices of our instance, those of `used` among them: one whose lease was lost is leased again.
fn adopt_leases(options: &LeaseOptions, used: &HashSet<IdRange>) -> Result<Vec<u32>, IdError> {
    let _lock = lock(&options.directory)?;
    let mut slices = leases_of(&options.directory, &options.instance)?;
    for range in used {
        let slice = slice_of(*range);
        if !slices.contains(&slice) {
            if !claim(&lease_path(options, slice), options)? {
                return Err(IdError::Taken { base: range.base() });
            }
            slices.push(slice);
        }
    }
    Ok(slices)
}

/// First id of the slice that a range lies in.
const fn slice_of(range: IdRange) -> u32 {
    range.base() - range.base() % SLICE_IDS
}

/// The ranges of a slice that may be used.
fn ranges_of(slice: u32, space: &Range<u64>) -> impl Iterator<Item = IdRange> {
    let space = space.clone();
    (0..ID_SLICE_RANGES)
        .filter_map(move |number| {
            IdRange::from_base(slice.checked_add(number.checked_mul(IDS_PER_JOB)?)?)
        })
        .filter(move |range| space.contains(&range.base().into()))
}

fn lease_path(options: &LeaseOptions, slice: u32) -> PathBuf {
    options.directory.join(slice_name(slice))
}

fn slice_name(slice: u32) -> String {
    format!("{slice:08x}")
}

/// Whether ids may be had at all.
fn check(options: &LeaseOptions) -> Result<(), IdError> {
    if IdRange::from_base(options.first).is_none() {
        return Err(IdError::First(options.first));
    }
    SUBORDINATE_FILES
        .iter()
        .try_for_each(|path| check_overlap(options, Path::new(path)))
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

/// The slice that a lease file is named after.
fn slice_in(name: Option<&OsStr>) -> Option<u32> {
    let name = name?.to_str().filter(|name| name.len() == 8)?;
    let is_hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(name, 16).ok().filter(|_| is_hex)
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
mod tests;

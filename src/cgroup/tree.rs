//! The tree of one instance in cgroup2, with what bounds its leaves.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    Backend, CgroupError, Controller, Device, Enforcement, HELPERS, Place,
    dir::{self, Dir, contents, value_of},
    directory_name,
    standing::{self, Standing},
    v1::{Seat, SeatMemory, V1},
    v2::V2,
};
use crate::job::{JobId, LimitKind, Limits, Stall, Usage};

/// The heaviest weight that the kernel takes, for the helpers.
const WEIGHT_MOST: &str = "10000";

/// The cgroups of one instance.
#[derive(Debug)]
pub struct Tree {
    pub(super) dir: Dir,
    v1: V1,
    v2: V2,
    /// Where it stands, when we made it.
    standing: Option<Standing>,
}

/// The cgroups that a job is born in.
#[derive(Debug)]
pub struct Leaf {
    /// The directory of its leaf, for CLONE_INTO_CGROUP; close it when the job is born.
    pub dir: OwnedFd,
    /// `tasks` files of its cgroups of version 1, for the job's first process to write `0` to.
    pub joins: Vec<OwnedFd>,
    /// The name that its seat still has, for [`Tree::bound`].
    pub seat: Option<String>,
}

impl Tree {
    /// Makes the tree of `instance` with its `helpers`, or opens the one there, and finds what bounds its
    /// leaves. On a host of pure cgroup2 the calling process may step down into a cgroup beside it: see
    /// [`Tree::remove_remains`].
    ///
    /// # Errors
    /// [`CgroupError`]; `NotMounted` and `ReadOnly` are the host's doing.
    pub fn open(instance: &str) -> Result<Self, CgroupError> {
        let name = directory_name(instance)?;
        let place = Place::find()?;
        if place.read_only {
            return Err(CgroupError::ReadOnly { path: place.mount });
        }
        let standing = match dir::find(&place.mount, &name)?
            .first()
            .and_then(|tree| tree.parent())
        {
            // A former daemon's jobs live there, wherever that was started from.
            Some(parent) => Standing::at(parent),
            None => Standing::find(&place, &name)?,
        };
        let made = Dir::make(standing.parent.join(name));
        if let Err(CgroupError::Make { source, .. }) = &made
            && source.kind() == io::ErrorKind::ReadOnlyFilesystem
        {
            return Err(CgroupError::ReadOnly { path: place.mount });
        }
        let dir = made?;
        if let Err(error) = standing::hand_down(&dir) {
            tracing::warn!(%error, "leaves get no controllers");
        }
        Dir::make(dir.path().join(HELPERS))?;
        let v2 = V2::of(&dir, HELPERS);
        if dir.has(&format!("{HELPERS}/cpu.weight")) {
            // Starts and ends of jobs do not wait for jobs that spin.
            dir.write(&format!("{HELPERS}/cpu.weight"), WEIGHT_MOST)?;
        }
        Ok(Self {
            dir,
            v1: V1::open(instance)?,
            v2,
            standing: Some(standing),
        })
    }

    /// Every tree of `instance` that exists, wherever an earlier daemon of it was started from.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn all(instance: &str) -> Result<Vec<Self>, CgroupError> {
        let name = directory_name(instance)?;
        let paths = dir::find(&Place::find()?.mount, &name)?;
        paths.into_iter().map(Self::at).collect()
    }

    /// Removes what else a daemon of `instance` has: cgroups of version 1, and the one it stepped down into. The
    /// calling process may live in that one, and goes back to where it was started.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove_remains(instance: &str) -> Result<(), CgroupError> {
        V1::remove_all(instance)?;
        let name = directory_name(instance)?;
        standing::step_up_from(&Place::find()?.mount, &name)
    }

    /// Whether this process lives in a tree of `instance`, so that killing that would be the end of it.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn contains_us(instance: &str) -> Result<bool, CgroupError> {
        let name = directory_name(instance)?;
        Ok(Place::find()?
            .own
            .components()
            .any(|part| part.as_os_str() == name.as_str()))
    }

    fn at(path: PathBuf) -> Result<Self, CgroupError> {
        Ok(Self {
            dir: Dir::open(path)?,
            v1: V1::default(),
            v2: V2::default(),
            standing: None,
        })
    }

    /// What stands behind a limit on this host.
    #[must_use]
    pub fn enforcement(&self, limit: LimitKind) -> Enforcement {
        let controller = Controller::from(limit);
        let backends = self.backends();
        backends
            .into_iter()
            .find_map(|backend| backend.enforcement(controller))
            .unwrap_or_else(|| {
                let trouble = self
                    .standing
                    .as_ref()
                    .and_then(|found| found.trouble.clone());
                let name = controller.v2_name();
                Enforcement::Missing {
                    reason: trouble
                        .unwrap_or_else(|| format!("this kernel offers no {name} controller here")),
                }
            })
    }

    /// Whether jobs need a [`Seat`].
    #[must_use]
    pub fn has_seats(&self) -> bool {
        self.v1.has_seats()
    }

    /// Makes a seat; `oom` is an eventfd that is signalled when memory runs out in it, and once more when it is
    /// removed, if its memory is counted. That it is not where version 1 does not have that controller, whatever
    /// is asked for. Blocks for a fraction of a millisecond.
    ///
    /// # Errors
    /// [`CgroupError::Make`], [`CgroupError::Write`]; nothing is left then.
    pub fn make_seat(&self, memory: SeatMemory, oom: BorrowedFd<'_>) -> Result<Seat, CgroupError> {
        self.v1.make_seat(memory, oom)
    }

    /// Counts the memory of a seat from now on, as if it had been made so.
    ///
    /// # Errors
    /// As [`Tree::make_seat`]; the seat is removed then.
    pub fn count_memory(&self, seat: Seat, oom: BorrowedFd<'_>) -> Result<Seat, CgroupError> {
        self.v1.count_memory(seat, oom)
    }

    /// Has `oom` signalled when memory runs out in the leaf of `job`, which a former daemon made, and once more when
    /// it is removed; whether version 1 counts its memory at all.
    ///
    /// # Errors
    /// [`CgroupError::Read`], [`CgroupError::Write`].
    pub fn watch_memory_again(&self, job: JobId, oom: BorrowedFd<'_>) -> Result<bool, CgroupError> {
        self.v1.watch_again(&job.to_string(), oom)
    }

    /// Removes a seat that no job got, by its name.
    ///
    /// # Errors
    /// As [`Tree::remove`].
    pub fn remove_seat(&self, name: &str) -> Result<(), CgroupError> {
        self.v1.remove(name)
    }

    /// Its directory, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file that moves a process whose id is written to it into the helpers' cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Make`] when it cannot be opened.
    pub fn helpers_procs(&self) -> Result<OwnedFd, CgroupError> {
        let name = format!("{HELPERS}/cgroup.procs");
        self.dir
            .open_at(&name, OFlag::O_WRONLY)
            .map_err(|source| CgroupError::Make {
                path: self.dir.path().join(name),
                source,
            })
    }

    /// Makes the leaf of a job, which takes `seat`. [`Tree::bound`] completes it.
    ///
    /// # Errors
    /// [`CgroupError::Exists`], [`CgroupError::Make`], [`CgroupError::Write`] for cores that cannot be had. The
    /// seat is removed then.
    pub fn create(
        &self,
        job: JobId,
        limits: &Limits,
        seat: Option<Seat>,
    ) -> Result<Leaf, CgroupError> {
        let made = self.create_unified(job).and_then(|dir| {
            match self.v1.make_extra(&job.to_string(), limits) {
                Ok(joins) => Ok((dir, joins)),
                Err(error) => {
                    let _ = self.remove(job);
                    Err(error)
                }
            }
        });
        let (dir, extra) = match (made, &seat) {
            (Ok(made), _) => made,
            (Err(error), seat) => {
                if let Some(seat) = seat {
                    let _ = self.v1.remove(&seat.name);
                }
                return Err(error);
            }
        };
        let (seat, mut joins) =
            seat.map_or((None, Vec::new()), |seat| (Some(seat.name), seat.joins));
        joins.extend(extra);
        Ok(Leaf { dir, joins, seat })
    }

    fn create_unified(&self, job: JobId) -> Result<OwnedFd, CgroupError> {
        let name = job.to_string();
        let make = |source: io::Error| CgroupError::Make {
            path: self.dir.path().join(job.to_string()),
            source,
        };
        match self.dir.make_at(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Exists(job));
            }
            Err(error) => return Err(make(error)),
        }
        self.dir
            .open_at(&name, OFlag::O_DIRECTORY | OFlag::O_RDONLY)
            .map_err(|error| {
                let _ = self.dir.remove_at(&name);
                make(error)
            })
    }

    /// Sets a job's limits, and gives its seat its name. It may be called while the job's sandbox is made, but
    /// before its command runs.
    ///
    /// # Errors
    /// [`CgroupError::Write`] names the file of the limit that the kernel refused.
    pub fn bound(
        &self,
        job: JobId,
        seat: Option<&str>,
        limits: &Limits,
        devices: &[Device],
    ) -> Result<(), CgroupError> {
        if let Some(seat) = seat {
            self.v1.rename(seat, job)?;
        }
        let leaf = job.to_string();
        self.backends()
            .into_iter()
            .try_for_each(|backend| backend.limit(&self.dir, &leaf, limits, devices))
    }

    /// What a job has used so far.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Read`].
    pub fn usage(&self, job: JobId) -> Result<Usage, CgroupError> {
        let mut usage = self.counted(job)?;
        let leaf = job.to_string();
        for backend in self.backends() {
            backend.account_now(&self.dir, &leaf, &mut usage);
        }
        Ok(usage)
    }

    /// What a job that has ended has used in all: it has nothing now, though its init may not be dead yet.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Read`].
    pub fn usage_in_all(&self, job: JobId) -> Result<Usage, CgroupError> {
        let counted = self.counted(job)?;
        Ok(Usage {
            // Not every kernel has every file.
            memory_bytes: counted.memory_peak_bytes.or(counted.oom_kills).map(|_| 0),
            pids: counted.pids_peak.or(counted.pids_refused).map(|_| 0),
            ..counted
        })
    }

    fn counted(&self, job: JobId) -> Result<Usage, CgroupError> {
        let leaf = job.to_string();
        // Counted with and without a controller.
        let cpu = self
            .dir
            .read(&format!("{leaf}/cpu.stat"))
            .map_err(|error| missing(job, error))?;
        let mut usage = Usage {
            cpu_user_us: value_of(&cpu, "user_usec").unwrap_or(0),
            cpu_system_us: value_of(&cpu, "system_usec").unwrap_or(0),
            ..Usage::default()
        };
        for backend in self.backends() {
            backend.account(&self.dir, &leaf, &mut usage);
        }
        Ok(usage)
    }

    fn backends(&self) -> [&dyn Backend; 2] {
        [&self.v2, &self.v1]
    }

    /// How much of the time a job waited: for CPU, memory, I/O. `None` where the kernel does not tell.
    #[must_use]
    pub fn pressure(&self, job: JobId) -> Option<[Stall; 3]> {
        let read = |resource| {
            let text = self.dir.read(&format!("{job}/{resource}.pressure")).ok()?;
            stall(&text)
        };
        Some([read("cpu")?, read("memory")?, read("io")?])
    }

    /// How many processes of a job were killed because memory was out, where that has to be asked for: in
    /// version 2 the kernel ends the whole job.
    #[must_use]
    pub fn oom_kills(&self, job: JobId) -> u64 {
        self.v1.oom_kills(&job.to_string()).unwrap_or(0)
    }

    /// Kills every process of a job with SIGKILL, those too that are being made right now. They are gone when
    /// [`Tree::populated`] says so.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Write`].
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/cgroup-v2.rst`, "cgroup.kill".
    pub fn kill(&self, job: JobId) -> Result<(), CgroupError> {
        self.dir
            .write(&format!("{job}/cgroup.kill"), "1")
            .map_err(|error| missing(job, error))
    }

    /// Has the processes of a job stand still, or go on. They can be killed all the same; the kernel may take a
    /// moment until the last of them stands.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Write`].
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/cgroup-v2.rst`, "cgroup.freeze".
    pub fn freeze(&self, job: JobId, is_frozen: bool) -> Result<(), CgroupError> {
        let text = if is_frozen { "1" } else { "0" };
        self.dir
            .write(&format!("{job}/cgroup.freeze"), text)
            .map_err(|error| missing(job, error))
    }

    /// Whether the processes of a job were told to stand still.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Read`].
    pub fn is_frozen(&self, job: JobId) -> Result<bool, CgroupError> {
        let text = self
            .dir
            .read(&format!("{job}/cgroup.freeze"))
            .map_err(|error| missing(job, error))?;
        Ok(text.trim() == "1")
    }

    /// Whether a process of a job is left. Zombies do not count.
    ///
    /// # Errors
    /// [`CgroupError::Missing`], [`CgroupError::Read`].
    pub fn populated(&self, job: JobId) -> Result<bool, CgroupError> {
        let name = format!("{job}/cgroup.events");
        self.read_populated(&name)
            .map(|(_, populated)| populated)
            .map_err(|error| missing(job, error))
    }

    /// Removes the leaf of a job, in every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while there are processes in it; [`CgroupError::Missing`].
    pub fn remove(&self, job: JobId) -> Result<(), CgroupError> {
        let name = job.to_string();
        let removed = self
            .dir
            .remove_at(&name)
            .map_err(|error| missing(job, error));
        if matches!(removed, Ok(()) | Err(CgroupError::Missing(_))) {
            // A former daemon may have died between the two.
            self.v1.remove(&name)?;
        }
        removed
    }

    /// The jobs that have a leaf.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn leaves(&self) -> Result<Vec<JobId>, CgroupError> {
        Ok(dir::directories(self.dir.path())?
            .iter()
            .filter_map(|name| JobId::parse(name))
            .collect())
    }

    /// Kills every process in the tree, helpers included.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.dir.write("cgroup.kill", "1")
    }

    /// Waits until no process is left in the tree, at most for `wait`. Blocks. Returns whether none is.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn wait_empty(&self, wait: Duration) -> Result<bool, CgroupError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "start-up and tear-down, before and after any shard"
        )]
        let (start, now) = (Instant::now(), Instant::now);
        let (mut events, mut populated) = self.read_populated("cgroup.events")?;
        while populated {
            let Some(left) = wait
                .checked_sub(now().duration_since(start))
                .filter(|left| !left.is_zero())
            else {
                return Ok(false);
            };
            // The file says POLLPRI when it has changed since this descriptor read it.
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(
                &mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)],
                timeout,
            );
            populated = reread_populated(&mut events).map_err(|source| CgroupError::Read {
                path: self.dir.path().join("cgroup.events"),
                source,
            })?;
        }
        Ok(true)
    }

    /// Removes the tree and everything in it; no process may be left.
    ///
    /// # Errors
    /// [`CgroupError::Busy`], [`CgroupError::Write`].
    pub fn remove_all(self) -> Result<(), CgroupError> {
        self.dir.remove()
    }

    fn read_populated(&self, name: &str) -> Result<(File, bool), CgroupError> {
        let read = || {
            let mut file = File::from(self.dir.open_at(name, OFlag::O_RDONLY)?);
            let populated = reread_populated(&mut file)?;
            Ok((file, populated))
        };
        read().map_err(|source| CgroupError::Read {
            path: self.dir.path().join(name),
            source,
        })
    }
}

/// Names the job when what failed is that it has no leaf.
fn missing(job: JobId, error: CgroupError) -> CgroupError {
    let (CgroupError::Make { source, .. }
    | CgroupError::Read { source, .. }
    | CgroupError::Write { source, .. }) = &error
    else {
        return error;
    };
    // ENODEV: it was removed between opening the file and using it.
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => CgroupError::Missing(job),
        _ => error,
    }
}

fn reread_populated(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    match contents(file) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        // The cgroup itself is gone, and what was in it.
        Err(gone) if gone.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The line of those tasks that waited while others ran: `some avg10=0.12 … total=345`.
///
/// # Source
/// Linux `Documentation/accounting/psi.rst`.
fn stall(text: &str) -> Option<Stall> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let field = |key| {
        line.split(' ')
            .filter_map(|word| word.split_once('='))
            .find_map(|(name, value)| (name == key).then_some(value))
    };
    let (whole, hundredths) = field("avg10")?.split_once('.')?;
    let whole: u32 = whole.parse().ok()?;
    Some(Stall {
        avg10_centi: whole * 100 + hundredths.parse::<u32>().ok()?,
        total_us: field("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_read_in_hundredths_of_a_percent() {
        let text = "some avg10=12.05 avg60=0.00 avg300=0.00 total=345\nfull avg10=0.00 total=1\n";
        let expected = Stall {
            avg10_centi: 1_205,
            total_us: 345,
        };
        assert_eq!(stall(text), Some(expected));
        assert_eq!(stall("full avg10=0.00 total=1\n"), None);
    }
}

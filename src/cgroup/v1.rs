//! Version 1, for hybrid hosts: one hierarchy for each controller, and a cgroup of the job in each.
//!
//! ```text
//! <own cgroup>/joblet-<instance>/ready-<n>    a seat: made ahead, waits for a job
//!                               /<job uuid>   the same, once a job has it
//! ```
//! Making the cgroups costs as much as the rest of a start, so they are made ahead. The job's first process
//! joins them itself ([`crate::sys::child::join_cgroup`]); killing and counting go through cgroup2. A seat has
//! a cgroup for CPU time and one for processes; one for memory only where that is to be counted.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::fcntl::OFlag;

use super::{
    Backend, CgroupError, Controller, Device, Enforcement, Place,
    dir::{self, Dir, value_of},
    directory_name,
    v2::{LOOP_MAJOR, core_list, quota_us},
};
use crate::job::{JobId, Limits, Usage};

/// What the name of a seat begins with.
pub(super) const SEAT: &str = "ready-";

/// The hierarchies of version 1 that have one of our controllers.
#[derive(Debug, Default)]
pub(super) struct V1 {
    controllers: Vec<(Controller, Dir)>,
    next: AtomicU64,
    /// Swap is bounded with memory.
    has_memsw: bool,
}

/// Whether what a job has in memory is counted. A cgroup of memory costs the host more than all others of the
/// job together: [`crate::limits::MEMORY_COUNTED_JOBS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeatMemory {
    /// It is, and can be limited.
    Counted,
    /// It is not: there is no cgroup for it.
    Uncounted,
}

/// Cgroups that wait for a job.
#[derive(Debug)]
pub struct Seat {
    /// Their name in each hierarchy.
    pub(super) name: String,
    /// Their `tasks` files, open for writing.
    pub(super) joins: Vec<OwnedFd>,
    memory: SeatMemory,
}

impl Seat {
    /// Whether there is one for memory.
    #[must_use]
    pub fn memory(&self) -> SeatMemory {
        self.memory
    }

    /// The name of its cgroups, to give them back when no job gets them.
    #[must_use]
    pub fn into_name(self) -> String {
        self.name
    }
}

impl V1 {
    /// Makes the directories of `instance`, or opens those there. A hierarchy in which nothing can be made
    /// counts as one that is not there.
    pub(super) fn open(instance: &str) -> Result<Self, CgroupError> {
        let name = directory_name(instance)?;
        let mut controllers = Vec::new();
        for (controller, place) in Place::legacy()? {
            let made = if place.read_only {
                Err(CgroupError::ReadOnly { path: place.mount })
            } else {
                Dir::make(place.own.join(&name))
            };
            match made {
                Ok(dir) => controllers.push((controller, dir)),
                Err(error) => {
                    let controller = controller.v1_name();
                    tracing::warn!(controller, %error, "a controller of version 1 is not used");
                }
            }
        }
        let mut v1 = Self {
            controllers,
            ..Self::default()
        };
        v1.controllers.retain(|(controller, dir)| match controller {
            Controller::Cpu => dir.has("cpu.cfs_quota_us"),
            Controller::Memory => dir.has("memory.limit_in_bytes"),
            Controller::Io => dir.has("blkio.throttle.read_bps_device"),
            Controller::Pids => dir.has("pids.max"),
            Controller::Cpuset => match fill_cpuset(dir) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, "the cpuset of version 1 is not used");
                    false
                }
            },
        });
        v1.has_memsw = v1
            .dir(Controller::Memory)
            .is_some_and(|dir| dir.has("memory.memsw.limit_in_bytes"));
        Ok(v1)
    }

    /// Removes every cgroup of `instance` in every hierarchy of version 1; no process may be left.
    pub(super) fn remove_all(instance: &str) -> Result<(), CgroupError> {
        let name = directory_name(instance)?;
        for (_, place) in Place::legacy()? {
            for path in dir::find(&place.mount, &name)? {
                Dir::open(path)?.remove()?;
            }
        }
        Ok(())
    }

    fn dir(&self, wanted: Controller) -> Option<&Dir> {
        self.controllers
            .iter()
            .find_map(|(controller, dir)| (*controller == wanted).then_some(dir))
    }

    /// The hierarchies that every job has a cgroup in; the others only when it asks for their limit.
    fn seated(&self) -> impl Iterator<Item = (Controller, &Dir)> {
        self.controllers
            .iter()
            .filter(|(controller, _)| !is_on_demand(*controller))
            .map(|(controller, dir)| (*controller, dir))
    }

    /// Whether jobs need seats at all.
    pub(super) fn has_seats(&self) -> bool {
        self.seated().next().is_some()
    }

    /// Makes a seat. When memory runs out in it `oom` is signalled, and once more when it is removed.
    pub(super) fn make_seat(
        &self,
        memory: SeatMemory,
        oom: BorrowedFd<'_>,
    ) -> Result<Seat, CgroupError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut seat = Seat {
            name: format!("{SEAT}{number}"),
            joins: Vec::new(),
            memory: SeatMemory::Uncounted,
        };
        let others = || {
            self.seated()
                .filter(|(controller, _)| *controller != Controller::Memory)
        };
        for (_, dir) in others() {
            match add(dir, &seat.name) {
                Ok(tasks) => seat.joins.push(tasks),
                Err(error) => {
                    let _ = self.remove(&seat.name);
                    return Err(error);
                }
            }
        }
        match memory {
            SeatMemory::Counted => self.count_memory(seat, oom),
            SeatMemory::Uncounted => Ok(seat),
        }
    }

    /// Gives a seat the cgroup for memory that it was made without; where memory is not counted by version 1
    /// it stays as it is. The seat is removed when that fails.
    pub(super) fn count_memory(
        &self,
        mut seat: Seat,
        oom: BorrowedFd<'_>,
    ) -> Result<Seat, CgroupError> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(seat);
        };
        if seat.memory == SeatMemory::Counted {
            return Ok(seat);
        }
        let made = add(dir, &seat.name).and_then(|tasks| {
            watch_memory(dir, &seat.name, oom)?;
            Ok(tasks)
        });
        match made {
            Ok(tasks) => {
                seat.joins.push(tasks);
                seat.memory = SeatMemory::Counted;
                Ok(seat)
            }
            Err(error) => {
                let _ = self.remove(&seat.name);
                Err(error)
            }
        }
    }

    /// Makes the cgroups that only some jobs have; gives their `tasks` files.
    pub(super) fn make_extra(
        &self,
        leaf: &str,
        limits: &Limits,
    ) -> Result<Vec<OwnedFd>, CgroupError> {
        let mut joins = Vec::new();
        if let (Some(dir), Some(_)) = (self.dir(Controller::Io), limits.io_bytes_per_second) {
            joins.push(add(dir, leaf)?);
        }
        if let (Some(dir), Some(cores)) = (self.dir(Controller::Cpuset), &limits.cores) {
            let tasks = add(dir, leaf)?;
            // Nobody can join a cpuset that has no cores or no memory.
            dir.write(&format!("{leaf}/cpuset.cpus"), &core_list(cores))?;
            dir.write(
                &format!("{leaf}/cpuset.mems"),
                dir.read("cpuset.mems")?.trim(),
            )?;
            joins.push(tasks);
        }
        Ok(joins)
    }

    /// Gives a seat the name of its job.
    pub(super) fn rename(&self, seat: &str, job: JobId) -> Result<(), CgroupError> {
        let leaf = job.to_string();
        self.seated().try_for_each(|(controller, dir)| {
            match dir.rename_at(seat, &leaf) {
                // A seat may have none for memory; a job with a limit of it would not get that far.
                Err(CgroupError::Write { source, .. })
                    if controller == Controller::Memory
                        && source.raw_os_error() == Some(libc::ENOENT) =>
                {
                    Ok(())
                }
                result => result,
            }
        })
    }

    /// Removes the cgroups called `leaf` wherever there is one.
    pub(super) fn remove(&self, leaf: &str) -> Result<(), CgroupError> {
        for (_, dir) in &self.controllers {
            match dir.remove_at(leaf) {
                Err(CgroupError::Write { source, .. })
                    if source.raw_os_error() == Some(libc::ENOENT) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Has `oom` signalled for a leaf that a former daemon made; whether its memory is counted here at all.
    pub(super) fn watch_again(&self, leaf: &str, oom: BorrowedFd<'_>) -> Result<bool, CgroupError> {
        let Some(dir) = self
            .dir(Controller::Memory)
            .filter(|dir| dir.has(&format!("{leaf}/memory.oom_control")))
        else {
            return Ok(false);
        };
        watch_memory(dir, leaf, oom)?;
        Ok(true)
    }

    /// How many processes of a leaf were killed because memory was out.
    pub(super) fn oom_kills(&self, leaf: &str) -> Option<u64> {
        let text = self
            .dir(Controller::Memory)?
            .read(&format!("{leaf}/memory.oom_control"))
            .ok()?;
        value_of(&text, "oom_kill")
    }
}

const fn is_on_demand(controller: Controller) -> bool {
    match controller {
        Controller::Io | Controller::Cpuset => true,
        Controller::Cpu | Controller::Memory | Controller::Pids => false,
    }
}

fn add(dir: &Dir, leaf: &str) -> Result<OwnedFd, CgroupError> {
    dir.make_at(leaf)
        .and_then(|()| dir.open_at(&format!("{leaf}/tasks"), OFlag::O_WRONLY))
        .map_err(|source| CgroupError::Make {
            path: dir.path().join(leaf),
            source,
        })
}

/// # Source
/// Linux `Documentation/admin-guide/cgroup-v1/memory.rst`, "OOM Control".
fn watch_memory(dir: &Dir, leaf: &str, oom: BorrowedFd<'_>) -> Result<(), CgroupError> {
    let name = format!("{leaf}/memory.oom_control");
    let control = dir
        .open_at(&name, OFlag::O_RDONLY)
        .map_err(|source| CgroupError::Read {
            path: dir.path().join(name),
            source,
        })?;
    let words = format!("{} {}", oom.as_raw_fd(), control.as_fd().as_raw_fd());
    dir.write(&format!("{leaf}/cgroup.event_control"), &words)
}

/// A cpuset is born empty; ours has what its parent has.
fn fill_cpuset(dir: &Dir) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if dir.read(file)?.trim().is_empty() {
            let parent = dir.path().parent().unwrap_or(dir.path()).join(file);
            let text = fs::read_to_string(&parent).map_err(|source| CgroupError::Read {
                path: parent,
                source,
            })?;
            dir.write(file, text.trim())?;
        }
    }
    Ok(())
}

/// Whether this host has swap at all.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

impl Backend for V1 {
    fn enforcement(&self, controller: Controller) -> Option<Enforcement> {
        self.dir(controller)?;
        let mechanism = format!("cgroup v1 {}", controller.v1_name());
        Some(match controller {
            Controller::Io => Enforcement::Partly {
                mechanism,
                note: "holds for direct and synced I/O; buffered writes are not held back by cgroup v1"
                    .to_owned(),
            },
            Controller::Memory if !self.has_memsw && has_swap() => Enforcement::Partly {
                mechanism,
                note: "this kernel does not count swap with it: boot with swapaccount=1".to_owned(),
            },
            Controller::Cpu | Controller::Memory | Controller::Pids | Controller::Cpuset => {
                Enforcement::Full { mechanism }
            }
        })
    }

    fn limit(
        &self,
        _tree: &Dir,
        leaf: &str,
        limits: &Limits,
        devices: &[Device],
    ) -> Result<(), CgroupError> {
        for (controller, dir) in &self.controllers {
            let write = |file: &str, text: &str| dir.write(&format!("{leaf}/{file}"), text);
            match controller {
                Controller::Cpu => {
                    if let Some(percent) = limits.cpu_percent {
                        // The period is the kernel's default, the same as in version 2.
                        write("cpu.cfs_quota_us", &quota_us(percent).to_string())?;
                    }
                }
                Controller::Memory => {
                    if let Some(bytes) = limits.memory_bytes {
                        let bytes = bytes.to_string();
                        write("memory.limit_in_bytes", &bytes)?;
                        if self.has_memsw {
                            // Memory and swap together: the same number leaves no swap.
                            write("memory.memsw.limit_in_bytes", &bytes)?;
                        }
                    }
                }
                Controller::Io => {
                    let rate = limits.io_bytes_per_second;
                    for (Device { major, minor }, rate) in
                        devices.iter().filter_map(|device| Some((device, rate?)))
                    {
                        let line = format!("{major}:{minor} {rate}");
                        write("blkio.throttle.read_bps_device", &line)?;
                        write("blkio.throttle.write_bps_device", &line)?;
                    }
                }
                Controller::Pids => {
                    if let Some(most) = limits.pids {
                        write("pids.max", &most.to_string())?;
                    }
                }
                Controller::Cpuset => {} // before anybody could join
            }
        }
        Ok(())
    }

    fn account(&self, _tree: &Dir, leaf: &str, usage: &mut Usage) {
        for (controller, dir) in &self.controllers {
            let number = |file: &str| dir.number(&format!("{leaf}/{file}"));
            let read = |file: &str| dir.read(&format!("{leaf}/{file}")).ok();
            match controller {
                Controller::Cpu => {
                    usage.throttled_us = read("cpu.stat")
                        .and_then(|text| value_of(&text, "throttled_time"))
                        .map(|ns| ns / 1_000);
                }
                Controller::Memory => {
                    usage.memory_peak_bytes = number("memory.max_usage_in_bytes");
                    usage.oom_kills = self.oom_kills(leaf);
                }
                Controller::Io => {
                    if let Some(text) = read("blkio.throttle.io_service_bytes") {
                        usage.io_read_bytes = Some(io_total(&text, "Read"));
                        usage.io_write_bytes = Some(io_total(&text, "Write"));
                    }
                }
                Controller::Pids => {
                    usage.pids_peak = number("pids.peak");
                    usage.pids_refused =
                        read("pids.events").and_then(|text| value_of(&text, "max"));
                }
                Controller::Cpuset => {}
            }
        }
    }

    fn account_now(&self, _tree: &Dir, leaf: &str, usage: &mut Usage) {
        for (controller, dir) in &self.controllers {
            let number = |file: &str| dir.number(&format!("{leaf}/{file}"));
            match controller {
                Controller::Memory => usage.memory_bytes = number("memory.usage_in_bytes"),
                Controller::Pids => usage.pids = number("pids.current"),
                Controller::Cpu | Controller::Io | Controller::Cpuset => {}
            }
        }
    }
}

/// Sum over disks, from lines `8:0 Read 123`.
fn io_total(text: &str, kind: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let major = words.next()?.split(':').next()?.parse::<u32>().ok()?;
            let is_it = words.next() == Some(kind) && major != LOOP_MAJOR;
            is_it.then(|| words.next()?.parse::<u64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_disks_are_added_up_by_kind() {
        let text =
            "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\n7:1 Read 5\n8:0 Read 1\nTotal 31\n";
        assert_eq!((io_total(text, "Read"), io_total(text, "Write")), (11, 20));
    }
}

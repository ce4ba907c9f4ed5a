//! The cgroups of one job, the same as the product's: a leaf in cgroup2 and, on a hybrid host, a seat in each
//! hierarchy of version 1 that a job without limits of its own gets one in.
//!
//! ```text
//! before the clock    seat: make its cgroups, open their tasks, have memory.oom_control signal an eventfd
//! while it runs       leaf: make it, rename the seat to its name, write the default limits
//! ```
//! The product writes names and limits while its spawner makes the sandbox. One thread does it before, which
//! costs the kernel the same. Everything lies in a directory of this process in each hierarchy, and goes with it.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::{
        eventfd::{EfdFlags, EventFd},
        stat::{Mode, mkdirat},
    },
    unistd::{UnlinkatFlags, unlinkat},
};

/// Hierarchies of version 1 that every job has a cgroup in, in the order in which it joins them.
const SEATED: [&str; 3] = ["cpu", "pids", MEMORY];
const MEMORY: &str = "memory";
const PIDS: &str = "pids";
/// Processes and threads of a job unless asked for.
const PIDS_DEFAULT: &[u8] = b"4096";

/// The directories of this process, until they are dropped.
#[derive(Debug)]
pub(crate) struct Place {
    unified: PathBuf,
    legacy: Vec<(&'static str, PathBuf)>,
}

/// The same, open: what workers share.
#[derive(Debug)]
pub(crate) struct Cgroups {
    unified: OwnedFd,
    legacy: Vec<(&'static str, OwnedFd)>,
    /// Files of a leaf in cgroup2 that are written for every job.
    files: Vec<(&'static str, &'static [u8])>,
    oom: EventFd,
}

/// Cgroups of version 1 that wait for a job.
#[derive(Debug)]
pub(crate) struct Seat {
    name: String,
    /// Their `tasks` files, for the job's first process to write `0` to.
    pub(crate) joins: Vec<OwnedFd>,
}

impl Place {
    /// Makes the directories.
    pub(crate) fn make() -> Result<Self> {
        let name = format!("joblet-floor-{}", std::process::id());
        let membership = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let top = hierarchies(&mounts, "cgroup2", None).context("no cgroup2 is mounted")?;
        // Made in this order, and removed by `drop` should one of them fail.
        let mut place = Self {
            unified: top.join(&name),
            legacy: Vec::new(),
        };
        make(&place.unified)?;
        for controller in SEATED {
            let Some(mount) = hierarchies(&mounts, "cgroup", Some(controller)) else {
                continue;
            };
            let own = mount.join(own_path(&membership, controller));
            place.legacy.push((controller, own.join(&name)));
            make(&own.join(&name))?;
        }
        Ok(place)
    }

    /// Opens them, before the host's mounts are left behind.
    pub(crate) fn open(&self) -> Result<Cgroups> {
        let controllers = fs::read_to_string(self.unified.join("cgroup.controllers"))?;
        let mut files: Vec<(_, &[u8])> = Vec::new();
        for (name, file) in [
            (MEMORY, Some(("memory.oom.group", &b"1"[..]))),
            (PIDS, Some(("pids.max", PIDS_DEFAULT))),
            ("cpu", None),
            ("io", None),
            ("cpuset", None),
        ] {
            if controllers.split_whitespace().any(|has| has == name) {
                let control = self.unified.join("cgroup.subtree_control");
                write(&control, format!("+{name}").as_bytes())?;
                files.extend(file);
            }
        }
        let open = |path: &Path| -> Result<OwnedFd> {
            let directory = File::open(path).with_context(|| format!("open {}", path.display()))?;
            Ok(directory.into())
        };
        let legacy = self
            .legacy
            .iter()
            .map(|(name, path)| Ok((*name, open(path)?)));
        Ok(Cgroups {
            unified: open(&self.unified)?,
            legacy: legacy.collect::<Result<_>>()?,
            files,
            oom: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What failed half-way has left processes and cgroups.
        let _ = write(&self.unified.join("cgroup.kill"), b"1");
        for path in [&self.unified]
            .into_iter()
            .chain(self.legacy.iter().map(|(_, path)| path))
        {
            remove_tree(path);
        }
    }
}

impl Cgroups {
    /// A copy for a worker.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let legacy = self
            .legacy
            .iter()
            .map(|(name, dir)| Ok((*name, dir.try_clone()?)));
        Ok(Self {
            unified: self.unified.try_clone()?,
            legacy: legacy.collect::<Result<_>>()?,
            files: self.files.clone(),
            oom: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Makes a seat; `name` must be free in this place.
    pub(crate) fn make_seat(&self, name: String) -> Result<Seat> {
        let mut joins = Vec::with_capacity(self.legacy.len());
        for (controller, dir) in &self.legacy {
            mkdirat(dir, name.as_str(), Mode::from_bits_truncate(0o755))
                .with_context(|| format!("make a cgroup for {controller}"))?;
            joins.push(open_at(dir, &format!("{name}/tasks"), OFlag::O_WRONLY)?);
            if *controller == MEMORY {
                let control = open_at(dir, &format!("{name}/memory.oom_control"), OFlag::O_RDONLY)?;
                let words = format!("{} {}", self.oom.as_fd().as_raw_fd(), control.as_raw_fd());
                write_at(
                    dir,
                    &format!("{name}/cgroup.event_control"),
                    words.as_bytes(),
                )?;
            }
        }
        Ok(Seat { name, joins })
    }

    /// Makes the leaf of a job and gives the seat its name; both are bounded as a job's without limits of its
    /// own. The leaf's directory, to be born in.
    pub(crate) fn make_leaf(&self, leaf: &str, seat: &Seat) -> Result<OwnedFd> {
        mkdirat(&self.unified, leaf, Mode::from_bits_truncate(0o755)).context("make the leaf")?;
        let opened = open_at(&self.unified, leaf, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        for (controller, dir) in &self.legacy {
            renameat(dir, seat.name.as_str(), dir, leaf)
                .with_context(|| format!("rename a cgroup for {controller}"))?;
            if *controller == PIDS {
                write_at(dir, &format!("{leaf}/pids.max"), PIDS_DEFAULT)?;
            }
        }
        for (file, text) in &self.files {
            write_at(&self.unified, &format!("{leaf}/{file}"), text)?;
        }
        Ok(opened)
    }

    /// Removes all cgroups of a job; the kernel may need a moment after the last process.
    pub(crate) fn remove(&self, leaf: &str) -> Result<()> {
        let legacy = self.legacy.iter().map(|(_, dir)| dir);
        for dir in [&self.unified].into_iter().chain(legacy) {
            remove_leaf(dir, leaf)?;
        }
        Ok(())
    }
}

fn remove_leaf(dir: &OwnedFd, leaf: &str) -> Result<()> {
    for _ in 0..100_000 {
        match unlinkat(dir, leaf, UnlinkatFlags::RemoveDir) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) => std::hint::spin_loop(),
            Err(errno) => return Err(errno).context("remove the leaf"),
        }
    }
    bail!("the leaf {leaf} stays busy")
}

/// Removes a directory and the leaves in it, as far as they can be.
fn remove_tree(path: &Path) {
    let leaves = fs::read_dir(path).into_iter().flatten().flatten();
    for leaf in leaves.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_patiently(&leaf.path());
    }
    remove_patiently(path);
}

/// Killed processes are gone in a moment.
#[expect(clippy::disallowed_methods, reason = "a tool without a shard")]
fn remove_patiently(path: &Path) {
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("make {}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a tool without a shard")]
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn open_at(dir: &OwnedFd, name: &str, flags: OFlag) -> Result<OwnedFd> {
    openat(dir, name, flags | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {name}"))
}

fn write_at(dir: &OwnedFd, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = File::from(open_at(dir, name, OFlag::O_WRONLY)?);
    file.write_all(bytes)
        .with_context(|| format!("write {name}"))
}

/// Where the hierarchy of a kind, and with a controller, is mounted.
fn hierarchies(mounts: &str, kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let is_kind = system.next() == Some(kind);
        let options = system.nth(1).unwrap_or_default();
        let has = controller.is_none_or(|name| options.split(',').any(|option| option == name));
        (is_kind && has).then(|| place.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// This process's own cgroup in the hierarchy of a controller, relative to its root.
fn own_path<'a>(membership: &'a str, controller: &str) -> &'a Path {
    let path = membership.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.trim_start_matches('/'))
    });
    Path::new(path.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_kind_and_controller() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        let check = |kind, controller, expected: Option<&str>| {
            assert_eq!(
                hierarchies(mounts, kind, controller),
                expected.map(PathBuf::from)
            );
        };
        check("cgroup2", None, Some("/sys/fs/cgroup/unified"));
        check("cgroup", Some("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        check("cgroup", Some("memory"), None);
    }

    #[test]
    fn our_own_cgroup_is_relative_to_the_root_of_the_hierarchy() {
        let text = "9:pids:/a/b\n3:cpu,cpuacct:/\n0::/c\n";
        assert_eq!(own_path(text, "pids"), Path::new("a/b"));
        assert_eq!(own_path(text, "cpu"), Path::new(""));
        assert_eq!(own_path(text, "memory"), Path::new(""));
    }
}

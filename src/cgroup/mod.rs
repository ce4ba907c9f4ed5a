//! Cgroups: one tree an instance, one leaf a job.
//!
//! ```text
//! <own cgroup>/joblet-<instance>/helpers          keepers, spawners, makers
//!                               /<job uuid>       one job, from before its first instruction
//! ```
//! Every call goes through a descriptor of the tree that is opened once, so no path outside it can be
//! touched, and a running job costs no descriptor. A leaf serves to name all processes of a job at once: to
//! kill them, and to know that none is left. Limits are not here yet.

mod member;
mod place;
mod usage;

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};
use thiserror::Error;

pub use place::Place;

use crate::job::JobId;

/// Directory of the helper processes.
const HELPERS: &str = "helpers";
/// What the directory of every instance begins with.
const PREFIX: &str = "joblet-";

/// What can go wrong with a cgroup.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// This host has no cgroup2 hierarchy that we can see.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// There is one, but nothing can be made in it.
    #[error("cgroup2 is mounted read-only on {}", .path.display())]
    ReadOnly {
        /// Its mount point.
        path: PathBuf,
    },
    /// The instance's name would not be one directory.
    #[error("instance {0:?} is not made of letters and digits")]
    Instance(String),
    /// A leaf of this job exists.
    #[error("cgroup of job {0} exists")]
    Exists(JobId),
    /// No leaf of this job exists.
    #[error("no cgroup of job {0}")]
    Missing(JobId),
    /// There are processes in it, or some that just ended are not out of it yet: try again.
    #[error("cgroup {} is in use", .path.display())]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// Making a directory or opening one failed.
    #[error("make {}", .path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading a file or directory failed.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing a file or removing a directory failed.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The cgroups of one instance.
#[derive(Debug)]
pub struct Tree {
    dir: OwnedFd,
    path: PathBuf,
}

impl Tree {
    /// Makes the tree of `instance` below our own cgroup, with its `helpers`, or opens the one there.
    ///
    /// # Errors
    /// [`CgroupError`]; `NotMounted` and `ReadOnly` are the host's doing.
    pub fn open(instance: &str) -> Result<Self, CgroupError> {
        let name = directory_name(instance)?;
        let place = Place::find()?;
        let path = place.own.join(name);
        if place.read_only {
            return Err(CgroupError::ReadOnly { path: place.mount });
        }
        for made in [path.clone(), path.join(HELPERS)] {
            match fs::create_dir(&made) {
                Err(source) if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                    return Err(CgroupError::ReadOnly { path: place.mount });
                }
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Make { path: made, source });
                }
                _ => {}
            }
        }
        Self::at(path)
    }

    /// Every tree of `instance` that exists, wherever an earlier daemon of it was started from.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn all(instance: &str) -> Result<Vec<Self>, CgroupError> {
        let name = directory_name(instance)?;
        let mut found = Vec::new();
        let mut ahead = vec![Place::find()?.mount];
        while let Some(directory) = ahead.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                // Somebody removed theirs while we were looking.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(CgroupError::Read {
                        path: directory,
                        source,
                    });
                }
            };
            for entry in entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            {
                if entry.file_name() == name.as_str() {
                    found.push(Self::at(entry.path())?);
                } else if !entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(PREFIX.as_bytes())
                {
                    ahead.push(entry.path());
                }
            }
        }
        Ok(found)
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
        let dir = File::open(&path).map_err(|source| CgroupError::Make {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            dir: dir.into(),
            path,
        })
    }

    /// Its directory, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that moves a process whose id is written to it into the helpers' cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Make`] when it cannot be opened.
    pub fn helpers_procs(&self) -> Result<OwnedFd, CgroupError> {
        let name = format!("{HELPERS}/cgroup.procs");
        self.open_at(&name, OFlag::O_WRONLY)
            .map_err(|source| CgroupError::Make {
                path: self.path.join(name),
                source,
            })
    }

    /// Makes the leaf of a job and opens its directory, for CLONE_INTO_CGROUP; close it when the job is born.
    ///
    /// # Errors
    /// [`CgroupError::Exists`], [`CgroupError::Make`].
    pub fn create(&self, job: JobId) -> Result<OwnedFd, CgroupError> {
        let name = job.to_string();
        let make = |error: io::Error| CgroupError::Make {
            path: self.path.join(job.to_string()),
            source: error,
        };
        match mkdirat(&self.dir, name.as_str(), Mode::from_bits_retain(0o755)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(CgroupError::Exists(job)),
            Err(error) => return Err(make(error.into())),
        }
        self.open_at(&name, OFlag::O_DIRECTORY | OFlag::O_RDONLY)
            .map_err(|error| {
                let _ = unlinkat(&self.dir, name.as_str(), UnlinkatFlags::RemoveDir);
                make(error)
            })
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
        self.write(&format!("{job}/cgroup.kill"), "1")
            .map_err(|error| missing(job, error))
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

    /// Removes the leaf of a job.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] while there are processes in it; [`CgroupError::Missing`].
    pub fn remove(&self, job: JobId) -> Result<(), CgroupError> {
        remove_directory(&self.dir, &job.to_string(), &self.path)
            .map_err(|error| missing(job, error))
    }

    /// The jobs that have a leaf.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn leaves(&self) -> Result<Vec<JobId>, CgroupError> {
        Ok(directories(&self.path)?
            .iter()
            .filter_map(|name| JobId::parse(name))
            .collect())
    }

    /// Kills every process in the tree, helpers included.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
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
                path: self.path.join("cgroup.events"),
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
        for name in directories(&self.path)? {
            remove_directory(&self.dir, &name, &self.path)?;
        }
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(busy) if busy.kind() == io::ErrorKind::ResourceBusy => {
                Err(CgroupError::Busy { path: self.path })
            }
            Err(source) => Err(CgroupError::Write {
                path: self.path,
                source,
            }),
        }
    }

    fn open_at(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(openat(
            &self.dir,
            name,
            flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        self.open_at(name, OFlag::O_WRONLY)
            .and_then(|file| File::from(file).write_all(text.as_bytes()))
            .map_err(|source| CgroupError::Write {
                path: self.path.join(name),
                source,
            })
    }

    fn read_populated(&self, name: &str) -> Result<(File, bool), CgroupError> {
        let read = || {
            let mut file = File::from(self.open_at(name, OFlag::O_RDONLY)?);
            let populated = reread_populated(&mut file)?;
            Ok((file, populated))
        };
        read().map_err(|source| CgroupError::Read {
            path: self.path.join(name),
            source,
        })
    }
}

/// Removes a directory, what is below it first: a leaf has nothing below it unless a later version made it.
fn remove_directory(parent: &OwnedFd, name: &str, path: &Path) -> Result<(), CgroupError> {
    let path = path.join(name);
    let remove = || unlinkat(parent, name, UnlinkatFlags::RemoveDir);
    let write = |error: Errno| {
        if error == Errno::EBUSY {
            CgroupError::Busy { path: path.clone() }
        } else {
            CgroupError::Write {
                path: path.clone(),
                source: error.into(),
            }
        }
    };
    match remove() {
        Ok(()) => return Ok(()),
        Err(Errno::EBUSY) => {}
        Err(error) => return Err(write(error)),
    }
    let below = directories(&path)?;
    if !below.is_empty() {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let dir = openat(parent, name, flags, Mode::empty()).map_err(write)?;
        for name in below {
            remove_directory(&dir, &name, &path)?;
        }
    }
    remove().map_err(write)
}

fn directory_name(instance: &str) -> Result<String, CgroupError> {
    if instance.is_empty() || !instance.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(CgroupError::Instance(instance.to_owned()));
    }
    Ok(format!("{PREFIX}{instance}"))
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
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    match file.read_to_string(&mut text) {
        Ok(_) => Ok(text.lines().any(|line| line == "populated 1")),
        // The cgroup itself is gone, and what was in it.
        Err(gone) if gone.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names of the cgroups right below one.
fn directories(path: &Path) -> Result<Vec<String>, CgroupError> {
    let read = |source| CgroupError::Read {
        path: path.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;

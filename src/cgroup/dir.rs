//! The directory of one cgroup: every name is taken relative to its descriptor.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, faccessat, unlinkat},
};

use super::CgroupError;

/// What the kernel says at once of one file.
const PAGE_BYTES: usize = 4096;

/// What a file of a cgroup says from where it stands to its end. With room for all of it that takes two reads; left to
/// itself the library asks for a size that such files do not have and then begins with 32 bytes, eight calls a file.
pub(super) fn contents(file: &File) -> io::Result<String> {
    let mut text = String::with_capacity(PAGE_BYTES);
    file.take(u64::MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A directory that is open, and where it is, for messages.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    pub(super) fn open(path: PathBuf) -> Result<Self, CgroupError> {
        match File::open(&path) {
            Ok(file) => Ok(Self {
                fd: file.into(),
                path,
            }),
            Err(source) => Err(CgroupError::Make { path, source }),
        }
    }

    /// Makes it unless it is there.
    pub(super) fn make(path: PathBuf) -> Result<Self, CgroupError> {
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::Make { path, source })
            }
            _ => Self::open(path),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn open_at(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(openat(&self.fd, name, flags, Mode::empty())?)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        let mode = nix::unistd::AccessFlags::F_OK;
        faccessat(&self.fd, name, mode, AtFlags::empty()).is_ok()
    }

    pub(super) fn make_at(&self, name: &str) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name, Mode::from_bits_retain(0o755))?)
    }

    pub(super) fn rename_at(&self, from: &str, to: &str) -> Result<(), CgroupError> {
        renameat(&self.fd, from, &self.fd, to).map_err(|errno| CgroupError::Write {
            path: self.path.join(from),
            source: errno.into(),
        })
    }

    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        self.open_at(name, OFlag::O_WRONLY)
            .and_then(|file| File::from(file).write_all(text.as_bytes()))
            .map_err(|source| CgroupError::Write {
                path: self.path.join(name),
                source,
            })
    }

    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        self.open_at(name, OFlag::O_RDONLY)
            .and_then(|file| contents(&File::from(file)))
            .map_err(|source| CgroupError::Read {
                path: self.path.join(name),
                source,
            })
    }

    /// A file that holds one number; `None` when it is not there or says `max`.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.read(name).ok()?.trim().parse().ok()
    }

    /// Removes a cgroup, what is below it first: a leaf has nothing below it unless somebody else made it.
    pub(super) fn remove_at(&self, name: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        let failed = |errno: Errno| {
            if errno == Errno::EBUSY {
                CgroupError::Busy { path: path.clone() }
            } else {
                CgroupError::Write {
                    path: path.clone(),
                    source: errno.into(),
                }
            }
        };
        let remove = || unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir);
        match remove() {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let below = directories(&path)?;
        if !below.is_empty() {
            let dir = Self {
                fd: self
                    .open_at(name, OFlag::O_DIRECTORY | OFlag::O_RDONLY)
                    .map_err(|source| CgroupError::Read {
                        path: path.clone(),
                        source,
                    })?,
                path: path.clone(),
            };
            for name in below {
                dir.remove_at(&name)?;
            }
        }
        remove().map_err(failed)
    }

    /// Removes the directory itself and all that is in it. One that is gone is no error.
    pub(super) fn remove(self) -> Result<(), CgroupError> {
        for name in directories(&self.path)? {
            match self.remove_at(&name) {
                // Somebody removed it while we were looking.
                Err(CgroupError::Write { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
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
}

/// The value of `key` in a file of lines `key value`.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// The names of the cgroups right below one.
pub(super) fn directories(path: &Path) -> Result<Vec<String>, CgroupError> {
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

/// Every directory called `name` in the hierarchy mounted on `mount`, but none below another instance's.
pub(super) fn find(mount: &Path, name: &str) -> Result<Vec<PathBuf>, CgroupError> {
    let mut found = Vec::new();
    let mut ahead = vec![mount.to_owned()];
    while let Some(directory) = ahead.pop() {
        let names = match directories(&directory) {
            Ok(names) => names,
            // Somebody removed theirs while we were looking.
            Err(CgroupError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for below in names {
            if below == name {
                found.push(directory.join(below));
            } else if !below.starts_with(super::PREFIX) {
                ahead.push(directory.join(below));
            }
        }
    }
    Ok(found)
}

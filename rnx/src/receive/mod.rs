//! Writing a tree that a server sent, without trusting one name in it.
//!
//! The job that made the tree is not trusted, and neither is the server. Every component of every path is
//! checked, every directory on the way is opened by itself, beneath the one before it, and never through a
//! link: whatever the tree or somebody on this machine puts there, nothing outside the landing place is
//! opened for writing. Links are stored as they are and not followed afterwards.
//!
//! Like `cp -r`: `job cp ID:/work/a/b there` makes `there/b` when `there` is a directory, otherwise `there`; of all of
//! a `/work` or a volume it makes `there/work` or `there/` and the volume's name.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Write},
    iter,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{self, AtFlags, OFlag},
    sys::stat::{self, Mode},
    unistd::{self, UnlinkatFlags},
};
use proto_rkyv::Upload;
use thiserror::Error;

use crate::omission::{Omission, Omitted};

/// Why a tree could not be written.
#[derive(Debug, Error)]
pub enum LandingError {
    /// The server sent a path that is none, or one that was not asked for.
    #[error("the server sent the path {path:?}, which is not below {asked:?}")]
    Path {
        /// What it sent.
        path: String,
        /// What was asked for.
        asked: String,
    },
    /// The server sent contents without a file, or more or fewer than it announced.
    #[error("the server sent {found} bytes of {}, which has {expected}", .path.display())]
    Contents {
        /// Which file.
        path: PathBuf,
        /// What it announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Something could not be written.
    #[error("write {}", .path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// The kernel's answer; `ELOOP` or `ENOTDIR` when a link is in the way.
        #[source]
        source: io::Error,
    },
    /// There is no such directory to land in.
    #[error("open directory {}", .path.display())]
    Destination {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A place that a tree is written to.
#[derive(Debug)]
pub struct Landing {
    /// What was asked for, relative to `/work`, without empty components.
    asked: Vec<Vec<u8>>,
    /// The directory that holds the landing place, which a person named and links may lead to.
    root: OwnedFd,
    /// Shown in errors.
    shown: PathBuf,
    /// Name of the landing place in `root`.
    name: Vec<u8>,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    written: u64,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW);

impl Landing {
    /// Prepares `local` for what is copied from `asked`, a path relative to a root that is called `root`. Makes
    /// nothing yet.
    ///
    /// # Errors
    /// [`LandingError::Destination`] when the directory around `local` is not there;
    /// [`LandingError::Path`] when `asked` is no clean relative path.
    pub fn new(asked: &[u8], root: &str, local: &Path) -> Result<Self, LandingError> {
        let asked: Vec<Vec<u8>> = components(asked, asked)?;
        let (dir, name) = if local.is_dir() {
            let name = asked.last().cloned().unwrap_or_else(|| root.into());
            (local.to_path_buf(), name)
        } else {
            let refused = || LandingError::Destination {
                path: local.into(),
                source: io::ErrorKind::InvalidInput.into(),
            };
            let name = local.file_name().ok_or_else(refused)?.as_bytes().to_vec();
            let parent = local
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")).to_path_buf(), name)
        };
        let root = fcntl::open(&dir, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| LandingError::Destination {
                path: dir.clone(),
                source: errno.into(),
            })?;
        Ok(Self {
            asked,
            root,
            shown: dir,
            name,
            open: None,
        })
    }

    /// Makes a directory, link or file; a file's contents follow. Gives what is not made as it is there: FIFOs are
    /// left out.
    ///
    /// # Errors
    /// [`LandingError`]; what came before stays.
    pub fn entry(&mut self, entry: &Upload) -> Result<Option<Omission>, LandingError> {
        self.complete()?;
        match entry {
            Upload::Fifo { path, .. } => return Ok(Some(Omission::new(path, Omitted::Fifo))),
            Upload::Remark { path, remark } => return Ok(Some(Omission::remarked(path, *remark))),
            Upload::Dir { path, mode } => {
                let place = self.place(path)?;
                let (dir, name) = self.leaf(&place)?;
                // Ours to write into, whatever the job thought of that.
                let mode = mode_of(*mode | 0o700);
                match stat::mkdirat(&dir, name.as_c_str(), mode) {
                    Ok(()) => {}
                    Err(Errno::EEXIST) => {
                        fcntl::openat(&dir, name.as_c_str(), DIRECTORY, Mode::empty())
                            .map_err(|errno| self.failed(&place, errno))?;
                    }
                    Err(errno) => return Err(self.failed(&place, errno)),
                }
            }
            Upload::File { path, mode, bytes } => self.file(path, *mode, *bytes)?,
            Upload::Symlink { path, target } => {
                let place = self.place(path)?;
                let (dir, name) = self.leaf(&place)?;
                let _ = unistd::unlinkat(&dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
                unistd::symlinkat(OsStr::from_bytes(target), &dir, name.as_c_str())
                    .map_err(|errno| self.failed(&place, errno))?;
            }
            Upload::Link { path, target } => self.second_name(path, target)?,
            Upload::End => {}
        }
        Ok(None)
    }

    /// Another name for something that landed before. A link is not followed, so what it names has landed too, or was
    /// there already.
    fn second_name(&self, path: &[u8], target: &[u8]) -> Result<(), LandingError> {
        let (place, first) = (self.place(path)?, self.place(target)?);
        if place == first {
            return Ok(());
        }
        let (dir, name) = self.leaf(&place)?;
        let (from, old) = self.leaf(&first)?;
        let _ = unistd::unlinkat(&dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        unistd::linkat(
            &from,
            old.as_c_str(),
            &dir,
            name.as_c_str(),
            AtFlags::empty(),
        )
        .map_err(|errno| self.failed(&place, errno))
    }

    /// Writes contents of the file that came last.
    ///
    /// # Errors
    /// [`LandingError::Contents`] when it is more than was announced, [`LandingError::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), LandingError> {
        let found = bytes.len() as u64;
        let Some(open) = &mut self.open else {
            return Err(LandingError::Contents {
                path: self.shown.clone(),
                expected: 0,
                found,
            });
        };
        if found > open.bytes - open.written {
            let found = open.written.saturating_add(found);
            return Err(LandingError::Contents {
                path: open.path.clone(),
                expected: open.bytes,
                found,
            });
        }
        open.written += found;
        open.file
            .write_all(bytes)
            .map_err(|source| LandingError::Write {
                path: open.path.clone(),
                source,
            })
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// [`LandingError::Contents`] when the last file is not complete.
    pub fn finish(mut self) -> Result<(), LandingError> {
        self.complete()
    }

    fn complete(&mut self) -> Result<(), LandingError> {
        match self.open.take() {
            Some(open) if open.written != open.bytes => Err(LandingError::Contents {
                path: open.path,
                expected: open.bytes,
                found: open.written,
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn file(&mut self, path: &[u8], mode: u32, bytes: u64) -> Result<(), LandingError> {
        let place = self.place(path)?;
        let (dir, name) = self.leaf(&place)?;
        // A FIFO with that name must not block, a link must not be followed.
        let flags = OFlag::O_WRONLY
            | OFlag::O_CREAT
            | OFlag::O_TRUNC
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let file = fcntl::openat(&dir, name.as_c_str(), flags, mode_of(mode | 0o200));
        let file = File::from(file.map_err(|errno| self.failed(&place, errno))?);
        let path = self.shown(&place);
        let failed = |source| LandingError::Write {
            path: path.clone(),
            source,
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        self.open = Some(OpenFile {
            file,
            path,
            bytes,
            written: 0,
        });
        Ok(())
    }

    /// Where an entry goes, as components below `root`.
    fn place(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, LandingError> {
        let asked = self.asked.join(&b'/');
        let path_components = components(path, &asked)?;
        let below = path_components
            .strip_prefix(&self.asked[..])
            .ok_or_else(|| foreign(path, &asked))?;
        Ok(iter::once(&self.name).chain(below).cloned().collect())
    }

    /// Opens the directory that holds the last component, making those that are missing.
    fn leaf(&self, place: &[Vec<u8>]) -> Result<(OwnedFd, CString), LandingError> {
        let (last, parents) = place
            .split_last()
            .expect("a place has at least the name of the landing place");
        let failed = |errno| self.failed(place, errno);
        let mut dir = self
            .root
            .try_clone()
            .map_err(|source| LandingError::Write {
                path: self.shown.clone(),
                source,
            })?;
        for name in parents {
            let name = c_string(name);
            match stat::mkdirat(&dir, name.as_c_str(), mode_of(0o777)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            dir = fcntl::openat(dir.as_fd(), name.as_c_str(), DIRECTORY, Mode::empty())
                .map_err(failed)?;
        }
        Ok((dir, c_string(last)))
    }

    fn shown(&self, place: &[Vec<u8>]) -> PathBuf {
        place.iter().fold(self.shown.clone(), |path, name| {
            path.join(OsStr::from_bytes(name))
        })
    }

    fn failed(&self, place: &[Vec<u8>], errno: Errno) -> LandingError {
        LandingError::Write {
            path: self.shown(place),
            source: errno.into(),
        }
    }
}

#[allow(
    clippy::useless_conversion,
    reason = "mode_t has 32 bits on Linux and 16 on macOS"
)]
fn mode_of(mode: u32) -> Mode {
    Mode::from_bits_truncate((mode & 0o777).try_into().unwrap_or_default())
}

fn c_string(name: &[u8]) -> CString {
    CString::new(name).expect("components() refuses NUL")
}

fn foreign(path: &[u8], asked: &[u8]) -> LandingError {
    let shown = |path: &[u8]| {
        std::ffi::OsString::from_vec(path.to_vec())
            .to_string_lossy()
            .into_owned()
    };
    LandingError::Path {
        path: shown(path),
        asked: shown(asked),
    }
}

/// The components of a relative path; refused when one could leave the directory it is looked up in.
fn components(path: &[u8], asked: &[u8]) -> Result<Vec<Vec<u8>>, LandingError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let component = |name: &[u8]| match name {
        b"" | b"." | b".." => Err(foreign(path, asked)),
        name if name.contains(&0) => Err(foreign(path, asked)),
        name => Ok(name.to_vec()),
    };
    path.split(|byte| *byte == b'/').map(component).collect()
}

#[cfg(test)]
mod tests;

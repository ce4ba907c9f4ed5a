//! Uploads: from paths of this machine to entries below `/work`.
//!
//! [`Tree`] is decided first, by looking at names and sizes only, because the sum of the sizes is announced
//! before the first byte. [`read`] then turns it into frames on a thread of its own, a quarter of a MiB at a
//! time and never more than a few ahead of the network.
//!
//! A path that is named is followed when it is a symbolic link, as `cp` does; links found inside a directory
//! are kept as links. Sockets, FIFOs and devices inside a directory are left out and listed in
//! [`Tree::skipped`]; named, they are an error.

mod read;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use proto_rkyv::Upload;
use thiserror::Error;

pub(crate) use read::{read, read_found};

/// Bits of a mode that travel: no setuid, setgid or sticky bit.
const MODE_MASK: u32 = 0o777;
const PARENT_MODE: u32 = 0o755;

/// Why something cannot be uploaded.
#[derive(Debug, Error)]
pub enum UploadError {
    /// It cannot be looked at or read.
    #[error("{action} {}", .path.display())]
    Read {
        /// What was tried.
        action: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is neither file nor directory.
    #[error("cannot upload {}: it is neither a file nor a directory", .path.display())]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// It has no name of its own to land under.
    #[error("cannot upload {}: it has no name to be stored under", .path.display())]
    Nameless {
        /// Which.
        path: PathBuf,
    },
    /// The destination leaves `/work`.
    #[error(
        "upload destination {destination} is not a path below /work: it must be relative and have no `..`"
    )]
    Destination {
        /// As it was given.
        destination: String,
    },
    /// Two uploads land on one name.
    #[error("{} and {} would both be stored as /work/{destination}", .first.display(), .second.display())]
    Twice {
        /// Where.
        destination: String,
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// It changed between being looked at and being read, or while it was read.
    #[error("{} changed while it was uploaded: it had {expected} bytes, now {found}", .path.display())]
    Changed {
        /// Which.
        path: PathBuf,
        /// Size that was announced.
        expected: u64,
        /// What was found; at least so many.
        found: u64,
    },
}

/// One entry and where its contents are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) upload: Upload,
    pub(crate) source: PathBuf,
    /// Whether a link at `source` may be followed: only when a person named it.
    pub(crate) follow: bool,
    /// Whether it is a directory that is only here because something is to lie below it.
    pub(crate) is_made_up: bool,
}

/// Everything that one submit uploads.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: Vec<Entry>,
    taken: HashMap<Vec<u8>, usize>,
    bytes: u64,
    skipped: Vec<PathBuf>,
}

impl Tree {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file or the contents of a directory.
    ///
    /// Without `destination` a file lands at `/work/<its name>` and a directory's contents in `/work`.
    /// With one, relative to `/work`, a directory's contents land in it; a file lands under exactly that
    /// name, or inside it when it ends in `/`.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn add(&mut self, source: &Path, destination: Option<&OsStr>) -> Result<(), UploadError> {
        let base =
            destination.map_or(Ok(Vec::new()), |destination| clean(destination.as_bytes()))?;
        let into = destination.is_none_or(|destination| {
            destination.is_empty() || destination.as_bytes().ends_with(b"/")
        });
        let meta = fs::metadata(source).map_err(|error| UploadError::Read {
            action: "read",
            path: source.into(),
            source: error,
        })?;
        if meta.is_dir() {
            self.parents(&base, true, source)?;
            self.walk(source, base)
        } else if meta.is_file() {
            let mut path = base;
            if into {
                let name = source.file_name().ok_or_else(|| UploadError::Nameless {
                    path: source.into(),
                })?;
                extend(&mut path, name.as_bytes());
            }
            self.parents(&path, false, source)?;
            self.file(path, source.into(), &meta, true)
        } else {
            Err(UploadError::NotAFile {
                path: source.into(),
            })
        }
    }

    /// Adds a directory itself, under exactly this name and with its own mode, and its contents.
    ///
    /// # Errors
    /// [`UploadError`].
    pub fn add_dir(&mut self, source: &Path, destination: &OsStr) -> Result<(), UploadError> {
        let base = clean(destination.as_bytes())?;
        let failed = |error| UploadError::Read {
            action: "read",
            path: source.into(),
            source: error,
        };
        let mode = fs::metadata(source).map_err(failed)?.mode() & MODE_MASK;
        self.parents(&base, false, source)?;
        if !base.is_empty() {
            self.dir(base.clone(), mode, source.into(), false)?;
        }
        self.walk(source, base)
    }

    /// Sum of the sizes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What was left out: sockets, FIFOs and devices inside directories.
    #[must_use]
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// The entries as they will be sent, in order.
    pub fn uploads(&self) -> impl Iterator<Item = &Upload> {
        self.entries.iter().map(|entry| &entry.upload)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The directories that lead to `path`, and `path` itself when it is to be one.
    fn parents(&mut self, path: &[u8], inclusive: bool, source: &Path) -> Result<(), UploadError> {
        let inner = path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
            .map(|(at, _)| at);
        let ends: Vec<usize> = inner
            .chain((inclusive && !path.is_empty()).then_some(path.len()))
            .collect();
        for end in ends {
            self.dir(path[..end].to_vec(), PARENT_MODE, source.into(), true)?;
        }
        Ok(())
    }

    /// Everything below `root`, which itself is not an entry. Names are taken in byte order, so that the
    /// same tree is always the same upload.
    fn walk(&mut self, root: &Path, base: Vec<u8>) -> Result<(), UploadError> {
        let mut pending = vec![(root.to_path_buf(), base)];
        while let Some((dir, at)) = pending.pop() {
            let failed = |error| UploadError::Read {
                action: "list",
                path: dir.clone(),
                source: error,
            };
            let mut names = fs::read_dir(&dir)
                .and_then(|entries| {
                    entries
                        .map(|entry| entry.map(|entry| entry.file_name()))
                        .collect::<Result<Vec<_>, _>>()
                })
                .map_err(failed)?;
            names.sort();
            for name in names {
                let source = dir.join(&name);
                let mut path = at.clone();
                extend(&mut path, name.as_bytes());
                if self.found(&source, path.clone())? {
                    pending.push((source, path));
                }
            }
        }
        Ok(())
    }

    /// Adds what a walk came across; true when it is a directory to walk.
    fn found(&mut self, source: &Path, path: Vec<u8>) -> Result<bool, UploadError> {
        let failed = |error| UploadError::Read {
            action: "read",
            path: source.into(),
            source: error,
        };
        let meta = fs::symlink_metadata(source).map_err(failed)?;
        let kind = meta.file_type();
        if kind.is_dir() {
            self.dir(path, meta.mode() & MODE_MASK, source.into(), false)?;
        } else if kind.is_file() {
            self.file(path, source.into(), &meta, false)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(source)
                .map_err(failed)?
                .as_os_str()
                .as_bytes()
                .to_vec();
            self.push(Upload::Symlink { path, target }, source.into(), false)?;
        } else {
            self.skipped.push(source.into());
        }
        Ok(kind.is_dir())
    }

    fn dir(
        &mut self,
        path: Vec<u8>,
        mode: u32,
        source: PathBuf,
        is_made_up: bool,
    ) -> Result<(), UploadError> {
        if let Some(&index) = self.taken.get(&path)
            && let Upload::Dir { .. } = self.entries[index].upload
        {
            let entry = &mut self.entries[index];
            if entry.is_made_up && !is_made_up {
                // Now there is one whose mode it can have.
                (entry.upload, entry.is_made_up) = (Upload::Dir { path, mode }, false);
            }
            return Ok(());
        }
        self.push(Upload::Dir { path, mode }, source, false)?;
        if let Some(entry) = self.entries.last_mut() {
            entry.is_made_up = is_made_up;
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: Vec<u8>,
        source: PathBuf,
        meta: &Metadata,
        follow: bool,
    ) -> Result<(), UploadError> {
        let bytes = meta.len();
        self.push(
            Upload::File {
                path,
                mode: meta.mode() & MODE_MASK,
                bytes,
            },
            source,
            follow,
        )?;
        self.bytes += bytes;
        Ok(())
    }

    fn push(&mut self, upload: Upload, source: PathBuf, follow: bool) -> Result<(), UploadError> {
        if let Upload::Dir { path, .. } | Upload::File { path, .. } | Upload::Symlink { path, .. } =
            &upload
        {
            if let Some(&index) = self.taken.get(path) {
                let destination = String::from_utf8_lossy(path).into_owned();
                return Err(UploadError::Twice {
                    destination,
                    first: self.entries[index].source.clone(),
                    second: source,
                });
            }
            self.taken.insert(path.clone(), self.entries.len());
        }
        self.entries.push(Entry {
            upload,
            source,
            follow,
            is_made_up: false,
        });
        Ok(())
    }
}

fn extend(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// A destination without `.` and empty components; refused when it could leave `/work`.
fn clean(destination: &[u8]) -> Result<Vec<u8>, UploadError> {
    let refused = || UploadError::Destination {
        destination: String::from_utf8_lossy(destination).into_owned(),
    };
    if destination.starts_with(b"/") || destination.contains(&0) {
        return Err(refused());
    }
    let mut path = Vec::with_capacity(destination.len());
    for component in destination.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(refused()),
            name => extend(&mut path, name),
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests;

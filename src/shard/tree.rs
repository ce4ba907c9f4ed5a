//! Reading a tree out of a job's `/work` or a volume, hostile as its contents may be.
//!
//! Every name is opened beneath a directory that is already open, without following a symbolic link, so
//! nothing outside the tree can be reached however it changes meanwhile. The walk runs on the blocking pool,
//! one step a call; what is held is one chunk and the directories on the way down.

mod linked;

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use bytes::Bytes;
use nix::{
    dir::Dir,
    fcntl::{OFlag, readlinkat},
    sys::stat::{FileStat, SFlag, fstat},
};

use self::linked::{Linked, Seen};
use super::beneath::{Root, kind, open_beneath};
use crate::{
    job::{ByteString, ExtraEntry, Refusal, RefusalCode, Remark, TreeEntry},
    limits,
    rt::{self, BlockingError},
};

/// A tree that is read out of a job's `/work` or a volume.
#[derive(Debug)]
pub struct Tree {
    walk: Option<Walk>,
}

/// A piece of a tree.
#[derive(Debug)]
pub enum TreeItem {
    /// The next entry.
    Entry(TreeEntry),
    /// The next entry, which not every tree may have.
    Extra(ExtraEntry),
    /// What the tree does not carry of a path.
    Remark(ByteString, Remark),
    /// Some bytes of the last file.
    Data(Bytes),
}

/// Where a walk is: open directories from the top, and the file being read.
#[derive(Debug)]
struct Walk {
    /// How people know where it began.
    known_as: Root,
    levels: Vec<Level>,
    linked: Linked,
    file: Option<Reading>,
    /// What comes before anything else: at first what was asked for itself, unless that is the whole root.
    next: Option<TreeItem>,
}

#[derive(Debug)]
struct Level {
    fd: OwnedFd,
    /// Path of this directory relative to the root, as clients see it.
    path: Vec<u8>,
    /// Names that are still to be visited, sorted so that the last is next.
    names: Vec<CString>,
}

#[derive(Debug)]
struct Reading {
    file: File,
    /// What it is called, for people.
    shown: String,
    left: u64,
}

impl Tree {
    /// Opens `path` below `root`, which people know as `known_as`.
    pub(super) async fn open(
        root: OwnedFd,
        path: Vec<u8>,
        known_as: Root,
    ) -> Result<Self, Refusal> {
        let walk = rt::blocking("read a tree", move || Walk::open(&root, &path, known_as))
            .await
            .map_err(|error| busy(&error))??;
        Ok(Self { walk: Some(walk) })
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// A file that cannot be read or became shorter while it was read.
    pub async fn next(&mut self) -> Result<Option<TreeItem>, Refusal> {
        let Some(mut walk) = self.walk.take() else {
            return Ok(None);
        };
        let step = move || {
            let item = walk.step();
            (walk, item)
        };
        let (walk, item) = rt::blocking("read a tree", step)
            .await
            .map_err(|error| busy(&error))?;
        let item = item?;
        if item.is_some() {
            self.walk = Some(walk);
        }
        Ok(item)
    }
}

impl Walk {
    fn open(root: &OwnedFd, path: &[u8], known_as: Root) -> Result<Self, Refusal> {
        let refused = |error: &io::Error| known_as.refusal(path, error);
        let trimmed: &[u8] = if path.is_empty() { b"." } else { path };
        let fd = open_beneath(
            root,
            OsStr::from_bytes(trimmed),
            OFlag::O_PATH | OFlag::O_NOFOLLOW,
        )
        .map_err(|error| refused(&error))?;
        let stat = fstat(&fd).map_err(|errno| refused(&errno.into()))?;
        let mut walk = Self {
            known_as: known_as.clone(),
            levels: Vec::new(),
            linked: Linked::default(),
            file: None,
            next: None,
        };
        match kind(&stat) {
            SFlag::S_IFDIR => {
                walk.enter(&fd, path.to_vec())?;
                let mode = stat.st_mode & 0o777;
                let path = path.to_vec();
                let is_root = path.is_empty();
                walk.next = (!is_root).then_some(TreeItem::Entry(TreeEntry::Dir { path, mode }));
            }
            SFlag::S_IFREG => {
                let file = walk.begin_file(root, trimmed, path.to_vec(), &stat)?;
                walk.next = Some(TreeItem::Entry(file));
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(&fd, "").map_err(|errno| refused(&errno.into()))?;
                walk.next = Some(TreeItem::Entry(TreeEntry::Symlink {
                    path: path.to_vec(),
                    target: target.as_bytes().to_vec(),
                }));
            }
            _ => {
                let shown = known_as.shown(path);
                return Err(Refusal::new(
                    RefusalCode::Invalid,
                    format!("{shown} is neither a file, a directory nor a symbolic link"),
                ));
            }
        }
        Ok(walk)
    }

    /// Pushes a directory; its names are read at once and bounded.
    fn enter(&mut self, fd: &impl AsFd, path: Vec<u8>) -> Result<(), Refusal> {
        if self.levels.len() >= limits::TREE_DEPTH_MAX {
            let message = format!(
                "{} lies more than {} levels deep",
                self.known_as.shown(&path),
                limits::TREE_DEPTH_MAX
            );
            return Err(Refusal::new(RefusalCode::TooLarge, message));
        }
        let read = || -> io::Result<(OwnedFd, Vec<CString>)> {
            let fd = open_beneath(fd, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            let mut names = Vec::new();
            for entry in Dir::from_fd(fd.try_clone()?)? {
                let entry = entry?;
                if entry.file_name() != c"." && entry.file_name() != c".." {
                    names.push(entry.file_name().to_owned());
                }
            }
            Ok((fd, names))
        };
        let (fd, mut names) = read().map_err(|error| self.known_as.refusal(&path, &error))?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.levels.push(Level { fd, path, names });
        Ok(())
    }

    fn step(&mut self) -> Result<Option<TreeItem>, Refusal> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        if let Some(reading) = &mut self.file {
            if reading.left > 0 {
                return reading.chunk().map(|bytes| Some(TreeItem::Data(bytes)));
            }
            self.file = None;
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            if let Some(item) = self.visit(&name)? {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// One name of the deepest directory; `None` when it has vanished.
    fn visit(&mut self, name: &CString) -> Result<Option<TreeItem>, Refusal> {
        let level = self.levels.last().expect("visit is called with a level");
        let mut path = level.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let refused = |error: &io::Error| self.known_as.refusal(&path, error);
        let os_name = OsStr::from_bytes(name.as_bytes());
        let fd = match open_beneath(&level.fd, os_name, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused(&error)),
        };
        let stat = fstat(&fd).map_err(|errno| refused(&errno.into()))?;
        let mode = stat.st_mode & 0o777;
        Ok(Some(match kind(&stat) {
            SFlag::S_IFDIR => {
                self.enter(&fd, path.clone())?;
                TreeItem::Entry(TreeEntry::Dir { path, mode })
            }
            SFlag::S_IFREG => {
                let parent = level.fd.try_clone().map_err(|error| refused(&error))?;
                self.visit_file(&parent, name.as_bytes(), path, &stat)?
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(&fd, "").map_err(|errno| refused(&errno.into()))?;
                TreeItem::Entry(TreeEntry::Symlink {
                    path,
                    target: target.as_bytes().to_vec(),
                })
            }
            SFlag::S_IFIFO => TreeItem::Extra(ExtraEntry::Fifo { path, mode }),
            SFlag::S_IFSOCK => TreeItem::Remark(path, Remark::Socket),
            _ => TreeItem::Remark(path, Remark::Device),
        }))
    }

    /// A file of the tree: its contents under its first name, and afterwards that name.
    fn visit_file(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        stat: &FileStat,
    ) -> Result<TreeItem, Refusal> {
        let seen = self.linked.look(stat, &path);
        if let Seen::Before(target) = seen {
            return Ok(TreeItem::Extra(ExtraEntry::Link { path, target }));
        }
        let file = TreeItem::Entry(self.begin_file(at, name, path.clone(), stat)?);
        if seen == Seen::Unknown {
            self.next = Some(file);
            return Ok(TreeItem::Remark(path, Remark::Doubled));
        }
        Ok(file)
    }

    fn begin_file(
        &mut self,
        at: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        seen: &FileStat,
    ) -> Result<TreeEntry, Refusal> {
        let shown = self.known_as.shown(&path);
        // O_NONBLOCK: it was a plain file a moment ago, but a FIFO may be there by now.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = open_beneath(at, OsStr::from_bytes(name), flags)
            .map_err(|error| self.known_as.refusal(&path, &error))?;
        let stat = fstat(&fd).map_err(|errno| self.known_as.refusal(&path, &errno.into()))?;
        if kind(&stat) != SFlag::S_IFREG || (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino)
        {
            return Err(Refusal::new(
                RefusalCode::Conflict,
                format!("{shown} was replaced while it was opened"),
            ));
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        self.file = Some(Reading {
            file: File::from(fd),
            shown,
            left: bytes,
        });
        Ok(TreeEntry::File {
            path,
            mode: stat.st_mode & 0o777,
            bytes,
        })
    }
}

impl Reading {
    fn chunk(&mut self) -> Result<Bytes, Refusal> {
        let want = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(limits::COPY_CHUNK_BYTES);
        let mut buffer = vec![0; want];
        let have = self.file.read(&mut buffer).map_err(|error| {
            Refusal::new(RefusalCode::Failed, format!("{}: {error}", self.shown))
        })?;
        if have == 0 {
            let message = format!("{} became shorter while it was read", self.shown);
            return Err(Refusal::new(RefusalCode::Conflict, message));
        }
        buffer.truncate(have);
        self.left -= have as u64;
        Ok(Bytes::from(buffer))
    }
}

/// The blocking pool did not get to it.
pub(super) fn busy(error: &BlockingError) -> Refusal {
    Refusal::new(RefusalCode::Busy, error.to_string()).hint("try again in a moment")
}

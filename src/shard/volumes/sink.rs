//! Files that are copied into a volume: entries and bytes, written as its jobs' user would, beneath its root.
//!
//! What is in a volume is hostile: every path is resolved beneath the root, no symbolic link on it is followed, and
//! only plain files are written to. One piece is held at a time, on the blocking pool.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};

use super::keep::busy;
use crate::{
    job::{Refusal, RefusalCode, TreeEntry, VolumeKind, VolumeSpec},
    log::DiskGuard,
    rt,
    shard::{topology::Host, upload::progress::Progress},
};

/// Takes a tree into a volume, entry by entry; a file's bytes follow its entry.
#[derive(Debug)]
pub struct VolumeSink {
    /// `None` while a piece is being written, and for good when that was given up.
    writer: Option<Writer>,
    progress: Progress,
}

/// Where the next piece goes.
#[derive(Debug)]
struct Writer {
    spec: VolumeSpec,
    root: OwnedFd,
    /// Who owns what is made: who owns the root, which is who every job's user is in there.
    owner: (Uid, Gid),
    /// Counts what a disk image takes of the host's disk.
    disk: Arc<DiskGuard>,
    prefix: Vec<u8>,
    file: Option<File>,
    path: Vec<u8>,
}

impl VolumeSink {
    pub(super) async fn open(
        host: Arc<Host>,
        spec: VolumeSpec,
        prefix: Vec<u8>,
    ) -> Result<Self, Refusal> {
        let open = move || Writer::open(&host, spec, prefix);
        let writer = rt::blocking("open a volume", open)
            .await
            .map_err(|error| busy(&error))??;
        Ok(Self {
            writer: Some(writer),
            progress: Progress::default(),
        })
    }

    /// The next entry. The last file must be complete. What is there already is replaced, but for directories.
    ///
    /// # Errors
    /// `Invalid` when the last file is short or the path leads out of the volume; `TooLarge` when the volume is full.
    pub async fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.progress.begin(entry)?;
        let entry = entry.clone();
        self.write(move |writer| writer.entry(&entry)).await
    }

    /// Some bytes of the last file.
    ///
    /// # Errors
    /// `Invalid` when there are more than its entry said; `TooLarge` when the volume is full; `Busy` when the host's
    /// disk is.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        self.progress.advance(bytes.len())?;
        self.write(move |writer| writer.data(&bytes)).await
    }

    /// No more entries: everything is written.
    ///
    /// # Errors
    /// `Invalid` when the last file is short.
    pub async fn finish(self) -> Result<(), Refusal> {
        self.progress.check_complete()
    }

    async fn write(
        &mut self,
        write: impl FnOnce(&mut Writer) -> Result<(), Refusal> + Send + 'static,
    ) -> Result<(), Refusal> {
        let Some(mut writer) = self.writer.take() else {
            let message = "nothing more is written after a piece that failed";
            return Err(Refusal::new(RefusalCode::Failed, message));
        };
        let work = move || {
            let written = write(&mut writer);
            (writer, written)
        };
        let (writer, written) = rt::blocking("write to a volume", work)
            .await
            .map_err(|error| busy(&error))?;
        written?;
        self.writer = Some(writer);
        Ok(())
    }
}

impl Writer {
    fn open(host: &Host, spec: VolumeSpec, prefix: Vec<u8>) -> Result<Self, Refusal> {
        let root = host.volumes.root(&spec).map_err(|error| error.refusal())?;
        let facts = fstat(&root).map_err(|errno| {
            let message = format!("volume {}: {errno}", spec.name);
            Refusal::new(RefusalCode::Failed, message)
        })?;
        Ok(Self {
            spec,
            root,
            owner: (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid)),
            disk: Arc::clone(&host.disk),
            prefix,
            file: None,
            path: Vec::new(),
        })
    }

    fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.file = None;
        let (TreeEntry::Dir { path, .. }
        | TreeEntry::File { path, .. }
        | TreeEntry::Symlink { path, .. }) = entry;
        self.path = [&self.prefix[..], path].join(&b"/"[..]);
        let made = match entry {
            TreeEntry::Dir { mode, .. } => self.make_dir(*mode),
            TreeEntry::File { mode, .. } => self.make_file(*mode),
            TreeEntry::Symlink { target, .. } => self.make_link(target),
        };
        made.map_err(|error| self.refusal(&error))
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let wanted = bytes.len() as u64;
        if self.spec.kind == VolumeKind::Filesystem {
            let grant = self.disk.take(wanted);
            if grant.bytes() < wanted {
                grant.settle(0);
                let base = self.disk.path().display();
                let message = format!("the disk of {base} has nothing left but its reserve");
                return Err(Refusal::new(RefusalCode::Busy, message).hint("make space there"));
            }
        }
        let Some(file) = &mut self.file else {
            let message = "these bytes belong to no file";
            return Err(Refusal::new(RefusalCode::Invalid, message));
        };
        file.write_all(bytes).map_err(|error| self.refusal(&error))
    }

    fn make_dir(&self, mode: u32) -> io::Result<()> {
        let Some((parent, name)) = self.parent()? else {
            return Ok(()); // The root itself, which is there.
        };
        let dir = self.open_or_make_dir(&parent, &name)?;
        // An O_PATH descriptor cannot be changed.
        let dir = open_beneath(&dir, OsStr::new("."), DIRECTORY)?;
        Ok(fchmod(&dir, Mode::from_bits_truncate(mode))?)
    }

    fn make_file(&mut self, mode: u32) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        // Only truncated when it is known to be a file: a FIFO there would make an open wait.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match open_beneath(&parent, &name, flags) {
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                unlinkat(&parent, &*name, UnlinkatFlags::NoRemoveDir)?;
                open_beneath(&parent, &name, flags)?
            }
            other => other?,
        };
        let facts = fstat(&file)?;
        if SFlag::from_bits_truncate(facts.st_mode & libc::S_IFMT) != SFlag::S_IFREG {
            return Err(Errno::EEXIST.into());
        }
        let file = File::from(file);
        file.set_len(0)?;
        self.own(&file)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        self.file = Some(file);
        Ok(())
    }

    fn make_link(&self, target: &[u8]) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        let target = OsStr::from_bytes(target);
        match symlinkat(target, &parent, &*name) {
            Err(Errno::EEXIST) => {
                unlinkat(&parent, &*name, UnlinkatFlags::NoRemoveDir)?;
                symlinkat(target, &parent, &*name)?;
            }
            other => other?,
        }
        let (uid, gid) = self.owner;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(&parent, &*name, Some(uid), Some(gid), flags)?)
    }

    /// The directory of the entry, made where it is missing, and its name there; `None` for the root.
    fn parent(&self) -> io::Result<Option<(OwnedFd, std::ffi::OsString)>> {
        let mut parts = self
            .path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(OsStr::from_bytes)
            .peekable();
        let mut at = self.root.try_clone()?;
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return Ok(Some((at, part.to_owned())));
            }
            at = self.open_or_make_dir(&at, part)?;
        }
        Ok(None)
    }

    fn open_or_make_dir(&self, at: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
        match open_beneath(at, name, DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        match mkdirat(at, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                let dir = open_beneath(at, name, DIRECTORY)?;
                self.own(&dir)?;
                Ok(dir)
            }
            Err(Errno::EEXIST) => open_beneath(at, name, DIRECTORY),
            Err(errno) => Err(errno.into()),
        }
    }

    fn own(&self, fd: &impl AsFd) -> io::Result<()> {
        let (uid, gid) = self.owner;
        Ok(fchown(fd, Some(uid), Some(gid))?)
    }

    fn refusal(&self, error: &io::Error) -> Refusal {
        let name = &self.spec.name;
        let path = String::from_utf8_lossy(&self.path);
        let path = path.trim_start_matches('/');
        let code = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => {
                let message = format!("volume {name}: /{path}: the volume is full");
                return Refusal::new(RefusalCode::TooLarge, message)
                    .hint("a volume cannot grow: make a larger one and copy this one into it");
            }
            Some(libc::ELOOP | libc::EXDEV) => {
                let message =
                    format!("volume {name}: /{path} leads through a symbolic link or out of it");
                return Refusal::new(RefusalCode::Invalid, message);
            }
            Some(libc::EEXIST | libc::EISDIR | libc::ENOTDIR) => RefusalCode::Conflict,
            Some(_) | None => RefusalCode::Failed,
        };
        Refusal::new(code, format!("volume {name}: /{path}: {error}"))
    }
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW);

fn open_beneath(at: &impl AsFd, name: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlag::O_CREAT) {
        Mode::S_IRUSR | Mode::S_IWUSR
    } else {
        Mode::empty()
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
    Ok(openat2(at, name, how)?)
}

//! Files that are copied into a volume: entries and bytes, written as its jobs' user would, beneath its root.
//!
//! What is in a volume is hostile: every path is resolved beneath the root, no symbolic link on it is followed, and
//! only plain files are written to. One piece is held at a time, on the blocking pool.

use std::{
    ffi::{OsStr, OsString},
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
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat},
};

use crate::{
    job::{ExtraEntry, Refusal, RefusalCode, TreeEntry, VolumeKind, VolumeSpec},
    log::DiskGuard,
    rt,
    shard::{
        beneath::{Root, kind, open_beneath},
        topology::Host,
        tree::busy,
        upload::progress::Progress,
    },
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
    file: Option<File>,
    path: Vec<u8>,
}

impl VolumeSink {
    pub(super) async fn open(host: Arc<Host>, spec: VolumeSpec) -> Result<Self, Refusal> {
        let open = move || Writer::open(&host, spec);
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

    /// The next entry, of a kind that only volumes take. As [`VolumeSink::entry`].
    ///
    /// # Errors
    /// As there; `NotFound` when the file that another name is for is not there.
    pub async fn extra(&mut self, extra: &ExtraEntry) -> Result<(), Refusal> {
        self.progress.check_complete()?;
        let extra = extra.clone();
        self.write(move |writer| writer.extra(&extra)).await
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
    fn open(host: &Host, spec: VolumeSpec) -> Result<Self, Refusal> {
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
            file: None,
            path: Vec::new(),
        })
    }

    fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.file = None;
        let (TreeEntry::Dir { path, .. }
        | TreeEntry::File { path, .. }
        | TreeEntry::Symlink { path, .. }) = entry;
        self.path.clone_from(path);
        let made = match entry {
            TreeEntry::Dir { mode, .. } => self.make_dir(*mode),
            TreeEntry::File { mode, .. } => self.make_file(*mode),
            TreeEntry::Symlink { target, .. } => self.make_link(target),
        };
        made.map_err(|error| self.refusal(&error))
    }

    fn extra(&mut self, extra: &ExtraEntry) -> Result<(), Refusal> {
        self.file = None;
        let (ExtraEntry::Fifo { path, .. } | ExtraEntry::Link { path, .. }) = extra;
        self.path.clone_from(path);
        let made = match extra {
            ExtraEntry::Fifo { mode, .. } => self.make_fifo(*mode),
            ExtraEntry::Link { target, .. } => {
                let found = self.find(target).map_err(|error| {
                    let path = String::from_utf8_lossy(path);
                    let mut refusal = self.known_as().refusal(target, &error);
                    refusal.message = format!("{}, of which /{path} is a hard link", refusal.message);
                    refusal.hint("make the archive with `tar --hard-dereference`, which has files instead of such links")
                })?;
                self.make_name(&found)
            }
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
        let dir =
            self.open_or_make_dir(&parent, &name)
                .map_err(|error| match error.raw_os_error() {
                    // Not on the way, but at its end.
                    Some(libc::ENOTDIR | libc::ELOOP) => Errno::EEXIST.into(),
                    _ => error,
                })?;
        // An O_PATH descriptor cannot be changed.
        let dir = open_beneath(&dir, OsStr::new("."), DIRECTORY)?;
        Ok(fchmod(&dir, Mode::from_bits_truncate(mode))?)
    }

    fn make_file(&mut self, mode: u32) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        // Only truncated when it is known to be a file of this name alone: a FIFO would make an open wait, and a file
        // with other names would change under those too.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let mut file = match open_beneath(&parent, &name, flags) {
            Ok(file) => Some(file).filter(is_lone_file),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => None,
            Err(error) => return Err(error),
        };
        if file.is_none() {
            unlinkat(&parent, &*name, UnlinkatFlags::NoRemoveDir)?;
            file = Some(open_beneath(&parent, &name, flags | OFlag::O_EXCL)?);
        }
        let file = File::from(file.expect("it was made a moment ago"));
        file.set_len(0)?;
        self.own(&file)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        self.file = Some(file);
        Ok(())
    }

    fn make_fifo(&self, mode: u32) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        replacing(&parent, &name, || {
            mkfifoat(&parent, &*name, Mode::from_bits_truncate(mode))
        })?;
        // By a descriptor: the name may be another's by now.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let fifo = open_beneath(&parent, &name, flags)?;
        if kind(&fstat(&fifo)?) != SFlag::S_IFIFO {
            return Err(Errno::ESTALE.into());
        }
        self.own(&fifo)?;
        Ok(fchmod(&fifo, Mode::from_bits_truncate(mode))?)
    }

    /// Where `target` is: its directory and its name there.
    fn find(&self, target: &[u8]) -> io::Result<(OwnedFd, OsString)> {
        let (dir, name) = match target.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&b"."[..], target),
        };
        let dir = open_beneath(&self.root, OsStr::from_bytes(dir), DIRECTORY)?;
        let name = OsStr::from_bytes(name).to_owned();
        open_beneath(&dir, &name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        Ok((dir, name))
    }

    /// Gives what is at `target` the path of this entry as well. Whatever takes its place meanwhile is in this
    /// volume too, and a link is not followed.
    fn make_name(&self, (from, target): &(OwnedFd, OsString)) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        let inode = |at: &OwnedFd, name: &OsStr| -> io::Result<(u64, u64)> {
            let facts = fstat(open_beneath(at, name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?)?;
            Ok((facts.st_dev, facts.st_ino))
        };
        // To replace a name of it by itself would be to lose it.
        if inode(&parent, &name).is_ok_and(|there| inode(from, target).is_ok_and(|it| it == there))
        {
            return Ok(());
        }
        replacing(&parent, &name, || {
            linkat(from, target.as_os_str(), &parent, &*name, AtFlags::empty())
        })
    }

    fn make_link(&self, target: &[u8]) -> io::Result<()> {
        let (parent, name) = self
            .parent()?
            .ok_or_else(|| io::Error::from(Errno::EISDIR))?;
        let target = OsStr::from_bytes(target);
        replacing(&parent, &name, || symlinkat(target, &parent, &*name))?;
        let (uid, gid) = self.owner;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(&parent, &*name, Some(uid), Some(gid), flags)?)
    }

    /// The directory of the entry, made where it is missing, and its name there; `None` for the root.
    fn parent(&self) -> io::Result<Option<(OwnedFd, OsString)>> {
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

    fn known_as(&self) -> Root {
        Root::Volume(self.spec.name.clone())
    }

    fn refusal(&self, error: &io::Error) -> Refusal {
        if let Some(libc::ENOSPC | libc::EDQUOT) = error.raw_os_error() {
            let shown = self.known_as().shown(&self.path);
            return Refusal::new(
                RefusalCode::TooLarge,
                format!("{shown}: the volume is full"),
            )
            .hint("a volume cannot grow: make a larger one and copy this one into it");
        }
        self.known_as().refusal(&self.path, error)
    }
}

/// Makes something, in place of what has its name, unless that is a directory.
fn replacing(parent: &OwnedFd, name: &OsStr, make: impl Fn() -> nix::Result<()>) -> io::Result<()> {
    match make() {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

fn is_lone_file(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|facts| kind(&facts) == SFlag::S_IFREG && facts.st_nlink == 1)
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW);

#[cfg(test)]
mod tests;

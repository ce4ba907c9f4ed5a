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
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};

use crate::{
    job::{Refusal, RefusalCode, TreeEntry, VolumeKind, VolumeSpec},
    log::DiskGuard,
    rt,
    shard::{beneath::open_beneath, topology::Host, tree::busy, upload::progress::Progress},
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
        path::Path,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::job::{VolumeName, VolumeSize};

    fn writer(root: &Path) -> Writer {
        let facts = nix::sys::stat::stat(root).unwrap();
        Writer {
            spec: VolumeSpec {
                name: VolumeName::parse("data").unwrap(),
                size: VolumeSize::parse("1MB").unwrap(),
                kind: VolumeKind::Filesystem,
            },
            root: File::open(root).unwrap().into(),
            owner: (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid)),
            disk: DiskGuard::new(root, 0).unwrap(),
            file: None,
            path: Vec::new(),
        }
    }

    fn file(path: &str) -> TreeEntry {
        TreeEntry::File {
            path: path.into(),
            mode: 0o640,
            bytes: 0,
        }
    }

    fn refused(writer: &mut Writer, entry: &TreeEntry) -> RefusalCode {
        let refusal = writer.entry(entry).unwrap_err();
        assert!(refusal.message.starts_with("volume data: /"), "{refusal}");
        refusal.code
    }

    #[test]
    fn entries_are_made_with_what_is_missing_on_the_way() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(root.path());
        writer.entry(&file("pre/a/b/c")).unwrap();
        writer.data(b"te").unwrap();
        writer.data(b"xt").unwrap();
        writer
            .entry(&TreeEntry::Dir {
                path: b"pre/a".into(),
                mode: 0o700,
            })
            .unwrap();
        let target = b"../anywhere".to_vec();
        let path = b"pre/a/link".to_vec();
        writer.entry(&TreeEntry::Symlink { path, target }).unwrap();
        let path = |rest: &str| root.path().join("pre").join(rest);
        let mode = |rest| fs::metadata(path(rest)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(fs::read(path("a/b/c")).unwrap(), b"text");
        assert_eq!(
            (mode("a"), mode("a/b"), mode("a/b/c")),
            (0o700, 0o755, 0o640)
        );
        let link = fs::read_link(path("a/link")).unwrap();
        assert_eq!(link, Path::new("../anywhere"));
    }

    #[test]
    fn what_is_there_is_replaced_but_for_directories() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let mut writer = writer(root.path());
        let path = root.path().join("name");
        fs::copy("/proc/self/stat", &path).unwrap();
        writer.entry(&file("name")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::remove_file(&path).unwrap();
        // A link is replaced and what it names is not touched.
        symlink(outside.path(), &path).unwrap();
        writer.entry(&file("name")).unwrap();
        writer.data(b"inside").unwrap();
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
        assert_eq!(fs::read(&path).unwrap(), b"inside");
        let link = TreeEntry::Symlink {
            path: b"name".into(),
            target: b"x".into(),
        };
        writer.entry(&link).unwrap();
        writer.entry(&link).unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        assert_eq!(refused(&mut writer, &file("dir")), RefusalCode::Conflict);
        assert_eq!(refused(&mut writer, &file("")), RefusalCode::Conflict);
    }

    #[test]
    fn nothing_is_written_outside_and_nothing_waits() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(root.path());
        symlink(outside.path(), root.path().join("out")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        for path in ["out/evil", "out/deep/evil", "loop/evil"] {
            let code = refused(&mut writer, &file(path));
            assert!(
                matches!(code, RefusalCode::Invalid | RefusalCode::Conflict),
                "{path}: {code:?}"
            );
        }
        for path in ["../evil", "a/../../evil"] {
            refused(&mut writer, &file(path));
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let fifo = root.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        refused(&mut writer, &file("fifo"));
        // With a reader it could be opened.
        let _reader = File::options().read(true).write(true).open(&fifo).unwrap();
        assert_eq!(refused(&mut writer, &file("fifo")), RefusalCode::Conflict);
    }

    #[test]
    fn the_hosts_reserve_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(root.path());
        writer.entry(&file("x")).unwrap();
        writer.disk = DiskGuard::new(root.path(), u64::MAX).unwrap();
        let refusal = writer.data(b"x").unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Busy);
        assert_eq!(fs::read(root.path().join("x")).unwrap(), b"");
        writer.spec.kind = VolumeKind::Memory;
        writer.data(b"x").unwrap();
    }
}

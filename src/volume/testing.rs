//! For the tests of this room: a base directory whose volumes, mounts and devices go with it, whatever happens.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid},
};
use tempfile::TempDir;

use super::{Damage, HostOwner, VolumeError, Volumes, loops};
use crate::{
    job::{VolumeKind, VolumeName, VolumeSize, VolumeSpec},
    sys::{
        capability::{self, Capabilities},
        process,
    },
};

/// Volumes of a base directory of their own.
pub(super) struct TestBase {
    pub(super) volumes: Volumes,
    base: TempDir,
    /// Whether a tmpfs is mounted on the base directory.
    is_tmpfs: bool,
}

impl TestBase {
    pub(super) fn new() -> Self {
        let base = TempDir::new().unwrap();
        let volumes = Volumes::open(base.path()).unwrap();
        Self {
            volumes,
            base,
            is_tmpfs: false,
        }
    }

    /// On a file system of its own of so many bytes, in memory.
    pub(super) fn on_tmpfs(bytes: u64) -> Self {
        let base = TempDir::new().unwrap();
        let options = format!("size={bytes}");
        mount(
            Some("test"),
            base.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        let volumes = Volumes::open(base.path()).unwrap();
        Self {
            volumes,
            base,
            is_tmpfs: true,
        }
    }

    /// Gives one on a file system of its own another size.
    pub(super) fn resize(&self, bytes: u64) {
        let (path, options) = (self.base.path(), format!("size={bytes}"));
        let none = None::<&str>;
        mount(
            none,
            path,
            none,
            MsFlags::MS_REMOUNT,
            Some(options.as_str()),
        )
        .unwrap();
    }

    /// As the next daemon would open it.
    pub(super) fn reopen(&mut self) {
        self.volumes = Volumes::open(self.base.path()).unwrap();
    }

    /// A path of volume `name`.
    pub(super) fn path(&self, name: &str, below: &str) -> PathBuf {
        self.directory().join(name).join(below)
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.base.path().canonicalize().unwrap().join("volumes")
    }

    /// What is left of the kernel's objects.
    pub(super) fn devices(&self) -> Vec<(PathBuf, PathBuf)> {
        loops::below(&self.base.path().canonicalize().unwrap()).unwrap()
    }

    /// Waits for the kernel to give the devices back: right after the last close, not always before that returns.
    pub(super) fn until_no_device(&self) {
        for _ in 0..6_000 {
            if self.devices().is_empty() {
                return;
            }
            nix::poll::poll(&mut [], 10_u16).unwrap();
        }
        panic!("left: {:?}", self.devices());
    }

    /// Attaches a volume that has failed and that no job holds any more. A test beside this one may have forked a
    /// process that holds everything of ours for a moment.
    pub(super) fn attach_when_checked(&self, spec: &VolumeSpec, owner: HostOwner) -> OwnedFd {
        for _ in 0..30 {
            match self.volumes.attach(spec, owner, false) {
                Err(VolumeError::Damaged {
                    damage: Damage::Failing,
                    ..
                }) => {}
                done => return done.unwrap(),
            }
        }
        panic!("somebody holds {}", spec.name)
    }

    /// Mounts at the base directory and below.
    pub(super) fn mounts(&self) -> usize {
        let directory = self.directory();
        let mounts = crate::sys::mountinfo::read().unwrap();
        let ours = mounts
            .iter()
            .filter(|mount| mount.point.starts_with(&directory));
        ours.count()
    }

    /// The files of a directory of the base, sorted.
    pub(super) fn names(&self, below: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(below)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for TestBase {
    fn drop(&mut self) {
        // Best effort: a test that failed has said why.
        let _ = self.volumes.unmount_all();
        if self.is_tmpfs {
            let _ = umount2(self.base.path(), MntFlags::MNT_DETACH);
        }
    }
}

/// A volume of that name, size and kind.
pub(super) fn spec(name: &str, size: &str, kind: VolumeKind) -> VolumeSpec {
    VolumeSpec {
        name: VolumeName::parse(name).unwrap(),
        size: VolumeSize::parse(size).unwrap(),
        kind,
    }
}

pub(super) fn disk(name: &str, size: &str) -> VolumeSpec {
    spec(name, size, VolumeKind::Filesystem)
}

pub(super) fn owner(id: u32) -> HostOwner {
    HostOwner { uid: id, gid: id }
}

/// What went wrong, in one line, with every cause.
pub(super) fn words(error: &VolumeError) -> String {
    error.refusal().message
}

/// Opens a file through a mount that is attached nowhere, as a process of user `id` would: the calling thread is that
/// user for as long, and root has no more rights than it.
pub(super) fn open_in(tree: &OwnedFd, id: u32, name: &str, flags: OFlag) -> nix::Result<File> {
    setfsgid(Gid::from_raw(id));
    setfsuid(Uid::from_raw(id));
    let opened = openat(
        tree,
        name,
        flags | OFlag::O_CLOEXEC,
        Mode::from_bits_retain(0o644),
    );
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    opened.map(File::from)
}

/// Runs `act` in a process of that user without any right beside, and returns what it returns: it is a number.
pub(super) fn as_user(id: u32, act: impl FnOnce() -> i32) -> i32 {
    let child = process::fork_child(|| {
        setgroups(&[]).expect("root");
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        setresgid(gid, gid, gid).expect("root");
        setresuid(uid, uid, uid).expect("root");
        process::exit_now(act())
    });
    exit_code(child.unwrap())
}

/// Runs `act` in a process of root's that may mount nothing and returns what it returns.
pub(super) fn without_rights(act: impl FnOnce() -> i32) -> i32 {
    let child = process::fork_child(|| {
        capability::keep_only(Capabilities::NONE).expect("root");
        process::exit_now(act())
    });
    exit_code(child.unwrap())
}

/// Runs `act` in a process that sees nothing below `hidden` but a null device, and returns what it returns.
pub(super) fn without(hidden: &[&str], act: impl FnOnce() -> i32) -> i32 {
    let none = None::<&str>;
    let child = process::fork_child(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).expect("root");
        let null = makedev(1, 3);
        for path in hidden.iter().filter(|path| Path::new(path).exists()) {
            mount(Some("test"), *path, Some("tmpfs"), MsFlags::empty(), none).expect("root");
            let node = Path::new(path).join("null");
            mknod(&node, SFlag::S_IFCHR, Mode::from_bits_retain(0o666), null).expect("root");
        }
        process::exit_now(act())
    });
    exit_code(child.unwrap())
}

fn exit_code(child: Pid) -> i32 {
    let status = waitpid(child, None).unwrap();
    let WaitStatus::Exited(_, code) = status else {
        panic!("{status:?}")
    };
    code
}

/// Makes or replaces a file.
pub(super) fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
    File::create(path)
        .unwrap()
        .write_all(contents.as_ref())
        .unwrap();
}

/// Overwrites `bytes` at `at` of a file.
pub(super) fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

/// The path of an open directory, for calls that take one.
pub(super) fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

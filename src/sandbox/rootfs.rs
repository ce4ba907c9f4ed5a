//! The template root: the one directory tree every job of a spawner starts from, built once and read-only.
//!
//! ```text
//! tmpfs /  ├─ usr [bin sbin lib*]   the host's, with all below, read-only, nosuid, nodev
//!          ├─ etc                   copied by the list in `etc`, and our own passwd, group, hosts, …
//!          ├─ dev                   six device nodes and links
//!          └─ proc dev/pts dev/shm tmp work volumes     empty: mounted for each job
//! ```
//! Building it ends with the caller standing *inside*: the host's root is detached, so a namespace cloned from
//! here on contains these few mounts and nothing else, and a job needs no pivot of its own.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::{chdir, pivot_root},
};
use thiserror::Error;

use crate::{
    limits,
    sys::mount::{self as trees, Attributes, Depth},
};

mod etc;

/// What could not be done to which path.
#[derive(Debug, Error)]
#[error("{action} {}", .path.display())]
pub struct RootfsError {
    /// What.
    pub action: &'static str,
    /// To what; paths inside the template are relative to it.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Directories of the template with their modes. Those that a job mounts over are shut, in case it does not.
const DIRS: &[(&str, u32)] = &[
    ("proc", 0o555),
    ("dev", 0o755),
    ("dev/pts", 0o755),
    ("dev/shm", 0o755),
    ("etc", 0o755),
    ("tmp", 0o755),
    ("work", 0o755),
    ("volumes", 0o755),
];

/// Character devices that cannot harm anybody: name, major, minor.
const DEVICES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links of `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where programs live. A link of the host's becomes the same link, a directory is attached, what is not there
/// is not there.
const PROGRAMS: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Builds the template on a tmpfs at `scratch` and moves the calling process into it for good.
///
/// Call it in a mount namespace of one's own; the host's mounts are detached from that namespace. The umask
/// must not take away permissions for others.
///
/// # Errors
/// [`RootfsError`]: the first thing that could not be done. The namespace is then good for nothing.
pub fn enter_template(scratch: &Path) -> Result<(), RootfsError> {
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(|error| failed("make private", "/", error))?;
    let options = format!(
        "mode=0755,size={},nr_inodes=16384",
        limits::TEMPLATE_BYTES_MAX
    );
    mount(
        Some("joblet"),
        scratch,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some(options.as_str()),
    )
    .map_err(|error| failed("mount a tmpfs on", scratch, error))?;
    chdir(scratch).map_err(|error| failed("enter", scratch, error))?;

    for (path, mode) in DIRS {
        make_dir(Path::new(path), *mode)?;
    }
    make_devices()?;
    etc::copy_from_host(Path::new("/etc"), Path::new("etc"))?;
    for name in PROGRAMS {
        attach_programs(name)?;
    }
    let root = File::open(".").map_err(|error| failed("open", scratch, error))?;
    let read_only = Attributes::READ_ONLY.and(Attributes::NO_SUID);
    trees::add_attributes(root.as_fd(), read_only, Depth::One)
        .map_err(|error| failed("make read-only", scratch, error))?;
    leave_host(scratch)
}

/// Makes the template, where we stand, the root and detaches everything else.
fn leave_host(scratch: &Path) -> Result<(), RootfsError> {
    pivot_root(".", ".").map_err(|error| failed("pivot to", scratch, error))?;
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(|error| failed("detach", "the host's root", error))?;
    chdir("/").map_err(|error| failed("enter", "/", error))
}

fn make_devices() -> Result<(), RootfsError> {
    let all = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in DEVICES {
        let path = Path::new("dev").join(name);
        mknod(&path, SFlag::S_IFCHR, all, makedev(*major, *minor))
            .map_err(|error| failed("make the device", &path, error))?;
        // mknod is subject to the umask.
        set_mode(&path, 0o666)?;
    }
    for (name, target) in LINKS {
        let path = Path::new("dev").join(name);
        symlink(target, &path).map_err(|source| RootfsError {
            action: "link",
            path,
            source,
        })?;
    }
    Ok(())
}

fn attach_programs(name: &str) -> Result<(), RootfsError> {
    let host = Path::new("/").join(name);
    let Ok(metadata) = fs::symlink_metadata(&host) else {
        return Ok(());
    };
    if metadata.is_symlink() {
        let target = fs::read_link(&host).map_err(|error| failed("read the link", &host, error))?;
        return symlink(target, name).map_err(|error| failed("link", name, error));
    }
    make_dir(Path::new(name), 0o755)?;
    let tree = trees::clone_tree(&c_path(&host)?).map_err(|error| failed("clone", &host, error))?;
    let tree = tree.as_fd();
    // Recursive as no remount is: a tmpfs below /usr/local becomes read-only too.
    let attributes = Attributes::READ_ONLY
        .and(Attributes::NO_SUID)
        .and(Attributes::NO_DEV);
    trees::add_attributes(tree, attributes, Depth::Recursive)
        .map_err(|error| failed("make read-only", &host, error))?;
    trees::attach(tree, &c_path(Path::new(name))?).map_err(|error| failed("attach", &host, error))
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RootfsError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|error| failed("make the directory", path, error))
}

/// Writes a new file.
fn make_file(path: &Path, mode: u32, contents: &[u8]) -> Result<(), RootfsError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    made.and_then(|mut file| file.write_all(contents))
        .map_err(|error| failed("write", path, error))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), RootfsError> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| failed("set the mode of", path, error))
}

fn c_path(path: &Path) -> Result<CString, RootfsError> {
    let text = CString::new(path.as_os_str().as_bytes());
    text.map_err(|error| failed("use the path", path, io::Error::from(error)))
}

fn failed(
    action: &'static str,
    path: impl AsRef<Path>,
    source: impl Into<io::Error>,
) -> RootfsError {
    RootfsError {
        action,
        path: path.as_ref().to_owned(),
        source: source.into(),
    }
}

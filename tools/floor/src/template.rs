//! The root that every measured job gets, in a mount namespace with nothing else in it.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::AsFd,
        unix::fs::{PermissionsExt, symlink},
    },
    path::Path,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod, umask},
    unistd::{chdir, pivot_root, sethostname},
};

use crate::sys;

/// The command inside: a static program that exits with 0.
pub(crate) const COMMAND: &str = "/true";

/// Builds the template on a tmpfs at `scratch` and makes that the root of this process, in a mount namespace of
/// its own: the host's mounts are gone from it, so that a job's namespace copies the template only and needs no
/// pivot of its own. Host name, umask, keyring and score are set once too, and inherited.
pub(crate) fn enter(scratch: &Path, program: &[u8]) -> Result<()> {
    write(Path::new("/proc/self/oom_score_adj"), b"500")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    sethostname("job")?;
    sys::join_session_keyring()?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(
        Some("tmpfs"),
        scratch,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("size=1m,mode=755"),
    )?;
    fill(scratch, program).context("build the template")?;
    sys::make_read_only(&c_path(scratch)?).context("make the template read-only")?;
    chdir(scratch)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    umask(Mode::empty());
    Ok(chdir("/")?)
}

fn fill(root: &Path, program: &[u8]) -> Result<()> {
    for dir in [
        "usr", "etc", "dev", "dev/pts", "dev/shm", "proc", "tmp", "work", "volumes",
    ] {
        fs::create_dir(root.join(dir))?;
    }
    for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
        let host = Path::new("/").join(name);
        if let Ok(target) = fs::read_link(&host) {
            symlink(target, root.join(name))?;
        } else if host.is_dir() {
            fs::create_dir(root.join(name))?;
            graft(&host, &root.join(name))?;
        }
    }
    graft(Path::new("/usr"), &root.join("usr"))?;
    let before = umask(Mode::empty());
    for (name, minor) in [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ] {
        let all = Mode::from_bits_truncate(0o666);
        mknod(
            &root.join("dev").join(name),
            SFlag::S_IFCHR,
            all,
            makedev(1, minor),
        )?;
    }
    mknod(
        &root.join("dev/tty"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(5, 0),
    )?;
    umask(before);
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(target, root.join("dev").join(name))?;
    }
    symlink("pts/ptmx", root.join("dev/ptmx"))?;
    let command = root.join(COMMAND.trim_start_matches('/'));
    write(&command, program)?;
    Ok(fs::set_permissions(
        command,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Attaches a read-only copy of a tree of the host.
fn graft(host: &Path, target: &Path) -> Result<()> {
    let tree =
        sys::read_only_tree(&c_path(host)?).with_context(|| format!("copy {}", host.display()))?;
    sys::attach(tree.as_fd(), &c_path(target)?)
        .with_context(|| format!("attach {}", target.display()))
}

#[expect(clippy::disallowed_methods, reason = "a tool without a shard")]
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn c_path(path: &Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

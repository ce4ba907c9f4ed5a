//! Mount trees as descriptors: taken, changed as a whole, attached. The older calls are nix's.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::errno::Errno;

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// Nothing can be written through it.
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// Set-id bits and file capabilities mean nothing.
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// Device files cannot be opened.
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How far a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// One mount.
    One,
    /// The mount and all below it.
    Recursive,
}

/// mount_attr of mount_setattr(2), first version.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);

/// A detached copy of the mounts at `path` and below, close-on-exec. Dropped without being attached, it
/// unmounts itself.
///
/// # Errors
/// `ENOENT`; `EPERM` without CAP_SYS_ADMIN.
///
/// # Source
/// open_tree(2), Linux 5.2.
pub fn clone_tree(path: &CStr) -> io::Result<OwnedFd> {
    clone_at(libc::AT_FDCWD, path, libc::AT_RECURSIVE)
}

/// A detached copy of the mount whose root, or a directory in which, `directory` is: of that one alone, nothing that
/// is mounted below. Close-on-exec; dropped without being attached, it unmounts itself.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `EINVAL` for a mount that is in nobody's table any more.
///
/// # Source
/// open_tree(2), Linux 5.2.
pub fn clone_mount(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    clone_at(directory.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

fn clone_at(directory: RawFd, path: &CStr, at: libc::c_int) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | at.cast_unsigned();
    // SAFETY: a C string and numbers.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags)
    })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds `attributes` to a mount, which also becomes private.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `EINVAL` if `mount` is no root of a mount.
///
/// # Source
/// mount_setattr(2), Linux 5.12.
pub fn add_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    depth: Depth,
) -> io::Result<()> {
    let attr = MountAttr {
        set: attributes.0,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    change(mount, &attr, depth)
}

/// Gives the files of a detached mount other owners: who owns them on the disk is looked up inside of user namespace
/// `users`, and what that is outside of it owns them here. Ids that it does not map own nothing and can own nothing.
/// Adds `attributes` too; the mount becomes private.
///
/// # Errors
/// `EINVAL` when the file system cannot do that, or the mount is attached; `EPERM` when it has been done before.
///
/// # Source
/// mount_setattr(2), "ID-mapped mounts", Linux 5.12; tmpfs since 6.3.
pub fn map_owners(
    mount: BorrowedFd<'_>,
    users: BorrowedFd<'_>,
    attributes: Option<Attributes>,
) -> io::Result<()> {
    let users = u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?;
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP | attributes.map_or(0, |attributes| attributes.0),
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: users,
    };
    change(mount, &attr, Depth::One)
}

fn change(mount: BorrowedFd<'_>, attr: &MountAttr, depth: Depth) -> io::Result<()> {
    let flags = match depth {
        Depth::One => libc::AT_EMPTY_PATH,
        Depth::Recursive => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    let (empty, size) = (c"".as_ptr(), size_of::<MountAttr>());
    // SAFETY: a C string and a structure of the size said, both alive until the call returns.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            empty,
            flags,
            std::ptr::from_ref(attr),
            size,
        )
    })?;
    Ok(())
}

/// Attaches a detached mount to `target`.
///
/// # Errors
/// `ENOENT`, `ENOTDIR` for a target that does not fit; `EPERM` without CAP_SYS_ADMIN.
///
/// # Source
/// move_mount(2), Linux 5.2.
pub fn attach(mount: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    let empty = c"".as_ptr();
    // SAFETY: two C strings and numbers.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

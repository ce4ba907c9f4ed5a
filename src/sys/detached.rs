//! A file system mounted nowhere: reachable only through the descriptor that is returned.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;
/// Set-user-id bits mean nothing there.
const MOUNT_ATTR_NOSUID: u32 = 2;
/// Device nodes mean nothing there.
const MOUNT_ATTR_NODEV: u32 = 4;

/// One mount option.
#[derive(Debug, Clone, Copy)]
pub enum MountOption<'a> {
    /// A word.
    Flag(&'a CStr),
    /// `key=value`.
    Pair(&'a CStr, &'a CStr),
}

/// Mounts `source`, nosuid and nodev, on a detached mount. It ends when the descriptor and everything made
/// from it is closed; no mount table ever shows it.
///
/// # Errors
/// What fsopen, fsconfig and fsmount say; `EINVAL` for an option this file system does not know.
///
/// # Source
/// fsopen(2), fsconfig(2), fsmount(2); Linux 5.2.
pub fn mount_detached(kind: &CStr, source: &CStr, options: &[MountOption<'_>]) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated and lives through the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    let context = descriptor(context)?;
    configure(&context, FSCONFIG_SET_STRING, Some(c"source"), Some(source))?;
    for option in options {
        match *option {
            MountOption::Flag(word) => configure(&context, FSCONFIG_SET_FLAG, Some(word), None)?,
            MountOption::Pair(key, value) => {
                configure(&context, FSCONFIG_SET_STRING, Some(key), Some(value))?;
            }
        }
    }
    configure(&context, FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    // SAFETY: fsmount takes a descriptor that is open and two integers.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) };
    descriptor(mount)
}

fn configure(context: &OwnedFd, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the descriptor is open; both strings are NUL-terminated or null as the command wants them,
    // and live through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn descriptor(raw: libc::c_long) -> io::Result<OwnedFd> {
    let raw = i32::try_from(raw).map_err(|_| io::ErrorKind::InvalidData)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just installed this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

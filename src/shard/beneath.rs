//! Files beneath a directory that somebody else may change: nothing outside of it is reached, whatever is in there.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// Opens `path` beneath `at`, close-on-exec. No symbolic link on the way is followed, no mount entered; with
/// O_NOFOLLOW the last component may be a link, which is then opened itself. A file that is made is its owner's alone.
pub(super) fn open_beneath(at: &impl AsFd, path: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
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
    Ok(openat2(at, path, how)?)
}

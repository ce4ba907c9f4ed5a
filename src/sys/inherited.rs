//! Taking over a descriptor that the process was started with.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes descriptor `fd`, which this process inherited, and makes it close-on-exec. Once in a process, and
/// before it has opened anything, so that the number cannot mean anything else.
///
/// # Errors
/// `EBADF` when there is no such descriptor, when it is one of the standard three, or when it was made in
/// this process (those are close-on-exec already); `EBUSY` the second time.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl with F_GETFD takes integers only; a number that is not open is refused with EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: fcntl with F_SETFD takes integers only.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open and came through an exec, so no object of this process owns it; TAKEN lets nobody
    // else take it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_was_not_inherited_is_refused() {
        let code = |fd| take(fd).unwrap_err().raw_os_error();
        let own = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(code(own.as_raw_fd()), Some(libc::EBADF));
        assert_eq!(code(1), Some(libc::EBADF));
        assert_eq!(code(9_999), Some(libc::EBADF));
    }
}

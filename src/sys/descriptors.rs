//! Descriptors by their numbers: close what should not be there, move what is in the way.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

/// Closes every descriptor from 3 on except `kept`.
///
/// Only for a process that has just been forked and owns nothing else: whoever still holds an `OwnedFd` of a
/// closed number must never use or drop it.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
///
/// # Source
/// close_range(2).
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
        .collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = first.max(number + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: numbers only; who may call this is said above.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// A duplicate of `fd` with the lowest free number from `first` on, close-on-exec.
///
/// # Errors
/// `EMFILE`, `EINVAL` when `first` is beyond the limit of descriptors.
///
/// # Source
/// fcntl(2), `F_DUPFD_CLOEXEC`.
pub fn duplicate_from(fd: BorrowedFd<'_>, first: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(first))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

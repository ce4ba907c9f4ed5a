//! Capacity and contents of a pipe.

use std::{io, os::fd::AsRawFd};

/// Bytes that `pipe` can hold.
///
/// Takes the pipe's mutex, so it waits for a splice that is running on it.
///
/// # Errors
/// `EBADF` when it is no pipe.
///
/// # Source
/// fcntl(2), "F_GETPIPE_SZ".
pub fn capacity(pipe: &impl AsRawFd) -> io::Result<usize> {
    // SAFETY: F_GETPIPE_SZ takes no argument and touches no memory of ours; the kernel checks the number.
    checked(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_GETPIPE_SZ) })
}

/// Asks that `pipe` can hold at least `bytes`; returns what it can hold now.
///
/// Takes the pipe's mutex, so it waits for a splice that is running on it.
///
/// # Errors
/// `EPERM` above `fs.pipe-max-size` or the user's share without CAP_SYS_RESOURCE, `EBUSY` when the pipe
/// holds more than `bytes`.
///
/// # Source
/// fcntl(2), "F_SETPIPE_SZ".
pub fn set_capacity(pipe: &impl AsRawFd, bytes: usize) -> io::Result<usize> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: F_SETPIPE_SZ takes an int by value and touches no memory of ours.
    checked(unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })
}

/// Bytes that `pipe` holds now.
///
/// Takes the pipe's mutex, so it waits for a splice that is running on it.
///
/// # Errors
/// `ENOTTY` when it is neither pipe nor socket.
///
/// # Source
/// pipe(7), "FIONREAD".
pub fn available(pipe: &impl AsRawFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through its argument, which is a live local of that type.
    checked(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    checked(bytes)
}

fn checked(answer: libc::c_int) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_grows_and_shrinks_to_whole_powers_of_two() {
        let (read, write) = nix::unistd::pipe().unwrap();
        assert_eq!(available(&read).unwrap(), 0);
        nix::unistd::write(&write, b"abc").unwrap();
        assert_eq!(available(&read).unwrap(), 3);
        assert_eq!(capacity(&read).unwrap(), 65_536);
        assert_eq!(set_capacity(&read, 1 << 20).unwrap(), 1 << 20);
        assert_eq!(capacity(&read).unwrap(), 1 << 20);
        assert_eq!(set_capacity(&read, 5_000).unwrap(), 8_192);
    }

    #[test]
    fn what_is_no_pipe_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(capacity(&file).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

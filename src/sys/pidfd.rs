//! Descriptors of processes: `pidfd_open(2)` and `pidfd_send_signal(2)`.
//!
//! A pid can be given to another process between the look and the kill; a pidfd cannot.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{sys::signal::Signal, unistd::Pid};

/// A descriptor of the process that has this pid now. It is readable once that process has ended.
///
/// # Errors
/// `ESRCH` when there is none; otherwise whatever the kernel says.
///
/// # Source
/// `pidfd_open(2)`; the descriptor is close-on-exec.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).expect("the kernel's descriptors are ints");
    // SAFETY: the kernel has just made `fd` for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when it has ended and been reaped; otherwise whatever the kernel says.
///
/// # Source
/// `pidfd_send_signal(2)`
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed, and a null info means "as kill(2)".
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            no_info,
            0,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_living_process_takes_a_signal_and_a_missing_one_is_named_so() {
        let own = open(Pid::this()).unwrap();
        // SIGCONT does nothing to a process that is not stopped.
        send_signal(own.as_fd(), Signal::SIGCONT).unwrap();
        let missing = open(Pid::from_raw(i32::MAX)).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ESRCH));
    }
}

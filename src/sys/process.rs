//! Processes: forking a helper, and signalling and reaping through a pidfd.

use std::{
    convert::Infallible,
    fs, io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    unistd::{ForkResult, Pid, fork},
};

/// Runs `child` in a forked process and returns its pid.
///
/// For processes with one thread. In one with several only the calling thread exists in the child, and a lock
/// that another one held stays locked for ever: then `child` must not take locks other than the allocator's.
/// `child` does not return; a panic in it ends the child.
///
/// # Errors
/// `EAGAIN` or `ENOMEM`.
///
/// # Source
/// fork(2).
pub fn fork_child(child: impl FnOnce() -> Infallible) -> io::Result<Pid> {
    // SAFETY: the child runs ordinary code, which is what one thread may do after fork; for several see above.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => never_return(child),
    }
}

fn never_return(child: impl FnOnce() -> Infallible) -> ! {
    let _guard = ExitOnUnwind;
    match child() {}
}

/// Keeps a panic in a forked child from unwinding into the parent's frames.
struct ExitOnUnwind;

impl Drop for ExitOnUnwind {
    fn drop(&mut self) {
        exit_now(101);
    }
}

/// Ends the process without running anything that was registered for its end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Proof that this process had one thread when it was made, and may clone with shared memory.
///
/// It is neither `Send` nor `Sync`. Whoever holds it starts no thread.
#[derive(Debug)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Looks whether there is one thread.
    ///
    /// # Errors
    /// `EBUSY` when there are more; what reading `/proc/self/task` gives.
    pub fn check() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            _ => Err(Errno::EBUSY.into()),
        }
    }
}

/// Sends a signal to the process behind a pidfd.
///
/// # Errors
/// `ESRCH` when it has ended, `EPERM`.
///
/// # Source
/// pidfd_send_signal(2).
pub fn signal(pidfd: BorrowedFd<'_>, signo: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor, a number and no info, as for kill(2).
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signo,
            no_info,
            0,
        )
    })?;
    Ok(())
}

/// Blocks until the child behind a pidfd has ended and reaps it, whatever its exit signal.
///
/// # Errors
/// `ECHILD` when it is no child of this process.
///
/// # Source
/// waitid(2), `P_PIDFD`, `__WALL`.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let fd = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(io::Error::other)?;
    loop {
        // SAFETY: a null siginfo asks for nothing; the rest is numbers.
        let done = unsafe {
            libc::waitid(
                libc::P_PIDFD,
                fd,
                std::ptr::null_mut(),
                libc::WEXITED | libc::__WALL,
            )
        };
        match Errno::result(done) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    #[test]
    fn a_forked_child_ends_with_its_code_and_a_panic_ends_it_too() {
        let child = fork_child(|| exit_now(7)).unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 7));
        assert_eq!(
            SingleThreaded::check().unwrap_err().raw_os_error(),
            Some(libc::EBUSY)
        );
        let child = fork_child(|| match SingleThreaded::check() {
            Ok(_) => exit_now(0),
            Err(_) => exit_now(1),
        });
        let child = child.unwrap();
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }
}

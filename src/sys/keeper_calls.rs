//! What helper processes need of the kernel: fork, pidfds, capability sets, leaving at once.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::unistd::{ForkResult, Pid};

/// Capability 5 of capability.h: signal processes of other users.
pub const CAP_KILL: u32 = 5;
/// Capability 6: change group ids, and write the group map of a user namespace.
pub const CAP_SETGID: u32 = 6;
/// Capability 7: change user ids, and write the user map of a user namespace.
pub const CAP_SETUID: u32 = 7;
/// Capability 12: configure network interfaces.
pub const CAP_NET_ADMIN: u32 = 12;
/// Capability 19: look into other processes, here at their namespaces.
pub const CAP_SYS_PTRACE: u32 = 19;
/// Capability 21: make and enter namespaces.
pub const CAP_SYS_ADMIN: u32 = 21;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the process id of its child.
    Parent(u32),
}

/// Copies this process. The caller must be single-threaded: other threads do not exist in the child, and
/// what they held locked stays locked there.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
///
/// # Source
/// fork(2).
pub fn fork() -> io::Result<Forked> {
    // SAFETY: a fork of a single-threaded process leaves no lock held by a thread that is gone; glibc
    // repairs its own for callers (tests) that are not.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Forked::Child),
        ForkResult::Parent { child } => Ok(Forked::Parent(child.as_raw().unsigned_abs())),
    }
}

/// Ends this process without running what was registered for its end: a forked copy must not flush or
/// remove what belongs to its parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no precondition and does not return.
    unsafe { libc::_exit(code) }
}

/// A descriptor of the process `pid`, close-on-exec. Only safe against reuse of the id while the caller
/// knows that `pid` has not been reaped.
///
/// # Errors
/// `ESRCH` when there is none, `EMFILE`.
///
/// # Source
/// pidfd_open(2).
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(raw).map_err(|_| io::ErrorKind::InvalidData)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just installed this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Kills the process behind a pidfd. One that has ended already is no error.
///
/// # Errors
/// `EPERM`.
///
/// # Source
/// pidfd_send_signal(2).
pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is open for the length of the call, and a null siginfo means "as kill(2)".
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    match sent {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => Err(other),
        },
    }
}

/// Lowers this process's share of the processor by `nice` steps, so that starts of jobs come first.
///
/// # Errors
/// None that happens when lowering.
///
/// # Source
/// setpriority(2).
pub fn lower_priority(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority takes three integers and touches no memory of ours.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor from 3 up but `kept`: what a parent left open by mistake. Only for the first
/// moments of a process, when nothing else owns a descriptor.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
///
/// # Source
/// close_range(2).
pub fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept {
        if first < kept {
            close_range(first, kept - 1)?;
        }
        first = first.max(kept + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range takes integers; by the contract of our caller nobody owns what it closes.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const _: () = assert!(size_of::<CapHeader>() == 8 && size_of::<CapData>() == 12);

/// _LINUX_CAPABILITY_VERSION_3: 64 capabilities in two words.
const CAP_VERSION: u32 = 0x2008_0522;

/// Gives up every capability but `kept` in every set of this process, for good: the bounding set too.
///
/// # Errors
/// `EPERM` when one of `kept` is not held, or without CAP_SETPCAP.
///
/// # Source
/// capabilities(7), capset(2), PR_CAPBSET_DROP(2const).
pub fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    for capability in (0..64_u32).filter(|capability| !kept.contains(capability)) {
        // SAFETY: this prctl takes integers and touches no memory of ours.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        if dropped != 0 {
            match io::Error::last_os_error() {
                // The kernel knows no capability of this number, so none above it either.
                past if past.raw_os_error() == Some(libc::EINVAL) => break,
                other => return Err(other),
            }
        }
    }
    // SAFETY: this prctl takes integers and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let bits: u64 = kept.iter().map(|capability| 1 << capability).sum();
    let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).expect("masked to 32 bits");
    let data = [half(bits), half(bits >> 32)].map(|word| CapData {
        effective: word,
        permitted: word,
        inheritable: 0,
    });
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    // SAFETY: header and both data words live through the call and have the layout of version 3.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The id of the process that started this one; 1 (or a subreaper's) once that has ended.
#[must_use]
pub fn parent_id() -> u32 {
    Pid::parent().as_raw().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::wait::{WaitStatus, waitpid};

    use super::*;

    #[test]
    fn a_process_that_keeps_one_capability_has_that_one_in_no_more_than_three_sets() {
        let Forked::Parent(pid) = fork().unwrap() else {
            let kept = keep_capabilities(&[CAP_KILL]).is_ok();
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = |name: &str, value: &str| {
                status.lines().any(|line| line.starts_with(name) && line.ends_with(value))
            };
            let (one, none) = ("\t0000000000000020", "\t0000000000000000");
            let right = kept
                && line("CapEff:", one)
                && line("CapPrm:", one)
                && line("CapBnd:", one)
                && line("CapInh:", none)
                && line("CapAmb:", none);
            exit_now(if right { 0 } else { 1 });
        };
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
    }

    #[test]
    fn killing_twice_is_no_error() {
        let Forked::Parent(pid) = fork().unwrap() else {
            loop {
                nix::unistd::pause();
            }
        };
        let pidfd = pidfd_open(pid).unwrap();
        pidfd_kill(pidfd.as_fd()).unwrap();
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        waitpid(pid, None).unwrap();
        pidfd_kill(pidfd.as_fd()).unwrap();
    }
}

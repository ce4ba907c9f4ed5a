//! What fork(2) and execve(2) hand down without being asked, brought to the defaults of a fresh system.
//!
//! Done once in the process that jobs are cloned from: nothing of it then costs a job a system call.

use std::io;

use nix::errno::Errno;

/// What of an ordinary process's inheritance could not be reset.
#[derive(Debug, thiserror::Error)]
#[error("reset {what}")]
pub struct ResetError {
    /// Which.
    pub what: &'static str,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Resets signal dispositions and mask, umask (022), nice value, personality, timer slack and session.
///
/// Priorities that were lowered from outside stay when this process may not raise them again.
///
/// # Errors
/// [`ResetError`], which names the thing.
///
/// # Source
/// execve(2), "Effect on process attributes"; fork(2).
pub fn reset() -> Result<(), ResetError> {
    reset_dispositions().map_err(|source| ResetError {
        what: "signal dispositions",
        source,
    })?;
    let check = |what, result: Result<(), Errno>| {
        result.map_err(|error| ResetError {
            what,
            source: error.into(),
        })
    };
    check(
        "signal mask",
        nix::sys::signal::SigSet::empty().thread_set_mask(),
    )?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // SAFETY: numbers only. 0 is PER_LINUX.
    let personality = Errno::result(unsafe { libc::personality(0) });
    check("personality", personality.map(drop))?;
    // SAFETY: numbers only; 0, 0 is the calling process. EACCES: lowered from outside, see above.
    match Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) }) {
        Ok(_) | Err(Errno::EACCES | Errno::EPERM) => {}
        Err(error) => return check("nice value", Err(error)),
    }
    check("timer slack", nix::sys::prctl::set_timerslack(50_000))?;
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => Ok(()), // EPERM: leads its group already.
        Err(error) => check("session", Err(error)),
    }
}

/// Past libc, which keeps two signals to itself and would leave those as they came.
fn reset_dispositions() -> io::Result<()> {
    /// Size of the kernel's signal set, bytes.
    const SIGSET_BYTES: usize = 8;
    /// The kernel's sigaction: handler (0: the default), flags, restorer, mask.
    const DEFAULT: [u64; 4] = [0; 4];
    for signo in (1..=64).filter(|signo| !matches!(*signo, libc::SIGKILL | libc::SIGSTOP)) {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: a whole sigaction that lives until the call returns; the old one is not asked for. No handler
        // of ours is needed any more.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signo,
                DEFAULT.as_ptr(),
                old,
                SIGSET_BYTES,
            )
        };
        Errno::result(done)?;
    }
    Ok(())
}

//! The system calls of PID 1, one small function each. Errors are errno, positive.

use core::{ffi::c_char, mem::MaybeUninit};

use crate::raw::{call, common, number};

pub(crate) const EAGAIN: i32 = 11;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOSYS: i32 = 38;
pub(crate) const SIGCHLD: u32 = 17;
pub(crate) const POLLIN: i16 = 1;
pub(crate) const MSG_DONTWAIT: usize = 0x40;
const MSG_NOSIGNAL: usize = 0x4000;
const SIG_SETMASK: usize = 2;
/// Size of the kernel's signal set, bytes.
const SIGSET_BYTES: usize = 8;
const WNOHANG: usize = 1;
const WALL: usize = 0x4000_0000;
/// SFD_CLOEXEC | SFD_NONBLOCK.
const SFD_FLAGS: usize = 0o2_000_000 | 0o4000;
const CLOCK_MONOTONIC: usize = 1;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

pub(crate) type Errno = i32;
pub(crate) type Done = Result<(), Errno>;

#[repr(C)]
pub(crate) struct PollFd {
    pub(crate) fd: i32,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

/// One child that has ended.
pub(crate) struct Ended {
    pub(crate) pid: i32,
    pub(crate) status: i32,
    pub(crate) utime_us: u64,
    pub(crate) stime_us: u64,
    pub(crate) maxrss_kb: u64,
}

fn plain(number: usize, a: usize, b: usize, c: usize) -> Result<usize, Errno> {
    // SAFETY: every caller below passes numbers only, or pointers that it says are valid.
    unsafe { call(number, [a, b, c, 0, 0, 0]) }
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        let _ = plain(number::EXIT_GROUP, code as usize, 0, 0);
    }
}

/// Lets whoever shares our core run first.
pub(crate) fn give_way() {
    let _ = plain(number::SCHED_YIELD, 0, 0, 0);
}

pub(crate) fn close(fd: i32) {
    let _ = plain(number::CLOSE, fd as usize, 0, 0);
}

pub(crate) fn close_range(first: u32, last: u32) -> Done {
    plain(common::CLOSE_RANGE, first as usize, last as usize, 0).map(drop)
}

pub(crate) fn kill(pid: i32, signo: i32) {
    let _ = plain(number::KILL, pid as usize, signo as usize, 0);
}

pub(crate) fn set_session() -> Done {
    plain(number::SETSID, 0, 0, 0).map(drop)
}

pub(crate) fn clear_groups() -> Done {
    plain(number::SETGROUPS, 0, 0, 0).map(drop)
}

pub(crate) fn set_gid(gid: u32) -> Done {
    let gid = gid as usize;
    plain(number::SETRESGID, gid, gid, gid).map(drop)
}

pub(crate) fn set_uid(uid: u32) -> Done {
    let uid = uid as usize;
    plain(number::SETRESUID, uid, uid, uid).map(drop)
}

/// Drops every capability from the bounding set, up to the last one this kernel knows.
pub(crate) fn clear_bounding() -> Done {
    for capability in 0..64 {
        match plain(number::PRCTL, PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            Err(EINVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Clears the permitted, effective, inheritable and ambient sets.
pub(crate) fn clear_capabilities() -> Done {
    plain(number::PRCTL, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    let header = [CAPABILITY_VERSION_3, 0];
    let none = [0_u32; 6];
    plain(
        number::CAPSET,
        header.as_ptr() as usize,
        none.as_ptr() as usize,
        0,
    )
    .map(drop)
}

pub(crate) fn set_no_new_privileges() -> Done {
    plain(number::PRCTL, PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// A session keyring that nobody else has. A kernel without keyrings has nothing to inherit either.
pub(crate) fn join_new_keyring() -> Done {
    match plain(number::KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, 0, 0) {
        Ok(_) | Err(ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn set_umask(mask: u32) {
    let _ = plain(number::UMASK, mask as usize, 0, 0);
}

/// # Safety
/// `path` is a C string.
pub(crate) unsafe fn change_dir(path: *const c_char) -> Done {
    plain(number::CHDIR, path as usize, 0, 0).map(drop)
}

/// Comes back only with an error.
///
/// # Safety
/// `path` is a C string, `argv` and `envp` are NULL-terminated arrays of such.
pub(crate) unsafe fn execute(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
) -> Errno {
    plain(number::EXECVE, path as usize, argv as usize, envp as usize)
        .err()
        .unwrap_or(EINVAL)
}

/// A child with a copy of our memory, as fork(2). `Ok(0)` in it.
pub(crate) fn fork() -> Result<i32, Errno> {
    plain(number::CLONE, SIGCHLD as usize, 0, 0).map(|pid| pid as i32)
}

pub(crate) fn block_all_signals() {
    set_signal_mask(!0);
}

pub(crate) fn set_signal_mask(mask: u64) {
    // SAFETY: `mask` lives until the call returns and has the size said.
    let _ = unsafe {
        call(
            number::RT_SIGPROCMASK,
            [SIG_SETMASK, &raw const mask as usize, 0, SIGSET_BYTES, 0, 0],
        )
    };
}

/// A descriptor that becomes readable when `signo`, which must be blocked, is pending.
pub(crate) fn signal_fd(signo: u32) -> Result<i32, Errno> {
    let mask = 1_u64 << (signo - 1);
    // SAFETY: `mask` lives until the call returns and has the size said.
    let made = unsafe {
        call(
            number::SIGNALFD4,
            [
                usize::MAX,
                &raw const mask as usize,
                SIGSET_BYTES,
                SFD_FLAGS,
                0,
                0,
            ],
        )
    };
    made.map(|fd| fd as i32)
}

/// Takes what is pending out of a signal descriptor.
pub(crate) fn drain(fd: i32) {
    let mut info = [0_u8; 128];
    while read(fd, &mut info).is_ok_and(|count| count > 0) {}
}

pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    plain(
        number::READ,
        fd as usize,
        buffer.as_mut_ptr() as usize,
        buffer.len(),
    )
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    plain(
        number::WRITE,
        fd as usize,
        bytes.as_ptr() as usize,
        bytes.len(),
    )
}

pub(crate) fn receive(fd: i32, buffer: &mut [u8], flags: usize) -> Result<usize, Errno> {
    // SAFETY: the buffer is ours and as long as said; no address is asked for.
    unsafe {
        call(
            number::RECVFROM,
            [
                fd as usize,
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                flags,
                0,
                0,
            ],
        )
    }
}

/// Sends whole or not at all; never raises SIGPIPE.
pub(crate) fn send(fd: i32, bytes: &[u8]) {
    // SAFETY: the bytes are valid and as long as said; no address is given.
    let _ = unsafe {
        call(
            number::SENDTO,
            [
                fd as usize,
                bytes.as_ptr() as usize,
                bytes.len(),
                MSG_NOSIGNAL,
                0,
                0,
            ],
        )
    };
}

pub(crate) fn poll(fds: &mut [PollFd; 2]) {
    for one in fds.iter_mut() {
        one.revents = 0;
    }
    // SAFETY: two entries, ours; no timeout, and the mask stays as it is.
    let _ = unsafe {
        call(
            number::PPOLL,
            [fds.as_mut_ptr() as usize, fds.len(), 0, 0, SIGSET_BYTES, 0],
        )
    };
}

pub(crate) fn monotonic_ns() -> u64 {
    let mut time = [0_u64; 2];
    let _ = plain(
        number::CLOCK_GETTIME,
        CLOCK_MONOTONIC,
        time.as_mut_ptr() as usize,
        0,
    );
    let [seconds, nanoseconds] = time;
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(nanoseconds)
}

/// A child that has ended, if one has.
pub(crate) fn wait_any() -> Option<Ended> {
    wait(usize::MAX, WNOHANG | WALL)
}

/// Blocks until child `pid` has ended.
pub(crate) fn wait_for(pid: i32) -> Option<Ended> {
    wait(pid as usize, WALL)
}

fn wait(pid: usize, options: usize) -> Option<Ended> {
    let mut status = 0_i32;
    // struct rusage: two timevals, then ru_maxrss and 13 more longs.
    let mut usage = MaybeUninit::<[u64; 18]>::zeroed();
    let status_at = &raw mut status as usize;
    // SAFETY: both places are ours and as large as wait4(2) says.
    let pid = unsafe {
        call(
            number::WAIT4,
            [pid, status_at, options, usage.as_mut_ptr() as usize, 0, 0],
        )
    };
    // SAFETY: zeroed above, and integers may have any value.
    let [user_s, user_us, system_s, system_us, maxrss_kb, ..] = unsafe { usage.assume_init() };
    match pid {
        Ok(0) | Err(_) => None,
        Ok(pid) => Some(Ended {
            pid: pid as i32,
            status,
            utime_us: user_s.wrapping_mul(1_000_000).wrapping_add(user_us),
            stime_us: system_s.wrapping_mul(1_000_000).wrapping_add(system_us),
            maxrss_kb,
        }),
    }
}

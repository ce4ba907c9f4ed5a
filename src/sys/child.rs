//! The system calls of a child that still shares its parent's memory.
//!
//! Raw calls only: libc would write the parent's errno. Nothing here allocates, locks or panics. Errors are
//! errno, positive. Their numbers of descriptors are the child's own table: what it closes or replaces there
//! the parent does not notice.

use std::{
    ffi::{CStr, c_char},
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use super::{
    capability::{self, Capabilities},
    raw::{call, common, number},
};

/// What a call came to: nothing, or an errno.
pub type Done = Result<(), i32>;

/// Kinds of namespace that a child enters or leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// What of the cgroup tree is visible.
    Cgroup,
    /// Network.
    Net,
    /// Users.
    User,
}

impl Namespace {
    const fn flag(self) -> usize {
        match self {
            Self::Cgroup => 0x0200_0000,
            Self::Net => 0x4000_0000,
            Self::User => 0x1000_0000,
        }
    }
}

/// A NULL-terminated array of C strings, made before the clone.
#[derive(Debug)]
pub struct Pointers<'a> {
    raw: Vec<*const c_char>,
    strings: PhantomData<&'a CStr>,
}

impl<'a> FromIterator<&'a CStr> for Pointers<'a> {
    fn from_iter<I: IntoIterator<Item = &'a CStr>>(strings: I) -> Self {
        let pointers = strings.into_iter().map(CStr::as_ptr);
        Self {
            raw: pointers.chain([ptr::null()]).collect(),
            strings: PhantomData,
        }
    }
}

fn raw(fd: BorrowedFd<'_>) -> usize {
    number_of(fd.as_raw_fd())
}

const fn number_of(fd: RawFd) -> usize {
    (fd as isize).cast_unsigned()
}

/// Ends the child.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: a number; does not come back.
        let _ = unsafe { call(number::EXIT_GROUP, [usize::from(code), 0, 0, 0, 0, 0]) };
    }
}

/// unshare(2) of one namespace.
pub fn unshare(namespace: Namespace) -> Done {
    // SAFETY: a number.
    unsafe { call(number::UNSHARE, [namespace.flag(), 0, 0, 0, 0, 0]) }.map(drop)
}

/// setns(2), only if the descriptor is of that kind.
pub fn enter(namespace: Namespace, fd: BorrowedFd<'_>) -> Done {
    // SAFETY: numbers.
    unsafe { call(number::SETNS, [raw(fd), namespace.flag(), 0, 0, 0, 0]) }.map(drop)
}

/// Moves the calling thread into the cgroup whose `tasks` file this is, open for writing by root.
///
/// A process with one thread is moved whole, and without the lock that writing to `cgroup.procs` takes: that
/// one waits for an RCU grace period, 5 to 12 ms, on a host that starts a process now and then.
///
/// # Source
/// Linux `kernel/cgroup/cgroup.c`, `cgroup_procs_write_start`: no lock for a single thread that moves itself.
pub fn join_cgroup(tasks: BorrowedFd<'_>) -> Done {
    const SELF: &[u8; 1] = b"0";
    // SAFETY: one byte that outlives the call.
    unsafe {
        call(
            number::WRITE,
            [raw(tasks), SELF.as_ptr() as usize, SELF.len(), 0, 0, 0],
        )
    }
    .map(drop)
}

/// mount(2) of a new file system of type `kind`.
pub fn mount(kind: &CStr, target: &CStr, flags: u64, options: Option<&CStr>) -> Done {
    let options = options.map_or(ptr::null(), CStr::as_ptr);
    let (kind, target) = (kind.as_ptr() as usize, target.as_ptr() as usize);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "both architectures have 64 bits"
    )]
    let flags = flags as usize;
    // SAFETY: C strings that outlive the call; the source is the type's name again.
    unsafe {
        call(
            number::MOUNT,
            [kind, target, kind, flags, options as usize, 0],
        )
    }
    .map(drop)
}

/// move_mount(2) of a detached mount to `target`.
pub fn attach(mount: BorrowedFd<'_>, target: &CStr) -> Done {
    const AT_FDCWD: RawFd = -100;
    const F_EMPTY_PATH: usize = 4;
    let (empty, target) = (c"".as_ptr() as usize, target.as_ptr() as usize);
    // SAFETY: C strings that outlive the call.
    unsafe {
        call(
            common::MOVE_MOUNT,
            [
                raw(mount),
                empty,
                number_of(AT_FDCWD),
                target,
                F_EMPTY_PATH,
                0,
            ],
        )
    }
    .map(drop)
}

/// mkdir(2).
pub fn make_dir(path: &CStr, mode: u32) -> Done {
    const AT_FDCWD: RawFd = -100;
    let (path, mode) = (path.as_ptr() as usize, mode as usize);
    // SAFETY: a C string and numbers.
    unsafe { call(number::MKDIRAT, [number_of(AT_FDCWD), path, mode, 0, 0, 0]) }.map(drop)
}

/// Makes the mount at `path` read-only, and none of those below it.
pub fn make_read_only(path: &CStr) -> Done {
    const AT_FDCWD: RawFd = -100;
    // struct mount_attr: what is set, what is cleared, propagation, user namespace.
    const READ_ONLY: [u64; 4] = [1, 0, 0, 0];
    let (path, attributes) = (path.as_ptr() as usize, READ_ONLY.as_ptr() as usize);
    // SAFETY: a C string and a structure of the size said, which is constant.
    unsafe {
        call(
            common::MOUNT_SETATTR,
            [
                number_of(AT_FDCWD),
                path,
                0,
                attributes,
                size_of_val(&READ_ONLY),
                0,
            ],
        )
    }
    .map(drop)
}

/// Sets both values of one resource limit of the child.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Done {
    let limit = [soft, hard];
    // SAFETY: two 64-bit values, as prlimit64 takes them; no old ones are asked for.
    unsafe {
        call(
            number::PRLIMIT64,
            [0, resource as usize, limit.as_ptr() as usize, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Sets the processors the child may run on; `mask` as the kernel takes it, in native words.
pub fn set_affinity(mask: &[u8]) -> Done {
    // SAFETY: the mask is as long as said.
    unsafe {
        call(
            number::SCHED_SETAFFINITY,
            [0, mask.len(), mask.as_ptr() as usize, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Opens `path` for reading and writing and makes it descriptor `target`, which survives execve.
pub fn open_as(path: &CStr, target: RawFd) -> Done {
    const AT_FDCWD: RawFd = -100;
    const FLAGS: usize = 0o2 | 0o2_000_000; // O_RDWR | O_CLOEXEC
    // SAFETY: a C string and numbers.
    let fd = unsafe {
        call(
            number::OPENAT,
            [number_of(AT_FDCWD), path.as_ptr() as usize, FLAGS, 0, 0, 0],
        )
    }?;
    duplicate(fd, target)
}

/// Makes `fd` descriptor `target` of the child, which survives execve.
pub fn duplicate_as(fd: BorrowedFd<'_>, target: RawFd) -> Done {
    duplicate(raw(fd), target)
}

fn duplicate(fd: usize, target: RawFd) -> Done {
    // SAFETY: numbers; the table is the child's own.
    unsafe { call(number::DUP3, [fd, number_of(target), 0, 0, 0, 0]) }.map(drop)
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn close_from_at_exec(first: RawFd) -> Done {
    const CLOEXEC: usize = 4;
    // SAFETY: numbers.
    unsafe {
        call(
            common::CLOSE_RANGE,
            [number_of(first), u32::MAX as usize, CLOEXEC, 0, 0, 0],
        )
    }
    .map(drop)
}

/// Empties the list of supplementary groups.
pub fn clear_groups() -> Done {
    // SAFETY: none, from nowhere.
    unsafe { call(number::SETGROUPS, [0, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Sets the real, effective and saved group id.
pub fn set_gid(gid: u32) -> Done {
    let gid = gid as usize;
    // SAFETY: numbers.
    unsafe { call(number::SETRESGID, [gid, gid, gid, 0, 0, 0]) }.map(drop)
}

/// Sets the real, effective and saved user id.
pub fn set_uid(uid: u32) -> Done {
    let uid = uid as usize;
    // SAFETY: numbers.
    unsafe { call(number::SETRESUID, [uid, uid, uid, 0, 0, 0]) }.map(drop)
}

/// Leaves the child `kept` in every set that survives the execve of an ordinary program: permitted, effective,
/// inheritable, ambient.
pub fn keep_capabilities(kept: Capabilities) -> Done {
    const PR_CAP_AMBIENT: usize = 47;
    const RAISE: usize = 2;
    let data = capability::data(kept, kept);
    let (header, data) = (capability::HEADER.as_ptr() as usize, data.as_ptr() as usize);
    // SAFETY: header and data have the layout of version 3 and live until the call returns.
    unsafe { call(number::CAPSET, [header, data, 0, 0, 0, 0]) }?;
    for number in kept.numbers() {
        // SAFETY: numbers.
        unsafe {
            call(
                number::PRCTL,
                [PR_CAP_AMBIENT, RAISE, number as usize, 0, 0, 0],
            )
        }?;
    }
    Ok(())
}

/// Executes the program behind `program`. Comes back only with an errno.
pub fn execute(program: BorrowedFd<'_>, argv: &Pointers<'_>, environment: &Pointers<'_>) -> i32 {
    const AT_EMPTY_PATH: usize = 0x1000;
    let (argv, environment) = (
        argv.raw.as_ptr() as usize,
        environment.raw.as_ptr() as usize,
    );
    let empty = c"".as_ptr() as usize;
    // SAFETY: C strings and NULL-terminated arrays of such, all alive because the parent is suspended.
    let done = unsafe {
        call(
            number::EXECVEAT,
            [raw(program), empty, argv, environment, AT_EMPTY_PATH, 0],
        )
    };
    done.err().unwrap_or(0)
}

/// The numbers of `raw` are those of libc, on whichever architecture this is compiled for.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_what_libc_says() {
        let table = [
            (number::READ, libc::SYS_read),
            (number::WRITE, libc::SYS_write),
            (number::CLOSE, libc::SYS_close),
            (number::RT_SIGPROCMASK, libc::SYS_rt_sigprocmask),
            (number::SENDTO, libc::SYS_sendto),
            (number::RECVFROM, libc::SYS_recvfrom),
            (number::CLONE, libc::SYS_clone),
            (number::EXECVE, libc::SYS_execve),
            (number::WAIT4, libc::SYS_wait4),
            (number::KILL, libc::SYS_kill),
            (number::CHDIR, libc::SYS_chdir),
            (number::FCHMOD, libc::SYS_fchmod),
            (number::UMASK, libc::SYS_umask),
            (number::SETSID, libc::SYS_setsid),
            (number::SETGROUPS, libc::SYS_setgroups),
            (number::SETRESUID, libc::SYS_setresuid),
            (number::SETRESGID, libc::SYS_setresgid),
            (number::CAPSET, libc::SYS_capset),
            (number::PRCTL, libc::SYS_prctl),
            (number::MOUNT, libc::SYS_mount),
            (number::SCHED_SETAFFINITY, libc::SYS_sched_setaffinity),
            (number::CLOCK_GETTIME, libc::SYS_clock_gettime),
            (number::EXIT_GROUP, libc::SYS_exit_group),
            (number::KEYCTL, libc::SYS_keyctl),
            (number::OPENAT, libc::SYS_openat),
            (number::MKDIRAT, libc::SYS_mkdirat),
            (number::SYMLINKAT, libc::SYS_symlinkat),
            (number::PPOLL, libc::SYS_ppoll),
            (number::UNSHARE, libc::SYS_unshare),
            (number::SIGNALFD4, libc::SYS_signalfd4),
            (number::DUP3, libc::SYS_dup3),
            (number::PRLIMIT64, libc::SYS_prlimit64),
            (number::SETNS, libc::SYS_setns),
            (number::EXECVEAT, libc::SYS_execveat),
            (common::MOVE_MOUNT, libc::SYS_move_mount),
            (common::CLONE3, libc::SYS_clone3),
            (common::CLOSE_RANGE, libc::SYS_close_range),
            (common::OPENAT2, libc::SYS_openat2),
            (common::MOUNT_SETATTR, libc::SYS_mount_setattr),
        ];
        for (ours, theirs) in table {
            assert_eq!(libc::c_long::try_from(ours), Ok(theirs));
        }
    }
}

//! The kernel calls that nix does not wrap: the only unsafe of this tool.
#![expect(
    unsafe_code,
    reason = "raw kernel calls; each is one small safe function"
)]

use std::{
    ffi::{CStr, c_char, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// `struct clone_args` of clone3(2), 88 bytes.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}
const _: () = assert!(size_of::<CloneArgs>() == 88);

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}
const _: () = assert!(size_of::<MountAttr>() == 32);

const INTO_CGROUP: u64 = 0x2_0000_0000;
const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;

// clone3 with a stack of its own for the child, which calls `entry(argument)` and never returns: the
// caller's frame is not shared.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".globl floor_clone3",
    "floor_clone3:",
    "mov r8, rdx",
    "mov r9, rcx",
    "mov eax, 435",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "xor ebp, ebp",
    "mov rdi, r9",
    "call r8",
    "ud2",
    "2:",
    "ret",
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".globl floor_clone3",
    "floor_clone3:",
    "mov x9, x2",
    "mov x10, x3",
    "mov x8, #435",
    "svc #0",
    "cbnz x0, 2f",
    "mov x29, xzr",
    "mov x0, x10",
    "blr x9",
    "brk #1",
    "2:",
    "ret",
);

/// What a child runs; it ends with execve or [`end`].
pub(crate) type Entry = extern "C" fn(*const c_void) -> !;

unsafe extern "C" {
    fn floor_clone3(
        args: *const CloneArgs,
        size: usize,
        entry: Entry,
        argument: *const c_void,
    ) -> isize;
}

/// Clones into `cgroup` with `namespaces`, memory shared and this process suspended until the child has
/// executed or ended; the child's pidfd.
pub(crate) fn spawn<T>(
    namespaces: u64,
    cgroup: BorrowedFd<'_>,
    stack: &mut [u8],
    entry: Entry,
    argument: &T,
) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces
        | (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).cast_unsigned() as u64;
    let args = CloneArgs {
        flags: flags | INTO_CGROUP | CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: (stack.len() & !15) as u64,
        cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
        ..CloneArgs::default()
    };
    // SAFETY: `args` is as clone3(2) wants it and outlives the call. The child runs on `stack`, which is
    // ours and borrowed mutably; CLONE_VFORK keeps us suspended while it uses our memory; `entry` does not
    // return. Without an exit signal the child is waited for by its pidfd only.
    let pid = unsafe {
        floor_clone3(
            &raw const args,
            size_of::<CloneArgs>(),
            entry,
            std::ptr::from_ref(argument).cast(),
        )
    };
    if pid < 0 {
        let errno = i32::try_from(-pid).unwrap_or(libc::EINVAL);
        return Err(io::Error::from_raw_os_error(errno));
    }
    // SAFETY: CLONE_PIDFD has stored a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Ends a child without running anything of the parent's.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: ends the process at once; no handler, no destructor.
    unsafe { libc::_exit(code) }
}

/// Waits for a child by its pidfd; whether it exited with 0.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let id = pidfd.as_raw_fd().cast_unsigned();
    // SAFETY: `info` is a whole siginfo_t for the kernel to fill.
    let done = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            id,
            info.as_mut_ptr(),
            libc::WEXITED | libc::__WALL,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then filled by a successful waitid.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the fields of SIGCHLD.
    let status = unsafe { info.si_status() };
    Ok(info.si_code == libc::CLD_EXITED && status == 0)
}

/// A copy of the mounts at and below `path`, read-only, without setuid and devices, attached to nothing.
pub(crate) fn read_only_tree(path: &CStr) -> io::Result<OwnedFd> {
    let flags = 1 | libc::O_CLOEXEC | libc::AT_RECURSIVE; // 1 is OPEN_TREE_CLONE
    // SAFETY: `path` is a C string; the flags are open_tree(2)'s.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let tree = unsafe { OwnedFd::from_raw_fd(fd) };
    set_attributes(
        tree.as_raw_fd(),
        c"",
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
    )?;
    Ok(tree)
}

/// Makes the mount at `path` read-only and without setuid.
pub(crate) fn make_read_only(path: &CStr) -> io::Result<()> {
    set_attributes(
        libc::AT_FDCWD,
        path,
        0,
        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID,
    )
}

fn set_attributes(at: RawFd, path: &CStr, flags: i32, set: u64) -> io::Result<()> {
    let attr = MountAttr {
        set,
        ..MountAttr::default()
    };
    // SAFETY: `path` is a C string and `attr` a whole mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
}

/// Attaches a tree at `target`.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    const EMPTY_PATH: u32 = 4; // MOVE_MOUNT_F_EMPTY_PATH
    // SAFETY: both paths are C strings and `tree` is open.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            EMPTY_PATH,
        )
    })
}

/// A fresh session keyring.
pub(crate) fn join_session_keyring() -> io::Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING (1) with no name takes no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 1, 0) })
}

/// No supplementary groups, then group and user `id`, by the bare calls: glibc's would look for threads.
pub(crate) fn become_id(id: u32) -> io::Result<()> {
    // SAFETY: an empty list needs no memory.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, 0) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) })
}

/// Keeps capabilities over the change of user that follows.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)
}

/// Cuts all sets to KILL, SETGID, SETUID and SETPCAP and makes them survive execve.
pub(crate) fn keep_four_capabilities() -> io::Result<()> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let sets: [u32; 6] = [0x1e0, 0x1e0, 0x1e0, 0, 0, 0];
    // SAFETY: a version 3 header and two sets, as capset(2) reads them.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    for capability in 5..=8 {
        prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into(),
            capability,
        )?;
    }
    Ok(())
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take plain numbers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0, 0) })
}

/// Marks every descriptor from `first` on as one that execve closes.
pub(crate) fn close_from_at_exec(first: u32) -> io::Result<()> {
    // SAFETY: plain numbers; nothing is closed before execve.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
}

/// Moves this process, which has one thread, into the cgroup whose `tasks` file this is; in a child only.
pub(crate) fn join_cgroup(tasks: RawFd) -> io::Result<()> {
    // SAFETY: one byte that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_write, tasks, c"0".as_ptr(), 1) })
}

/// Executes the file behind `program`; returns only on failure. `argv` and `envp` end with a null pointer.
pub(crate) fn execute(program: RawFd, argv: &[*const c_char], envp: &[*const c_char]) -> io::Error {
    // SAFETY: both lists end with a null pointer and hold C strings, which the caller keeps alive.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Takes loopback of the network namespace this process is in up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: i16,
        rest: [u8; 22],
    }
    const _: () = assert!(size_of::<Request>() == 40);
    let mut request = Request {
        name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        flags: 0x1,
        rest: [0; 22],
    };
    // SAFETY: `request` is a whole ifreq with a terminated name and IFF_UP.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }.into())
}

/// Forks this single-threaded process: `None` in the child.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: there is no other thread whose locks the child could miss.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// CLOCK_MONOTONIC in nanoseconds: what init stamps its records with.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a whole timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

fn check(answer: i64) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `to` the same open file as `from`; in a child only, whose descriptors are its own.
pub(crate) fn duplicate(from: RawFd, to: RawFd, flags: i32) -> io::Result<()> {
    // SAFETY: plain numbers; what `to` was is owned by nobody in the child, which ends without destructors.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, to, flags) })
}

/// A descriptor by its number; in a child only.
pub(crate) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the parent that owns it is suspended, and the child ends without closing it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// The reference behind the argument of an [`Entry`].
pub(crate) fn argument<T>(argument: *const c_void) -> &'static T {
    // SAFETY: spawn() passes a reference to a `T` whose owner is suspended until the child has ended or
    // executed; the child does not use it afterwards.
    unsafe { &*argument.cast::<T>() }
}

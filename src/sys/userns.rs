//! A user namespace that can have no children, held by a process that has already ended.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    sched::{CloneCb, CloneFlags},
    sys::{
        signal::{SigSet, SigmaskHow},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Enough for a child that makes four system calls.
const STACK_BYTES: usize = 32 << 10;

/// Makes a user namespace in which `max_user_namespaces` is 0 and leaves a zombie child that holds it: its
/// `/proc/PID/uid_map`, `gid_map` and `ns/user` can be opened until it is waited for.
///
/// The child borrows this process's memory while this process waits (CLONE_VM with CLONE_VFORK), so
/// nothing is copied. The limit has to be written from inside: the sysctl is looked up in the namespace of
/// whoever opens it.
///
/// # Errors
/// What clone(2) says. Whether the seal was written is the child's exit status: 0 or an errno.
///
/// # Source
/// clone(2), user_namespaces(7), namespaces(7) "The /proc/sys/user directory".
pub fn clone_sealed() -> io::Result<Pid> {
    let mut stack = vec![0_u8; STACK_BYTES];
    let child: CloneCb<'_> = Box::new(seal);
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: CLONE_VFORK keeps this thread, the stack and the closure in place until the child has ended;
    // the child makes system calls only.
    let pid = unsafe { nix::sched::clone(child, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    Ok(pid)
}

/// A user namespace with one user and one group: `inside` is its number for host ids `uid` and `gid`. For mounts whose
/// owners are mapped; no process is ever in it.
///
/// # Errors
/// What clone(2) says, or writing to `/proc/PID/uid_map` and its like.
pub fn with_one_id(inside: u32, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    // The child has our handlers and our memory for as long as it lives.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let cloned = clone_sealed();
    before.thread_set_mask()?;
    let pid = cloned?;
    let opened = map_one(pid, inside, uid, gid);
    // The child has ended; as a zombie it held its namespace until here.
    let status = waitpid(pid, Some(WaitPidFlag::__WALL))?;
    let WaitStatus::Exited(_, errno) = status else {
        return Err(Errno::EIO.into());
    };
    if errno == 0 {
        opened
    } else {
        Err(io::Error::from_raw_os_error(errno))
    }
}

fn map_one(pid: Pid, inside: u32, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    for (file, outside) in [("uid_map", uid), ("gid_map", gid)] {
        fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?
            .write_all(format!("{inside} {outside} 1\n").as_bytes())?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Runs in the child. Returns its exit status: 0 or the errno of what failed.
fn seal() -> isize {
    // SAFETY: the path is a NUL-terminated constant.
    let fd = unsafe {
        libc::open(
            c"/proc/sys/user/max_user_namespaces".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return errno();
    }
    // SAFETY: the buffer is a constant of two bytes. The descriptor closes with the process.
    if unsafe { libc::write(fd, c"0\n".as_ptr().cast(), 2) } != 2 {
        return errno();
    }
    0
}

fn errno() -> isize {
    isize::try_from(io::Error::last_os_error().raw_os_error().unwrap_or(1)).unwrap_or(1)
}

//! A child that shares our memory until it executes, in namespaces and a cgroup of its own.
//!
//! Forking copies page tables, this does not. The price: the child runs in our memory while we are suspended,
//! so what it may do is narrow; `sys::child` has the calls that are made for it.

use std::{
    convert::Infallible,
    ffi::c_void,
    io,
    num::NonZeroUsize,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr::NonNull,
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::{
    process::SingleThreaded,
    raw::{CloneArguments, clone_into},
};

/// Stack of a child: its calls are shallow. One page more is the guard.
const STACK_BYTES: usize = 64 << 10;
const GUARD_BYTES: usize = 4 << 10;
const MAPPING: NonZeroUsize = NonZeroUsize::new(STACK_BYTES + GUARD_BYTES).expect("not zero");

/// Namespaces a child gets fresh: mounts, processes, IPC, host name.
const NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
/// It shares our memory, suspends us, and is our parent's child.
const KIND: i32 = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::CLONE_PIDFD;
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A stack for one child at a time, with a guard page below it.
#[derive(Debug)]
pub struct Stack {
    mapping: NonNull<c_void>,
}

impl Stack {
    /// Maps one.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping overlaps nothing.
        let mapping = unsafe {
            mmap_anonymous(
                None,
                MAPPING,
                access,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK,
            )
        }?;
        let stack = Self { mapping };
        // SAFETY: the first page of our own mapping, which nobody uses.
        unsafe { mprotect(mapping, GUARD_BYTES, ProtFlags::PROT_NONE) }?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no child runs on it, because `vfork` returns only when it has left.
        let _ = unsafe { munmap(self.mapping, MAPPING.get()) };
    }
}

/// A process that has been born.
#[derive(Debug)]
pub struct Born {
    /// Its pid in our pid namespace, for printing.
    pub pid: u32,
    /// The process.
    pub pidfd: OwnedFd,
}

/// Clones a child that is PID 1 of a new pid namespace, has new mount, IPC and UTS namespaces, is born in
/// `cgroup`, and is a child of **our parent**. Runs `child` in it and returns once it has executed or ended.
///
/// `child` runs on `stack` in our memory: what it writes is seen here. It uses `sys::child` only: it neither
/// allocates nor locks, and a panic in it ends it (and is seen as its death).
///
/// # Errors
/// `EAGAIN` when a limit on processes is reached, `EBUSY`, `ENODEV` or `EACCES` when the cgroup takes none.
///
/// # Source
/// clone(2), clone3; KERNEL facts 24 and 25.
pub fn vfork<F: FnMut() -> Infallible>(
    _: &SingleThreaded,
    cgroup: BorrowedFd<'_>,
    stack: &mut Stack,
    mut child: F,
) -> io::Result<Born> {
    let mut pidfd: RawFd = -1;
    let cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let arguments = CloneArguments {
        flags: u64::from((NAMESPACES | KIND).cast_unsigned()) | INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        stack: stack.mapping.as_ptr() as u64 + GUARD_BYTES as u64,
        stack_size: STACK_BYTES as u64,
        cgroup,
        ..CloneArguments::default()
    };
    let closure = &raw mut child;
    // SAFETY: CLONE_VFORK suspends our only thread until the child has left our memory, so stack and closure
    // outlive its use of them and nobody else touches either; `enter` expects an `F`.
    let pid = unsafe { clone_into(&arguments, enter::<F>, closure.cast()) };
    let pid = pid.map_err(io::Error::from_raw_os_error)?;
    // SAFETY: CLONE_PIDFD has just made it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Born {
        pid: u32::try_from(pid).unwrap_or(u32::MAX),
        pidfd,
    })
}

/// First function of the child. `extern "C"`: a panic cannot pass it, it aborts the child.
unsafe extern "C" fn enter<F: FnMut() -> Infallible>(argument: *mut c_void) -> ! {
    // SAFETY: `vfork` passes its closure and is suspended.
    let child = unsafe { &mut *argument.cast::<F>() };
    match child() {}
}

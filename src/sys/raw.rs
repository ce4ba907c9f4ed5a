//! System calls without libc: no errno, no thread-local storage, no allocation, nothing but `core`.
//!
//! Two places need that: a child that shares its parent's memory (a libc call there would write the
//! parent's errno), and PID 1, which has no libc at all and includes this same file. Numbers and assembly
//! for x86-64 and aarch64; a third architecture does not compile.
//!
//! # Source
//! syscall(2), "Architecture calling conventions"; clone(2).
#![allow(
    dead_code,
    reason = "the daemon and PID 1 include this file and each uses a part of it"
)]

use core::{arch::asm, ffi::c_void};

/// System call numbers that differ between the two architectures.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
#[allow(missing_docs, reason = "each is the name of its system call")]
pub mod number {
    pub const READ: usize = 0; pub const WRITE: usize = 1; pub const CLOSE: usize = 3;
    pub const RT_SIGPROCMASK: usize = 14; pub const SCHED_YIELD: usize = 24; pub const SENDTO: usize = 44; pub const RECVFROM: usize = 45;
    pub const CLONE: usize = 56; pub const EXECVE: usize = 59; pub const WAIT4: usize = 61; pub const KILL: usize = 62;
    pub const CHDIR: usize = 80; pub const FCHMOD: usize = 91; pub const UMASK: usize = 95; pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116; pub const SETRESUID: usize = 117; pub const SETRESGID: usize = 119;
    pub const CAPSET: usize = 126; pub const PRCTL: usize = 157; pub const MOUNT: usize = 165;
    pub const SCHED_SETAFFINITY: usize = 203; pub const CLOCK_GETTIME: usize = 228; pub const EXIT_GROUP: usize = 231;
    pub const KEYCTL: usize = 250; pub const OPENAT: usize = 257; pub const MKDIRAT: usize = 258;
    pub const SYMLINKAT: usize = 266; pub const PPOLL: usize = 271; pub const UNSHARE: usize = 272;
    pub const SIGNALFD4: usize = 289; pub const DUP3: usize = 292; pub const PRLIMIT64: usize = 302;
    pub const SETNS: usize = 308; pub const EXECVEAT: usize = 322;
}

/// System call numbers that differ between the two architectures.
#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
#[allow(missing_docs, reason = "each is the name of its system call")]
pub mod number {
    pub const READ: usize = 63; pub const WRITE: usize = 64; pub const CLOSE: usize = 57;
    pub const RT_SIGPROCMASK: usize = 135; pub const SENDTO: usize = 206; pub const RECVFROM: usize = 207;
    pub const CLONE: usize = 220; pub const EXECVE: usize = 221; pub const WAIT4: usize = 260; pub const KILL: usize = 129;
    pub const CHDIR: usize = 49; pub const FCHMOD: usize = 52; pub const UMASK: usize = 166; pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159; pub const SETRESUID: usize = 147; pub const SETRESGID: usize = 149;
    pub const CAPSET: usize = 91; pub const PRCTL: usize = 167; pub const MOUNT: usize = 40;
    pub const SCHED_SETAFFINITY: usize = 122; pub const CLOCK_GETTIME: usize = 113; pub const EXIT_GROUP: usize = 94;
    pub const KEYCTL: usize = 219; pub const OPENAT: usize = 56; pub const MKDIRAT: usize = 34;
    pub const SYMLINKAT: usize = 36; pub const PPOLL: usize = 73; pub const UNSHARE: usize = 97;
    pub const SIGNALFD4: usize = 74; pub const DUP3: usize = 24; pub const PRLIMIT64: usize = 261;
    pub const SCHED_YIELD: usize = 124; pub const SETNS: usize = 268; pub const EXECVEAT: usize = 281;
}

/// System call numbers that are the same everywhere, because they are young.
#[rustfmt::skip]
#[allow(missing_docs, reason = "each is the name of its system call")]
pub mod common {
    pub const MOVE_MOUNT: usize = 429; pub const CLONE3: usize = 435; pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT2: usize = 437; pub const MOUNT_SETATTR: usize = 442;
}

/// Makes one system call. The error is the kernel's errno, positive.
///
/// # Safety
/// `arguments` must be what the kernel expects of call `number`: every pointer among them valid for as
/// long and as large as the call says. Unused ones are zero.
pub unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, i32> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction clobbers rax, rcx and r11 only, all declared; memory is not promised
    // untouched; the caller answers for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number.cast_signed() => result, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction clobbers x0 only, declared; memory is not promised untouched; the caller
    // answers for the arguments.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a.cast_signed() => result, in("x1") b, in("x2") c,
             in("x3") d, in("x4") e, in("x5") f, options(nostack));
    }
    check(result)
}

/// Splits the kernel's answer into value and errno.
const fn check(result: isize) -> Result<usize, i32> {
    #[allow(clippy::cast_possible_truncation, reason = "an errno is at most 4095")]
    if result < 0 && result >= -4095 {
        Err((-result) as i32)
    } else {
        Ok(result.cast_unsigned())
    }
}

/// Arguments of clone3(2), version 2 of the structure (Linux 5.7).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneArguments {
    /// `CLONE_*`.
    pub flags: u64,
    /// Where to store the pidfd, with `CLONE_PIDFD`.
    pub pidfd: u64,
    /// Unused here.
    pub child_tid: u64,
    /// Unused here.
    pub parent_tid: u64,
    /// Signal to the parent at the end; 0 with `CLONE_PARENT`.
    pub exit_signal: u64,
    /// Lowest address of the child's stack.
    pub stack: u64,
    /// Its size.
    pub stack_size: u64,
    /// Unused here.
    pub tls: u64,
    /// Unused here.
    pub set_tid: u64,
    /// Unused here.
    pub set_tid_size: u64,
    /// Descriptor of the cgroup to be born in, with `CLONE_INTO_CGROUP`.
    pub cgroup: u64,
}

const _: () = assert!(size_of::<CloneArguments>() == 88);

/// clone3 into a function on the stack that `arguments` names. Returns in the parent only.
///
/// The child never comes back through the parent's frames, so nothing the compiler keeps there can be
/// changed under it: that is why this is not a plain call with two returns.
///
/// # Safety
/// `arguments` must describe a valid clone with a stack that nothing else uses; `entry` must be sound to run
/// with `argument` in that child (with `CLONE_VM`: while the parent is suspended, or concurrently).
pub unsafe fn clone_into(
    arguments: &CloneArguments,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> Result<usize, i32> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: parent: rax, rcx, r11 are clobbered and declared. Child: starts on its own aligned stack with
    // the registers of this block, calls `entry`, which does not return. The caller answers for both.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "and rsp, -16",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") common::CLONE3.cast_signed() => result,
            in("rdi") arguments, in("rsi") size_of::<CloneArguments>(), in("r8") argument, in("r9") entry,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: parent: x0 is clobbered and declared. Child: starts on its own aligned stack with the registers
    // of this block, calls `entry`, which does not return. The caller answers for both.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x4",
            "blr x5",
            "brk 1",
            "2:",
            in("x8") common::CLONE3, inlateout("x0") arguments => result,
            in("x1") size_of::<CloneArguments>(), in("x4") argument, in("x5") entry, options(nostack)
        );
    }
    check(result)
}

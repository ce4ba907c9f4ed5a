//! PID 1 of a measured job, without libc: waits for go, starts the command as its child, says when the
//! command has passed execve, reaps it, says so, ends.
//!
//! Started without arguments it is the command: it exits with 0.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(70)
}

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const CHDIR: usize = 80;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const CAPSET: usize = 126;
    pub const PRCTL: usize = 157;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const KEYCTL: usize = 250;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const CHDIR: usize = 49;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const CAPSET: usize = 91;
    pub const EXIT_GROUP: usize = 94;
    pub const CLOCK_GETTIME: usize = 113;
    pub const SETRESUID: usize = 147;
    pub const SETRESGID: usize = 149;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const PRCTL: usize = 167;
    pub const KEYCTL: usize = 219;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

// The stack pointer at entry is the only argument there is. `in_child` is vfork with a stack of its own:
// clone(CLONE_VM | CLONE_VFORK | SIGCHLD), then `entry(argument)` in the child, which never returns.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call main",
    "ud2",
    ".globl in_child",
    "in_child:",
    "mov r8, rdi",
    "mov r9, rsi",
    "mov rsi, rdx",
    "mov edi, 0x4111",
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 56",
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
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x0, sp",
    "bl main",
    "brk #1",
    ".globl in_child",
    "in_child:",
    "mov x9, x0",
    "mov x10, x1",
    "mov x0, #0x4111",
    "mov x1, x2",
    "mov x2, xzr",
    "mov x3, xzr",
    "mov x4, xzr",
    "mov x8, #220",
    "svc #0",
    "cbnz x0, 2f",
    "mov x29, xzr",
    "mov x0, x10",
    "blr x9",
    "brk #1",
    "2:",
    "ret",
);

unsafe extern "C" {
    fn in_child(
        entry: unsafe extern "C" fn(*const usize) -> !,
        argument: *const usize,
        stack: *mut u8,
    ) -> isize;
}

#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the caller answers for what the kernel does with the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") 0, lateout("rcx") _, lateout("r11") _);
    }
    answer
}

#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer: isize;
    // SAFETY: the caller answers for what the kernel does with the arguments.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a => answer, in("x1") b, in("x2") c, in("x3") d, in("x4") 0);
    }
    answer
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { call(number::EXIT_GROUP, code, 0, 0, 0) };
    }
}

const CONTROL: usize = 3;
static mut STACK: [u8; 16 << 10] = [0; 16 << 10];
static CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];
static NO_CAPABILITIES: [u32; 6] = [0; 6];

/// The command: a session and a keyring of its own, uid and gid 1000, nothing kept, in /work.
unsafe extern "C" fn command(arguments: *const usize) -> ! {
    // SAFETY: plain numbers and pointers to statics and to the arguments the kernel placed; the parent is
    // suspended until execve or exit.
    unsafe {
        call(number::SETSID, 0, 0, 0, 0);
        call(number::SETGROUPS, 0, 0, 0, 0);
        for capability in 0..41 {
            call(number::PRCTL, 24, capability, 0, 0);
        }
        call(number::SETRESGID, 1000, 1000, 1000, 0);
        call(number::SETRESUID, 1000, 1000, 1000, 0);
        call(
            number::CAPSET,
            CAPABILITY_HEADER.as_ptr() as usize,
            NO_CAPABILITIES.as_ptr() as usize,
            0,
            0,
        );
        call(number::PRCTL, 38, 1, 0, 0);
        call(number::KEYCTL, 1, 0, 0, 0); // a session keyring of its own
        call(number::CHDIR, c"/work".as_ptr() as usize, 0, 0, 0);
        let count = *arguments;
        let words = arguments.add(2);
        let environment = arguments.add(1 + count + 1);
        call(
            number::EXECVE,
            *words,
            words as usize,
            environment as usize,
            0,
        );
    }
    exit(127)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn main(arguments: *const usize) -> ! {
    // SAFETY: the kernel places the number of arguments at the top of the stack.
    if unsafe { *arguments } < 2 {
        exit(0);
    }
    let mut go = 0u8;
    let mut time = [0u64; 2];
    let mut status = 0i32;
    // SAFETY: every pointer is to a local or static of the size the call writes or reads; the stack of the
    // child is used by nobody else, and the parent waits until the child has left it.
    unsafe {
        if call(number::READ, CONTROL, &raw mut go as usize, 1, 0) != 1 {
            exit(71);
        }
        let top = (&raw mut STACK).cast::<u8>().add(16 << 10);
        let child = in_child(command, arguments, top);
        call(number::CLOCK_GETTIME, 1, time.as_mut_ptr() as usize, 0, 0);
        call(number::WRITE, CONTROL, time.as_ptr() as usize, 16, 0);
        loop {
            let pid = call(number::WAIT4, usize::MAX, &raw mut status as usize, 0, 0);
            if pid == child || pid < 0 {
                break;
            }
        }
        call(number::WRITE, CONTROL, &raw const status as usize, 4, 0);
    }
    exit(0)
}

//! PID 1 of a job: a static program of a few KB without libc, compiled by the build script.
//!
//! ```text
//! argv: "joblet-init" "UID GID UPLOADS" WORKDIR COMMAND ARGUMENT…      environment: the command's
//!
//! start ─► upload (when asked) ─► wait for go ─► command ─► started ─► reap, forward signals ─► exited
//!             └─ failed ─► started{errno}   └─ socket closed, or start failed ─► end
//! ```
//! It runs as a user of its own inside the job's user namespace, with SETUID, SETGID, SETPCAP and KILL of that
//! namespace only, and not dumpable, because its file may be executed but not read: the job can neither signal
//! nor trace nor look into it. It opens no path and keeps no state but the command's pid.
#![no_std]
#![no_main]

#[path = "../../../sys/raw.rs"]
mod raw;
#[path = "../record.rs"]
#[allow(dead_code, reason = "reading records is the daemon's side")]
mod record;

mod calls;
mod command;
mod memory;
mod upload;

use core::{arch::global_asm, ffi::c_char};

use calls::{EAGAIN, POLLIN, PollFd, SIGCHLD};
use record::{GO, Record, SIGNAL, fd, step};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    calls::exit(255)
}

// The kernel enters with the argument block at the stack pointer and no return address.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {}", "ud2", sym start);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "bl {}", "brk 1", sym start);

/// What the command is and who it runs as.
pub(crate) struct Job {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) has_uploads: bool,
    pub(crate) workdir: *const c_char,
    /// NULL-terminated, at least one.
    pub(crate) argv: *const *const c_char,
    /// NULL-terminated.
    pub(crate) envp: *const *const c_char,
}

unsafe extern "C" fn start(block: *const usize) -> ! {
    // SAFETY: the kernel's argument block: argc, argv, NULL, environment, NULL.
    let job = unsafe { read_job(block) };
    let Some(job) = job else { calls::exit(254) };
    // For good: SIGCHLD is read from a descriptor, every other signal is not for us.
    calls::block_all_signals();
    if job.has_uploads {
        if let Err(errno) = upload::run(&job) {
            fail(step::UPLOAD, errno);
        }
        calls::close(fd::UPLOAD);
    }
    let Some(early) = wait_for_go() else {
        calls::exit(0)
    };
    let pid = match command::start(&job) {
        Ok(pid) => pid,
        Err((step, errno)) => fail(step, errno),
    };
    report(Record::Started {
        step: step::EXECUTE,
        errno: 0,
        mono_ns: calls::monotonic_ns(),
    });
    for signo in 1..=64 {
        if early & (1 << (signo - 1)) != 0 {
            calls::kill(pid, signo);
        }
    }
    // The command's own output must not be held open by us.
    let _ = calls::close_range(0, 2);
    watch(pid)
}

/// Reads our three arguments; the rest is the command's.
unsafe fn read_job(block: *const usize) -> Option<Job> {
    // SAFETY: see the caller.
    let count = unsafe { *block };
    if count < 4 {
        return None;
    }
    // SAFETY: argv follows the count and has `count` pointers and a NULL; the environment follows.
    let (argv, envp) = unsafe { (block.add(1), block.add(count + 2)) };
    let argv = argv.cast::<*const c_char>();
    // SAFETY: at least four arguments, each a C string.
    let (mut text, workdir) = unsafe { (*argv.add(1), *argv.add(2)) };
    let mut numbers = [0_u32; 3];
    for number in &mut numbers {
        // SAFETY: the loop stops at the string's NUL at the latest and steps over one blank.
        unsafe {
            while (*text as u8).is_ascii_digit() {
                *number = number
                    .wrapping_mul(10)
                    .wrapping_add(u32::from(*text as u8 - b'0'));
                text = text.add(1);
            }
            if *text as u8 == b' ' {
                text = text.add(1);
            }
        }
    }
    let [uid, gid, uploads] = numbers;
    // SAFETY: within argv, see above.
    let argv = unsafe { argv.add(3) };
    Some(Job {
        uid,
        gid,
        has_uploads: uploads != 0,
        workdir,
        argv,
        envp: envp.cast(),
    })
}

/// Blocks until go; returns the signals that were asked for before it, as a set. `None` when nobody can say
/// go any more.
fn wait_for_go() -> Option<u64> {
    let mut early = 0_u64;
    let mut message = [0_u8; 2];
    loop {
        match calls::receive(fd::CONTROL, &mut message, 0) {
            Ok(1) if message[0] == GO => return Some(early),
            Ok(2) if message[0] == SIGNAL && (1..=64).contains(&message[1]) => {
                early |= 1 << (message[1] - 1)
            }
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Reaps and forwards until the command has ended.
fn watch(command: i32) -> ! {
    let mut polls = [
        PollFd {
            fd: fd::CONTROL,
            events: POLLIN,
            revents: 0,
        },
        // Without it no end would ever be seen; then it is better to end the job at once.
        PollFd {
            fd: calls::signal_fd(SIGCHLD).unwrap_or_else(|_| calls::exit(253)),
            events: POLLIN,
            revents: 0,
        },
    ];
    loop {
        calls::poll(&mut polls);
        let [control, children] = &mut polls;
        if control.revents != 0 && !forward(command) {
            // The keeper has gone. The command goes on; there is nobody to listen to.
            control.fd = -1;
        }
        if children.revents != 0 {
            calls::drain(children.fd);
            reap(command);
        }
    }
}

/// Passes one signal on. False when the other side is gone.
fn forward(command: i32) -> bool {
    let mut message = [0_u8; 2];
    match calls::receive(fd::CONTROL, &mut message, calls::MSG_DONTWAIT) {
        Ok(0) => false,
        Ok(2) if message[0] == SIGNAL && (1..=64).contains(&message[1]) => {
            // Still ours to name: only `reap` frees the pid, and it ends us when it does.
            calls::kill(command, i32::from(message[1]));
            true
        }
        Ok(_) => true,
        Err(errno) => errno == EAGAIN,
    }
}

/// Reaps everything that has ended; reports and ends with the command. The kernel kills what is left.
fn reap(command: i32) {
    while let Some(ended) = calls::wait_any() {
        if ended.pid == command {
            report(Record::Exited {
                wait_status: ended.status,
                utime_us: ended.utime_us,
                stime_us: ended.stime_us,
                maxrss_kb: ended.maxrss_kb,
                mono_ns: calls::monotonic_ns(),
            });
            // Our end takes longer than the word of it, which whoever waits for the command waits for.
            calls::give_way();
            calls::exit(0);
        }
    }
}

/// Reports that there will be no command, and ends.
fn fail(step: u8, errno: i32) -> ! {
    // What lies unread when we end would turn up as an error before our report does.
    let mut message = [0_u8; 2];
    while calls::receive(fd::CONTROL, &mut message, calls::MSG_DONTWAIT)
        .is_ok_and(|count| count > 0)
    {}
    report(Record::Started {
        step,
        errno,
        mono_ns: calls::monotonic_ns(),
    });
    calls::exit(1)
}

/// Best effort: a keeper that is gone learns nothing, and the job does not suffer for it.
fn report(record: Record) {
    calls::send(fd::CONTROL, &record.encode());
}

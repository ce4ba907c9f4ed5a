//! From the C library's call to ours, without what the Rust runtime does in between.
//!
//! To tell an overflow of the main thread's stack from another fault, the runtime reads where that stack is out of
//! `/proc/self/maps`, which takes a twentieth of a short job. Here such an overflow is a SIGSEGV without a word. The
//! rest of what it does is done below.
//!
//! # Source
//! `library/std/src/rt.rs` and `library/std/src/sys/pal/unix/mod.rs` of Rust 1.95. Arguments come by `.init_array`,
//! which glibc calls with them.
#![expect(
    unsafe_code,
    reason = "the C library finds it by its name, and a disposition may run anything"
)]

use std::{
    ffi::{c_char, c_int},
    fs::File,
    os::fd::{AsRawFd, IntoRawFd},
    panic, process,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{SigHandler, Signal, signal},
};

/// As the runtime has it for a panic of the main thread.
const PANICKED: i32 = 101;

#[unsafe(no_mangle)]
extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    occupy_standard_descriptors();
    // SAFETY: to ignore a signal runs nothing.
    let ignored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    debug_assert!(ignored.is_ok(), "SIGPIPE may be ignored");
    let code = panic::catch_unwind(crate::command).map_or(PANICKED, i32::from);
    // Not by returning: this writes what standard output still holds.
    process::exit(code)
}

/// Nothing we open may become standard input, output or error of a caller that has closed those.
fn occupy_standard_descriptors() {
    // The lowest free number each time.
    while let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            break;
        }
        // What we start inherits it, as it would have inherited what was closed.
        let _ = fcntl(&null, FcntlArg::F_SETFD(FdFlag::empty()));
        let _ = null.into_raw_fd();
    }
}

//! One file per promise, looked at from inside a job: what it sees, and what it is refused.

mod cgroup;
mod descriptor;
mod environment;
mod init;
mod ipc;
mod mount;
mod net;
mod pid;
mod user;

use crate::harness::Shared;

/// One daemon for all promises: none of these tests may disturb another job.
static DAEMON: Shared = Shared::new();

/// Number of a system call for `perl -e 'syscall(…)'`, by the architecture the tests run on.
fn syscall_number(x86_64: u32, aarch64: u32) -> u32 {
    if cfg!(target_arch = "x86_64") {
        x86_64
    } else {
        aarch64
    }
}

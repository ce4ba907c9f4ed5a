//! PID 1 of a job, as the daemon sees it: a program embedded in ours, and the records it sends.
//!
//! Its source is `pid1/`, compiled without libc by the build script. It is executed from a sealed memory file
//! that may be executed but not read, which is what makes it not dumpable; see `pid1/main.rs` for its life.

use std::{io, os::fd::OwnedFd};

use crate::sys::memfd;

pub mod record;

const _: () = assert!(record::PATH_BYTES_MAX == crate::limits::PATH_BYTES_MAX + 1);

/// The program.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/joblet-init"));

/// User that PID 1 runs as inside the job, unless the command runs as that one.
const USER: u32 = 65_534;
/// User that PID 1 runs as then.
const USER_OTHER: u32 = 65_533;

/// User and group of PID 1 for a command of user `uid`: always another one, so that the command may not signal it.
#[must_use]
pub const fn user_beside(uid: u32) -> u32 {
    if uid == USER { USER_OTHER } else { USER }
}

/// The program as a descriptor to execute.
///
/// # Errors
/// As [`memfd::sealed_executable`].
pub fn executable() -> io::Result<OwnedFd> {
    memfd::sealed_executable(c"joblet-init", IMAGE)
}

#[cfg(test)]
mod tests {
    use super::record::Record;

    #[test]
    fn records_survive_their_journey_and_nothing_else_does() {
        let started = Record::Started {
            step: 210,
            errno: 2,
            mono_ns: u64::MAX,
        };
        let exited = Record::Exited {
            wait_status: -7,
            utime_us: 1,
            stime_us: 2,
            maxrss_kb: 3,
            mono_ns: 4,
        };
        for record in [started, exited] {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Some(record));
            assert_eq!(Record::decode(&bytes[1..]), None);
        }
        assert_eq!(Record::decode(&[0; super::record::RECORD_BYTES]), None);
        assert_eq!(Record::decode(b""), None);
    }

    #[test]
    fn init_is_never_the_user_of_the_command() {
        for uid in [0, 1000, 65_533, 65_534, 65_535] {
            assert_ne!(super::user_beside(uid), uid);
        }
    }
}

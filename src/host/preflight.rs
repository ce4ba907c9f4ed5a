//! What a machine must have before a daemon starts on it: the kernel, io_uring, root.

use std::{fmt, io};

use io_uring::IoUring;

/// Oldest kernel that is served.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// One thing that is missing, with what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The kernel is too old.
    Kernel {
        /// The one that runs.
        release: String,
    },
    /// The kernel gives no rings.
    IoUring {
        /// The kernel's error number.
        errno: i32,
    },
    /// The daemon does not run as root.
    Root {
        /// Whom it runs as.
        uid: u32,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { release } => {
                let (major, minor) = KERNEL_MIN;
                write!(
                    f,
                    "the kernel is {release}; Linux {major}.{minor} or later is needed"
                )
            }
            Self::IoUring { errno } => {
                let why = io::Error::from_raw_os_error(*errno);
                write!(
                    f,
                    "the kernel gives no io_uring ({why}); see /proc/sys/kernel/io_uring_disabled and the \
                     seccomp filter of a surrounding container"
                )
            }
            Self::Root { uid } => write!(f, "the daemon runs as user {uid}; it needs root"),
        }
    }
}

/// What was found on a machine.
#[derive(Debug, Clone)]
struct Facts {
    release: String,
    ring: Result<(), i32>,
    uid: u32,
}

/// Everything that this machine lacks, empty when a daemon can start.
#[must_use]
pub fn check() -> Vec<Missing> {
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |names| names.release().to_string_lossy().into_owned(),
    );
    // Two entries are enough to learn whether rings are given at all.
    let ring = IoUring::new(2)
        .map(drop)
        .map_err(|error| error.raw_os_error().unwrap_or(libc::ENOSYS));
    judge(&Facts {
        release,
        ring,
        uid: nix::unistd::geteuid().as_raw(),
    })
}

fn judge(facts: &Facts) -> Vec<Missing> {
    let mut missing = Vec::new();
    if parse_release(&facts.release).is_none_or(|found| found < KERNEL_MIN) {
        missing.push(Missing::Kernel {
            release: facts.release.clone(),
        });
    }
    if let Err(errno) = facts.ring {
        missing.push(Missing::IoUring { errno });
    }
    if facts.uid != 0 {
        missing.push(Missing::Root { uid: facts.uid });
    }
    missing
}

/// `6.18.44-cloud` is (6, 18).
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_at_once() {
        let check = |release: &str, ring, uid, expected: &[&str]| {
            let found = judge(&Facts {
                release: release.to_owned(),
                ring,
                uid,
            });
            let words: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(words.len(), expected.len(), "{words:?}");
            for (word, expected) in words.iter().zip(expected) {
                assert!(
                    word.contains(expected),
                    "{word:?} does not say {expected:?}"
                );
            }
        };
        check("6.1.0", Ok(()), 0, &[]);
        check("6.18.44-cloud-amd64", Ok(()), 0, &[]);
        check("7.0", Ok(()), 0, &[]);
        check(
            "6.0.19",
            Ok(()),
            0,
            &["the kernel is 6.0.19; Linux 6.1 or later"],
        );
        check(
            "5.15.0-generic",
            Err(libc::EPERM),
            1000,
            &["5.15.0", "Operation not permitted", "user 1000"],
        );
        check("strange", Ok(()), 0, &["strange"]);
    }
}

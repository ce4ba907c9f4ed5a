//! Who holds the lock of a base directory: found by pid, proved by the kernel, held by pidfd.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};

use crate::sys::pidfd;

/// A process that held the lock when it was looked at. It cannot be mistaken for another one later.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    executable: PathBuf,
    pidfd: OwnedFd,
}

impl Holder {
    /// The process `pid` when it holds a lock on the file `lock`, otherwise `None`.
    ///
    /// The pidfd is opened first: what is read from `/proc` after that is about the same process, or about
    /// nobody.
    ///
    /// # Errors
    /// Whatever the kernel says, except that there is no such process.
    pub(super) fn find(pid: Pid, lock: &Path) -> io::Result<Option<Self>> {
        let pidfd = match pidfd::open(pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            other => other?,
        };
        let facts = fs::metadata(lock)?;
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let listing = match fs::read_dir(proc.join("fd")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        for entry in listing {
            // A descriptor that is closed while we look is not the one we look for.
            let Ok(entry) = entry else { continue };
            let Ok(open) = fs::metadata(entry.path()) else {
                continue;
            };
            if (open.dev(), open.ino()) == (facts.dev(), facts.ino())
                && has_lock(&proc.join("fdinfo").join(entry.file_name()))
            {
                let executable = fs::read_link(proc.join("exe"))?;
                return Ok(Some(Self {
                    pid,
                    executable,
                    pidfd,
                }));
            }
        }
        Ok(None)
    }

    /// Its pid, for people.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The file it executes, as the kernel says: with ` (deleted)` when it was replaced by an update.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.executable
    }

    /// Sends it a signal. That it has ended is no error.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Waits until it has ended, but no longer than `longest`; says whether it has.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn wait(&self, longest: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, timeout)? > 0)
    }
}

/// Whether the open file behind `fdinfo` holds a lock of `flock(2)`.
fn has_lock(fdinfo: &Path) -> bool {
    fs::read_to_string(fdinfo).is_ok_and(|text| {
        text.lines()
            .any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the test needs a process of its own to end"
    )]
    fn only_the_process_that_holds_the_lock_is_found_and_its_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        fs::File::create(&lock).unwrap();
        let mut child = Command::new("flock")
            .arg("--no-fork")
            .arg(&lock)
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // What comes back has been through cat: by then it holds the lock and nobody else runs there.
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"locked\n").unwrap();
        let mut line = [0; 7];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());

        assert!(
            Holder::find(Pid::this(), &lock).unwrap().is_none(),
            "we do not hold it"
        );
        let holder = Holder::find(pid, &lock).unwrap().expect("flock holds it");
        assert_eq!(holder.executable().file_name().unwrap(), "cat");
        assert!(!holder.wait(Duration::ZERO).unwrap());
        holder.signal(Signal::SIGTERM).unwrap();
        assert!(holder.wait(Duration::from_secs(20)).unwrap());
        child.wait().unwrap();
        holder.signal(Signal::SIGTERM).unwrap();
        assert!(Holder::find(pid, &lock).unwrap().is_none());
    }
}

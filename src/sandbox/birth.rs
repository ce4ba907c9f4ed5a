//! The message that a job has been born, or could not be: spawner → keeper.
//!
//! ```text
//! version u16 · step u16 · pid u32 · errno i32 · job id 16 bytes      descriptors: [pidfd,] stdout, stderr, control
//! ```
//! A pid of 0 means that there is no process, and no pidfd. A failure with a pid is a child that has ended, or is
//! about to: it wants reaping.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use thiserror::Error;

use crate::{job::JobId, sys::scm};

const VERSION: u16 = 1;
const MESSAGE_BYTES: usize = 28;

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepFailure {
    /// Which; `Step::name` has the words.
    pub step: u16,
    /// The kernel's error number.
    pub errno: i32,
}

/// How the birth of one job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The job.
    pub id: JobId,
    /// Pid of its init, 0 if there is none.
    pub pid: u32,
    /// What failed, if something did.
    pub failure: Option<StepFailure>,
}

/// What the keeper is given with a birth.
#[derive(Debug)]
pub struct BirthFds {
    /// The job's init; `None` exactly when the pid is 0.
    pub pidfd: Option<OwnedFd>,
    /// Read end of its standard output.
    pub stdout: OwnedFd,
    /// Read end of its standard error.
    pub stderr: OwnedFd,
    /// The keeper's end of its control socket.
    pub control: OwnedFd,
}

/// Why there is no birth.
#[derive(Debug, Error)]
pub enum BirthError {
    /// The socket.
    #[error("receive a birth")]
    Receive(#[source] io::Error),
    /// Not a message of this version, or not with the descriptors it should have.
    #[error("a birth of {bytes} bytes with {fds} descriptors is malformed")]
    Malformed {
        /// Its length.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
}

/// Tells the keeper. `pidfd` is there exactly when `birth.pid` is not 0; `others` are the read ends of standard
/// output and error and the keeper's end of the control socket.
///
/// # Errors
/// As [`scm::send`].
pub fn send(
    socket: BorrowedFd<'_>,
    birth: &Birth,
    pidfd: Option<BorrowedFd<'_>>,
    others: [BorrowedFd<'_>; 3],
) -> io::Result<()> {
    debug_assert_eq!(
        pidfd.is_some(),
        birth.pid != 0,
        "a process has both or none"
    );
    let failure = birth.failure.unwrap_or(StepFailure { step: 0, errno: 0 });
    let mut message = [0; MESSAGE_BYTES];
    message[..2].copy_from_slice(&VERSION.to_le_bytes());
    message[2..4].copy_from_slice(&failure.step.to_le_bytes());
    message[4..8].copy_from_slice(&birth.pid.to_le_bytes());
    message[8..12].copy_from_slice(&failure.errno.to_le_bytes());
    message[12..].copy_from_slice(&birth.id.to_bytes());
    let [stdout, stderr, control] = others;
    match pidfd {
        Some(pidfd) => scm::send(socket, &message, &[pidfd, stdout, stderr, control]),
        None => scm::send(socket, &message, &others),
    }
}

/// Receives the next birth; `None` when the spawner has gone.
///
/// # Errors
/// [`BirthError`]; the descriptors of a malformed message are closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Birth, BirthFds)>, BirthError> {
    let mut message = [0; MESSAGE_BYTES];
    let mut fds = Vec::with_capacity(4);
    let bytes = scm::recv(socket, &mut message, &mut fds).map_err(BirthError::Receive)?;
    if bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    let [v0, v1, s0, s1, p0, p1, p2, p3, e0, e1, e2, e3, id @ ..] = message;
    let pid = u32::from_le_bytes([p0, p1, p2, p3]);
    let (step, errno) = (
        u16::from_le_bytes([s0, s1]),
        i32::from_le_bytes([e0, e1, e2, e3]),
    );
    let expected = if pid == 0 { 3 } else { 4 };
    if bytes != MESSAGE_BYTES || u16::from_le_bytes([v0, v1]) != VERSION || fds.len() != expected {
        return Err(BirthError::Malformed {
            bytes,
            fds: fds.len(),
        });
    }
    let mut fds = fds.into_iter();
    let mut next = || fds.next().expect("as many as were counted above");
    let failure = (step != 0).then_some(StepFailure { step, errno });
    let birth = Birth {
        id: JobId::from_bytes(id),
        pid,
        failure,
    };
    let fds = BirthFds {
        pidfd: (pid != 0).then(&mut next),
        stdout: next(),
        stderr: next(),
        control: next(),
    };
    Ok(Some((birth, fds)))
}

impl BirthFds {
    /// The process, when there is one.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn a_birth_arrives_with_and_without_a_process_and_a_malformed_one_is_refused() {
        let kind = SockType::SeqPacket;
        let (a, b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let others = [a.as_fd(), b.as_fd(), a.as_fd()];
        let alive = Birth {
            id: JobId::random(),
            pid: 7,
            failure: None,
        };
        let dead = Birth {
            id: JobId::random(),
            pid: 0,
            failure: Some(StepFailure { step: 2, errno: 11 }),
        };
        for (birth, pidfd) in [(alive, Some(b.as_fd())), (dead, None)] {
            send(a.as_fd(), &birth, pidfd, others).unwrap();
            let (got, fds) = receive(b.as_fd()).unwrap().unwrap();
            assert_eq!(got, birth);
            assert_eq!(fds.pidfd().is_some(), pidfd.is_some());
        }
        scm::send(a.as_fd(), &[1; MESSAGE_BYTES], &others).unwrap();
        assert!(matches!(
            receive(b.as_fd()),
            Err(BirthError::Malformed { .. })
        ));
        drop(a);
        assert!(receive(b.as_fd()).unwrap().is_none());
    }
}

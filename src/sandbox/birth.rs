//! What the spawner tells the keeper of each clone, with the descriptors of the job.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{job::JobId, sys::scm};

/// Length of a message, bytes.
pub const BIRTH_BYTES: usize = 28;
const VERSION: u8 = 1;

/// Which step of the plan failed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepFailure {
    /// The step's tag.
    pub step: u16,
    /// Its errno.
    pub errno: i32,
}

/// A clone: the job's PID 1, or what kept it from being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The job.
    pub id: JobId,
    /// Process id, in the keeper's namespace; 0 when nothing was cloned.
    pub pid: u32,
    /// The step that failed, if one did.
    pub failure: Option<StepFailure>,
}

impl Birth {
    /// The message.
    #[must_use]
    pub fn encode(&self) -> [u8; BIRTH_BYTES] {
        let mut bytes = [0; BIRTH_BYTES];
        bytes[0] = VERSION;
        bytes[4..8].copy_from_slice(&self.pid.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.id.to_bytes());
        if let Some(StepFailure { step, errno }) = self.failure {
            bytes[1] = 1;
            bytes[2..4].copy_from_slice(&step.to_le_bytes());
            bytes[8..12].copy_from_slice(&errno.to_le_bytes());
        }
        bytes
    }

    /// Reads a message; `None` when it is none of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BIRTH_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let failure = match (bytes[0], bytes[1]) {
            (VERSION, 0) => None,
            (VERSION, 1) => Some(StepFailure {
                step: u16::from_le_bytes([bytes[2], bytes[3]]),
                errno: i32::from_le_bytes(word(8)),
            }),
            _ => return None,
        };
        let id = bytes[12..28].try_into().ok()?;
        Some(Self { id: JobId::from_bytes(id), pid: u32::from_le_bytes(word(4)), failure })
    }
}

/// Sends a birth with `fds`: pidfd, stdout read end, stderr read end, keeper's end of the control socket;
/// or none of them when nothing was cloned.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send(socket: BorrowedFd<'_>, birth: &Birth, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    scm::send(socket, &birth.encode(), fds)
}

/// Receives a birth and its descriptors; `None` when the spawner is gone.
///
/// # Errors
/// What recvmsg(2) says; `InvalidData` for a message that is no birth.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Birth, Vec<OwnedFd>)>> {
    let (mut buffer, mut fds) = ([0; BIRTH_BYTES], Vec::new());
    let length = scm::recv(socket, &mut buffer, &mut fds)?;
    if length == 0 {
        return Ok(None);
    }
    let birth = Birth::decode(&buffer[..length]).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((birth, fds)))
}

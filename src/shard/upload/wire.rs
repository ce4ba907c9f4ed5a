//! What goes to init's uploader and what comes back: entries in its byte format, and its one answer.
//!
//! Layout as in `sandbox/init`. A spool on the disk is the same bytes, so that a replay is a copy.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt::SndBuf};
use thiserror::Error;

use crate::{
    job::{Refusal, RefusalCode, TreeEntry},
    rt::Ready,
    sandbox::init::record::{ANSWER_BYTES, ENTRY_BYTES, entry},
};

/// What the uploader could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) struct Answer {
    /// The kernel's error number.
    pub(in crate::shard) errno: i32,
    /// Which entry, from 0.
    pub(in crate::shard) index: u32,
}

impl Answer {
    /// What the user hears; `path` is that of the entry, `None` when there is no such entry.
    pub(in crate::shard) fn refusal(self, path: Option<&[u8]>) -> Refusal {
        let path = path.map_or_else(|| "?".into(), String::from_utf8_lossy);
        let error = io::Error::from_raw_os_error(self.errno);
        let message = format!("upload {path}: {error}");
        match self.errno {
            libc::ENOSPC | libc::EDQUOT => Refusal::new(RefusalCode::TooLarge, message)
                .hint("ask for a larger /work with --work-size"),
            libc::ELOOP | libc::EXDEV => Refusal::new(RefusalCode::Invalid, message)
                .hint("an upload may not go through a symbolic link or out of /work"),
            _ => Refusal::new(RefusalCode::Failed, message),
        }
    }
}

/// Why an upload did not end well on the job's side.
#[derive(Debug, Error)]
pub(in crate::shard) enum UploaderError {
    /// The uploader said so.
    #[error("entry {}", .0.index)]
    Refused(Answer),
    /// It is gone and has left no word.
    #[error("the job ended while its uploads were written")]
    Gone,
    /// It is gone after it had everything.
    #[error("the job's uploader ended before its answer")]
    Silent,
    /// The socket itself.
    #[error("upload socket: {0}")]
    Socket(#[source] io::Error),
}

impl UploaderError {
    /// What the user hears; `path` is that of the entry that was refused.
    pub(in crate::shard) fn refusal(&self, path: Option<&[u8]>) -> Refusal {
        match self {
            Self::Refused(answer) => answer.refusal(path),
            Self::Gone | Self::Silent | Self::Socket(_) => {
                Refusal::new(RefusalCode::Failed, self.to_string())
            }
        }
    }
}

/// Our end of the socket that init's uploader reads.
#[derive(Debug)]
pub(in crate::shard) struct Uploader {
    socket: Ready,
    unread_bytes_max: u64,
}

impl Uploader {
    pub(in crate::shard) fn new(socket: OwnedFd) -> Result<Self, UploaderError> {
        let buffer_bytes =
            getsockopt(&socket, SndBuf).map_err(|errno| UploaderError::Socket(errno.into()))?;
        let socket = Ready::new(socket).map_err(UploaderError::Socket)?;
        Ok(Self {
            socket,
            unread_bytes_max: 2 * buffer_bytes as u64,
        })
    }

    /// Bytes that can be sent and not yet read, at most.
    ///
    /// The kernel sends while less than the buffer's size is unread, each time at most half of it again
    /// (Linux `net/unix/af_unix.c`, `unix_stream_sendmsg`).
    pub(in crate::shard) const fn unread_bytes_max(&self) -> u64 {
        self.unread_bytes_max
    }

    /// Sends all of `bytes`; waits for the uploader where it is slower.
    ///
    /// # Errors
    /// [`UploaderError::Refused`] when it has answered already, others when it is gone.
    pub(in crate::shard) async fn send_all(&self, mut bytes: &[u8]) -> Result<(), UploaderError> {
        while !bytes.is_empty() {
            match send(
                self.socket.as_raw_fd(),
                bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(n) => bytes = &bytes[n..],
                Err(nix::Error::EAGAIN) => {
                    self.socket
                        .writable()
                        .await
                        .map_err(UploaderError::Socket)?;
                }
                Err(nix::Error::EINTR) => {}
                // The uploader stops reading at the first failure and has left its answer.
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(self.early_answer()),
                Err(errno) => return Err(UploaderError::Socket(errno.into())),
            }
        }
        Ok(())
    }

    /// Waits for the answer to everything that was sent.
    ///
    /// # Errors
    /// [`UploaderError::Refused`] with the first entry that could not be written; others when there is none.
    pub(in crate::shard) async fn answer(&self) -> Result<(), UploaderError> {
        let mut answer = [0; ANSWER_BYTES];
        let mut have = 0;
        while have < ANSWER_BYTES {
            match recv(
                self.socket.as_raw_fd(),
                &mut answer[have..],
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(0) => return Err(UploaderError::Silent),
                Ok(n) => have += n,
                Err(nix::Error::EAGAIN) => {
                    self.socket
                        .readable()
                        .await
                        .map_err(UploaderError::Socket)?;
                }
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(UploaderError::Socket(errno.into())),
            }
        }
        match decode(answer) {
            Answer { errno: 0, .. } => Ok(()),
            answer => Err(UploaderError::Refused(answer)),
        }
    }

    fn early_answer(&self) -> UploaderError {
        let mut answer = [0; ANSWER_BYTES];
        match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(ANSWER_BYTES) => UploaderError::Refused(decode(answer)),
            Ok(_) | Err(_) => UploaderError::Gone,
        }
    }
}

fn decode([e0, e1, e2, e3, i0, i1, i2, i3]: [u8; ANSWER_BYTES]) -> Answer {
    Answer {
        errno: i32::from_le_bytes([e0, e1, e2, e3]),
        index: u32::from_le_bytes([i0, i1, i2, i3]),
    }
}

/// The header of one entry with its path and target.
pub(in crate::shard) fn header(entry: &TreeEntry) -> Vec<u8> {
    match entry {
        TreeEntry::Dir { path, mode } => encode(entry::DIR, *mode, path, &[], 0),
        TreeEntry::File { path, mode, bytes } => encode(entry::FILE, *mode, path, &[], *bytes),
        TreeEntry::Symlink { path, target } => encode(entry::SYMLINK, 0, path, target, 0),
    }
}

/// The header that says that nothing more comes.
pub(in crate::shard) fn end() -> Vec<u8> {
    encode(entry::END, 0, &[], &[], 0)
}

fn encode(kind: u8, mode: u32, path: &[u8], target: &[u8], bytes: u64) -> Vec<u8> {
    let len = |part: &[u8]| {
        u32::try_from(part.len()).expect("paths of an upload are checked to be short")
    };
    let mut out = Vec::with_capacity(ENTRY_BYTES + path.len() + target.len());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&mode.to_le_bytes());
    out.extend_from_slice(&len(path).to_le_bytes());
    out.extend_from_slice(&len(target).to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(path);
    out.extend_from_slice(target);
    out
}

/// Where things are in an entry that begins with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) struct Extent {
    /// Length of the path, which follows the header.
    pub(in crate::shard) path_bytes: usize,
    /// Length of everything up to the next header.
    pub(in crate::shard) entry_bytes: u64,
}

impl Extent {
    /// What a header says; `None` when it is no entry's.
    pub(in crate::shard) fn decode(raw: &[u8; ENTRY_BYTES]) -> Option<Self> {
        if !matches!(raw[0], entry::DIR | entry::FILE | entry::SYMLINK) {
            return None;
        }
        let word = |at: usize| {
            let bytes = raw.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let (path, target) = (word(8)?, word(12)?);
        let bytes = u64::from_le_bytes(*raw.last_chunk()?);
        Some(Self {
            path_bytes: usize::try_from(path).ok()?,
            entry_bytes: bytes
                .checked_add(ENTRY_BYTES as u64 + u64::from(path) + u64::from(target))?,
        })
    }
}

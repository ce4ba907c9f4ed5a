//! The sending side of an upload: entries and bytes into the socket whose other end init's uploader reads.
//!
//! The daemon holds one socket buffer of it and no more. What the uploader could not write comes back as
//! one answer when everything was sent.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use bytes::Bytes;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::{
    job::{Refusal, RefusalCode, TreeEntry},
    rt::Ready,
    sandbox::init::record::{ANSWER_BYTES, ENTRY_BYTES, entry},
};

/// Takes a tree entry by entry; a file's bytes follow its entry.
#[derive(Debug)]
pub struct UploadSink {
    socket: Ready,
    /// Paths sent, to name the one that failed.
    paths: Vec<Vec<u8>>,
    /// Bytes of the current file that are still to come.
    left: u64,
}

impl UploadSink {
    pub(super) fn new(socket: OwnedFd) -> Result<Self, Refusal> {
        let socket = Ready::new(socket).map_err(|error| failed(&error))?;
        Ok(Self {
            socket,
            paths: Vec::new(),
            left: 0,
        })
    }

    /// The next entry. The last file must be complete.
    ///
    /// # Errors
    /// `Invalid` when the last file is short; `Failed` when the job's side is gone.
    pub async fn entry(&mut self, entry: &TreeEntry) -> Result<(), Refusal> {
        self.check_complete()?;
        let (kind, path, target, mode, bytes) = match entry {
            TreeEntry::Dir { path, mode } => (entry::DIR, path, &[][..], *mode, 0),
            TreeEntry::File { path, mode, bytes } => (entry::FILE, path, &[][..], *mode, *bytes),
            TreeEntry::Symlink { path, target } => (entry::SYMLINK, path, &target[..], 0, 0),
        };
        self.left = bytes;
        self.paths.push(path.clone());
        self.send_all(&header(kind, mode, path, target, bytes))
            .await
    }

    /// Some bytes of the last file.
    ///
    /// # Errors
    /// `Invalid` when there are more than its entry said; `Failed` when the job's side is gone.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Refusal> {
        let len = bytes.len() as u64;
        if len > self.left {
            return Err(Refusal::new(
                RefusalCode::Invalid,
                format!("upload {} is longer than announced", self.current()),
            ));
        }
        self.left -= len;
        self.send_all(&bytes).await
    }

    /// No more entries: waits until everything is written.
    pub(super) async fn finish(self) -> Result<(), Refusal> {
        self.check_complete()?;
        self.send_all(&header(entry::END, 0, &[], &[], 0)).await?;
        let mut answer = [0; ANSWER_BYTES];
        let mut have = 0;
        while have < ANSWER_BYTES {
            match recv(
                self.socket.as_raw_fd(),
                &mut answer[have..],
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(0) => {
                    return Err(Refusal::new(
                        RefusalCode::Failed,
                        "the job's uploader ended before its answer",
                    ));
                }
                Ok(n) => have += n,
                Err(nix::Error::EAGAIN) => self
                    .socket
                    .readable()
                    .await
                    .map_err(|error| failed(&error))?,
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(failed(&errno.into())),
            }
        }
        let [e0, e1, e2, e3, i0, i1, i2, i3] = answer;
        let (errno, index) = (
            i32::from_le_bytes([e0, e1, e2, e3]),
            u32::from_le_bytes([i0, i1, i2, i3]),
        );
        if errno == 0 {
            Ok(())
        } else {
            Err(self.refused(errno, index as usize))
        }
    }

    fn refused(&self, errno: i32, index: usize) -> Refusal {
        let path = self
            .paths
            .get(index)
            .map_or_else(|| "?".into(), |path| String::from_utf8_lossy(path));
        let message = format!("upload {path}: {}", io::Error::from_raw_os_error(errno));
        match errno {
            libc::ENOSPC | libc::EDQUOT => Refusal::new(RefusalCode::TooLarge, message)
                .hint("ask for a larger /work with --work-size"),
            libc::ELOOP | libc::EXDEV => Refusal::new(RefusalCode::Invalid, message)
                .hint("an upload may not go through a symbolic link or out of /work"),
            _ => Refusal::new(RefusalCode::Failed, message),
        }
    }

    fn current(&self) -> String {
        self.paths.last().map_or_else(String::new, |path| {
            String::from_utf8_lossy(path).into_owned()
        })
    }

    fn check_complete(&self) -> Result<(), Refusal> {
        if self.left == 0 {
            return Ok(());
        }
        let message = format!("upload {} ended {} bytes early", self.current(), self.left);
        Err(Refusal::new(RefusalCode::Invalid, message))
    }

    async fn send_all(&self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match send(
                self.socket.as_raw_fd(),
                bytes,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(n) => bytes = &bytes[n..],
                Err(nix::Error::EAGAIN) => self
                    .socket
                    .writable()
                    .await
                    .map_err(|error| failed(&error))?,
                Err(nix::Error::EINTR) => {}
                // The uploader stops reading at the first failure and has left its answer.
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(self.early_answer()),
                Err(errno) => return Err(failed(&errno.into())),
            }
        }
        Ok(())
    }

    fn early_answer(&self) -> Refusal {
        let mut answer = [0; ANSWER_BYTES];
        match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Ok(ANSWER_BYTES) => {
                let [e0, e1, e2, e3, i0, i1, i2, i3] = answer;
                self.refused(
                    i32::from_le_bytes([e0, e1, e2, e3]),
                    u32::from_le_bytes([i0, i1, i2, i3]) as usize,
                )
            }
            _ => Refusal::new(
                RefusalCode::Failed,
                "the job ended while its uploads were written",
            ),
        }
    }
}

fn failed(error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::Failed, format!("upload socket: {error}"))
}

/// The header of one entry with its path and target. Layout as in `sandbox/init`.
fn header(kind: u8, mode: u32, path: &[u8], target: &[u8], bytes: u64) -> Vec<u8> {
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

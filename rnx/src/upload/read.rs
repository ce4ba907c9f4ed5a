//! Reads a [`Tree`] and joins it into frames: the entry's control frame, then its contents as `File` frames.
//!
//! Small files share a buffer, so a tree of thousands of them is neither thousands of packets nor thousands
//! of hand-overs. A blocking thread reads because a slow disk must not stop the connection's own packets.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bytes::Bytes;
use nix::fcntl::OFlag;
use proto_rkyv::{HEADER_BYTES, Header, Kind, Upload, encode, header_bytes};
use tokio::{sync::mpsc, task};

use super::{Entry, Tree, UploadError};
use crate::error::RequestError;

/// How much is read at once, and about how large a blob is.
const READ_BYTES: usize = 256 << 10;
/// Blobs that are read ahead of the network.
const BLOBS_AHEAD: usize = 2;

/// Frames that are ready to be sent.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) frames: Bytes,
    /// How many bytes of file contents are in it.
    pub(crate) contents: u64,
}

/// Blobs in order; the last one holds [`Upload::End`].
#[derive(Debug)]
pub(crate) struct Blobs(mpsc::Receiver<Result<Blob, RequestError>>);

impl Blobs {
    pub(crate) async fn next(&mut self) -> Option<Result<Blob, RequestError>> {
        self.0.recv().await
    }
}

/// Starts reading. Dropping the result stops it at the next blob.
pub(crate) fn read(tree: &Tree) -> Blobs {
    let (sender, receiver) = mpsc::channel(BLOBS_AHEAD);
    let entries = tree.entries().to_vec();
    task::spawn_blocking(move || {
        let mut joiner = Joiner {
            sender,
            frames: Vec::with_capacity(2 * READ_BYTES),
            contents: 0,
        };
        if let Err(Stop::Failed(error)) = joiner.join(&entries) {
            let _ = joiner.sender.blocking_send(Err(*error));
        }
    });
    Blobs(receiver)
}

enum Stop {
    /// Nobody listens any more.
    Unwanted,
    Failed(Box<RequestError>),
}

impl<E: Into<RequestError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

struct Joiner {
    sender: mpsc::Sender<Result<Blob, RequestError>>,
    frames: Vec<u8>,
    contents: u64,
}

impl Joiner {
    fn join(&mut self, entries: &[Entry]) -> Result<(), Stop> {
        for entry in entries {
            // Opened before it is announced: a file that cannot be opened leaves no half entry.
            let file = match entry.upload {
                Upload::File { bytes, .. } => Some((open(entry, bytes)?, bytes)),
                Upload::Dir { .. } | Upload::Symlink { .. } | Upload::End => None,
            };
            self.control(&entry.upload)?;
            if let Some((file, bytes)) = file {
                self.file(file, &entry.source, bytes)?;
            }
        }
        self.control(&Upload::End)?;
        self.flush()
    }

    fn control(&mut self, upload: &Upload) -> Result<(), Stop> {
        let frame = encode(upload).map_err(RequestError::RequestTooLarge)?;
        self.frames.extend_from_slice(&frame);
        self.flush_if_full()
    }

    /// Exactly `bytes` bytes of `file`, or the error that it has changed.
    fn file(&mut self, mut file: File, source: &Path, bytes: u64) -> Result<(), Stop> {
        let failed = |error| UploadError::Read {
            action: "read",
            path: source.into(),
            source: error,
        };
        let mut left = bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let start = self.frames.len();
            self.frames.resize(start + HEADER_BYTES + want, 0);
            let count = file
                .read(&mut self.frames[start + HEADER_BYTES..])
                .map_err(failed)?;
            if count == 0 {
                return Err(changed(source, bytes, bytes - left).into());
            }
            self.frames.truncate(start + HEADER_BYTES + count);
            let len = u32::try_from(count).expect("at most READ_BYTES");
            self.frames[start..start + HEADER_BYTES]
                .copy_from_slice(&header_bytes(&Header::new(Kind::File, len)));
            self.contents += u64::from(len);
            left -= u64::from(len);
            self.flush_if_full()?;
        }
        match file.read(&mut [0]).map_err(failed)? {
            0 => Ok(()),
            _ => Err(changed(source, bytes, bytes + 1).into()),
        }
    }

    fn flush_if_full(&mut self) -> Result<(), Stop> {
        if self.frames.len() < READ_BYTES {
            Ok(())
        } else {
            self.flush()
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let frames = std::mem::replace(&mut self.frames, Vec::with_capacity(2 * READ_BYTES)).into();
        let blob = Blob {
            frames,
            contents: std::mem::take(&mut self.contents),
        };
        self.sender
            .blocking_send(Ok(blob))
            .map_err(|_| Stop::Unwanted)
    }
}

/// Opens the file that was looked at before. One that became a FIFO meanwhile must not block us, one that
/// became a link is only followed when its name was given by a person.
fn open(entry: &Entry, bytes: u64) -> Result<File, UploadError> {
    let path = &entry.source;
    let failed = |error| UploadError::Read {
        action: "open",
        path: path.clone(),
        source: error,
    };
    let mut flags = OFlag::O_NONBLOCK;
    if !entry.follow {
        flags |= OFlag::O_NOFOLLOW;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(UploadError::NotAFile { path: path.clone() });
    }
    if meta.len() != bytes {
        return Err(changed(path, bytes, meta.len()));
    }
    Ok(file)
}

fn changed(path: &Path, expected: u64, found: u64) -> UploadError {
    UploadError::Changed {
        path: path.into(),
        expected,
        found,
    }
}

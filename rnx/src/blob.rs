//! Frames of a tree, joined by a thread of its own: an entry's control frame, then its contents as `File` frames.
//!
//! Small files share a buffer, so a tree of thousands of them is neither thousands of packets nor thousands
//! of hand-overs. A blocking thread reads because a slow disk must not stop the connection's own packets; it is
//! never more than a few blobs ahead of the network.

use std::{io, io::Read, path::PathBuf};

use bytes::Bytes;
use proto_rkyv::{HEADER_BYTES, Header, Kind, Upload, encode, header_bytes};
use tokio::{sync::mpsc, task};

use crate::error::RequestError;

/// How much is read at once, and about how large a blob is.
const READ_BYTES: usize = 256 << 10;
/// Blobs that are read ahead of the network.
const BLOBS_AHEAD: usize = 2;

/// Frames that are ready to be sent.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) frames: Bytes,
    pub(crate) tally: Tally,
}

/// What is in a blob.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes of file contents.
    pub(crate) contents: u64,
    /// What was left out: neither file, directory nor link.
    pub(crate) skipped: Vec<PathBuf>,
}

/// Blobs in order; the last one holds [`Upload::End`].
#[derive(Debug)]
pub(crate) struct Blobs(mpsc::Receiver<Result<Blob, RequestError>>);

impl Blobs {
    pub(crate) async fn next(&mut self) -> Option<Result<Blob, RequestError>> {
        self.0.recv().await
    }
}

/// Starts to `read`. Dropping the result stops it at the next blob.
pub(crate) fn spawn(read: impl FnOnce(&mut Joiner) -> Result<(), Stop> + Send + 'static) -> Blobs {
    let (sender, receiver) = mpsc::channel(BLOBS_AHEAD);
    task::spawn_blocking(move || {
        let mut joiner = Joiner {
            sender,
            frames: Vec::with_capacity(2 * READ_BYTES),
            tally: Tally::default(),
        };
        if let Err(Stop::Failed(error)) = read(&mut joiner).and_then(|()| joiner.end()) {
            let _ = joiner.sender.blocking_send(Err(*error));
        }
    });
    Blobs(receiver)
}

/// Why no more is read.
pub(crate) enum Stop {
    /// Nobody listens any more.
    Unwanted,
    Failed(Box<RequestError>),
}

impl<E: Into<RequestError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Puts entries and contents together.
pub(crate) struct Joiner {
    sender: mpsc::Sender<Result<Blob, RequestError>>,
    frames: Vec<u8>,
    tally: Tally,
}

impl Joiner {
    /// The next entry. The contents of a file follow.
    pub(crate) fn entry(&mut self, entry: &Upload) -> Result<(), Stop> {
        self.tally.entries += 1;
        self.control(entry)
    }

    /// Says that something is left out.
    pub(crate) fn skip(&mut self, path: PathBuf) {
        self.tally.skipped.push(path);
    }

    /// `bytes` bytes of `from`, or as many as there are; returns how many. `failed` tells what could not be read.
    pub(crate) fn contents<E: Into<RequestError>>(
        &mut self,
        from: &mut impl Read,
        bytes: u64,
        failed: impl Fn(io::Error) -> E,
    ) -> Result<u64, Stop> {
        let mut left = bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let start = self.frames.len();
            self.frames.resize(start + HEADER_BYTES + want, 0);
            let count = from
                .read(&mut self.frames[start + HEADER_BYTES..])
                .map_err(&failed)?;
            if count == 0 {
                break;
            }
            self.frames.truncate(start + HEADER_BYTES + count);
            let len = u32::try_from(count).expect("at most READ_BYTES");
            self.frames[start..start + HEADER_BYTES]
                .copy_from_slice(&header_bytes(&Header::new(Kind::File, len)));
            self.tally.contents += u64::from(len);
            left -= u64::from(len);
            self.flush_if_full()?;
        }
        Ok(bytes - left)
    }

    fn control(&mut self, upload: &Upload) -> Result<(), Stop> {
        let frame = encode(upload).map_err(RequestError::RequestTooLarge)?;
        self.frames.extend_from_slice(&frame);
        self.flush_if_full()
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.control(&Upload::End)?;
        self.flush()
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
        let tally = std::mem::take(&mut self.tally);
        self.sender
            .blocking_send(Ok(Blob { frames, tally }))
            .map_err(|_| Stop::Unwanted)
    }
}

//! From a spool into the sandbox of a job that runs now.

use std::{io, os::fd::OwnedFd};

use super::{
    super::upload::wire::{self, Extent, Uploader, UploaderError},
    failed, torn,
};
use crate::{
    job::{JobId, Refusal},
    limits,
    rt::File,
    sandbox::init::record::ENTRY_BYTES,
};

/// The open spool of one job. Others may read the same file at the same time.
#[derive(Debug)]
pub(in crate::shard) struct Spooled {
    id: JobId,
    file: File,
    bytes: u64,
}

impl Spooled {
    /// The spool in `file`, which must end as a whole one does: after a loss of power a spool that was not
    /// synced may be shorter than it was, and init would wait for the rest of it.
    pub(super) async fn check(id: JobId, file: File) -> Result<Self, Refusal> {
        let seen = async {
            let bytes = file.size().await?;
            let at = bytes.saturating_sub(ENTRY_BYTES as u64);
            let end = file.read_range(at, ENTRY_BYTES, false).await?;
            Ok::<_, io::Error>((bytes, end == wire::end()))
        };
        match seen.await {
            Ok((bytes, true)) => Ok(Self { id, file, bytes }),
            Ok((_, false)) => Err(torn(id)),
            Err(error) => Err(failed("read", id, &error)),
        }
    }

    /// Copies it into the socket whose other end init's uploader reads, and waits for its answer. Holds one chunk;
    /// waits where the uploader is slower.
    ///
    /// # Errors
    /// As a direct upload: which path and why, with the same hints. `Failed` when the spool cannot be read or the
    /// job's side is gone; init sees the socket closed and ends.
    pub(in crate::shard) async fn feed(&self, socket: OwnedFd) -> Result<(), Refusal> {
        let uploader = Uploader::new(socket).map_err(|error| error.refusal(None))?;
        match copy(self, &uploader).await? {
            Ok(()) => Ok(()),
            Err(error @ UploaderError::Refused(answer)) => {
                let path = self.path_of(answer.index).await;
                Err(error.refusal(path.as_deref()))
            }
            Err(
                error @ (UploaderError::Gone | UploaderError::Silent | UploaderError::Socket(_)),
            ) => Err(error.refusal(None)),
        }
    }

    /// The path of entry `index`, from 0; `None` when there is no such entry or it cannot be read. Goes from
    /// header to header: this is asked for once, after a failure, and costs no memory before.
    async fn path_of(&self, index: u32) -> Option<Vec<u8>> {
        let mut window = Window {
            file: &self.file,
            at: 0,
            bytes: Vec::new(),
        };
        let mut at = 0_u64;
        let mut index_left = index;
        loop {
            let header = window.get(at, ENTRY_BYTES).await?;
            let extent = Extent::decode(header.first_chunk()?)?;
            if index_left == 0 {
                let path_at = at + ENTRY_BYTES as u64;
                return window
                    .get(path_at, extent.path_bytes)
                    .await
                    .map(<[u8]>::to_vec);
            }
            index_left -= 1;
            at = at.checked_add(extent.entry_bytes)?;
        }
    }
}

/// A part of a file that is held to be looked at.
struct Window<'a> {
    file: &'a File,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes from `at`; `None` when there are not so many, or more than a window holds are wanted.
    async fn get(&mut self, at: u64, len: usize) -> Option<&[u8]> {
        let inside = at
            .checked_sub(self.at)
            .and_then(|skip| usize::try_from(skip).ok())
            .filter(|skip| {
                skip.checked_add(len)
                    .is_some_and(|end| end <= self.bytes.len())
            });
        let skip = match inside {
            Some(skip) => skip,
            None => {
                let read = self.file.read_range(at, limits::SPOOL_CHUNK_BYTES, false);
                self.bytes = read.await.ok()?;
                self.at = at;
                0
            }
        };
        self.bytes.get(skip..)?.get(..len)
    }
}

/// The copy and the answer. The outer error is the spool's, the inner one the uploader's.
async fn copy(
    spooled: &Spooled,
    uploader: &Uploader,
) -> Result<Result<(), UploaderError>, Refusal> {
    let mut buffer = Vec::with_capacity(limits::SPOOL_CHUNK_BYTES);
    let mut at = 0;
    while at < spooled.bytes {
        buffer.clear();
        let (read, filled) = spooled.file.read_at(buffer, at).await;
        buffer = filled;
        match read {
            Ok(0) => return Err(torn(spooled.id)),
            Ok(count) => at += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("read", spooled.id, &error)),
        }
        if let Err(error) = uploader.send_all(&buffer).await {
            return Ok(Err(error));
        }
    }
    Ok(uploader.answer().await)
}

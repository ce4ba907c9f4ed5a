//! Files at explicit offsets through the shard's ring: buffers go in by value and come back.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use bytes::Bytes;

use crate::sys::preadv;

/// How a file is opened. Always close-on-exec, never O_APPEND (splice refuses it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenHow {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; made with mode 0600 when it does not exist.
    Create,
    /// For reading and writing; made with mode 0600, and it must not exist.
    CreateNew,
}

/// An open file. It is closed through the ring when dropped.
#[derive(Debug)]
pub struct File(monoio::fs::File);

impl File {
    /// Opens or makes `path`.
    ///
    /// # Errors
    /// As open(2).
    ///
    /// # Cancel
    /// A file that is opened meanwhile stays open: do not drop it half-way.
    pub async fn open(path: &Path, how: OpenHow) -> io::Result<Self> {
        let mut options = monoio::fs::OpenOptions::new();
        options
            .read(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW);
        match how {
            OpenHow::Read => &mut options,
            OpenHow::Create => options.write(true).create(true),
            OpenHow::CreateNew => options.write(true).create_new(true),
        };
        options.open(path).await.map(Self)
    }

    /// Takes over a descriptor that is open already: a file, or anything that read(2) and write(2) know.
    ///
    /// # Errors
    /// None today; monoio reserves the right.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        monoio::fs::File::from_std(std::fs::File::from(fd)).map(Self)
    }

    /// Reads at most the capacity of `buffer`, which must be empty, from `offset`; 0 at the end of the file.
    ///
    /// # Errors
    /// As pread(2).
    pub async fn read_at(&self, buffer: Vec<u8>, offset: u64) -> (io::Result<usize>, Vec<u8>) {
        debug_assert!(
            buffer.is_empty(),
            "reads start at the first byte of the buffer"
        );
        self.0.read_at(buffer, offset).await
    }

    /// Reads one counter out of an eventfd.
    pub(super) async fn read_counter(
        &self,
        buffer: Box<[u8; 8]>,
    ) -> (io::Result<usize>, Box<[u8; 8]>) {
        self.0.read_at(buffer, 0).await
    }

    /// Reads exactly `len` bytes from `offset`, or as many as there are before the end of the file.
    ///
    /// `is_fresh` bytes are taken out of the page cache on the spot, without a trip through the ring.
    ///
    /// # Errors
    /// As pread(2).
    pub async fn read_range(&self, offset: u64, len: usize, is_fresh: bool) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(len);
        if is_fresh
            && preadv::read_cached(&self.0, &mut buffer, len, offset).is_ok_and(|n| n == len)
        {
            return Ok(buffer);
        }
        while buffer.len() < len {
            let have = buffer.len() as u64;
            let (read, rest) = self
                .read_at(Vec::with_capacity(len - buffer.len()), offset + have)
                .await;
            match read {
                Ok(0) => break,
                Ok(_) if buffer.is_empty() => buffer = rest,
                Ok(_) => buffer.extend_from_slice(&rest),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            buffer.truncate(len);
        }
        Ok(buffer)
    }

    /// Writes at most all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As pwrite(2).
    pub async fn write_at(&self, bytes: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.0.write_at(bytes, offset).await
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As pwrite(2); part of it may then be there.
    pub async fn write_all_at(&self, bytes: Bytes, offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset).await.0
    }

    /// Size, bytes.
    ///
    /// # Errors
    /// As fstat(2).
    pub async fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata().await?.len())
    }

    /// Waits until its contents are on the disk.
    ///
    /// # Errors
    /// As fdatasync(2).
    pub async fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().await
    }
}

impl AsRawFd for File {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

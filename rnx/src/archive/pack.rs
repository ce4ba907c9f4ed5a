//! Makes a tar archive of a tree that a server sent.
//!
//! The format is GNU's: a name of any length and any bytes is kept as it is.

use std::io::{self, Write};

use proto_rkyv::Upload;
use tar::{EntryType, Header};
use thiserror::Error;

use super::{components, shown};
use crate::omission::Omission;

const BLOCK_BYTES: usize = 512;
/// Bytes of a name that fit a header.
const NAME_BYTES: usize = 100;
/// Whom files of a volume belong to, as a job with the usual user sees them.
const OWNER: u64 = 1_000;

/// Why an archive could not be made.
#[derive(Debug, Error)]
pub enum PackError {
    /// The server sent a path that is none, or that would lead out of wherever the archive is unpacked.
    #[error("the server sent the path {path:?}, which does not lie in the volume")]
    Path {
        /// What it sent.
        path: String,
    },
    /// The server sent contents without a file, or more or fewer than it announced.
    #[error("the server sent {found} bytes of {path:?}, which has {expected}")]
    Contents {
        /// Which file.
        path: String,
        /// What it announced.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[from] io::Error),
}

/// An archive that is being written. Without [`Pack::finish`] it has no end marker, so that nobody takes it for a
/// whole one.
#[derive(Debug)]
pub struct Pack<W> {
    out: W,
    time: u64,
    path: Vec<u8>,
    bytes: u64,
    written: u64,
}

impl<W: Write> Pack<W> {
    /// An archive to `out`, whose entries are all of `time`, seconds since the epoch.
    pub fn new(out: W, time: u64) -> Self {
        Self {
            out,
            time,
            path: Vec::new(),
            bytes: 0,
            written: 0,
        }
    }

    /// The next entry; a file's contents follow. Gives what the archive does not have as it is there.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn entry(&mut self, entry: &Upload) -> Result<Option<Omission>, PackError> {
        self.complete()?;
        match entry {
            Upload::Remark { path, remark } => return Ok(Some(Omission::remarked(path, *remark))),
            Upload::Dir { path, mode } => {
                let mut name = inside(path)?;
                name.push(b'/');
                self.header(EntryType::Directory, &name, *mode, 0, b"")?;
            }
            Upload::File { path, mode, bytes } => {
                let name = inside(path)?;
                self.header(EntryType::Regular, &name, *mode, *bytes, b"")?;
                (self.path, self.bytes, self.written) = (name, *bytes, 0);
            }
            Upload::Symlink { path, target } => {
                self.header(EntryType::Symlink, &inside(path)?, 0o777, 0, target)?;
            }
            Upload::Fifo { path, mode } => {
                self.header(EntryType::Fifo, &inside(path)?, *mode, 0, b"")?;
            }
            Upload::Link { path, target } => {
                let target = inside(target)?;
                self.header(EntryType::Link, &inside(path)?, 0o644, 0, &target)?;
            }
            Upload::End => {}
        }
        Ok(None)
    }

    /// Contents of the file that came last.
    ///
    /// # Errors
    /// [`PackError::Contents`] when it is more than was announced, [`PackError::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if written > self.bytes {
            return Err(self.wrong(written));
        }
        self.written = written;
        Ok(self.out.write_all(bytes)?)
    }

    /// Says that nothing follows, and gives back where it was written to.
    ///
    /// # Errors
    /// [`PackError::Contents`] when the last file is not complete, [`PackError::Write`].
    pub fn finish(mut self) -> Result<W, PackError> {
        self.complete()?;
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn complete(&mut self) -> Result<(), PackError> {
        if self.written != self.bytes {
            return Err(self.wrong(self.written));
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.written = 0;
        Ok(self.pad(bytes)?)
    }

    fn wrong(&self, found: u64) -> PackError {
        PackError::Contents {
            path: shown(&self.path),
            expected: self.bytes,
            found,
        }
    }

    fn header(
        &mut self,
        kind: EntryType,
        name: &[u8],
        mode: u32,
        bytes: u64,
        target: &[u8],
    ) -> Result<(), PackError> {
        self.long(EntryType::GNULongName, name)?;
        self.long(EntryType::GNULongLink, target)?;
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().expect("it was made as one");
        put(&mut gnu.name, name);
        put(&mut gnu.linkname, target);
        header.set_entry_type(kind);
        header.set_mode(mode & 0o777);
        header.set_size(bytes);
        header.set_uid(OWNER);
        header.set_gid(OWNER);
        header.set_mtime(self.time);
        self.write(header)
    }

    /// A name that the next header has no room for.
    fn long(&mut self, kind: EntryType, name: &[u8]) -> Result<(), PackError> {
        if name.len() <= NAME_BYTES {
            return Ok(());
        }
        let bytes = name.len() as u64 + 1;
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().expect("it was made as one");
        put(&mut gnu.name, b"././@LongLink");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(bytes);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.write(header)?;
        self.out.write_all(name)?;
        self.out.write_all(&[0])?;
        Ok(self.pad(bytes)?)
    }

    fn write(&mut self, mut header: Header) -> Result<(), PackError> {
        header.set_cksum();
        Ok(self.out.write_all(header.as_bytes())?)
    }

    /// Fills the block up in which `bytes` bytes end.
    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let over = usize::try_from(bytes % BLOCK_BYTES as u64).expect("less than a block");
        match over {
            0 => Ok(()),
            _ => self.out.write_all(&[0; BLOCK_BYTES][over..]),
        }
    }
}

/// As much of `name` as there is room for.
fn put(field: &mut [u8], name: &[u8]) {
    let len = name.len().min(field.len());
    field[..len].copy_from_slice(&name[..len]);
}

/// A path that stays below wherever it is unpacked.
fn inside(path: &[u8]) -> Result<Vec<u8>, PackError> {
    components(path)
        .filter(|names| !names.is_empty())
        .map(|names| names.join(&b'/'))
        .ok_or_else(|| PackError::Path { path: shown(path) })
}

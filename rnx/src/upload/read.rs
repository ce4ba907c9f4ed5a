//! Reads a [`Tree`] into frames.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use nix::fcntl::OFlag;
use proto_rkyv::Upload;

use super::{Entry, Tree, UploadError};
use crate::blob::{self, Blobs, Joiner, Stop};

/// Starts reading. Dropping the result stops it at the next blob.
pub(crate) fn read(tree: &Tree) -> Blobs {
    spawn(tree.entries().to_vec())
}

/// The same without directories that were made up: one that is there keeps its mode.
pub(crate) fn read_found(tree: &Tree) -> Blobs {
    let found = tree.entries().iter().filter(|entry| !entry.is_made_up);
    spawn(found.cloned().collect())
}

fn spawn(entries: Vec<Entry>) -> Blobs {
    blob::spawn(move |joiner| entries.iter().try_for_each(|entry| join(joiner, entry)))
}

fn join(joiner: &mut Joiner, entry: &Entry) -> Result<(), Stop> {
    // Opened before it is announced: a file that cannot be opened leaves no half entry.
    let file = if let Upload::File { bytes, .. } = entry.upload {
        Some((open(entry, bytes)?, bytes))
    } else {
        None
    };
    joiner.entry(&entry.upload)?;
    match file {
        Some((file, bytes)) => contents(joiner, file, &entry.source, bytes),
        None => Ok(()),
    }
}

/// Exactly `bytes` bytes of `file`, or the error that it has changed.
fn contents(joiner: &mut Joiner, mut file: File, source: &Path, bytes: u64) -> Result<(), Stop> {
    let failed = |error| UploadError::Read {
        action: "read",
        path: source.into(),
        source: error,
    };
    let found = joiner.contents(&mut file, bytes, failed)?;
    if found < bytes {
        return Err(changed(source, bytes, found).into());
    }
    match file.read(&mut [0]).map_err(failed)? {
        0 => Ok(()),
        _ => Err(changed(source, bytes, bytes + 1).into()),
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

//! Sends a tar archive as a tree, entry by entry as it is read: from a pipe as well as from a file.

use std::{
    collections::HashSet,
    ffi::OsString,
    io::{self, Cursor, Read},
    os::unix::ffi::OsStringExt,
};

use proto_rkyv::Upload;
use tar::{Archive, Entry, EntryType};

use super::{ArchiveError, components, shown};
use crate::blob::{self, Blobs, Joiner, Stop};

/// Bits of a mode that travel: no setuid, setgid or sticky bit.
const MODE_MASK: u32 = 0o777;
/// What may follow the end marker and is read so that whoever writes it is not cut off: padding of tar's records.
const PADDING_BYTES_MAX: u64 = 1 << 20;
/// How compressed data begins, and what undoes it.
const MAGICS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
];

/// Starts reading. Dropping the result stops it at the next blob.
pub(crate) fn unpack(input: impl Read + Send + 'static) -> Blobs {
    blob::spawn(move |joiner| read(input, joiner))
}

fn read(input: impl Read, joiner: &mut Joiner) -> Result<(), Stop> {
    let mut archive = Archive::new(Watched::new(input)?);
    let mut unpacker = Unpacker {
        joiner,
        links: HashSet::new(),
    };
    for entry in archive.entries().map_err(ArchiveError::Read)? {
        unpacker.entry(entry.map_err(ArchiveError::Read)?)?;
    }
    let rest = archive.into_inner();
    if rest.has_ended {
        return Err(ArchiveError::Truncated.into());
    }
    io::copy(&mut rest.take(PADDING_BYTES_MAX), &mut io::sink()).map_err(ArchiveError::Read)?;
    Ok(())
}

/// Knows whether the input has ended: it has not when an archive's end marker was found.
struct Watched<R> {
    inner: io::Chain<Cursor<Vec<u8>>, R>,
    has_ended: bool,
}

impl<R: Read> Watched<R> {
    fn new(mut input: R) -> Result<Self, ArchiveError> {
        let longest = MAGICS.map(|(magic, _)| magic.len() as u64);
        let longest = longest.into_iter().max().unwrap_or(0);
        let mut head = Vec::new();
        let beginning = input.by_ref().take(longest).read_to_end(&mut head);
        beginning.map_err(ArchiveError::Read)?;
        if let Some((_, program)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(ArchiveError::Compressed { program });
        }
        Ok(Self {
            inner: Cursor::new(head).chain(input),
            has_ended: false,
        })
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.has_ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

struct Unpacker<'a> {
    joiner: &'a mut Joiner,
    /// Links that were sent.
    links: HashSet<Vec<u8>>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), Stop> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let written = entry.path_bytes().into_owned();
        let outside = || ArchiveError::Outside {
            path: shown(&written),
        };
        let path = components(&written).ok_or_else(outside)?.join(&b'/');
        // Before POSIX a directory was a file whose name ends like this.
        let is_dir = kind.is_dir() || kind.is_file() && written.ends_with(b"/");
        if path.is_empty() {
            // The root is there already.
            return if is_dir {
                Ok(())
            } else {
                Err(outside().into())
            };
        }
        self.check_way(&path)?;
        let mode = entry.header().mode().map_err(ArchiveError::Read)? & MODE_MASK;
        if is_dir {
            return self.joiner.entry(&Upload::Dir { path, mode });
        }
        let unsupported = |what| ArchiveError::Unsupported {
            path: shown(&written),
            what,
        };
        let target = entry.link_name_bytes().map(|target| target.into_owned());
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "what else an archive may hold is told nobody in advance"
        )]
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                if is_pax_sparse(&mut entry)? {
                    return Err(unsupported("a sparse file in the PAX format").into());
                }
                self.links.remove(&path);
                self.file(path, mode, entry)
            }
            EntryType::Symlink => {
                let target = target.filter(|target| !target.is_empty());
                let target = target.ok_or_else(|| unsupported("a symbolic link to nothing"))?;
                self.joiner.entry(&Upload::Symlink {
                    path: path.clone(),
                    target,
                })?;
                self.links.insert(path);
                Ok(())
            }
            EntryType::Link => {
                let written_target = target.unwrap_or_default();
                let target = components(&written_target).filter(|names| !names.is_empty());
                let target = target.map(|names| names.join(&b'/'));
                let target = target.ok_or_else(|| ArchiveError::HardLink {
                    path: shown(&written),
                    target: shown(&written_target),
                })?;
                self.check_way(&target)?;
                // Another name of a symbolic link is one.
                if self.links.contains(&target) {
                    self.links.insert(path.clone());
                } else {
                    self.links.remove(&path);
                }
                self.joiner.entry(&Upload::Link { path, target })
            }
            EntryType::Fifo => {
                self.links.remove(&path);
                self.joiner.entry(&Upload::Fifo { path, mode })
            }
            EntryType::Char | EntryType::Block => {
                self.joiner.skip(OsString::from_vec(path).into());
                Ok(())
            }
            _ => Err(unsupported("of an unknown kind").into()),
        }
    }

    fn file(
        &mut self,
        path: Vec<u8>,
        mode: u32,
        mut entry: Entry<'_, impl Read>,
    ) -> Result<(), Stop> {
        let bytes = entry.size();
        self.joiner.entry(&Upload::File { path, mode, bytes })?;
        match self
            .joiner
            .contents(&mut entry, bytes, ArchiveError::Read)?
        {
            found if found == bytes => Ok(()),
            _ => Err(ArchiveError::Truncated.into()),
        }
    }

    /// That no link of this archive leads to `path`. Directories that it does not bring are the server's to make: one
    /// that is there already keeps its mode.
    fn check_way(&self, path: &[u8]) -> Result<(), ArchiveError> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (end, _) in slashes {
            let parent = &path[..end];
            if self.links.contains(parent) {
                return Err(ArchiveError::Through {
                    path: shown(path),
                    link: shown(parent),
                });
            }
        }
        Ok(())
    }
}

/// Whether the contents are a map of holes and data, which we would take for the file.
fn is_pax_sparse(entry: &mut Entry<'_, impl Read>) -> Result<bool, ArchiveError> {
    let extensions = entry.pax_extensions().map_err(ArchiveError::Read)?;
    for extension in extensions.into_iter().flatten() {
        let key = extension.map_err(ArchiveError::Read)?;
        if key.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

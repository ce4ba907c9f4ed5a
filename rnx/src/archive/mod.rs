//! Volumes as tar archives: [`Pack`] makes one of a tree that comes in, [`unpack`] sends one as a tree.
//!
//! Neither side of an archive is trusted. What goes into one lies below its root, so that unpacking it somewhere
//! else writes nowhere else; what comes out of one is looked at entry by entry before it is sent, and the server
//! looks again. Names are bytes: a newline in one is as good as any other.
//!
//! Files, directories, symbolic links and FIFOs travel, with their contents, names and permission bits, and hard links
//! stay what they are. Owners and times do not: whatever is in a volume belongs to the user of the job that has it.
//! Sockets and devices are left out, and each is named.

mod pack;
mod unpack;

use std::io;

use thiserror::Error;

pub use pack::{Pack, PackError};
pub(crate) use unpack::unpack;

/// Why an archive cannot be sent.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// It cannot be read, or is no tar archive.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// It stops before its end marker.
    #[error("the archive ends early: it has no end marker")]
    Truncated,
    /// It is compressed.
    #[error("the archive is compressed with {program}")]
    Compressed {
        /// What undoes that.
        program: &'static str,
    },
    /// An entry would not land below the root.
    #[error(
        "entry {path:?} of the archive does not lie in the volume: it is absolute, has `..` or no name"
    )]
    Outside {
        /// As it is written there.
        path: String,
    },
    /// An entry lies below a symbolic link of the same archive.
    #[error("entry {path:?} of the archive leads through the symbolic link {link:?}")]
    Through {
        /// Which entry.
        path: String,
        /// Which link.
        link: String,
    },
    /// A second name of something that does not lie below the root.
    #[error(
        "entry {path:?} of the archive is a hard link to {target:?}, which does not lie in the volume"
    )]
    HardLink {
        /// Which entry.
        path: String,
        /// To what.
        target: String,
    },
    /// An entry that only another program understands.
    #[error("entry {path:?} of the archive is {what}, which is not supported")]
    Unsupported {
        /// Which entry.
        path: String,
        /// What it is.
        what: &'static str,
    },
}

/// The components of a path; `None` when it could leave the directory it is looked up in. `.` is left out.
fn components(path: &[u8]) -> Option<Vec<&[u8]>> {
    if path.starts_with(b"/") || path.contains(&0) {
        return None;
    }
    let names = path.split(|byte| *byte == b'/');
    let names: Vec<_> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
    (!names.contains(&&b".."[..])).then_some(names)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;

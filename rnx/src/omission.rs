//! What is not taken of a tree as it is there, so that nobody takes a copy for more than it is.

use std::{ffi::OsString, fmt, os::unix::ffi::OsStringExt, path::PathBuf};

use proto_rkyv::Remark;

/// Something of a tree that was left out, or came otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Omission {
    /// As it is in the tree.
    pub path: PathBuf,
    /// What it is.
    pub what: Omitted,
}

/// Why something is not taken as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Omitted {
    /// A FIFO: left out.
    Fifo,
    /// A socket: left out.
    Socket,
    /// A device: left out.
    Device,
    /// A file with several names, which comes as a file of its own under each.
    Doubled,
}

impl Omission {
    pub(crate) fn new(path: &[u8], what: Omitted) -> Self {
        Self {
            path: OsString::from_vec(path.to_vec()).into(),
            what,
        }
    }

    /// What a server remarks.
    pub(crate) fn remarked(path: &[u8], remark: Remark) -> Self {
        let what = match remark {
            Remark::Socket => Omitted::Socket,
            Remark::Device => Omitted::Device,
            Remark::Doubled => Omitted::Doubled,
        };
        Self::new(path, what)
    }

    /// Whether nothing of it came.
    #[must_use]
    pub const fn is_left_out(&self) -> bool {
        !matches!(self.what, Omitted::Doubled)
    }
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.what {
            Omitted::Fifo => write!(f, "{path} is left out: it is a FIFO"),
            Omitted::Socket => write!(f, "{path} is left out: it is a socket"),
            Omitted::Device => write!(f, "{path} is left out: it is a device"),
            Omitted::Doubled => write!(
                f,
                "{path} has other names too, and is a file of its own under each: there are too many such files"
            ),
        }
    }
}

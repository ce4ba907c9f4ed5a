//! Files beneath a directory that somebody else may change: nothing outside of it is reached, whatever is in there.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FileStat, Mode, SFlag},
};

use crate::job::{Refusal, RefusalCode, VolumeName};

/// What people call such a directory.
#[derive(Debug, Clone)]
pub(super) enum Root {
    /// A job's `/work`.
    Work,
    /// The root of a volume.
    Volume(VolumeName),
}

impl Root {
    /// A path beneath it.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        let path = String::from_utf8_lossy(path);
        match self {
            Self::Work => format!("/work/{path}"),
            Self::Volume(name) => format!("volume {name}: /{path}"),
        }
    }

    /// What to tell a peer whose `path` met `error`: the same words and code whichever way files go.
    pub(super) fn refusal(&self, path: &[u8], error: &io::Error) -> Refusal {
        let shown = self.shown(path);
        match error.raw_os_error() {
            Some(libc::ENOENT) => {
                let message = match self {
                    Self::Work => format!("{shown} not found"),
                    Self::Volume(name) => {
                        format!("volume {name} has no /{}", String::from_utf8_lossy(path))
                    }
                };
                Refusal::new(RefusalCode::NotFound, message)
            }
            Some(libc::ENOTDIR | libc::ELOOP) => {
                let message = format!("{shown} leads through something that is not a directory");
                Refusal::new(RefusalCode::Conflict, message)
                    .hint("symbolic links in it are not followed")
            }
            Some(libc::EXDEV) => {
                Refusal::new(RefusalCode::Invalid, format!("{shown} leads out of it"))
            }
            Some(libc::EISDIR) => {
                Refusal::new(RefusalCode::Conflict, format!("{shown} is a directory"))
            }
            Some(libc::EEXIST) => {
                let message = format!("{shown} is not a directory");
                Refusal::new(RefusalCode::Conflict, message).hint("a directory cannot replace it")
            }
            Some(_) | None => Refusal::new(RefusalCode::Failed, format!("{shown}: {error}")),
        }
    }
}

/// Opens `path` beneath `at`, close-on-exec. No symbolic link on the way is followed, no mount entered; with
/// O_NOFOLLOW the last component may be a link, which is then opened itself. A file that is made is its owner's alone.
pub(super) fn open_beneath(at: &impl AsFd, path: &OsStr, flags: OFlag) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlag::O_CREAT) {
        Mode::S_IRUSR | Mode::S_IWUSR
    } else {
        Mode::empty()
    };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV
                | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
    Ok(openat2(at, path, how)?)
}

/// What kind of file it is: one of the S_IF values.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_said_in_the_same_words_of_jobs_and_volumes() {
        let volume = Root::Volume(VolumeName::parse("data").unwrap());
        let check = |root: &Root, errno, code, message: &str| {
            let refusal = root.refusal(b"a/b", &io::Error::from_raw_os_error(errno));
            assert_eq!((refusal.code, refusal.message.as_str()), (code, message));
        };
        let way = "leads through something that is not a directory";
        check(
            &Root::Work,
            libc::ENOENT,
            RefusalCode::NotFound,
            "/work/a/b not found",
        );
        check(
            &volume,
            libc::ENOENT,
            RefusalCode::NotFound,
            "volume data has no /a/b",
        );
        for errno in [libc::ENOTDIR, libc::ELOOP] {
            check(
                &Root::Work,
                errno,
                RefusalCode::Conflict,
                &format!("/work/a/b {way}"),
            );
            check(
                &volume,
                errno,
                RefusalCode::Conflict,
                &format!("volume data: /a/b {way}"),
            );
        }
        let message = "volume data: /a/b is not a directory";
        check(&volume, libc::EEXIST, RefusalCode::Conflict, message);
    }
}

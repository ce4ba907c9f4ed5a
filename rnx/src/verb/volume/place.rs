//! What `volume cp` is told: a path in a volume on one side, a path of this machine on the other.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::{
    exit::{Failure, code},
    text,
};

/// A path in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) volume: String,
    /// Relative to the volume's root, without empty parts; empty for the root.
    pub(super) path: Vec<u8>,
    /// It is written with a slash or a dot at its end: a directory is meant.
    pub(super) is_dir: bool,
}

/// Which way a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Direction {
    In { from: PathBuf, to: Remote },
    Out { from: Remote, to: PathBuf },
}

/// Reads the two sides.
pub(super) fn direction(from: &OsStr, to: &OsStr) -> Result<Direction, Failure> {
    match (remote(from)?, remote(to)?) {
        (None, Some(to)) => Ok(Direction::In {
            from: from.into(),
            to,
        }),
        (Some(from), None) => Ok(Direction::Out {
            from,
            to: to.into(),
        }),
        (Some(_), Some(_)) => Err(Failure::usage(
            "both sides are paths in volumes".to_owned(),
        )
        .hint("copy between volumes in a job that has both; begin a local path with ./ when it has a colon")),
        (None, None) => Err(Failure::usage("neither side is a path in a volume".to_owned())
            .hint("write NAME:/path, as in `rnx volume cp model.bin ml-models:/`")),
    }
}

/// `NAME:/path`; `NAME:path` is the same. Anything with a slash before its first colon is a path of this machine.
fn remote(side: &OsStr) -> Result<Option<Remote>, Failure> {
    let bytes = side.as_bytes();
    let Some(colon) = bytes.iter().position(|byte| matches!(byte, b':' | b'/')) else {
        return Ok(None);
    };
    let name = str::from_utf8(&bytes[..colon]).ok();
    let (b':', Some(name)) = (bytes[colon], name.filter(|name| !name.is_empty())) else {
        return Ok(None);
    };
    let path = &bytes[colon + 1..];
    let Some(inside) = text::clean_path(path) else {
        let message = format!("{} leads out of the volume", side.display());
        return Err(Failure::usage(message).hint("leave '..' out"));
    };
    Ok(Some(Remote {
        volume: name.to_owned(),
        is_dir: inside.is_empty() || path.ends_with(b"/") || path.ends_with(b"/."),
        path: inside,
    }))
}

/// What is at a path of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Dir,
    Other,
    Nothing,
}

/// Where something lands in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Landed {
    /// As a file, or a directory with its own mode, of this name.
    As(OsString),
    /// What a directory holds lands in one that is there, and stays as it is.
    In(OsString),
}

/// Where `from` lands: like `cp -r`, in a directory that is there, else under the new name. Of `DIR/.` it is what the
/// directory holds.
pub(super) fn destination(
    from: &Path,
    is_dir: bool,
    to: &Remote,
    found: Found,
) -> Result<Landed, Failure> {
    let written = from.as_os_str().as_bytes();
    let is_contents =
        is_dir && (written == b"." || written.ends_with(b"/.") || from.file_name().is_none());
    let mut path = to.path.clone();
    match found {
        Found::Other if is_dir || to.is_dir => {
            // As the server says it when it finds out.
            let message = format!(
                "volume {}: /{} is not a directory",
                to.volume,
                OsStr::from_bytes(&path).display()
            );
            let failure = Failure {
                code: code::CONFLICT,
                ..Failure::new(message)
            };
            return Err(if is_dir {
                failure.hint("a directory cannot replace it")
            } else {
                failure
            });
        }
        Found::Other => {}
        Found::Nothing if !to.is_dir => {}
        Found::Dir | Found::Nothing => {
            if let Some(name) = from.file_name().filter(|_| !is_contents) {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.as_bytes());
            }
        }
    }
    let path = OsStr::from_bytes(&path).to_owned();
    Ok(if is_contents && found == Found::Dir {
        Landed::In(path)
    } else {
        Landed::As(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(volume: &str, path: &str, is_dir: bool) -> Remote {
        Remote {
            volume: volume.into(),
            path: path.into(),
            is_dir,
        }
    }

    #[test]
    fn a_volume_and_a_path_are_told_from_a_path_of_this_machine() {
        let check = |text: &str, expected: Option<Remote>| {
            assert_eq!(remote(OsStr::new(text)), Ok(expected), "{text}");
        };
        check("data:/a/b", Some(there("data", "a/b", false)));
        check("data:a/b", Some(there("data", "a/b", false)));
        check("data:/", Some(there("data", "", true)));
        check("data:", Some(there("data", "", true)));
        check("data:/.", Some(there("data", "", true)));
        check("data://a/./b/", Some(there("data", "a/b", true)));
        check("data:/a:b", Some(there("data", "a:b", false)));
        check("data:/a\nb", Some(there("data", "a\nb", false)));
        for local in ["a", "./a:b", "/a:b", "a/b:c", ":/a", ""] {
            check(local, None);
        }
        let refused = remote(OsStr::new("data:/a/../../b")).unwrap_err();
        assert_eq!(refused.code, code::USAGE);
        // Not for us to judge: the server says what is wrong with a name.
        check("my.data:/x", Some(there("my.data", "x", false)));
    }

    #[test]
    fn a_copy_goes_one_way() {
        let ask = |from: &str, to: &str| direction(OsStr::new(from), OsStr::new(to));
        assert_eq!(
            ask("a", "data:/"),
            Ok(Direction::In {
                from: "a".into(),
                to: there("data", "", true)
            })
        );
        assert_eq!(
            ask("data:/a", "b"),
            Ok(Direction::Out {
                from: there("data", "a", false),
                to: "b".into()
            })
        );
        for (from, to) in [("a", "b"), ("data:/a", "other:/b"), ("data:/../a", "b")] {
            assert_eq!(ask(from, to).unwrap_err().code, code::USAGE, "{from} {to}");
        }
    }

    #[test]
    fn what_is_copied_lands_in_a_directory_or_under_its_new_name() {
        let check = |from: &str, is_dir, to: &str, is_to_dir, found, expected| {
            let landed = destination(Path::new(from), is_dir, &there("v", to, is_to_dir), found);
            assert_eq!(landed, Ok(expected), "{from} {to} {found:?}");
        };
        let under = |path: &str| Landed::As(path.into());
        let within = |path: &str| Landed::In(path.into());
        // Files.
        check("d/f", false, "", true, Found::Dir, under("f"));
        check("d/f", false, "x", false, Found::Dir, under("x/f"));
        check("d/f", false, "x", false, Found::Nothing, under("x"));
        check("d/f", false, "x", true, Found::Nothing, under("x/f"));
        check("d/f", false, "x", false, Found::Other, under("x"));
        // Directories.
        check("d/e", true, "", true, Found::Dir, under("e"));
        check("d/e/", true, "", true, Found::Dir, under("e"));
        check("d/e", true, "x", false, Found::Dir, under("x/e"));
        check("d/e", true, "x", false, Found::Nothing, under("x"));
        // What they hold.
        check("d/e/.", true, "x", false, Found::Nothing, under("x"));
        check("d/e/.", true, "", true, Found::Dir, within(""));
        check(".", true, "x/y", false, Found::Dir, within("x/y"));
        check("/", true, "x", false, Found::Dir, within("x"));
        check("..", true, "x", true, Found::Nothing, under("x"));
    }

    #[test]
    fn a_directory_does_not_replace_a_file() {
        let refused = destination(Path::new("d"), true, &there("v", "f", false), Found::Other);
        assert_eq!(
            refused.unwrap_err().message.as_deref(),
            Some("volume v: /f is not a directory")
        );
        let refused = destination(Path::new("d"), false, &there("v", "f", true), Found::Other);
        assert!(refused.is_err());
    }
}

//! Reading `/proc/self/mountinfo`.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt, path::PathBuf};

/// One mount, as far as anybody here asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Which directory of its file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Whether this mount is read-only.
    pub read_only: bool,
    /// Type of the file system.
    pub kind: String,
    /// What is mounted, as the mounter named it.
    pub source: OsString,
    /// Options of the file system itself, comma between them: for cgroups of version 1 their controllers.
    pub options: String,
}

/// The mounts this process sees, in the kernel's order: what covers comes after what is covered.
///
/// # Errors
/// What reading the file says.
///
/// # Source
/// proc_pid_mountinfo(5).
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(fs::read("/proc/self/mountinfo")?
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let root = path(words.nth(3)?);
    let point = path(words.next()?);
    let read_only = words
        .next()?
        .split(|byte| *byte == b',')
        .any(|option| option == b"ro");
    // A lone dash ends the optional fields.
    words.find(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let source = path(words.next()?).into_os_string();
    let options = words
        .next()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .unwrap_or_default();
    Some(Mount {
        root,
        point,
        read_only,
        kind,
        source,
        options,
    })
}

/// Undoes the kernel's escapes: backslash and three octal digits.
fn path(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        if *first == b'\\'
            && let Some((digits, beyond)) = after.split_at_checked(3)
            && let Some(byte) = std::str::from_utf8(digits)
                .ok()
                .and_then(|d| u8::from_str_radix(d, 8).ok())
        {
            bytes.push(byte);
            rest = beyond;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields_is_read() {
        let line =
            br"36 35 98:0 /a\040b /mnt/x\134y ro,noatime master:1 shared:7 - ext4 /dev/root rw";
        let expected = Mount {
            root: "/a b".into(),
            point: r"/mnt/x\y".into(),
            read_only: true,
            kind: "ext4".to_owned(),
            source: "/dev/root".into(),
            options: "rw".to_owned(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3 /"), None);
    }

    #[test]
    fn this_process_sees_proc() {
        assert!(read().unwrap().iter().any(|mount| mount.kind == "proc"));
    }
}

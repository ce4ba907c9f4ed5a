//! Trees of files on the wire, in both directions.

use bytes::Bytes;
use proto_rkyv::{Kind, Piece, Upload};

use super::{invalid, too_large};
use crate::{
    job::{ByteString, ExtraEntry, Refusal, Remark, TreeEntry},
    limits,
};

/// Permission bits that are kept: no setuid, setgid or sticky.
const MODE_MASK: u32 = 0o777;

/// What paths are relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A job's `/work`, which has inodes for so many entries as an upload may have.
    Work,
    /// The root of a volume, which has as many as its size allows for.
    Volume,
}

impl Place {
    const fn words(self) -> &'static str {
        match self {
            Self::Work => "/work",
            Self::Volume => "the volume",
        }
    }
}

/// What one piece of an upload asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::front) enum UploadStep {
    /// Make this.
    Entry(TreeEntry),
    /// Make this, which only a volume may have.
    Extra(ExtraEntry),
    /// These bytes go to the last file.
    Data(Bytes),
    /// Nothing yet: a header whose payload follows.
    Header,
    /// All has come.
    End,
}

/// Follows an upload piece by piece and refuses what does not add up.
#[derive(Debug)]
pub(in crate::front) struct Uploads {
    place: Place,
    /// What the client announced and has not sent yet.
    announced_left: u64,
    entries: u64,
    /// What the last file still lacks.
    file_left: u64,
}

impl Uploads {
    /// An upload of files with `announced` bytes together.
    pub(in crate::front) const fn new(announced: u64) -> Self {
        Self::to(Place::Work, announced)
    }

    /// Files for a volume, with `announced` bytes together when that is known.
    pub(in crate::front) const fn into_volume(announced: Option<u64>) -> Self {
        let announced = match announced {
            Some(bytes) => bytes,
            None => u64::MAX,
        };
        Self::to(Place::Volume, announced)
    }

    const fn to(place: Place, announced: u64) -> Self {
        Self {
            place,
            announced_left: announced,
            entries: 0,
            file_left: 0,
        }
    }

    /// What to do with the next piece.
    ///
    /// # Errors
    /// When the piece does not fit to what came before, or its entry is not allowed.
    pub(in crate::front) fn step(&mut self, piece: Piece) -> Result<UploadStep, Refusal> {
        match piece {
            Piece::Control(archive) => {
                let upload = Upload::decode(&archive)
                    .map_err(|error| invalid(format!("upload: {error}")))?;
                if self.file_left > 0 {
                    return Err(invalid(format!(
                        "upload: {} bytes of the last file are missing",
                        self.file_left
                    )));
                }
                let step = step(upload, self.place)?;
                if step != UploadStep::End {
                    self.begin(&step)?;
                }
                Ok(step)
            }
            Piece::Begin(header)
                if header.kind == Kind::File && u64::from(header.len) <= self.file_left =>
            {
                Ok(UploadStep::Header)
            }
            Piece::Begin(header) if header.kind == Kind::File => Err(invalid(format!(
                "upload: {} bytes for a file that lacks {}",
                header.len, self.file_left
            ))),
            Piece::Begin(header) => Err(invalid(format!(
                "upload: unexpected {:?} frame",
                header.kind
            ))),
            Piece::Data { bytes, .. } => {
                // The header was checked, so this cannot go below zero.
                self.file_left = self.file_left.saturating_sub(bytes.len() as u64);
                Ok(UploadStep::Data(bytes))
            }
        }
    }

    fn begin(&mut self, step: &UploadStep) -> Result<(), Refusal> {
        self.entries += 1;
        if self.place == Place::Work && self.entries > limits::UPLOAD_ENTRIES_MAX {
            let message = format!("upload of more than {} files", limits::UPLOAD_ENTRIES_MAX);
            return Err(too_large(message).hint("upload an archive and unpack it in the job"));
        }
        if let UploadStep::Entry(TreeEntry::File { bytes, .. }) = step {
            self.announced_left = self
                .announced_left
                .checked_sub(*bytes)
                .ok_or_else(|| invalid("upload: files are larger than was announced"))?;
            self.file_left = *bytes;
        }
        Ok(())
    }
}

/// What was sent, checked.
fn step(upload: Upload, place: Place) -> Result<UploadStep, Refusal> {
    let entry = match upload {
        Upload::Dir { path, mode } => TreeEntry::Dir {
            path: upload_path(path, place)?,
            mode: mode & MODE_MASK,
        },
        Upload::File { path, mode, bytes } => TreeEntry::File {
            path: upload_path(path, place)?,
            mode: mode & MODE_MASK,
            bytes,
        },
        Upload::Symlink { path, target } => {
            let path = upload_path(path, place)?;
            if target.is_empty() {
                return Err(invalid(format!(
                    "upload: symbolic link {} points nowhere",
                    shown(&path)
                )));
            }
            check_components(&target, "target of a symbolic link")?;
            TreeEntry::Symlink { path, target }
        }
        Upload::Fifo { path, .. } | Upload::Link { path, .. } if place == Place::Work => {
            let message = format!("upload: {} is a FIFO or a hard link", shown(&path));
            return Err(invalid(message).hint("only volumes take those"));
        }
        Upload::Fifo { path, mode } => {
            return Ok(UploadStep::Extra(ExtraEntry::Fifo {
                path: upload_path(path, place)?,
                mode: mode & MODE_MASK,
            }));
        }
        Upload::Link { path, target } => {
            let path = upload_path(path, place)?;
            check_below(place, &target, "target of a hard link")?;
            return Ok(UploadStep::Extra(ExtraEntry::Link { path, target }));
        }
        Upload::Remark { path, .. } => {
            let message = format!("upload: a remark on {} is no entry", shown(&path));
            return Err(invalid(message));
        }
        Upload::End => return Ok(UploadStep::End),
    };
    Ok(UploadStep::Entry(entry))
}

/// An entry as it is sent.
pub(in crate::front) fn entry_message(entry: TreeEntry) -> Upload {
    match entry {
        TreeEntry::Dir { path, mode } => Upload::Dir { path, mode },
        TreeEntry::File { path, mode, bytes } => Upload::File { path, mode, bytes },
        TreeEntry::Symlink { path, target } => Upload::Symlink { path, target },
    }
}

/// An entry of a volume as it is sent.
pub(in crate::front) fn extra_message(extra: ExtraEntry) -> Upload {
    match extra {
        ExtraEntry::Fifo { path, mode } => Upload::Fifo { path, mode },
        ExtraEntry::Link { path, target } => Upload::Link { path, target },
    }
}

/// A remark as it is sent.
pub(in crate::front) fn remark_message(path: ByteString, remark: Remark) -> Upload {
    let remark = match remark {
        Remark::Socket => proto_rkyv::Remark::Socket,
        Remark::Device => proto_rkyv::Remark::Device,
        Remark::Doubled => proto_rkyv::Remark::Doubled,
    };
    Upload::Remark { path, remark }
}

/// A destination below `place`.
fn upload_path(path: ByteString, place: Place) -> Result<ByteString, Refusal> {
    if path.is_empty() {
        return Err(invalid("upload destination is empty"));
    }
    check_below(place, &path, "upload destination")?;
    Ok(path)
}

/// The path of a copy: below `/work`, or empty for all of it.
///
/// # Errors
/// When it leads out or no file can have it.
pub(in crate::front) fn copy_path(path: &[u8]) -> Result<&[u8], Refusal> {
    checked(Place::Work, path)
}

/// The same in a volume.
///
/// # Errors
/// As [`copy_path`].
pub(in crate::front) fn volume_path(path: &[u8]) -> Result<&[u8], Refusal> {
    checked(Place::Volume, path)
}

fn checked(place: Place, path: &[u8]) -> Result<&[u8], Refusal> {
    if !path.is_empty() {
        check_below(place, path, "path")?;
    }
    Ok(path)
}

fn check_below(place: Place, path: &[u8], what: &str) -> Result<(), Refusal> {
    check_components(path, what)?;
    if path.starts_with(b"/") {
        return Err(invalid(format!("{what} {} is absolute", shown(path)))
            .hint(format!("name it relative to {}", place.words())));
    }
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b".." => {
                let message = format!("{what} {} leads out of {}", shown(path), place.words());
                return Err(invalid(message).hint("leave '..' out"));
            }
            b"" | b"." => {
                return Err(invalid(format!("{what} {} has empty parts", shown(path)))
                    .hint("leave '.' and double slashes out"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the kernel would refuse in any path.
pub(super) fn check_components(path: &[u8], what: &str) -> Result<(), Refusal> {
    if path.contains(&0) {
        return Err(invalid(format!("{what} has a NUL byte")));
    }
    if path.len() > limits::PATH_BYTES_MAX {
        return Err(too_large(format!(
            "{what} has {} bytes, at most {} are possible",
            path.len(),
            limits::PATH_BYTES_MAX
        )));
    }
    if let Some(long) = path
        .split(|byte| *byte == b'/')
        .find(|part| part.len() > limits::PATH_COMPONENT_BYTES_MAX)
    {
        let max = limits::PATH_COMPONENT_BYTES_MAX;
        return Err(too_large(format!(
            "{what} has a part of {} bytes, at most {max} are possible",
            long.len()
        )));
    }
    Ok(())
}

fn shown(path: &[u8]) -> String {
    format!(
        "{:?}",
        String::from_utf8_lossy(path)
            .chars()
            .take(256)
            .collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use proto_rkyv::{HEADER_BYTES, Header, encode};

    use super::*;
    use crate::job::RefusalCode;

    fn control(upload: &Upload) -> Piece {
        Piece::Control(encode(upload).unwrap().slice(HEADER_BYTES..))
    }

    fn file(path: &[u8], bytes: u64) -> Upload {
        Upload::File {
            path: path.to_vec(),
            mode: 0o644,
            bytes,
        }
    }

    fn begin(len: u32) -> Piece {
        Piece::Begin(Header::new(Kind::File, len))
    }

    fn data(bytes: &'static [u8]) -> Piece {
        Piece::Data {
            bytes: Bytes::from_static(bytes),
            left: 0,
        }
    }

    #[test]
    fn an_upload_in_order_becomes_entries_and_data() {
        let mut uploads = Uploads::new(5);
        let dir = Upload::Dir {
            path: b"a".to_vec(),
            mode: 0o4755,
        };
        let expected = TreeEntry::Dir {
            path: b"a".to_vec(),
            mode: 0o755,
        };
        assert_eq!(uploads.step(control(&dir)), Ok(UploadStep::Entry(expected)));
        let expected = TreeEntry::File {
            path: b"a/b".to_vec(),
            mode: 0o644,
            bytes: 5,
        };
        assert_eq!(
            uploads.step(control(&file(b"a/b", 5))),
            Ok(UploadStep::Entry(expected))
        );
        assert_eq!(uploads.step(begin(3)), Ok(UploadStep::Header));
        assert_eq!(
            uploads.step(data(b"abc")),
            Ok(UploadStep::Data(Bytes::from_static(b"abc")))
        );
        assert_eq!(uploads.step(begin(2)), Ok(UploadStep::Header));
        assert_eq!(
            uploads.step(data(b"de")),
            Ok(UploadStep::Data(Bytes::from_static(b"de")))
        );
        let link = Upload::Symlink {
            path: b"l".to_vec(),
            target: b"/etc/../x".to_vec(),
        };
        let expected = TreeEntry::Symlink {
            path: b"l".to_vec(),
            target: b"/etc/../x".to_vec(),
        };
        assert_eq!(
            uploads.step(control(&link)),
            Ok(UploadStep::Entry(expected))
        );
        assert_eq!(
            uploads.step(control(&file(b"empty", 0))).map(|_| ()),
            Ok(())
        );
        assert_eq!(uploads.step(control(&Upload::End)), Ok(UploadStep::End));
    }

    #[test]
    fn an_upload_that_does_not_add_up_is_refused() {
        let check = |announced, pieces: &[Piece], expected: &str| {
            let mut uploads = Uploads::new(announced);
            let (last, before) = pieces.split_last().unwrap();
            before
                .iter()
                .for_each(|piece| assert!(uploads.step(piece.clone()).is_ok(), "{piece:?}"));
            assert_eq!(uploads.step(last.clone()).unwrap_err().message, expected);
        };
        check(9, &[begin(1)], "upload: 1 bytes for a file that lacks 0");
        check(
            9,
            &[control(&file(b"a", 2)), begin(3)],
            "upload: 3 bytes for a file that lacks 2",
        );
        check(
            9,
            &[control(&file(b"a", 2)), control(&Upload::End)],
            "upload: 2 bytes of the last file are missing",
        );
        check(
            9,
            &[control(&file(b"a", 10))],
            "upload: files are larger than was announced",
        );
        check(
            9,
            &[control(&file(b"a", u64::MAX))],
            "upload: files are larger than was announced",
        );
        check(
            9,
            &[Piece::Begin(Header::new(Kind::Argv, 1))],
            "upload: unexpected Argv frame",
        );
        check(
            9,
            &[Piece::Control(Bytes::from_static(b"junk"))],
            "upload: malformed control message",
        );
    }

    #[test]
    fn destinations_stay_below_work() {
        let check = |path: &[u8], expected: &str| {
            let refusal = Uploads::new(9).step(control(&file(path, 0))).unwrap_err();
            assert_eq!(refusal.message, expected);
        };
        check(b"", "upload destination is empty");
        check(
            b"/etc/passwd",
            "upload destination \"/etc/passwd\" is absolute",
        );
        check(b"..", "upload destination \"..\" leads out of /work");
        check(
            b"a/../../b",
            "upload destination \"a/../../b\" leads out of /work",
        );
        check(b"a/..", "upload destination \"a/..\" leads out of /work");
        check(b"./a", "upload destination \"./a\" has empty parts");
        check(b"a//b", "upload destination \"a//b\" has empty parts");
        check(b"a/", "upload destination \"a/\" has empty parts");
        check(b"a\0b", "upload destination has a NUL byte");
        for good in [&b"..."[..], b"..a/b..", b"a b\n\xff", &[b'x'; 255]] {
            assert!(
                Uploads::new(9).step(control(&file(good, 0))).is_ok(),
                "{good:?}"
            );
        }
        let code = |path: &[u8]| {
            Uploads::new(9)
                .step(control(&file(path, 0)))
                .map(|_| ())
                .map_err(|r| r.code)
        };
        assert_eq!(code(&[b'x'; 256]), Err(RefusalCode::TooLarge));
        assert_eq!(code(&b"x/".repeat(2_048)[..4_095]), Ok(()));
        assert_eq!(
            code(&b"x/".repeat(2_049)[..4_097]),
            Err(RefusalCode::TooLarge)
        );
        let link = |target: &[u8]| Upload::Symlink {
            path: b"l".to_vec(),
            target: target.to_vec(),
        };
        assert!(Uploads::new(9).step(control(&link(b""))).is_err());
        assert!(Uploads::new(9).step(control(&link(b"a\0"))).is_err());
        assert_eq!(copy_path(b""), Ok(&b""[..]));
        assert_eq!(copy_path(b"out/x"), Ok(&b"out/x"[..]));
        assert!(copy_path(b"/work/x").is_err() && copy_path(b"../x").is_err());
    }

    #[test]
    fn files_for_a_volume_stay_in_it_and_need_not_be_announced() {
        assert_eq!(volume_path(b""), Ok(&b""[..]));
        assert_eq!(volume_path(b"a/b"), Ok(&b"a/b"[..]));
        let refusal = volume_path(b"a/../../b").unwrap_err();
        assert_eq!(
            refusal.message,
            "path \"a/../../b\" leads out of the volume"
        );
        let mut uploads = Uploads::into_volume(None);
        assert!(uploads.step(control(&file(b"huge", 1 << 50))).is_ok());
        for (path, expected) in [
            (
                &b"../x"[..],
                "upload destination \"../x\" leads out of the volume",
            ),
            (b"/x", "upload destination \"/x\" is absolute"),
        ] {
            let mut uploads = Uploads::into_volume(Some(9));
            let refusal = uploads.step(control(&file(path, 0))).unwrap_err();
            assert_eq!(refusal.message, expected);
        }
        let refusal = Uploads::into_volume(Some(9))
            .step(control(&file(b"a", 10)))
            .unwrap_err();
        assert_eq!(
            refusal.message,
            "upload: files are larger than was announced"
        );
    }

    #[test]
    fn fifos_and_hard_links_are_for_volumes_and_stay_in_them() {
        let fifo = |path: &[u8]| Upload::Fifo {
            path: path.to_vec(),
            mode: 0o4640,
        };
        let link = |path: &[u8], target: &[u8]| Upload::Link {
            path: path.to_vec(),
            target: target.to_vec(),
        };
        let volume = |upload| Uploads::into_volume(None).step(control(&upload));
        let expected = ExtraEntry::Fifo {
            path: b"a/f".to_vec(),
            mode: 0o640,
        };
        assert_eq!(volume(fifo(b"a/f")), Ok(UploadStep::Extra(expected)));
        let expected = ExtraEntry::Link {
            path: b"a/l".to_vec(),
            target: b"b".to_vec(),
        };
        assert_eq!(volume(link(b"a/l", b"b")), Ok(UploadStep::Extra(expected)));
        for outside in [&b"/x"[..], b"../x", b"a/../../x", b"", b"a\0"] {
            assert!(volume(fifo(outside)).is_err(), "{outside:?}");
            assert!(volume(link(outside, b"b")).is_err(), "{outside:?}");
            assert!(volume(link(b"b", outside)).is_err(), "{outside:?}");
        }
        let remark = remark_message(b"s".to_vec(), Remark::Socket);
        for upload in [fifo(b"f"), link(b"a", b"b"), remark.clone()] {
            assert!(
                Uploads::new(9).step(control(&upload)).is_err(),
                "{upload:?}"
            );
        }
        assert!(volume(remark).is_err());
    }

    #[test]
    fn a_volume_takes_more_entries_than_an_upload_may_have() {
        let at_the_bound = |mut uploads: Uploads| {
            uploads.entries = limits::UPLOAD_ENTRIES_MAX;
            uploads.step(control(&file(b"a", 0))).map(drop)
        };
        assert_eq!(
            at_the_bound(Uploads::new(9)).unwrap_err().code,
            RefusalCode::TooLarge
        );
        assert_eq!(at_the_bound(Uploads::into_volume(None)), Ok(()));
    }
}

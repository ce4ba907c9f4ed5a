//! What goes through an archive, there and back, and what is refused of hostile ones.

use std::{
    io::{Cursor, Read, Write, empty},
    thread,
};

use proto_rkyv::{Kind, Piece, Reader, Upload};
use tar::{Builder, EntryType, Header};

use super::*;
use crate::error::RequestError;

type Entries = Vec<(Upload, Vec<u8>)>;

/// What a server would be sent of an archive: entries, each with its contents.
fn sent(archive: Vec<u8>) -> Result<Entries, RequestError> {
    sent_of(Cursor::new(archive))
}

/// Why an archive is not sent.
#[track_caller]
fn refused(archive: Vec<u8>) -> ArchiveError {
    match sent(archive) {
        Err(RequestError::Archive(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn sent_of(archive: impl Read + Send + 'static) -> Result<Entries, RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut blobs = unpack(archive);
        let mut reader = Reader::default();
        while let Some(blob) = blobs.next().await {
            reader.feed(blob?.frames);
        }
        let mut entries = Entries::new();
        while let Some(piece) = reader.next().unwrap() {
            match piece {
                Piece::Control(archive) => {
                    entries.push((Upload::decode(&archive).unwrap(), Vec::new()));
                }
                Piece::Begin(header) => assert_eq!(header.kind, Kind::File),
                Piece::Data { bytes, .. } => {
                    entries.last_mut().unwrap().1.extend_from_slice(&bytes);
                }
            }
        }
        assert_eq!(entries.pop().map(|(last, _)| last), Some(Upload::End));
        Ok(entries)
    })
}

fn packed(entries: &[(Upload, Vec<u8>)]) -> Result<Vec<u8>, PackError> {
    let mut pack = Pack::new(Vec::new(), 1_700_000_000);
    for (entry, contents) in entries {
        pack.entry(entry)?;
        pack.data(contents)?;
    }
    pack.finish()
}

fn dir(path: &[u8]) -> (Upload, Vec<u8>) {
    let path = path.to_vec();
    (Upload::Dir { path, mode: 0o750 }, Vec::new())
}

fn file(path: &[u8], contents: &[u8]) -> (Upload, Vec<u8>) {
    let entry = Upload::File {
        path: path.to_vec(),
        mode: 0o640,
        bytes: contents.len() as u64,
    };
    (entry, contents.to_vec())
}

fn link(path: &[u8], target: &[u8]) -> (Upload, Vec<u8>) {
    let (path, target) = (path.to_vec(), target.to_vec());
    (Upload::Symlink { path, target }, Vec::new())
}

/// Another name of `target`.
fn second(path: &[u8], target: &[u8]) -> (Upload, Vec<u8>) {
    let (path, target) = (path.to_vec(), target.to_vec());
    (Upload::Link { path, target }, Vec::new())
}

/// An archive with one entry as somebody else writes it.
fn foreign(kind: EntryType, name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, kind, name, target);
    builder.into_inner().unwrap()
}

fn append(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], target: &[u8]) {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name);
    gnu.linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(0o7755);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, empty()).unwrap();
}

#[test]
fn a_tree_comes_back_as_it_went_in() {
    let long = [b"d/".as_slice(), &[b'x'; 200]].concat();
    let tree = [
        dir(b"d"),
        file(b"d/empty", b""),
        file(b"d/block", &[7; 512]),
        file(b"d/new\nline \xff", b"bytes\0of any kind"),
        file(&long, &[1; 70_000]),
        link(b"d/link", b"../anywhere at all"),
        link(b"d/far", &[b'y'; 300]),
        (
            Upload::Fifo {
                path: b"d/fifo".to_vec(),
                mode: 0o600,
            },
            Vec::new(),
        ),
        second(b"d/block again", b"d/block"),
        second(b"again", &long),
    ];
    let archive = packed(&tree).unwrap();
    assert_eq!(archive.len() % 512, 0);
    assert_eq!(sent(archive).unwrap(), tree);
}

#[test]
fn an_empty_tree_is_an_empty_archive() {
    assert_eq!(sent(packed(&[]).unwrap()).unwrap(), []);
}

#[test]
fn no_path_of_a_server_leads_out_of_an_archive() {
    for path in [
        &b"/etc/passwd"[..],
        b"../x",
        b"a/../../x",
        b"",
        b".",
        b"a\0b",
    ] {
        let refused = packed(&[file(path, b"")]);
        assert!(matches!(refused, Err(PackError::Path { .. })), "{path:?}");
    }
}

#[test]
fn a_server_that_sends_more_or_less_than_it_said_is_found_out() {
    for contents in [&b"ab"[..], b"abcd"] {
        let (entry, _) = file(b"f", b"abc");
        let refused = packed(&[(entry, contents.to_vec())]);
        assert!(
            matches!(refused, Err(PackError::Contents { expected: 3, .. })),
            "{contents:?}"
        );
    }
}

#[test]
fn entries_that_would_land_elsewhere_are_refused() {
    for name in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b".."] {
        let refused = refused(foreign(EntryType::Regular, name, b""));
        assert!(
            matches!(refused, ArchiveError::Outside { .. }),
            "{refused:?}"
        );
    }
}

#[test]
fn nothing_is_written_through_a_link_of_the_same_archive() {
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, EntryType::Symlink, b"out", b"/etc");
    append(&mut builder, EntryType::Regular, b"out/passwd", b"");
    let refused = refused(builder.into_inner().unwrap());
    assert!(
        matches!(refused, ArchiveError::Through { .. }),
        "{refused:?}"
    );
}

#[test]
fn dots_and_special_bits_are_left_out_and_directories_on_the_way_left_alone() {
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, EntryType::Directory, b"./", b"");
    append(&mut builder, EntryType::Regular, b"./a/b/f", b"");
    let found: Vec<_> = sent(builder.into_inner().unwrap())
        .unwrap()
        .into_iter()
        .map(|(entry, _)| entry)
        .collect();
    let f = Upload::File {
        path: b"a/b/f".to_vec(),
        mode: 0o755,
        bytes: 0,
    };
    // One that is there keeps its mode; the server makes one that is not.
    assert_eq!(found, [f]);
}

#[test]
fn devices_are_left_out() {
    assert_eq!(
        sent(foreign(EntryType::Char, b"null", b"")).unwrap(),
        Entries::new()
    );
}

#[test]
fn second_names_are_of_what_lies_in_the_volume() {
    let again = sent(foreign(EntryType::Link, b"./second", b"./a/first")).unwrap();
    assert_eq!(again, [second(b"second", b"a/first")]);
    for target in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"", b"."] {
        let refused = refused(foreign(EntryType::Link, b"second", target));
        assert!(
            matches!(refused, ArchiveError::HardLink { .. }),
            "{refused:?}"
        );
    }
    // Neither through a link, nor through another name of one.
    for target in [&b"out/passwd"[..], b"too/passwd"] {
        let mut builder = Builder::new(Vec::new());
        append(&mut builder, EntryType::Symlink, b"out", b"/etc");
        append(&mut builder, EntryType::Link, b"too", b"out");
        append(&mut builder, EntryType::Link, b"second", target);
        let refused = refused(builder.into_inner().unwrap());
        assert!(
            matches!(refused, ArchiveError::Through { .. }),
            "{refused:?}"
        );
    }
}

#[test]
fn what_an_archive_cannot_have_is_named_and_leaves_no_trace() {
    let mut pack = Pack::new(Vec::new(), 0);
    let path = b"run/so\ncket".to_vec();
    let remark = proto_rkyv::Remark::Socket;
    let omission = pack.entry(&Upload::Remark { path, remark }).unwrap();
    assert!(omission.is_some_and(|omission| omission.is_left_out()));
    assert_eq!(pack.finish().unwrap(), packed(&[]).unwrap());
    for (path, target) in [(&b"../x"[..], &b"a"[..]), (b"a", b"../x"), (b"a", b"/x")] {
        let refused = packed(&[second(path, target)]);
        assert!(matches!(refused, Err(PackError::Path { .. })), "{path:?}");
    }
}

#[test]
fn an_archive_that_ends_early_is_never_whole() {
    let archive = packed(&[file(b"f", &[1; 2_000])]).unwrap();
    // In the header, in the contents, and where the end marker would be.
    for length in [100, 512, 1_500, 512 + 2_048] {
        let refused = sent(archive[..length].to_vec());
        assert!(
            matches!(refused, Err(RequestError::Archive(_))),
            "{length}: {refused:?}"
        );
    }
}

#[test]
fn what_is_compressed_is_named() {
    let compressed = refused(b"\x1f\x8b\x08\0\0\0\0\0".to_vec());
    assert!(
        matches!(compressed, ArchiveError::Compressed { program: "gzip" }),
        "{compressed:?}"
    );
}

#[test]
fn zeros_in_a_file_are_not_the_end_marker() {
    let archive = packed(&[file(b"f", &[0; 1_024])]).unwrap();
    let cut = refused(archive[..archive.len() - 1_024].to_vec());
    assert!(matches!(cut, ArchiveError::Truncated), "{cut:?}");
    let nothing = refused(Vec::new());
    assert!(matches!(nothing, ArchiveError::Truncated), "{nothing:?}");
}

#[test]
fn whoever_writes_into_a_pipe_is_not_cut_off_in_its_padding() {
    let tree = [file(b"f", b"x")];
    let archive = [packed(&tree).unwrap(), vec![0; 300_000]].concat();
    let (reader, mut writer) = io::pipe().unwrap();
    let writing = thread::spawn(move || writer.write_all(&archive));
    assert_eq!(sent_of(reader).unwrap(), tree);
    writing.join().unwrap().unwrap();
}

#[test]
fn holes_that_only_gnu_tar_understands_are_not_taken_for_contents() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("GNU.sparse.major", &b"1"[..])])
        .unwrap();
    append(&mut builder, EntryType::Regular, b"holes", b"");
    let refused = refused(builder.into_inner().unwrap());
    assert!(
        matches!(refused, ArchiveError::Unsupported { .. }),
        "{refused:?}"
    );
}

#[test]
fn directories_as_they_were_before_posix_and_comments_of_git_are_known() {
    let mut builder = Builder::new(Vec::new());
    append(
        &mut builder,
        EntryType::XGlobalHeader,
        b"pax_global_header",
        b"",
    );
    append(&mut builder, EntryType::Regular, b"old/", b"");
    let mut entries = sent(builder.into_inner().unwrap()).unwrap();
    let old = Upload::Dir {
        path: b"old".to_vec(),
        mode: 0o755,
    };
    assert_eq!(entries.pop(), Some((old, Vec::new())));
    assert!(entries.is_empty());
}

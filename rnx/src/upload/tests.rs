//! What becomes of files, directories and links that are uploaded.

use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;

use super::*;

fn shown(tree: &Tree) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    tree.uploads()
        .map(|upload| match upload {
            Upload::Dir { path, mode } => format!("dir {} {mode:o}", text(path)),
            Upload::File { path, mode, bytes } => format!("file {} {mode:o} {bytes}", text(path)),
            Upload::Symlink { path, target } => format!("link {} -> {}", text(path), text(target)),
            Upload::Fifo { .. } | Upload::Link { .. } | Upload::Remark { .. } | Upload::End => {
                format!("{upload:?}")
            }
        })
        .collect()
}

fn put(path: &Path, bytes: usize, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path)
        .unwrap()
        .set_len(bytes as u64)
        .unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn sample() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("src/a.sh"), 3, 0o4755);
    put(&at("src/sub/b"), 5, 0o640);
    fs::set_permissions(at("src/sub"), fs::Permissions::from_mode(0o2750)).unwrap();
    symlink("../../etc/passwd", at("src/link")).unwrap();
    symlink("sub", at("src/dirlink")).unwrap();
    symlink("src", at("tolink")).unwrap();
    symlink("src/a.sh", at("filelink")).unwrap();
    nix::unistd::mkfifo(
        &at("src/fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    dir
}

#[test]
fn a_directory_itself_keeps_its_mode_and_what_leads_to_it_is_made_up() {
    let dir = sample();
    let made_up = |tree: &Tree| -> Vec<_> {
        let entries = tree.entries().iter().map(|entry| entry.is_made_up);
        shown(tree).into_iter().zip(entries).collect()
    };
    let mut tree = Tree::new();
    let sub = dir.path().join("src/sub");
    tree.add_dir(&sub, OsStr::new("x/y")).unwrap();
    let expected = [
        ("dir x 755", true),
        ("dir x/y 750", false),
        ("file x/y/b 640 5", false),
    ];
    assert_eq!(
        made_up(&tree),
        expected.map(|(entry, is)| (entry.to_owned(), is))
    );
    let mut tree = Tree::new();
    tree.add(&sub, Some(OsStr::new("x"))).unwrap();
    let expected = [("dir x 755", true), ("file x/b 640 5", false)];
    assert_eq!(
        made_up(&tree),
        expected.map(|(entry, is)| (entry.to_owned(), is))
    );
    // What was made up first and is then found has the mode that was found.
    let mut tree = Tree::new();
    tree.add(&sub.join("b"), Some(OsStr::new("sub/c"))).unwrap();
    tree.add(&dir.path().join("src"), None).unwrap();
    assert!(made_up(&tree).contains(&("dir sub 750".to_owned(), false)));
    assert!(matches!(
        Tree::new().add_dir(dir.path(), OsStr::new("../x")),
        Err(UploadError::Destination { .. })
    ));
}

#[test]
fn a_directory_uploads_its_contents_and_keeps_links() {
    let dir = sample();
    let expected = [
        "file a.sh 755 3",
        "link dirlink -> sub",
        "link link -> ../../etc/passwd",
        "dir sub 750",
        "file sub/b 640 5",
    ];
    for name in ["src", "src/", "tolink"] {
        let mut tree = Tree::new();
        tree.add(&dir.path().join(name), None).unwrap();
        assert_eq!(shown(&tree), expected, "{name}");
        assert_eq!((tree.bytes(), tree.len(), tree.skipped().len()), (8, 5, 1));
    }
    let mut tree = Tree::new();
    tree.add(&dir.path().join("src"), Some(OsStr::new("x//./y/")))
        .unwrap();
    assert_eq!(
        shown(&tree)[..3],
        ["dir x 755", "dir x/y 755", "file x/y/a.sh 755 3"]
    );
}

#[test]
fn a_file_lands_under_its_name_or_the_one_given() {
    let dir = sample();
    let check = |name: &str, destination: Option<&str>, expected: &[&str]| {
        let mut tree = Tree::new();
        tree.add(&dir.path().join(name), destination.map(OsStr::new))
            .unwrap();
        assert_eq!(shown(&tree), expected, "{name} {destination:?}");
    };
    check("src/a.sh", None, &["file a.sh 755 3"]);
    check("filelink", None, &["file filelink 755 3"]);
    check("src/a.sh", Some("b"), &["file b 755 3"]);
    check("src/a.sh", Some("d/b"), &["dir d 755", "file d/b 755 3"]);
    check("src/a.sh", Some("d/"), &["dir d 755", "file d/a.sh 755 3"]);
    check("src/a.sh", Some(""), &["file a.sh 755 3"]);
    check("src/a.sh", Some("./"), &["file a.sh 755 3"]);
}

#[test]
fn destinations_that_leave_work_are_refused() {
    let dir = sample();
    for destination in ["/etc", "..", "a/../..", "../x", "a/..", "/"] {
        let added = Tree::new().add(&dir.path().join("src/a.sh"), Some(OsStr::new(destination)));
        assert!(
            matches!(added, Err(UploadError::Destination { .. })),
            "{destination}"
        );
    }
}

#[test]
fn what_is_no_file_or_lands_twice_is_an_error() {
    let dir = sample();
    let mut tree = Tree::new();
    assert!(matches!(
        tree.add(&dir.path().join("nothing"), None),
        Err(UploadError::Read { .. })
    ));
    assert!(matches!(
        tree.add(&dir.path().join("src/fifo"), None),
        Err(UploadError::NotAFile { .. })
    ));
    tree.add(&dir.path().join("src/a.sh"), None).unwrap();
    assert!(matches!(
        tree.add(&dir.path().join("src"), None),
        Err(UploadError::Twice { .. })
    ));
    let mut tree = Tree::new();
    tree.add(&dir.path().join("src/sub"), Some(OsStr::new("d")))
        .unwrap();
    tree.add(&dir.path().join("src/a.sh"), Some(OsStr::new("d/")))
        .unwrap();
    assert_eq!(
        shown(&tree),
        ["dir d 755", "file d/b 640 5", "file d/a.sh 755 3"]
    );
    assert!(
        tree.add(&dir.path().join("src/a.sh"), Some(OsStr::new("d")))
            .is_err(),
        "a file where a directory is"
    );
}

#[test]
fn hostile_names_travel_byte_exact() {
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 6] = [b"\xff\xfe", b"a\nb", b"-rf", b"...", b" ", b"\x1b[2J"];
    for name in names {
        put(&dir.path().join(OsStr::from_bytes(name)), 1, 0o600);
    }
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    let path = |upload: &Upload| {
        if let Upload::File { path, .. } = upload {
            path.clone()
        } else {
            Vec::new()
        }
    };
    let mut found: Vec<_> = tree.uploads().map(path).collect();
    let mut expected = names.map(<[u8]>::to_vec).to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

/// Every blob of a tree, joined, or the error it ends with.
fn frames(tree: &Tree) -> Result<Vec<u8>, crate::RequestError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut blobs, mut all) = (read(tree), Vec::new());
        while let Some(blob) = blobs.next().await {
            all.extend_from_slice(&blob?.frames);
        }
        Ok(all)
    })
}

#[test]
fn a_file_that_changed_since_it_was_looked_at_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let changed = |change: &dyn Fn()| {
        put(&path, 10, 0o600);
        let mut tree = Tree::new();
        tree.add(dir.path(), None).unwrap();
        change();
        frames(&tree).unwrap_err().to_string()
    };
    assert!(changed(&|| put(&path, 9, 0o600)).ends_with("it had 10 bytes, now 9"));
    assert!(changed(&|| put(&path, 11, 0o600)).ends_with("it had 10 bytes, now 11"));
    assert!(changed(&|| fs::remove_file(&path).unwrap()).starts_with("open "));
    let swapped = || {
        fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
    };
    assert!(
        changed(&swapped).starts_with("open "),
        "a link that took the file's place is not followed"
    );
    fs::remove_file(&path).unwrap();
    let fifo = || {
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    };
    assert!(
        changed(&fifo).contains("neither a file"),
        "a FIFO that took the file's place does not block"
    );
}

fn pattern(index: usize, size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| (at * 7 + index).to_le_bytes()[0])
        .collect()
}

#[test]
fn frames_of_a_tree_hold_every_byte_in_order() {
    use proto_rkyv::{Kind, Piece, Reader};
    let dir = tempfile::tempdir().unwrap();
    let sizes = [0, 1, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 1_000_003];
    for (index, size) in sizes.iter().enumerate() {
        let bytes = pattern(index, *size);
        let mut file = fs::File::create(dir.path().join(format!("f{index}"))).unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
    }
    let mut tree = Tree::new();
    tree.add(dir.path(), None).unwrap();
    let mut reader = Reader::default();
    reader.feed(frames(&tree).unwrap().into());
    let (mut entries, mut contents) = (Vec::new(), Vec::<Vec<u8>>::new());
    while let Some(piece) = reader.next().unwrap() {
        match piece {
            Piece::Control(archive) => {
                entries.push(Upload::decode(&archive).unwrap());
                contents.push(Vec::new());
            }
            Piece::Begin(header) => assert_eq!(header.kind, Kind::File),
            Piece::Data { bytes, .. } => contents.last_mut().unwrap().extend_from_slice(&bytes),
        }
    }
    assert!(reader.is_between_frames());
    assert_eq!(entries.pop(), Some(Upload::End));
    assert_eq!(entries, tree.uploads().cloned().collect::<Vec<_>>());
    for (index, size) in sizes.iter().enumerate() {
        let expected = pattern(index, *size);
        assert!(contents[index] == expected, "contents of f{index}");
    }
}

proptest! {
    #[test]
    fn a_clean_destination_never_leaves_work(destination in proptest::collection::vec(any::<u8>(), 0..32)) {
        if let Ok(path) = clean(&destination) {
            let safe = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
            prop_assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(safe));
        }
    }
}

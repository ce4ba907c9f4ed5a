//! What is written into a volume lands in it, whatever is there already.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;
use crate::job::{VolumeName, VolumeSize};

fn writer(root: &Path) -> Writer {
    let facts = nix::sys::stat::stat(root).unwrap();
    Writer {
        spec: VolumeSpec {
            name: VolumeName::parse("data").unwrap(),
            size: VolumeSize::parse("1MB").unwrap(),
            kind: VolumeKind::Filesystem,
        },
        root: File::open(root).unwrap().into(),
        owner: (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid)),
        disk: DiskGuard::new(root, 0).unwrap(),
        file: None,
        path: Vec::new(),
    }
}

fn file(path: &str) -> TreeEntry {
    TreeEntry::File {
        path: path.into(),
        mode: 0o640,
        bytes: 0,
    }
}

fn refused(writer: &mut Writer, entry: &TreeEntry) -> RefusalCode {
    let refusal = writer.entry(entry).unwrap_err();
    assert!(refusal.message.starts_with("volume data: /"), "{refusal}");
    refusal.code
}

#[test]
fn entries_are_made_with_what_is_missing_on_the_way() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path());
    writer.entry(&file("pre/a/b/c")).unwrap();
    writer.data(b"te").unwrap();
    writer.data(b"xt").unwrap();
    writer
        .entry(&TreeEntry::Dir {
            path: b"pre/a".into(),
            mode: 0o700,
        })
        .unwrap();
    let target = b"../anywhere".to_vec();
    let path = b"pre/a/link".to_vec();
    writer.entry(&TreeEntry::Symlink { path, target }).unwrap();
    let path = |rest: &str| root.path().join("pre").join(rest);
    let mode = |rest| fs::metadata(path(rest)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(fs::read(path("a/b/c")).unwrap(), b"text");
    assert_eq!(
        (mode("a"), mode("a/b"), mode("a/b/c")),
        (0o700, 0o755, 0o640)
    );
    let link = fs::read_link(path("a/link")).unwrap();
    assert_eq!(link, Path::new("../anywhere"));
}

#[test]
fn what_is_there_is_replaced_but_for_directories() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let mut writer = writer(root.path());
    let path = root.path().join("name");
    fs::copy("/proc/self/stat", &path).unwrap();
    writer.entry(&file("name")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    fs::remove_file(&path).unwrap();
    // A link is replaced and what it names is not touched.
    symlink(outside.path(), &path).unwrap();
    writer.entry(&file("name")).unwrap();
    writer.data(b"inside").unwrap();
    assert_eq!(fs::read(outside.path()).unwrap(), b"");
    assert_eq!(fs::read(&path).unwrap(), b"inside");
    let link = TreeEntry::Symlink {
        path: b"name".into(),
        target: b"x".into(),
    };
    writer.entry(&link).unwrap();
    writer.entry(&link).unwrap();
    fs::create_dir(root.path().join("dir")).unwrap();
    assert_eq!(refused(&mut writer, &file("dir")), RefusalCode::Conflict);
    assert_eq!(refused(&mut writer, &file("")), RefusalCode::Conflict);
}

#[test]
fn nothing_is_written_outside_and_nothing_waits() {
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path());
    symlink(outside.path(), root.path().join("out")).unwrap();
    symlink("loop", root.path().join("loop")).unwrap();
    for path in ["out/evil", "out/deep/evil", "loop/evil"] {
        let code = refused(&mut writer, &file(path));
        assert!(
            matches!(code, RefusalCode::Invalid | RefusalCode::Conflict),
            "{path}: {code:?}"
        );
    }
    for path in ["../evil", "a/../../evil"] {
        refused(&mut writer, &file(path));
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let fifo = root.path().join("fifo");
    for has_reader in [false, true] {
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        // With a reader it could be opened.
        let open = || File::options().read(true).write(true).open(&fifo).unwrap();
        let _reader = has_reader.then(open);
        writer.entry(&file("fifo")).unwrap();
        writer.data(b"x").unwrap();
        assert_eq!(fs::read(&fifo).unwrap(), b"x");
        fs::remove_file(&fifo).unwrap();
    }
}

#[test]
fn what_is_in_the_way_of_an_entry_is_said_as_for_one_that_is_read() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path());
    writer.entry(&file("f")).unwrap();
    symlink("/etc", root.path().join("out")).unwrap();
    let way = "leads through something that is not a directory";
    for path in ["f/x", "out/x", "out/x/y"] {
        let refusal = writer.entry(&file(path)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert_eq!(refusal.message, format!("volume data: /{path} {way}"));
    }
    for path in ["f", "out"] {
        let (path, mode) = (path.into(), 0o755);
        let refusal = writer.entry(&TreeEntry::Dir { path, mode }).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(refusal.message.ends_with("is not a directory"), "{refusal}");
    }
}

#[test]
fn another_name_is_of_what_is_in_the_volume_and_a_name_alone_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::copy("/proc/self/stat", outside.path().join("secret")).unwrap();
    let mut writer = writer(root.path());
    let link = |path: &str, target: &str| ExtraEntry::Link {
        path: path.into(),
        target: target.into(),
    };
    let at = |name: &str| root.path().join(name);
    // Twice: the second time over what the first one made.
    for contents in [b"one", b"two"] {
        writer.entry(&file("a/first")).unwrap();
        writer.data(contents).unwrap();
        writer.extra(&link("b/second", "a/first")).unwrap();
        writer.extra(&link("b/second", "b/second")).unwrap();
        assert_eq!(fs::read(at("b/second")).unwrap(), contents);
        assert_eq!(fs::metadata(at("a/first")).unwrap().nlink(), 2);
    }
    writer.entry(&file("a/first")).unwrap();
    assert_eq!(fs::read(at("b/second")).unwrap(), b"two");
    // A link that leads out is not followed.
    symlink(outside.path(), at("out")).unwrap();
    symlink(outside.path().join("secret"), at("to-secret")).unwrap();
    for (target, code) in [
        ("out/secret", RefusalCode::Conflict),
        ("none", RefusalCode::NotFound),
        ("../x", RefusalCode::Invalid),
    ] {
        let refusal = writer.extra(&link("evil", target)).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(
            refusal.message.ends_with("of which /evil is a hard link"),
            "{refusal}"
        );
        assert!(refusal.hint.unwrap().contains("--hard-dereference"));
        assert!(!at("evil").exists());
    }
    writer.extra(&link("evil", "to-secret")).unwrap();
    assert!(fs::symlink_metadata(at("evil")).unwrap().is_symlink());
    assert!(writer.extra(&link("evil", "a")).is_err());
}

#[test]
fn a_fifo_is_made_in_place_of_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path());
    let path = b"d/fifo".to_vec();
    let fifo = ExtraEntry::Fifo { path, mode: 0o622 };
    writer.entry(&file("d/fifo")).unwrap();
    for _ in 0..2 {
        writer.extra(&fifo).unwrap();
        let facts = fs::metadata(root.path().join("d/fifo")).unwrap();
        assert!(facts.file_type().is_fifo());
        assert_eq!(facts.mode() & 0o7777, 0o622);
    }
    assert!(writer.data(b"x").is_err());
}

#[test]
fn the_hosts_reserve_is_not_touched() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path());
    writer.entry(&file("x")).unwrap();
    writer.disk = DiskGuard::new(root.path(), u64::MAX).unwrap();
    let refusal = writer.data(b"x").unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Busy);
    assert_eq!(fs::read(root.path().join("x")).unwrap(), b"");
    writer.spec.kind = VolumeKind::Memory;
    writer.data(b"x").unwrap();
}

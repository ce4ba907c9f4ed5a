//! Trees that a server sends, honest and hostile.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
};

use proptest::prelude::*;

use super::*;

fn dir(path: &str) -> Upload {
    Upload::Dir {
        path: path.into(),
        mode: 0o755,
    }
}

fn file(path: &str, bytes: u64) -> Upload {
    Upload::File {
        path: path.into(),
        mode: 0o4644,
        bytes,
    }
}

fn link(path: &str, target: &str) -> Upload {
    Upload::Symlink {
        path: path.into(),
        target: target.into(),
    }
}

/// Lands a file of three bytes.
fn land(landing: &mut Landing, path: &str) -> Result<(), LandingError> {
    landing.entry(&file(path, 3))?;
    landing.data(b"abc")
}

#[test]
fn a_file_lands_in_a_directory_or_under_a_new_name() {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    for (local, found) in [(here.path().to_path_buf(), at("b")), (at("new"), at("new"))] {
        let mut landing = Landing::new(b"a/b", "work", &local).unwrap();
        land(&mut landing, "a/b").unwrap();
        landing.finish().unwrap();
        assert_eq!(fs::read(&found).unwrap(), b"abc");
        assert_eq!(fs::metadata(&found).unwrap().mode() & 0o7000, 0);
    }
    assert!(matches!(
        Landing::new(b"a", "work", &at("missing/x")),
        Err(LandingError::Destination { .. })
    ));
}

#[test]
fn a_tree_lands_whole_and_over_what_is_there() {
    let here = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut landing = Landing::new(b"out", "work", here.path()).unwrap();
        landing.entry(&dir("out")).unwrap();
        landing.entry(&dir("out/sub")).unwrap();
        land(&mut landing, "out/sub/f").unwrap();
        land(&mut landing, "out/deep/er/g").unwrap();
        landing.entry(&link("out/l", "/etc/passwd")).unwrap();
        landing.finish().unwrap();
    }
    let at = |name: &str| here.path().join("out").join(name);
    assert_eq!(fs::read(at("sub/f")).unwrap(), b"abc");
    assert_eq!(fs::read(at("deep/er/g")).unwrap(), b"abc");
    assert_eq!(fs::read_link(at("l")).unwrap(), Path::new("/etc/passwd"));
    let mut landing = Landing::new(b"", "work", here.path()).unwrap();
    land(&mut landing, "x").unwrap();
    assert!(
        here.path().join("work/x").exists(),
        "all of /work lands as work"
    );
}

#[test]
fn paths_that_were_not_asked_for_are_refused() {
    let here = tempfile::tempdir().unwrap();
    let mut landing = Landing::new(b"a", "work", here.path()).unwrap();
    for path in [
        "b",
        "",
        "a/../../x",
        "a/..",
        "/a",
        "a//b",
        "a/./b",
        "a/\0",
        "aa",
        "..",
        "a/",
    ] {
        for entry in [dir(path), file(path, 0), link(path, "t")] {
            assert!(
                matches!(landing.entry(&entry), Err(LandingError::Path { .. })),
                "{entry:?}"
            );
        }
    }
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
    for asked in [&b"a/../b"[..], b"/a", b".", b"a//b"] {
        assert!(Landing::new(asked, "work", here.path()).is_err());
    }
}

#[test]
fn no_link_is_followed_out_of_the_landing_place() {
    let here = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    File::create(&victim).unwrap();
    let target = outside.path().to_str().unwrap();
    let mut landing = Landing::new(b"a", "work", here.path()).unwrap();
    landing.entry(&dir("a")).unwrap();
    // Links that the server sends first.
    landing.entry(&link("a/d", target)).unwrap();
    landing
        .entry(&link("a/f", victim.to_str().unwrap()))
        .unwrap();
    assert!(land(&mut landing, "a/d/new").is_err());
    assert!(land(&mut landing, "a/f").is_err());
    assert!(landing.entry(&dir("a/d")).is_err());
    assert!(landing.entry(&dir("a/d/sub")).is_err());
    assert!(landing.entry(&link("a/d/l", "t")).is_err());
    // A link that lies there already, in place of the tree itself.
    symlink(target, here.path().join("b")).unwrap();
    let mut landing = Landing::new(b"b", "work", here.path()).unwrap();
    assert!(landing.entry(&dir("b")).is_err());
    assert!(land(&mut landing, "b/new").is_err());
    let found: Vec<_> = fs::read_dir(outside.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(found, ["victim"]);
    assert_eq!(fs::metadata(&victim).unwrap().len(), 0);
}

#[test]
fn contents_are_exactly_as_long_as_announced() {
    let here = tempfile::tempdir().unwrap();
    let mut landing = Landing::new(b"a", "work", here.path()).unwrap();
    assert!(matches!(
        landing.data(b"x"),
        Err(LandingError::Contents { .. })
    ));
    landing.entry(&file("a", 3)).unwrap();
    assert!(matches!(
        landing.data(b"abcd"),
        Err(LandingError::Contents {
            expected: 3,
            found: 4,
            ..
        })
    ));
    landing.data(b"ab").unwrap();
    assert!(matches!(
        landing.finish(),
        Err(LandingError::Contents {
            expected: 3,
            found: 2,
            ..
        })
    ));
    let mut landing = Landing::new(b"a", "work", here.path()).unwrap();
    landing.entry(&file("a/x", 1)).unwrap_err();
    let mut landing = Landing::new(b"c", "work", here.path()).unwrap();
    landing.entry(&file("c/x", 1)).unwrap();
    assert!(matches!(
        landing.entry(&dir("c/y")),
        Err(LandingError::Contents { .. })
    ));
}

#[test]
fn a_fifo_in_the_way_neither_blocks_nor_is_written() {
    let here = tempfile::tempdir().unwrap();
    unistd::mkfifo(&here.path().join("a"), mode_of(0o600)).unwrap();
    let mut landing = Landing::new(b"a", "work", here.path()).unwrap();
    assert!(matches!(
        landing.entry(&file("a", 0)),
        Err(LandingError::Write { .. })
    ));
}

proptest! {
    #[test]
    fn components_never_leave_their_directory(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), Just(0), any::<u8>()], 0..24)) {
        if let Ok(names) = components(&path, b"") {
            let joined = names.join(&b'/');
            prop_assert_eq!(&joined, &path);
            prop_assert!(names.iter().all(|name| !matches!(&name[..], b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)));
        }
    }
}

#[test]
fn names_of_one_file_stay_names_of_one_file_and_fifos_are_left_out() {
    let here = tempfile::tempdir().unwrap();
    let second = |path: &str, target: &str| Upload::Link {
        path: path.into(),
        target: target.into(),
    };
    for _ in 0..2 {
        let mut landing = Landing::new(b"", "work", here.path()).unwrap();
        land(&mut landing, "a/first").unwrap();
        assert_eq!(landing.entry(&second("b", "a/first")).unwrap(), None);
        assert_eq!(landing.entry(&second("b", "b")).unwrap(), None);
        let fifo = Upload::Fifo {
            path: b"fifo".to_vec(),
            mode: 0o600,
        };
        let omission = landing.entry(&fifo).unwrap();
        assert_eq!(omission, Some(Omission::new(b"fifo", Omitted::Fifo)));
        landing.finish().unwrap();
    }
    let inode = |name: &str| {
        fs::metadata(here.path().join("work").join(name))
            .unwrap()
            .ino()
    };
    assert_eq!(inode("a/first"), inode("b"));
    assert!(!here.path().join("work/fifo").exists());
}

#[test]
fn no_second_name_is_made_of_what_lies_elsewhere() {
    let (here, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::copy("/proc/self/stat", outside.path().join("secret")).unwrap();
    let mut landing = Landing::new(b"", "work", here.path()).unwrap();
    let target = outside.path().to_str().unwrap();
    landing.entry(&link("out", target)).unwrap();
    for target in ["out/secret", "../x", "/etc/passwd", "none", ""] {
        let entry = Upload::Link {
            path: b"second".to_vec(),
            target: target.into(),
        };
        assert!(landing.entry(&entry).is_err(), "{target}");
    }
    assert!(!here.path().join("work/second").exists());
}

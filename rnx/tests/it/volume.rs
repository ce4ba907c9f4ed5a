//! Volumes: the program's words and objects, and files that come and go.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    process::Stdio,
};

use nix::pty::openpty;
use proto_rkyv::{
    Attachment, Kind, Reason, RefusalCode, Remark, Reply, Request, Upload, Volume, VolumeCreate,
    VolumeKind,
};
use serde_json::{Value, json};
use tar::EntryType;
use tokio::sync::mpsc;

use crate::{
    command::Setting,
    server::{Asked, ID, ID_TEXT, data, job, refused, reply},
};

fn mydata() -> Volume {
    Volume {
        name: "mydata".into(),
        size: "1GB".into(),
        size_bytes: 1 << 30,
        kind: VolumeKind::Filesystem,
        created_ns: 1_754_215_200_000_000_000,
        used_bytes: Some(3 << 20),
        jobs: vec![ID],
        damage: None,
    }
}

fn cache() -> Volume {
    Volume {
        name: "cache".into(),
        size: "512MB".into(),
        size_bytes: 512 << 20,
        kind: VolumeKind::Memory,
        created_ns: 1_754_215_500_000_000_000,
        used_bytes: None,
        jobs: Vec::new(),
        damage: Some("its image is gone".into()),
    }
}

/// A server with two volumes, and what it was asked.
fn with_volumes() -> (Setting, mpsc::UnboundedReceiver<Asked>) {
    Setting::told(|asked| answer(&asked.request))
}

fn answer(request: &Request) -> Vec<bytes::Bytes> {
    let entry = |entry: Upload| proto_rkyv::encode(&entry).unwrap();
    match request {
        Request::VolumeCreate(create) if create.name == "mydata" => {
            vec![refused(
                RefusalCode::Conflict,
                "volume mydata already exists",
            )]
        }
        Request::VolumeCreate(create) => vec![reply(&Reply::Volumes(vec![Volume {
            name: create.name.clone(),
            size: create.size.clone(),
            kind: create.kind,
            ..cache()
        }]))],
        // One with more jobs than fit a frame comes in two.
        Request::Volumes => vec![
            reply(&Reply::Volumes(vec![cache(), mydata()])),
            reply(&Reply::Volumes(vec![mydata()])),
        ],
        Request::Volume(name) if name == "mydata" => {
            vec![reply(&Reply::Volumes(vec![mydata()]))]
        }
        Request::VolumeRemove(name) if name == "cache" => vec![reply(&Reply::Finished)],
        Request::VolumeRemove(name) if name == "mydata" => vec![refused(
            RefusalCode::Conflict,
            "Volume is in use by active jobs",
        )],
        Request::VolumeRead(read) if read.path == b"there" => vec![
            entry(Upload::Dir {
                path: b"there".to_vec(),
                mode: 0o755,
            }),
            entry(Upload::End),
        ],
        // With what no archive and no directory takes as it is.
        Request::VolumeRead(read) if read.volume == "special" => vec![
            entry(Upload::File {
                path: b"f".to_vec(),
                mode: 0o644,
                bytes: 3,
            }),
            data(Kind::File, 0, b"abc"),
            entry(Upload::Remark {
                path: b"s\nerror: forged".to_vec(),
                remark: Remark::Socket,
            }),
            entry(Upload::Link {
                path: b"g".to_vec(),
                target: b"f".to_vec(),
            }),
            entry(Upload::Fifo {
                path: b"p".to_vec(),
                mode: 0o600,
            }),
            entry(Upload::End),
        ],
        Request::VolumeRead(read) if read.path.is_empty() => vec![
            entry(Upload::Dir {
                path: b"d".to_vec(),
                mode: 0o755,
            }),
            entry(Upload::File {
                path: b"d/new\nline".to_vec(),
                mode: 0o644,
                bytes: 3,
            }),
            data(Kind::File, 0, b"abc"),
            entry(Upload::End),
        ],
        Request::VolumeWrite(_) => vec![reply(&Reply::Finished)],
        Request::Submit(submit) if submit.volumes.len() > 1 => {
            vec![refused(
                RefusalCode::Invalid,
                "volume mydata is given twice",
            )]
        }
        Request::Submit(_) => vec![reply(&Reply::Accepted {
            id: ID,
            existing: false,
        })],
        Request::Status(_) => {
            let mut with_volumes = job(Reason::Exited, Some(0), None);
            with_volumes.volumes = vec![attachment("mydata", false), attachment("cache", true)];
            vec![reply(&Reply::Status(with_volumes))]
        }
        Request::Volume(name) if name == "forged" => {
            vec![refused(
                RefusalCode::NotFound,
                "volume a\nerror: forged not found",
            )]
        }
        _ => vec![refused(RefusalCode::NotFound, "volume not found")],
    }
}

fn attachment(volume: &str, is_read_only: bool) -> Attachment {
    Attachment {
        volume: volume.into(),
        is_read_only,
    }
}

fn one(told: &mut mpsc::UnboundedReceiver<Asked>) -> Asked {
    told.try_recv().expect("the server was asked")
}

#[test]
fn a_list_is_as_the_guide_prints_it() {
    let (rnx, _told) = with_volumes();
    let (stdout, stderr) = rnx.check(&["volume", "list"], 0);
    let lines: Vec<Vec<&str>> = stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines,
        [
            vec!["NAME", "SIZE", "TYPE", "CREATED"],
            vec!["cache", "512MB", "memory", "2025-08-03", "10:05:00"],
            vec!["mydata", "1GB", "filesystem", "2025-08-03", "10:00:00"],
        ]
    );
    // What is wrong is said where it does not get into anybody's way.
    assert!(stderr.contains("its image is gone"), "{stderr}");
    let (stdout, _) = rnx.check(&["volume", "list", "--wide"], 0);
    let head: Vec<_> = stdout.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "SIZE", "TYPE", "CREATED", "USED", "JOBS"]);
}

#[test]
fn a_list_is_one_object_as_json_with_every_job() {
    let (rnx, _told) = with_volumes();
    let (stdout, _) = rnx.check(&["--json", "volume", "list"], 0);
    let listed: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        listed,
        json!({"volumes": [
            {"name": "cache", "size": "512MB", "size_bytes": 512 << 20, "type": "memory",
             "created": "2025-08-03T10:05:00.000000000Z", "used_bytes": null, "jobs": [],
             "damage": "its image is gone"},
            {"name": "mydata", "size": "1GB", "size_bytes": 1 << 30, "type": "filesystem",
             "created": "2025-08-03T10:00:00.000000000Z", "used_bytes": 3 << 20, "jobs": [ID_TEXT, ID_TEXT],
             "damage": null},
        ]})
    );
}

#[test]
fn name_size_and_type_travel_as_they_were_typed() {
    let (rnx, mut told) = with_volumes();
    rnx.check(&["volume", "create", "new", "--size=1.5gb"], 0);
    let create = |size: &str, kind| {
        Request::VolumeCreate(VolumeCreate {
            name: "new".into(),
            size: size.into(),
            kind,
        })
    };
    let asked = one(&mut told).request;
    assert_eq!(asked, create("1.5gb", VolumeKind::Filesystem));
    let words = [
        "volume", "create", "new", "--size", "-1", "--type", "memory",
    ];
    rnx.check(&words, 0);
    assert_eq!(one(&mut told).request, create("-1", VolumeKind::Memory));
    let (_, stderr) = rnx.check(&["volume", "create", "mydata", "--size=1GB"], 5);
    assert!(stderr.contains("error: volume mydata already exists"));
}

#[test]
fn each_removal_is_tried_and_the_first_failure_decides() {
    let (rnx, _told) = with_volumes();
    let (stdout, stderr) = rnx.check(&["volume", "remove", "mydata", "none", "cache"], 5);
    assert_eq!(stdout, "cache removed\n");
    assert!(stderr.contains("error: Volume is in use by active jobs"));
    let (stdout, _) = rnx.check(&["volume", "remove", "none", "cache", "--json"], 3);
    assert_eq!(stdout, "{\"removed\":[\"cache\"]}\n");
    let (stdout, _) = rnx.check(&["volume", "inspect", "mydata"], 0);
    assert!(stdout.contains("/volumes/mydata") && stdout.contains(ID_TEXT));
    rnx.check(&["volume", "inspect", "none"], 3);
}

#[test]
fn an_export_can_be_imported_again() {
    let (rnx, mut told) = with_volumes();
    let exported = rnx.run(&["volume", "export", "mydata"]);
    assert_eq!(exported.status.code(), Some(0));
    let mut import = rnx.command(&["--json", "volume", "import", "cache"]);
    import.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut import = import.spawn().unwrap();
    let mut stdin = import.stdin.take().unwrap();
    stdin.write_all(&exported.stdout).unwrap();
    drop(stdin);
    let mut said = String::new();
    import
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(0));
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said,
        json!({"name": "cache", "entries": 2, "bytes": 3, "skipped": []})
    );
    one(&mut told);
    let names: Vec<_> = one(&mut told)
        .uploads
        .into_iter()
        .map(|(entry, contents)| match entry {
            Upload::Dir { path, .. } | Upload::File { path, .. } => (path, contents),
            Upload::Symlink { .. }
            | Upload::Fifo { .. }
            | Upload::Link { .. }
            | Upload::Remark { .. }
            | Upload::End => (Vec::new(), contents),
        })
        .collect();
    assert_eq!(
        names,
        [
            (b"d".to_vec(), Vec::new()),
            (b"d/new\nline".to_vec(), b"abc".to_vec()),
            (Vec::new(), Vec::new()),
        ]
    );
}

#[test]
fn what_is_not_taken_is_named_on_a_line_of_its_own_and_counted() {
    let (rnx, _told) = with_volumes();
    let here = tempfile::tempdir().unwrap();
    let out = here.path().join("out");
    let exported = rnx.run(&["volume", "export", "special"]);
    let (_, copied) = rnx.check(&["volume", "cp", "special:/", out.to_str().unwrap()], 0);
    assert_eq!(exported.status.code(), Some(0));
    let exported_said = String::from_utf8_lossy(&exported.stderr);
    for said in [&*exported_said, &copied] {
        assert!(
            !said.lines().any(|line| line.starts_with("error")),
            "{said}"
        );
        assert!(said.contains("is left out: it is a socket"), "{said}");
    }
    assert!(
        exported_said.contains("1 entry was left out"),
        "{exported_said}"
    );
    assert!(copied.contains("p is left out: it is a FIFO"), "{copied}");
    assert!(copied.contains("2 entries were left out"), "{copied}");
    let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode("f"), inode("g"));
    let archive = tar::Archive::new(&exported.stdout[..])
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path_bytes().into_owned(), entry.header().entry_type())
        })
        .collect::<Vec<_>>();
    let expected = [
        ("f", EntryType::Regular),
        ("g", EntryType::Link),
        ("p", EntryType::Fifo),
    ];
    let expected = expected.map(|(name, kind)| (name.as_bytes().to_vec(), kind));
    assert_eq!(archive, expected);
}

#[test]
fn files_are_copied_in_and_out_like_by_cp() {
    let (rnx, mut told) = with_volumes();
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("model.bin");
    fs::File::create(&file)
        .and_then(|mut file| file.write_all(b"weights"))
        .unwrap();
    let file = file.to_str().unwrap();
    rnx.check(&["volume", "cp", file, "mydata:/there"], 0);
    one(&mut told);
    let files: Vec<_> = one(&mut told)
        .uploads
        .into_iter()
        .filter_map(|(entry, contents)| {
            let Upload::File { path, .. } = entry else {
                return None;
            };
            Some((path, contents))
        })
        .collect();
    assert_eq!(files, [(b"there/model.bin".to_vec(), b"weights".to_vec())]);

    let out = here.path().join("out");
    rnx.check(&["volume", "cp", "mydata:/", out.to_str().unwrap()], 0);
    assert_eq!(fs::read(out.join("d/new\nline")).unwrap(), b"abc");

    rnx.check(&["volume", "cp", file, "there"], 2);
    rnx.check(&["volume", "cp", "mydata:/x", "cache:/y"], 2);
    rnx.check(&["volume", "cp", "mydata:/none", "here"], 3);
}

#[test]
fn directories_that_are_there_keep_their_modes_and_copied_ones_their_own() {
    let (rnx, mut told) = with_volumes();
    let here = tempfile::tempdir().unwrap();
    let private = here.path().join("private");
    fs::DirBuilder::new().mode(0o700).create(&private).unwrap();
    let mut key = fs::File::create_new(private.join("key")).unwrap();
    key.write_all(b"k").unwrap();
    let mut sent = |from: &str, to: &str| -> Vec<_> {
        rnx.check(&["volume", "cp", from, to], 0);
        let last = std::iter::from_fn(|| told.try_recv().ok()).last();
        let uploads = last.expect("the server was asked").uploads.into_iter();
        uploads
            .filter_map(|(entry, _)| match entry {
                Upload::Dir { path, mode } => {
                    Some(format!("{} {mode:o}", String::from_utf8_lossy(&path)))
                }
                Upload::File { path, .. } => Some(String::from_utf8_lossy(&path).into_owned()),
                Upload::Symlink { .. }
                | Upload::Fifo { .. }
                | Upload::Link { .. }
                | Upload::Remark { .. }
                | Upload::End => None,
            })
            .collect()
    };
    let at = |rest: &str| format!("{}{rest}", private.display());
    // It is the server that makes what is missing on the way.
    assert_eq!(sent(&at("/key"), "mydata:/there"), ["there/key"]);
    assert_eq!(sent(&at("/key"), "mydata:/a/b/c"), ["a/b/c"]);
    assert_eq!(sent(&at("/."), "mydata:/there"), ["there/key"]);
    let copied = ["there/private 700", "there/private/key"];
    assert_eq!(sent(&at(""), "mydata:/there"), copied);
    assert_eq!(sent(&at("/."), "mydata:/new"), ["new 700", "new/key"]);
}

#[test]
fn no_name_begins_a_line_of_its_own() {
    let (rnx, _told) = with_volumes();
    let here = tempfile::tempdir().unwrap();
    let fifo = here.path().join("p\nerror: forged");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let here = here.path().to_str().unwrap();
    let (_, copied) = rnx.check(&["volume", "cp", here, "mydata:/there"], 0);
    assert!(copied.contains("left out"), "{copied}");
    let (_, refused) = rnx.check(&["volume", "inspect", "forged"], 3);
    assert!(refused.contains("forged"), "{refused}");
    // No archive at all: the first bytes of it are in what is said.
    let mut archive = tempfile::NamedTempFile::new().unwrap();
    let text = "\nerror: forged\n".repeat(64);
    archive.write_all(text.as_bytes()).unwrap();
    let mut import = rnx.command(&["volume", "import", "cache"]);
    let output = import.stdin(archive.reopen().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let imported = String::from_utf8_lossy(&output.stderr).into_owned();
    for said in [copied, refused, imported] {
        let forged = said
            .lines()
            .filter(|line| line.starts_with("error: forged"));
        assert_eq!(forged.count(), 0, "{said}");
    }
}

#[test]
fn a_job_is_given_its_volumes_and_shows_them() {
    let (rnx, mut told) = with_volumes();
    let submitted = |asked: Asked| match asked.request {
        Request::Submit(submit) => submit.volumes,
        other => panic!("{other:?}"),
    };
    let scheduled = ["job", "run", "-d", "--schedule=1h", "--volume=mydata", "ls"];
    for (words, expected) in [
        (
            &["job", "run", "-d", "--volume", "mydata:ro", "ls"][..],
            true,
        ),
        (&["job", "run", "-d", "--volume=mydata:rw", "ls"], false),
        (&scheduled, false),
    ] {
        rnx.check(words, 0);
        assert_eq!(submitted(one(&mut told)), [attachment("mydata", expected)]);
        one(&mut told);
    }
    let twice = ["job", "run", "--volume=mydata", "--volume=mydata:ro", "ls"];
    let (_, stderr) = rnx.check(&twice, 2);
    assert!(stderr.contains("error: volume mydata is given twice"));
    one(&mut told);
    rnx.check(&["job", "run", "--volume=mydata:/mnt", "ls"], 2);
    assert!(told.try_recv().is_err(), "that is not sent");

    let (stdout, _) = rnx.check(&["job", "status", "1f3a"], 0);
    let shown = |volume: &str| {
        let mut lines = stdout.lines();
        let line = lines.find(|line| line.contains(volume));
        line.unwrap_or_else(|| panic!("{volume}\n{stdout}"))
            .to_owned()
    };
    assert!(!shown("mydata").contains("read-only"));
    assert!(shown("cache").contains("read-only"));
    let (stdout, _) = rnx.check(&["job", "status", "1f3a", "--json"], 0);
    let status: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        status["volumes"],
        json!([
            {"name": "mydata", "read_only": false},
            {"name": "cache", "read_only": true},
        ])
    );
}

#[test]
fn an_archive_goes_to_no_terminal_and_comes_from_none() {
    let (rnx, mut told) = with_volumes();
    let terminal = || openpty(None, None).unwrap();
    let check = |words: &[&str], stdin: Stdio, stdout: Stdio, hint: &str| {
        let output = rnx.command(words).stdin(stdin).stdout(stdout).output();
        let output = output.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(hint), "{stderr}");
    };
    let there = terminal();
    check(
        &["volume", "export", "mydata"],
        Stdio::null(),
        there.slave.into(),
        "> mydata.tar",
    );
    let there = terminal();
    check(
        &["volume", "import", "mydata"],
        there.slave.into(),
        Stdio::null(),
        "< mydata.tar",
    );
    check(
        &["volume", "export", "mydata", "--json"],
        Stdio::null(),
        Stdio::null(),
        "--json",
    );
    assert!(told.try_recv().is_err(), "the server is not bothered");
}

#[test]
fn an_archive_that_cannot_be_taken_says_how_one_can() {
    let (rnx, mut told) = with_volumes();
    let check = |input: &[u8], message: &str, hint: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let mut archive = fs::File::create_new(&path).unwrap();
        archive.write_all(input).unwrap();
        let mut import = rnx.command(&["volume", "import", "cache"]);
        import.stdin(fs::File::open(&path).unwrap());
        let output = import.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(message) && stderr.contains(hint),
            "{stderr}"
        );
    };
    check(b"\x1f\x8b\x08", "compressed with gzip", "hint: `gzip -dc");
    check(b"", "ends early", "hint: did the command");
    assert!(told.try_recv().is_err(), "nothing looked complete");
}

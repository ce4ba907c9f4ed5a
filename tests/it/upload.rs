//! Files into and out of `/work`.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use proto_rkyv::{After, Kind, List, Reply, Request, Submit, Upload, encode, join};

use crate::harness::{
    Client, Daemon, Host, Identity, LONG, Running, SHORT, Shared, Stream, Waiting, Wire, block_on,
    daemon_memory, loop_devices, now, patient, wait_until,
};

static DAEMON: Shared = Shared::new();

#[test]
fn a_file_lands_at_its_name_and_a_directorys_contents_in_work() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("data.txt"), "one\n").unwrap();
    fs::create_dir_all(here.path().join("src/deep/er")).unwrap();
    fs::write(here.path().join("src/a"), "a\n").unwrap();
    fs::write(here.path().join("src/deep/er/b"), "b\n").unwrap();
    fs::create_dir(here.path().join("src/empty")).unwrap();
    fs::write(here.path().join("src/zero"), "").unwrap();
    let run = daemon
        .client()
        .args(["job", "run", "--upload"])
        .arg(here.path().join("data.txt"))
        .arg(format!("--upload={}", here.path().join("src").display()))
        .args([
            "--",
            "sh",
            "-c",
            "cat data.txt a deep/er/b; test -d empty; stat -c '%n %u' zero; find . | sort | wc -l",
        ])
        .run();
    run.assert_code(0);
    assert_eq!(run.text(), "one\na\nb\nzero 1000\n8\n");
}

#[test]
fn a_destination_is_relative_to_work() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("x"), "x\n").unwrap();
    let upload = |destination: &str| {
        let flag = format!("--upload={}:{destination}", here.path().join("x").display());
        daemon
            .client()
            .args(["job", "run"])
            .arg(flag)
            .args([
                "--",
                "sh",
                "-c",
                "find . -type f; find . -type f | xargs cat",
            ])
            .run()
    };
    let run = upload("sub/y");
    run.assert_code(0);
    assert_eq!(run.text(), "./sub/y\nx\n");
    for bad in ["../y", "/etc/y", "a/../../y"] {
        let run = upload(bad);
        assert!(matches!(run.code, 2 | 125), "{bad}: {run:?}");
        assert!(run.stderr.contains("error:"), "{bad}: {run:?}");
    }
}

#[test]
fn modes_are_kept_without_setuid_and_links_stay_links() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(
        here.path().join("run.sh"),
        fs::Permissions::from_mode(0o4755),
    )
    .unwrap();
    fs::write(here.path().join("private"), "").unwrap();
    fs::set_permissions(
        here.path().join("private"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    symlink("run.sh", here.path().join("link")).unwrap();
    symlink("/etc/shadow", here.path().join("out")).unwrap();
    let script = "./run.sh; stat -c '%a' run.sh private; readlink link out; ./link";
    let run = daemon
        .client()
        .args(["job", "run", "--upload"])
        .arg(here.path())
        .args(["sh", "-c", script])
        .run();
    run.assert_code(0);
    assert_eq!(run.text(), "ran\n755\n600\nrun.sh\n/etc/shadow\nran\n");
}

#[test]
fn a_missing_file_is_refused_before_a_job_exists() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx([
        "job",
        "run",
        "--upload=/no/such/file",
        "--name",
        "never-made",
        "true",
    ]);
    assert!(matches!(run.code, 2 | 125), "{run:?}");
    assert!(run.stderr.contains("/no/such/file"), "{run:?}");
    assert!(
        !daemon
            .rnx(["job", "list", "--json"])
            .text()
            .contains("never-made")
    );
}

#[test]
fn work_of_so_many_jobs_is_kept_and_the_oldest_goes_first() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| {
        let mut value: serde_json::Value = serde_saphyr::from_str(&config).unwrap();
        value["server"]["shards"] = 1.into();
        value["limits"]["work_keep_jobs"] = 2.into();
        // Every JSON document is a YAML document.
        value.to_string()
    });
    let here = tempfile::tempdir().unwrap();
    let copy = |id: &str| {
        let args = ["job", "cp", &format!("{id}:/work/out")];
        daemon.client().args(args).arg(here.path().join(id)).run()
    };
    let mut ids: Vec<String> = Vec::new();
    for count in 1..=4 {
        let flags = ["--work-size=100M"];
        ids.push(daemon.submit(&flags, &["sh", "-c", "echo x > out"]));
        daemon.ended(ids.last().unwrap());
        wait_until(SHORT, "the last two are kept", || {
            let devices = loop_devices(&daemon.base);
            Waiting::when(devices.len() == count.min(2), || format!("{devices:?}"))
        });
    }
    for id in &ids[..2] {
        copy(id).assert_refused(5, "discarded");
    }
    for id in &ids[2..] {
        copy(id).assert_code(0);
    }
}

#[test]
fn work_can_be_copied_from_as_soon_as_the_job_has_ended_whatever_its_cgroups_still_hold() {
    let Some(daemon) = DAEMON.get(Host::Hybrid) else {
        return;
    };
    let id = daemon.submit(
        &["--work-size=100M"],
        &["sh", "-c", "echo x > out; echo up; exec sleep 600"],
    );
    daemon.wait_output(&id, "up");
    // A process of ours in one of version 1: it is no process of the job, and the cgroup cannot be removed.
    let mut holder = Command::new("sleep");
    holder.arg("600");
    let holder = Running::start(holder);
    let is_v1 = |leaf: &PathBuf| leaf.join("tasks").exists();
    let leaf = daemon.leaves(&id).into_iter().find(is_v1).unwrap();
    fs::write(leaf.join("tasks"), holder.process().pid.to_string()).unwrap();
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    let here = tempfile::tempdir().unwrap();
    let copy = ["job", "cp", &format!("{id}:/work/out")];
    let copied = daemon
        .client()
        .args(copy)
        .arg(here.path().join("out"))
        .run();
    copied.assert_code(0);
    assert!(leaf.exists(), "it is held");
    drop(holder);
    wait_until(SHORT, "it is removed", || {
        Waiting::when(!leaf.exists(), || leaf.display().to_string())
    });
}

#[test]
fn files_can_be_copied_out_again() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &["--work-size=100M"],
        &["sh", "-c", "seq 1 100000 > out.txt; mkdir d; echo x > d/x"],
    );
    daemon.ended(&id);
    let here = tempfile::tempdir().unwrap();
    let target = here.path().join("out.txt");
    let copy = daemon
        .client()
        .args(["job", "cp"])
        .arg(format!("{id}:/work/out.txt"))
        .arg(&target)
        .run();
    copy.assert_code(0);
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(
        fs::read_to_string(&target).unwrap() == expected,
        "contents differ"
    );
    for (from, to, found) in [
        ("/work/d", "tree", "tree/x"),
        ("/work/d/x", "file", "file"),
        ("/work", "all", "all/d/x"),
    ] {
        let copy = daemon
            .client()
            .args(["job", "cp"])
            .arg(format!("{id}:{from}"))
            .arg(here.path().join(to))
            .run();
        copy.assert_code(0);
        let text = fs::read_to_string(here.path().join(found)).unwrap();
        assert_eq!(text, "x\n", "{from}");
    }
    let missing = daemon
        .client()
        .args(["job", "cp"])
        .arg(format!("{id}:/work/none"))
        .arg(&target)
        .run();
    assert_ne!(missing.code, 0, "{missing:?}");
    let outside = daemon
        .client()
        .args(["job", "cp"])
        .arg(format!("{id}:/etc/passwd"))
        .arg(&target)
        .run();
    assert_ne!(outside.code, 0, "{outside:?}");
}

#[test]
fn files_can_be_copied_out_of_a_running_job_even_from_memory() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "mkdir -p a/b; echo x > a/b/c; ln -s /etc/passwd a/l; echo up; sleep 600";
    let id = daemon.submit(&[], &["sh", "-c", script]);
    daemon.wait_output(&id, "up");
    let here = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &Path| {
        daemon
            .client()
            .args(["job", "cp"])
            .arg(format!("{id}:/work/{from}"))
            .arg(to)
            .run()
    };
    copy("a", &here.path().join("a")).assert_code(0);
    assert_eq!(
        fs::read_to_string(here.path().join("a/b/c")).unwrap(),
        "x\n"
    );
    assert_eq!(
        fs::read_link(here.path().join("a/l")).unwrap(),
        Path::new("/etc/passwd")
    );
    let through = copy("a/l/x", &here.path().join("none"));
    assert_ne!(through.code, 0, "{through:?}");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
    let gone = copy("a/b/c", &here.path().join("late"));
    assert_ne!(gone.code, 0, "{gone:?}");
    assert!(gone.stderr.contains("in memory"), "{gone:?}");
}

#[test]
fn hostile_paths_are_refused_and_nothing_is_left_of_the_job() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let file = |path: &[u8]| {
        vec![Upload::File {
            path: path.to_vec(),
            mode: 0o644,
            bytes: 1,
        }]
    };
    let through_link = vec![
        Upload::Symlink {
            path: b"link".to_vec(),
            target: b"/tmp".to_vec(),
        },
        Upload::File {
            path: b"link/joblet-it-escaped".to_vec(),
            mode: 0o644,
            bytes: 1,
        },
    ];
    let over_link = vec![
        Upload::Symlink {
            path: b"link".to_vec(),
            target: b"../etc".to_vec(),
        },
        Upload::Dir {
            path: b"link/d".to_vec(),
            mode: 0o755,
        },
    ];
    let cases = [
        file(b"../x"),
        file(b"/etc/x"),
        file(b"a/../../x"),
        file(b""),
        file(b"."),
        file(b".."),
        file(b"a\0b"),
        file(&[b'x'; 300]),
        file(&b"d/".repeat(3000)),
        through_link,
        over_link,
        vec![Upload::Dir {
            path: b"../d".to_vec(),
            mode: 0o755,
        }],
        vec![Upload::Symlink {
            path: b"../l".to_vec(),
            target: b"x".to_vec(),
        }],
    ];
    block_on(async {
        let wire = admin(&daemon).await;
        for entries in cases {
            let reply = upload(&wire, &entries).await;
            assert!(
                matches!(reply, Some(Reply::Refused(_)) | None),
                "{entries:?}: {reply:?}"
            );
        }
    });
    daemon.job(["true"]).assert_code(0);
    assert!(!Path::new("/tmp/joblet-it-escaped").exists());
    no_job_is_live(&daemon);
}

#[test]
fn a_client_that_vanishes_during_its_upload_leaves_no_job() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    block_on(async {
        for _ in 0..5 {
            let wire = admin(&daemon).await;
            let mut stream = wire.open().await;
            let submit = Submit {
                uploads: Some(1 << 20),
                after: After::Detach,
                ..Submit::default()
            };
            let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
            frames.extend(crate::harness::data(Kind::Argv, &join(&["true"])));
            let entry = Upload::File {
                path: b"half".to_vec(),
                mode: 0o644,
                bytes: 1 << 20,
            };
            frames.extend_from_slice(&encode(&entry).unwrap());
            frames.extend(crate::harness::data(Kind::File, &[7; 1 << 19]));
            stream.send.write_all(&frames).await.unwrap();
            wire.connection.close(0u32.into(), b"gone");
        }
    });
    no_job_is_live(&daemon);
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn who_waits_for_a_job_whose_client_vanishes_is_told() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let name = Some("vanishes".to_owned());
    block_on(async {
        let wire = admin(&daemon).await;
        let submit = Submit {
            name: name.clone(),
            uploads: Some(1),
            after: After::Detach,
            ..Submit::default()
        };
        let mut uploading = wire.submit(submit, &["true"]).await;
        let entry = Upload::Dir {
            path: b"d".to_vec(),
            mode: 0o755,
        };
        let frames = encode(&entry).unwrap();
        uploading.send.write_all(&frames).await.unwrap();
        let watcher = admin(&daemon).await;
        let begin = now();
        let id = loop {
            let list = List {
                state: None,
                limit: None,
                ..List::default()
            };
            if let Some(Reply::Jobs(jobs)) = ask(&watcher, Request::List(list)).await.reply().await
                && let Some(job) = jobs.into_iter().find(|job| job.name == name)
            {
                break job.id;
            }
            assert!(begin.elapsed() < patient(SHORT), "the job is not listed");
        };
        let prefix: String = id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut waiting = ask(&watcher, Request::Wait(prefix)).await;
        wire.connection.close(0u32.into(), b"gone");
        let told = tokio::time::timeout(patient(SHORT), waiting.reply()).await;
        assert!(matches!(told, Ok(Some(Reply::Refused(_)))), "{told:?}");
    });
}

#[test]
fn a_gigabyte_costs_the_daemon_no_memory() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let here = tempfile::tempdir().unwrap();
    let upload = |bytes: u64| {
        File::create(here.path().join("big"))
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let flags = ["job", "run", "--work-size", "2G", "--upload"];
        let command = ["--", "stat", "-c", "%s", "big"];
        let run = daemon
            .client()
            .args(flags)
            .arg(here.path().join("big"))
            .args(command)
            .run();
        run.assert_code(0);
        assert_eq!(run.text(), format!("{bytes}\n"));
    };
    // The first one makes what stays: buffers of a connection, pages of code.
    upload(64 << 20);
    let pid = daemon.process().pid;
    // "5" resets VmHWM, proc(5).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let before = daemon_memory(pid, "VmRSS");
    upload(1 << 30);
    let most = daemon_memory(pid, "VmHWM");
    assert!(
        most <= before + (4 << 20),
        "{before} bytes before, {most} at most during the upload"
    );
}

async fn ask(wire: &Wire, request: Request) -> Stream {
    let mut stream = wire.open().await;
    let frames = encode(&request).unwrap();
    stream.send.write_all(&frames).await.unwrap();
    stream.send.finish().unwrap();
    stream
}

async fn admin(daemon: &Daemon) -> Wire {
    Client::of(&Identity::read(&daemon.config))
        .connect(daemon.address)
        .await
        .unwrap()
}

/// Submits `true` with these entries (a byte of content each file); what the daemon says.
async fn upload(wire: &Wire, entries: &[Upload]) -> Option<Reply> {
    let mut stream = wire.open().await;
    let submit = Submit {
        uploads: Some(1),
        after: After::Wait,
        ..Submit::default()
    };
    let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
    frames.extend(crate::harness::data(Kind::Argv, &join(&["true"])));
    for entry in entries {
        frames.extend_from_slice(&encode(entry).unwrap());
        if matches!(entry, Upload::File { .. }) {
            frames.extend(crate::harness::data(Kind::File, b"x"));
        }
    }
    frames.extend_from_slice(&encode(&Upload::End).unwrap());
    // The daemon may refuse before it has read everything.
    let _ = stream.send.write_all(&frames).await;
    let _ = stream.send.finish();
    match stream.reply().await {
        Some(Reply::Accepted { .. }) => stream.reply().await,
        other => other,
    }
}

#[track_caller]
fn no_job_is_live(daemon: &Daemon) {
    wait_until(LONG, "no job of the daemon is live", || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        let live = |job: &&serde_json::Value| {
            matches!(
                job["status"].as_str(),
                Some("INITIALIZING" | "RUNNING" | "STOPPING" | "QUEUED")
            )
        };
        let count = list.as_array().unwrap().iter().filter(live).count();
        // Others' jobs of this file are live for moments only.
        Waiting::when(count == 0, || list.to_string())
    });
}

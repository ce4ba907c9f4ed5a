//! Volumes: what jobs leave in them, who sees it, how large they are, and who may have them removed.

mod again;
mod crash;
mod database;
mod full;
mod host;
mod list;
mod many;
mod special;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use proto_rkyv::{Attachment, Submit, Upload, encode};
use serde_json::Value;

use crate::harness::{
    Client, Daemon, Host, Identity, LONG, Output, SHORT, Waiting, block_on, loop_devices, now,
    patient, wait_until,
};

#[test]
fn what_a_job_leaves_the_next_one_finds_whoever_was_killed_meanwhile() {
    let Some(daemon) = start() else { return };
    let before = now_text();
    daemon.create("data", "1GB");
    let write = "echo hi > /volumes/data/x && stat -c %u:%g /volumes/data/x && ls -A /volumes/data";
    assert_eq!(daemon.with("data", write).ok(), "1000:1000\nx\n");
    assert_eq!(daemon.with("data", "cat /volumes/data/x").ok(), "hi\n");
    let seen = daemon.base.join("volumes/data/data/x");
    assert_eq!(fs::read_to_string(&seen).unwrap(), "hi\n");
    let list = daemon.volumes();
    assert_eq!(list.len(), 1);
    let volume = &list[0];
    assert_eq!(volume["name"], "data");
    assert_eq!(volume["size"], "1GB");
    assert_eq!(volume["size_bytes"], 1 << 30);
    assert_eq!(volume["type"], "filesystem");
    assert!(
        volume["created"].as_str().unwrap() >= before.as_str(),
        "{volume}"
    );
    for round in 0..2 {
        daemon.kill();
        if round == 1 {
            // As after a reboot: nothing is mounted.
            daemon.joblet(&["down"]).assert_code(0);
            assert!(!seen.exists());
            assert!(loop_devices(&daemon.base).is_empty());
        }
        daemon.serve();
        assert_eq!(daemon.volumes(), list);
        assert_eq!(daemon.with("data", "cat /volumes/data/x").ok(), "hi\n");
    }
    // Whatever its user is called in there, it is the same one on the disk.
    let other = daemon
        .client()
        .args(["job", "run", "--user", "7:8", "--volume", "data", "--"])
        .args([
            "sh",
            "-c",
            "echo more >> /volumes/data/x && stat -c %u:%g /volumes/data/x",
        ])
        .run();
    assert_eq!(other.ok(), "7:8\n");
    assert_eq!(
        daemon.with("data", "cat /volumes/data/x").ok(),
        "hi\nmore\n"
    );
    daemon.remove("data").assert_code(0);
    assert!(daemon.volumes().is_empty());
    assert!(!daemon.base.join("volumes/data").exists());
}

#[test]
fn jobs_with_one_volume_see_each_others_writes_at_once() {
    let Some(daemon) = start() else { return };
    daemon.create("shared", "100MB");
    let wait = "until test -e /volumes/shared/ask; do sleep 0.01; done; \
                echo answer > /volumes/shared/.a && mv /volumes/shared/.a /volumes/shared/answer";
    let first = daemon.submit(&["--volume", "shared"], &["sh", "-c", wait]);
    let ask = "touch /volumes/shared/ask; until test -e /volumes/shared/answer; do sleep 0.01; done; \
               cat /volumes/shared/answer";
    assert_eq!(daemon.with("shared", ask).ok(), "answer\n");
    assert_eq!(daemon.ended(&first)["status"], "COMPLETED");
}

#[test]
fn a_job_sees_its_own_volumes_and_no_others() {
    let Some(daemon) = start() else { return };
    daemon.create("volume-a", "10MB");
    daemon.create("volume-b", "10MB");
    for (own, other) in [("volume-a", "volume-b"), ("volume-b", "volume-a")] {
        let script =
            format!("ls /volumes; test ! -e /volumes/{other} && grep -c /volumes/ /proc/mounts");
        assert_eq!(daemon.with(own, &script).ok(), format!("{own}\n1\n"));
    }
    let both = daemon
        .client()
        .args([
            "job",
            "run",
            "--volume=volume-a",
            "--volume",
            "volume-b:ro",
            "--",
        ])
        .args([
            "sh",
            "-c",
            "ls /volumes; touch /volumes/volume-a/x; touch /volumes/volume-b/x || mkdir /volumes/c",
        ])
        .run();
    assert_eq!(both.text(), "volume-a\nvolume-b\n");
    assert_ne!(both.code, 0);
    assert_eq!(
        both.stderr.matches("Read-only file system").count(),
        2,
        "{both:?}"
    );
    assert_eq!(daemon.job(["ls", "-A", "/volumes"]).ok(), "");
    let twice = daemon
        .client()
        .args([
            "job",
            "run",
            "--volume=volume-a",
            "--volume",
            "volume-a:ro",
            "--",
            "true",
        ])
        .run();
    assert_ne!(twice.code, 0);
    assert!(
        twice.stderr.contains("volume-a is given twice"),
        "{twice:?}"
    );
}

#[test]
fn a_full_volume_is_full_for_its_jobs_alone() {
    let Some(daemon) = start() else { return };
    for kind in ["filesystem", "memory"] {
        daemon
            .rnx(["volume", "create", "small", "--size=8MB", "--type", kind])
            .assert_code(0);
        daemon.create("other", "8MB");
        let fill =
            "dd if=/dev/zero of=/volumes/small/fill bs=64k 2>&1; stat -c %s /volumes/small/fill";
        let filled = daemon.with("small", fill).ok();
        assert!(filled.contains("No space left on device"), "{filled}");
        let bytes: u64 = filled.lines().last().unwrap().parse().unwrap();
        let named: u64 = 8 << 20;
        assert!(
            bytes > named * 85 / 100 && bytes <= named * 11 / 10,
            "{kind}: {bytes}"
        );
        daemon
            .with(
                "other",
                "dd if=/dev/zero of=/volumes/other/x bs=1M count=4 status=none",
            )
            .ok();
        let df = "df -B1 --output=size /volumes/small | tail -1";
        let shown: u64 = daemon.with("small", df).ok().trim().parse().unwrap();
        assert!(shown.abs_diff(named) <= named / 10, "{kind}: {shown}");
        let used = daemon.volume("small")["used_bytes"].as_u64().unwrap();
        assert!(used >= bytes, "{used}");
        for name in ["small", "other"] {
            daemon.remove(name).assert_code(0);
        }
    }
}

#[test]
fn a_volume_that_a_job_names_is_removed_when_that_has_ended_and_not_before() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "10MB");
    let running = daemon.submit(&["--volume", "data"], &["sleep", "600"]);
    let scheduled = daemon.submit(&["--volume", "data", "--schedule", "every 1h"], &["true"]);
    daemon.wait_state(&running, "RUNNING");
    let holders = daemon.volume("data")["jobs"].clone();
    assert_eq!(holders, serde_json::json!([running, scheduled]));
    let refused = |ids: &[&String]| {
        let remove = daemon.remove("data");
        remove.assert_code(5);
        assert!(
            remove.stderr.contains("Volume is in use by active jobs"),
            "{remove:?}"
        );
        for id in [&running, &scheduled] {
            assert_eq!(
                remove.stderr.contains(id.as_str()),
                ids.contains(&id),
                "{remove:?}"
            );
        }
    };
    refused(&[&running, &scheduled]);
    // Whoever is killed meanwhile.
    daemon.kill();
    daemon.serve();
    refused(&[&running, &scheduled]);
    daemon.rnx(["job", "stop", &running]).assert_code(0);
    daemon.ended(&running);
    refused(&[&scheduled]);
    daemon.rnx(["job", "cancel", &scheduled]).assert_code(0);
    daemon.remove("data").assert_code(0);
    let gone = daemon.with("data", "true");
    assert_ne!(gone.code, 0);
    assert!(gone.stderr.contains("volume data not found"), "{gone:?}");
    let gone = daemon.remove("data");
    assert_ne!(gone.code, 0);
    assert!(gone.stderr.contains("volume data not found"), "{gone:?}");
}

#[test]
fn the_moment_a_job_has_ended_its_volume_can_be_removed() {
    let Some(daemon) = start() else { return };
    for round in 0..20 {
        daemon.create("data", "1MB");
        match round % 4 {
            0 => _ = daemon.with("data", "echo x > /volumes/data/x").ok(),
            // It never begins.
            1 => assert_ne!(daemon.with("data", "exec /none").code, 0),
            2 => {
                let id = daemon.submit(&["--volume", "data"], &["sleep", "600"]);
                daemon.rnx(["job", "stop", &id]).assert_code(0);
                daemon.ended(&id);
            }
            _ => {
                let id = daemon.submit(&["--volume", "data"], &["true"]);
                wait_until(SHORT, "it is seen to have ended", || {
                    let state = daemon.state(&id);
                    Waiting::when(state == "COMPLETED", || state)
                });
            }
        }
        daemon.remove("data").assert_code(0);
    }
    // A submit that is refused leaves nothing held.
    daemon.create("data", "1MB");
    let refused = daemon
        .client()
        .args(["job", "run", "--volume=data", "--volume=none", "--", "true"])
        .run();
    assert!(
        refused.stderr.contains("volume none not found"),
        "{refused:?}"
    );
    daemon.remove("data").assert_code(0);
}

#[test]
fn a_job_whose_client_vanishes_before_it_is_accepted_has_no_volume() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "1MB");
    let a_while = std::time::Duration::from_millis(10);
    block_on(async {
        let client = Client::of(&Identity::read(&daemon.config));
        let wire = client.connect(daemon.address).await.unwrap();
        let submit = Submit {
            uploads: Some(1),
            volumes: vec![Attachment {
                volume: "data".into(),
                is_read_only: false,
            }],
            ..Submit::default()
        };
        // It is held while there are uploads to come.
        let mut uploading = wire.submit(submit, &["true"]).await;
        let entry = Upload::Dir {
            path: b"d".to_vec(),
            mode: 0o755,
        };
        uploading
            .send
            .write_all(&encode(&entry).unwrap())
            .await
            .unwrap();
        let begin = now();
        while daemon.volume("data")["jobs"].as_array().unwrap().is_empty() {
            assert!(begin.elapsed() < patient(SHORT), "it never had the volume");
            let told = tokio::time::timeout(a_while, uploading.reply()).await;
            assert!(told.is_err(), "it was answered: {told:?}");
        }
        assert_ne!(daemon.remove("data").code, 0);
        wire.connection.close(0u32.into(), b"gone");
        let begin = now();
        while daemon.remove("data").code != 0 {
            assert!(begin.elapsed() < patient(SHORT), "it keeps the volume");
            // That the connection is closed is still to be sent.
            tokio::time::sleep(a_while).await;
        }
    });
}

#[test]
fn what_is_wrong_with_a_name_or_a_size_is_said_and_nothing_is_made() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "1MB");
    daemon.with("data", "echo kept > /volumes/data/x").ok();
    let refused = |args: &[&str], expected: &str| {
        let create = daemon.client().args(["volume", "create"]).args(args).run();
        assert_ne!(create.code, 0, "{args:?}");
        assert!(create.stderr.contains(expected), "{args:?}: {create:?}");
    };
    refused(&["data", "--size=1GB"], "volume data already exists");
    refused(&["123data", "--size=1GB"], "does not begin with a letter");
    refused(&["my.data", "--size=1GB"], "'.'");
    refused(&["my data", "--size=1GB"], "' '");
    for size in ["0", "1", "-1GB", "9223372036854775808", "1XB", ""] {
        refused(&["bad", &format!("--size={size}")], "");
    }
    refused(&["bad"], "--size");
    refused(&["bad", "--size=1GB", "--type=cloud"], "cloud");
    let huge = ["bad", "--size=8TB", "--type=memory"];
    refused(&huge, "more than this host can hold");
    let list = daemon.volumes();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(daemon.with("data", "cat /volumes/data/x").ok(), "kept\n");
    let entries = fs::read_dir(daemon.base.join("volumes")).unwrap().count();
    assert_eq!(entries, 1);
}

#[test]
fn a_memory_volume_lives_as_long_as_the_host_and_its_name() {
    let Some(daemon) = start() else { return };
    daemon
        .rnx(["volume", "create", "cache", "--size=16MB", "--type=memory"])
        .assert_code(0);
    daemon.with("cache", "echo hi > /volumes/cache/x").ok();
    daemon.kill();
    daemon.serve();
    assert_eq!(daemon.with("cache", "cat /volumes/cache/x").ok(), "hi\n");
    let created = daemon.volume("cache")["created"].clone();
    // As after a reboot.
    daemon.kill();
    daemon.joblet(&["down"]).assert_code(0);
    daemon.serve();
    assert_eq!(daemon.with("cache", "ls -A /volumes/cache").ok(), "");
    assert_eq!(daemon.volume("cache")["created"], created);
    daemon.remove("cache").assert_code(0);
}

#[test]
fn a_program_on_a_volume_gives_nobody_another_user() {
    let Some(daemon) = start() else { return };
    daemon.create("tools", "16MB");
    let program = daemon.base.join("volumes/tools/data/id");
    fs::copy("/usr/bin/id", &program).unwrap();
    chown(&program, Some(0), Some(0)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let script = "/volumes/tools/id -u; /volumes/tools/id -g; \
                  grep '/volumes/tools ' /proc/mounts | cut -d' ' -f4";
    let said = daemon.with("tools", script).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["1000", "1000"], "{said}");
    for option in ["nosuid", "nodev"] {
        assert!(lines[2].split(',').any(|word| word == option), "{said}");
    }
}

#[test]
fn locks_on_a_volume_exclude_across_jobs() {
    const JOBS: usize = 4;
    let Some(daemon) = start() else { return };
    daemon.create("data", "16MB");
    daemon.with("data", "echo 0 > /volumes/data/count").ok();
    let script = "cd /volumes/data; i=0; while [ $i -lt 1000 ]; do i=$((i+1)); \
                  flock 9; read n < count; echo $((n+1)) > count; flock -u 9; done 9> lock";
    let ids: Vec<String> = (0..JOBS)
        .map(|_| daemon.submit(&["--volume", "data"], &["sh", "-c", script]))
        .collect();
    for id in &ids {
        assert_eq!(daemon.ended(id)["status"], "COMPLETED");
    }
    let count = daemon.with("data", "cat /volumes/data/count").ok();
    assert_eq!(count.trim(), (JOBS * 1_000).to_string());
}

#[test]
fn a_damaged_volume_is_named_harms_no_other_and_can_be_removed() {
    let Some(daemon) = start() else { return };
    daemon.create("lost", "16MB");
    daemon.create("whole", "16MB");
    daemon.with("whole", "echo hi > /volumes/whole/x").ok();
    let repeats = daemon.submit(&["--volume", "lost", "--schedule", "every 1s"], &["true"]);
    daemon.kill();
    daemon.joblet(&["down"]).assert_code(0);
    fs::remove_file(daemon.base.join("volumes/lost/disk.img")).unwrap();
    daemon.serve();
    let damage = daemon.volume("lost")["damage"].clone();
    assert!(
        damage.as_str().unwrap_or_default().contains("disk.img"),
        "{damage}"
    );
    assert_eq!(daemon.with("whole", "cat /volumes/whole/x").ok(), "hi\n");
    let run = daemon.with("lost", "true");
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("attach volume lost"), "{run:?}");
    // So does each time of the schedule, and it goes on.
    wait_until(LONG, "its repetition has failed", || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        let is_ours =
            |job: &&Value| job["schedule_id"] == repeats.as_str() && job["status"] == "FAILED";
        let list = list.as_array().unwrap().clone();
        match list.iter().find(is_ours) {
            Some(job) => {
                let outcome = job["outcome"].to_string();
                assert!(outcome.contains("attach volume lost"), "{outcome}");
                Waiting::Done(())
            }
            None => Waiting::Seen(format!("{list:?}")),
        }
    });
    assert_eq!(daemon.state(&repeats), "SCHEDULED");
    daemon.rnx(["schedule", "remove", &repeats]).assert_code(0);
    wait_until(SHORT, "nothing has it any more", || {
        let remove = daemon.remove("lost");
        Waiting::when(remove.code == 0, || format!("{remove:?}"))
    });
    assert_eq!(daemon.volumes().len(), 1);
}

#[test]
fn an_image_that_is_deleted_under_a_running_job_is_that_volumes_damage() {
    let Some(daemon) = start() else { return };
    daemon.create("lost", "16MB");
    daemon.create("whole", "16MB");
    let id = daemon.submit(&["--volume", "lost"], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    fs::remove_file(daemon.base.join("volumes/lost/disk.img")).unwrap();
    let damage = daemon.volume("lost")["damage"].clone();
    assert!(
        damage.as_str().unwrap_or_default().contains("disk.img"),
        "{damage}"
    );
    assert_eq!(daemon.state(&id), "RUNNING");
    assert!(daemon.volume("whole")["damage"].is_null());
    daemon.with("whole", "true").ok();
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
    daemon.remove("lost").assert_code(0);
}

#[test]
fn files_go_in_and_out_and_never_past_the_volumes_root() {
    let Some(daemon) = start() else { return };
    daemon.create("data", "16MB");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "text").unwrap();
    fs::write(tree.join("a/new\nline"), "odd").unwrap();
    daemon
        .client()
        .args(["volume", "cp"])
        .arg(&tree)
        .arg("data:/deep/er")
        .run()
        .assert_code(0);
    let found = daemon
        .with(
            "data",
            "cd /volumes/data; cat deep/er/a/b/file; stat -c %u deep deep/er/a/b/file",
        )
        .ok();
    assert_eq!(found, "text1000\n1000\n");
    // A job's links lead nowhere, whichever way the files go.
    daemon
        .with(
            "data",
            "ln -s /etc /volumes/data/out; ln -s /etc/hostname /volumes/data/name",
        )
        .ok();
    let into = daemon
        .client()
        .args(["volume", "cp"])
        .arg(tree.join("a/b/file"))
        .arg("data:/out/evil")
        .run();
    assert_ne!(into.code, 0, "{into:?}");
    assert!(!PathBuf::from("/etc/evil").exists());
    let from = daemon
        .client()
        .args(["volume", "cp", "data:/out/hostname"])
        .arg(dir.path().join("stolen"))
        .run();
    assert_ne!(from.code, 0, "{from:?}");
    let back = dir.path().join("back");
    daemon
        .client()
        .args(["volume", "cp", "data:/deep/er"])
        .arg(&back)
        .run()
        .assert_code(0);
    assert_eq!(fs::read_to_string(back.join("a/b/file")).unwrap(), "text");
    assert_eq!(fs::read_to_string(back.join("a/new\nline")).unwrap(), "odd");
    // More than fits is refused with a word about that, and what was there stays.
    let large = dir.path().join("large");
    fs::write(&large, vec![7; 32 << 20]).unwrap();
    let refused = daemon
        .client()
        .args(["volume", "cp"])
        .arg(&large)
        .arg("data:/large")
        .run();
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("the volume is full"), "{refused:?}");
    assert_eq!(
        daemon
            .with("data", "cat /volumes/data/deep/er/a/b/file")
            .ok(),
        "text"
    );
}

fn start() -> Option<Daemon> {
    Host::Any.is_here().then(Daemon::start)
}

/// As times are written in JSON.
fn now_text() -> String {
    // To the second, and a little before, for the clock of a listing may be rounded.
    let now = std::time::SystemTime::now() - std::time::Duration::from_secs(2);
    jiff::Timestamp::try_from(now).unwrap().to_string()
}

impl Daemon {
    #[track_caller]
    fn create(&self, name: &str, size: &str) {
        self.rnx(["volume", "create", name, "--size", size])
            .assert_code(0);
    }

    fn remove(&self, name: &str) -> Output {
        self.rnx(["volume", "remove", name])
    }

    /// `sh -c SCRIPT` as an attached job with one volume.
    fn with(&self, volume: &str, script: &str) -> Output {
        self.client()
            .args(["job", "run", "--volume", volume, "--", "sh", "-c", script])
            .run()
    }

    /// All volumes as JSON.
    #[track_caller]
    fn volumes(&self) -> Vec<Value> {
        let list = self.rnx(["volume", "list", "--json"]);
        list.assert_code(0);
        list.json()["volumes"].as_array().unwrap().clone()
    }

    /// One of them.
    #[track_caller]
    fn volume(&self, name: &str) -> Value {
        let inspect = self.rnx(["volume", "inspect", name, "--json"]);
        inspect.assert_code(0);
        inspect.json()
    }
}

impl Output {
    /// Its standard output; it has ended with code 0.
    #[track_caller]
    fn ok(&self) -> String {
        self.assert_code(0);
        self.text()
    }
}

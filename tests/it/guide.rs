//! The user's guide to volumes, block by block: what it prints is what is run here.
//!
//! `blocks` has the text of every block with what came of it; the tests below run them through a shell, with `rnx`
//! in its path and a daemon of their own. A block that takes volumes or files for granted finds them there.

mod blocks;
mod lines;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use blocks::{BLOCKS, Block, Verdict};
use lines::RNX_LINES;

use crate::harness::{Daemon, Host, Output, Running, rnx_binary};

#[test]
fn every_command_of_the_guide_stands_in_one_of_the_blocks() {
    let commands: Vec<String> = BLOCKS
        .iter()
        .flat_map(|block| commands(block.text))
        .collect();
    assert_eq!(commands, RNX_LINES);
    for block in BLOCKS {
        let mut printed = block.changes.iter().map(|(printed, _)| *printed);
        let is_true = match block.verdict {
            Verdict::Literal => printed.next().is_none(),
            Verdict::Fixtures(_) => {
                printed.all(|word| word.starts_with('<') && word.ends_with('>'))
            }
            Verdict::Cannot(_) => printed.next().is_some(),
        };
        assert!(is_true, "{block:?}");
    }
}

/// The command lines of a block that call `rnx`, without comments and line continuations.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter_map(|line| {
            let call = line.split_once("=$(").map_or(&*line, |(_, call)| call);
            let call = call.split_once(" # ").map_or(call, |(call, _)| call);
            call.starts_with("rnx ").then(|| call.to_owned())
        })
        .collect()
}

#[test]
fn isolation_and_sharing() {
    let Some(guide) = Guide::open() else { return };
    let isolated = guide.run(&blocks::ISOLATION);
    assert_eq!(isolated.text_of_jobs(), "data-for-job-a\ndata-for-job-b\n");
    let shared = guide.run(&blocks::SHARING);
    assert_eq!(
        shared.text_of_jobs(),
        "written by job A\nwritten by job A\nmodified by job B\n"
    );
    guide.volumes(&["pipeline-data", "logs", "shared"]);
    guide.file(
        "producer.py",
        "#!/usr/bin/python3\nopen('/volumes/pipeline-data/x', 'w').write('made')\n",
    );
    guide.file(
        "consumer.py",
        "#!/usr/bin/python3\nprint(open('/volumes/pipeline-data/x').read())\n",
    );
    let patterns = guide.run(&blocks::SAFE_PATTERNS);
    assert_eq!(patterns.text(), "made\n", "{patterns:?}");
    guide.job(
        "cat /volumes/shared-data/worker-1/result.txt",
        "shared-data",
        "output\n",
    );
    guide.job(
        "cat /volumes/shared-data/shared-file.txt",
        "shared-data",
        "update\n",
    );
    guide.job(
        "grep -c 'Job started' /volumes/logs/activity.log",
        "logs",
        "1\n",
    );
    let unsafe_ones = format!(
        "echo 1 > /volumes/shared/counter.txt\n{}",
        blocks::UNSAFE_PATTERNS.text
    );
    guide.job(&unsafe_ones, "shared", "");
    guide.job("cat /volumes/shared/counter.txt", "shared", "2\n");
}

#[test]
fn creation_sizes_and_names() {
    let Some(guide) = Guide::open() else { return };
    guide.run(&blocks::TYPES).assert_ok();
    guide.run(&blocks::SIZES).assert_ok();
    guide.run(&blocks::NAMING).assert_ok();
    let names = guide.run(&blocks::NAMES);
    // The last one is no name, and what went before was made.
    names.assert_code(2);
    assert_eq!(
        names.stderr.matches("error: volume name").count(),
        3,
        "{names:?}"
    );
    let mut sizes = 0;
    for volume in guide.list() {
        let (name, bytes) = (
            volume["name"].as_str().unwrap(),
            volume["size_bytes"].as_u64().unwrap(),
        );
        let total = guide.job_text(
            &format!("df -B1 --output=size /volumes/{name} | tail -1"),
            name,
        );
        let total: u64 = total.trim().parse().unwrap();
        assert!(
            total.abs_diff(bytes) <= bytes / 10,
            "df of {name} shows {total} of {bytes}"
        );
        let left = guide.job_text(&format!("ls -A /volumes/{name}"), name);
        assert_eq!(left, "", "a fresh volume is empty");
        sizes += 1;
    }
    assert_eq!(
        sizes,
        3 + 5 + 6 + 3,
        "of the guide's sizes all exist at once"
    );
    let large = guide.daemon.base.join("volumes/large");
    assert!(
        allocated(&large) <= 64 << 20,
        "an empty terabyte takes {} bytes",
        allocated(&large)
    );
}

/// Bytes that the files in a directory take of the host.
fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.blocks() * 512)
        .sum()
}

#[test]
fn volumes_in_jobs() {
    let Some(guide) = Guide::open() else { return };
    guide.volumes(&[
        "mydata",
        "input-data",
        "output-data",
        "cache",
        "config",
        "results",
        "backup",
        "dataset",
        "data1",
        "data2",
    ]);
    guide.file(
        "process.py",
        "import os\nprint(sorted(os.listdir('/volumes')))\n",
    );
    let mounted = guide.run(&blocks::MOUNTS);
    assert!(
        mounted
            .text()
            .ends_with("['cache', 'input-data', 'output-data']\n"),
        "{mounted:?}"
    );
    guide.job("echo '{}' > /volumes/config/settings.json", "config", "");
    let written = guide.run(&blocks::READ_AND_WRITE);
    assert!(
        written.text().starts_with("{}\nProcessing results\n"),
        "{written:?}"
    );
    guide.file("data.tar.gz", "archive");
    guide.job("touch /volumes/dataset/a /volumes/dataset/b", "dataset", "");
    let copied = guide.run(&blocks::FILES);
    assert_eq!(copied.text(), "Found 2 files\n", "{copied:?}");
    guide.job("cat /volumes/backup/data.tar.gz", "backup", "archive");
    let all = guide.run(&blocks::ALL_MOUNTED);
    assert!(
        all.text().contains("data1") && all.text().contains("data2"),
        "{all:?}"
    );
}

#[test]
fn listing_usage_and_removal() {
    let Some(guide) = Guide::open() else { return };
    guide.shell("rnx volume create mydata --size=1GB && rnx volume create cache --size=512MB --type=memory").assert_ok();
    guide.volumes(&["logs"]);
    let listed = guide.run(&blocks::LIST);
    let text = listed.text();
    let mut lines = text.lines();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        words(lines.next().unwrap()),
        ["NAME", "SIZE", "TYPE", "CREATED"]
    );
    let rows: Vec<_> = lines.by_ref().take(3).map(words).collect();
    for (name, size, kind) in [
        ("cache", "512MB", "memory"),
        ("mydata", "1GB", "filesystem"),
    ] {
        let row = rows.iter().find(|row| row[0] == name).unwrap();
        assert_eq!(row[1..3], [size, kind]);
        // 2025-08-03 10:00:00
        assert_eq!(
            (row.len(), row[3].len(), row[4].len()),
            (5, 10, 8),
            "{row:?}"
        );
    }
    let json: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(json["volumes"].as_array().unwrap().len(), 3);
    guide.job(
        "mkdir /volumes/mydata/d; truncate -s 200M /volumes/logs/large.log",
        "mydata,logs",
        "",
    );
    let usage = guide.run(&blocks::USAGE);
    let text = usage.text();
    assert!(
        text.contains("/volumes/mydata") && text.contains("large.log"),
        "{usage:?}"
    );
    guide.run(&blocks::REMOVE).assert_ok();
    assert!(guide.list().iter().all(|volume| volume["name"] != "mydata"));
}

#[test]
fn work_that_goes_on_in_another_job() {
    let Some(guide) = Guide::open() else { return };
    guide.file(
        "train.py",
        "import os, sys\nroot = '/volumes/ml-checkpoints/'\nresumed = sys.argv[1].startswith('--resume=')\n\
         print('resumed' if resumed and os.path.exists(root + 'latest.pth') else 'began')\n\
         open(root + 'latest.pth', 'w').write('checkpoint')\nopen(root + 'best_model.pth', 'wb').write(b'\\x00model\\xff')\n",
    );
    let trained = guide.run(&blocks::CHECKPOINTS);
    assert_eq!(trained.text_of_jobs(), "began\nresumed\n");
    assert_eq!(fs::read(guide.path("model.pth")).unwrap(), b"\x00model\xff");
    guide.volumes(&["shared-data"]);
    let shared = guide.run(&blocks::PIPE_BETWEEN_JOBS);
    assert_eq!(
        shared.text(),
        "Status: processed, Count: 1000\n",
        "{shared:?}"
    );
    for (name, line) in [
        ("ingest_data.sh", "echo raw > /volumes/raw-data/x"),
        (
            "process_data.py",
            "open('/volumes/processed-data/x', 'w').write(open('/volumes/raw-data/x').read() + 'processed\\n')",
        ),
        (
            "analyze_results.py",
            "open('/volumes/final-results/x', 'w').write(open('/volumes/processed-data/x').read() + 'analyzed\\n')",
        ),
    ] {
        guide.file(name, line);
    }
    guide.run(&blocks::PIPELINE).assert_ok();
    guide.job(
        "cat /volumes/final-results/x",
        "final-results",
        "raw\nprocessed\nanalyzed\n",
    );
}

#[test]
fn backup_and_restore() {
    let Some(guide) = Guide::open() else { return };
    guide.volumes(&["important-data"]);
    guide.job(
        "echo precious > /volumes/important-data/file",
        "important-data",
        "",
    );
    guide.run(&blocks::BACKUP).assert_ok();
    assert!(
        fs::metadata(guide.path("important-data-backup.tar.gz"))
            .unwrap()
            .len()
            > 0
    );
    guide.run(&blocks::RESTORE).assert_ok();
    guide.job(
        "cat /volumes/restored-data/file",
        "restored-data",
        "precious\n",
    );
    // And the way to prefer.
    guide.shell("rnx volume export important-data > a.tar && rnx volume create again --size=1GB && rnx volume import again < a.tar").assert_ok();
    guide.job("cat /volumes/again/file", "again", "precious\n");
}

#[test]
fn speed_of_both_types() {
    let Some(guide) = Guide::open() else { return };
    guide.shell("rnx volume create perf-test --size=2GB && rnx volume create mem-cache --size=1GB --type=memory").assert_ok();
    let disk = guide.run(&blocks::DISK_SPEED);
    let text = disk.text();
    assert!(
        text.contains(" on /volumes/perf-test type ext4 "),
        "{disk:?}"
    );
    assert_eq!(
        disk.stderr.matches("1000+0 records out").count(),
        2,
        "{disk:?}"
    );
    let memory = guide.run(&blocks::MEMORY_SPEED).text();
    assert!(
        memory.contains("Write: ") && memory.contains("Read: "),
        "{memory}"
    );
}

#[test]
fn good_practice() {
    let Some(guide) = Guide::open() else { return };
    guide.volumes(&[
        "source-data",
        "results",
        "logs",
        "project-data",
        "ml-data",
        "temp-data",
        "data",
    ]);
    guide.job("echo source > /volumes/source-data/x", "source-data", "");
    guide.file(
        "process_data.py",
        "#!/bin/sh\ncat ${1#--input=}/x > ${2#--output=}/y\n",
    );
    guide.run(&blocks::STAGING).assert_ok();
    guide.job("cat /volumes/results/y", "results", "source\n");
    guide.job("ls /volumes/temp-work", "temp-work", "");
    guide.scheduled(&blocks::CLEANUP, &["logs"]);
    guide.run(&blocks::GROWTH).assert_ok();
    assert!(
        guide
            .list()
            .iter()
            .all(|volume| volume["name"] != "test-vol")
    );
    guide.run(&blocks::DIRECTORIES).assert_ok();
    guide.job(
        "ls /volumes/project-data",
        "project-data",
        "archives\ninput\nlogs\noutput\ntemp\n",
    );
    guide.job(
        "ls /volumes/ml-data",
        "ml-data",
        "checkpoints\ndatasets\nmetrics\nmodels\n",
    );
    guide.scheduled(&blocks::CLEANUP_SCRIPT, &["temp-data", "logs", "data"]);
    let secret = guide.run(&blocks::SECRETS);
    assert_eq!(secret.text_of_jobs(), "sensitive data\n");
}

#[test]
fn troubleshooting() {
    let Some(guide) = Guide::open() else { return };
    let missing = guide.daemon.rnx(["job", "run", "--volume=mydata", "true"]);
    missing.assert_refused(125, "volume mydata not found");
    guide.run(&blocks::NOT_FOUND).assert_ok();
    guide
        .shell("rnx volume create full-vol --size=1MB")
        .assert_ok();
    let full = guide.daemon.rnx([
        "job",
        "run",
        "--volume=full-vol",
        "dd",
        "if=/dev/zero",
        "of=/volumes/full-vol/x",
        "bs=1M",
        "count=2",
    ]);
    assert!(full.stderr.contains("No space left on device"), "{full:?}");
    guide.run(&blocks::OUT_OF_SPACE).assert_ok();
    guide.volumes(&["data", "debug-vol"]);
    guide
        .shell("rnx volume create mem-vol --size=64MB --type=memory")
        .assert_ok();
    guide.run(&blocks::PERMISSIONS).assert_ok();
    guide.run(&blocks::MEMORY_FULL).assert_ok();
    let id = guide
        .daemon
        .submit(&["--volume=mydata"], &["sleep", "1000"]);
    let with_id = format!("JOB_ID={id}\n{}", blocks::REMOVAL_BLOCKED.tried());
    let blocked = guide.daemon.rnx(["volume", "remove", "mydata"]);
    blocked.assert_refused(5, "Volume is in use by active jobs");
    assert!(blocked.stderr.contains(&id), "which: {blocked:?}");
    guide.shell(&with_id).assert_ok();
    assert!(guide.list().iter().all(|volume| volume["name"] != "mydata"));
    let debug = guide.run(&blocks::DEBUG);
    let text = debug.text();
    for word in [
        " on /volumes/debug-vol type ext4 ",
        "Write test successful",
        "Type: ext2/ext3",
        "No volume metadata found",
    ] {
        assert!(text.contains(word), "{word}: {debug:?}");
    }
}

#[test]
fn what_comes_later_is_refused_by_name() {
    let Some(guide) = Guide::open() else { return };
    guide.run(&blocks::POSTGRES).assert_ok();
    guide.run(&blocks::BUILD_CACHE).assert_ok();
    for (block, flag) in [
        (&blocks::POSTGRES, "--network"),
        (&blocks::BUILD_CACHE, "--runtime"),
    ] {
        let refused = guide.shell(block.text);
        let words = format!("error: {flag} is not supported");
        assert!(refused.stderr.contains(&words), "{refused:?}");
    }
}

/// A daemon, and a directory in which a reader of the guide types.
struct Guide {
    daemon: Daemon,
    here: PathBuf,
}

impl Guide {
    fn open() -> Option<Self> {
        let daemon = Host::Any.is_here().then(Daemon::start)?;
        let here = daemon.base.join("reader");
        fs::create_dir(&here).unwrap();
        Some(Self { daemon, here })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.here.join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn volumes(&self, names: &[&str]) {
        for name in names {
            self.daemon
                .rnx(["volume", "create", name, "--size=1GB"])
                .assert_code(0);
        }
    }

    fn list(&self) -> Vec<serde_json::Value> {
        let listed = self.daemon.rnx(["volume", "list", "--json"]).json();
        listed["volumes"].as_array().unwrap().clone()
    }

    /// Runs what a block says, or what is run instead.
    fn run(&self, block: &Block) -> Output {
        self.shell(&block.tried())
    }

    fn shell(&self, text: &str) -> Output {
        let bin = rnx_binary();
        let bin = bin.parent().unwrap().display().to_string();
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash");
        shell.args(["-c", text]).current_dir(&self.here);
        shell.env("PATH", format!("{bin}:{path}"));
        shell.env("RNX_CONFIG", &self.daemon.config);
        Running::start(shell).finish()
    }

    /// What a shell in a job with these volumes prints.
    fn job_text(&self, script: &str, volumes: &str) -> String {
        let mut run = self.daemon.client().args(["job", "run"]);
        for volume in volumes.split(',') {
            run = run.args(["--volume", volume]);
        }
        let output = run.args(["bash", "-c", script]).run();
        output.assert_code(0);
        output.text()
    }

    #[track_caller]
    fn job(&self, script: &str, volumes: &str, expected: &str) {
        assert_eq!(self.job_text(script, volumes), expected);
    }

    /// A block that has something run in a week: its volumes are in use until it is canceled.
    fn scheduled(&self, block: &Block, volumes: &[&str]) {
        let output = self.run(block);
        output.assert_ok();
        assert!(output.text().contains("Status: SCHEDULED"), "{output:?}");
        let text = output.text();
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("ID: "))
            .unwrap();
        for volume in volumes {
            let refused = self.daemon.rnx(["volume", "remove", volume]);
            refused.assert_refused(5, "Volume is in use by active jobs");
        }
        self.daemon.rnx(["job", "cancel", id]).assert_code(0);
    }
}

impl Output {
    #[track_caller]
    fn assert_ok(&self) {
        self.assert_code(0);
        assert!(!self.stderr.contains("error:"), "{self:?}");
    }

    /// Without what `volume create` says of what it has made.
    #[track_caller]
    fn text_of_jobs(&self) -> String {
        self.assert_ok();
        let made = ["Name: ", "Size: ", "Type: "];
        let text = self.text();
        let lines = text
            .lines()
            .filter(|line| !made.iter().any(|word| line.starts_with(word)));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

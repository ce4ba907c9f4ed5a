//! Output of ended jobs that needs no files: it moves into the store, and no reader notices.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use joblet::job::JobId;
use joblet::store::{Reader, SealKey};

use crate::harness::{
    Daemon, Host, LONG, Output, Running, SHORT, Shared, Tracer, Waiting, wait_until,
};

static DAEMON: Shared = Shared::new();

/// Writes on both streams, and on when it is asked to end.
const SCRIPT: &str = "trap 'printf tail; echo late >&2; exit 3' TERM; echo one; echo err >&2; echo two; \
     while :; do sleep 0.05; done";
const STDOUT: &str = "one\ntwo\ntail";
const STDERR: &str = "err\nlate\n";

#[test]
fn small_output_leaves_no_files_and_reads_as_it_did_from_them() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let id = daemon.submit(&[], &["sh", "-c", SCRIPT]);
    daemon.wait_output(&id, "two");
    assert!(
        dir(&daemon, &id).join("index").exists(),
        "a live job has files"
    );
    let live = records(&daemon, &id, &["--no-follow"]);
    end(&daemon, &id);
    has_moved(&daemon, &id);

    let check = |when: &str| {
        let log = |flags: &[&str]| {
            let log = daemon.rnx(["job", "log", &id].iter().chain(flags));
            log.assert_code(0);
            log
        };
        let expect = |flags: &[&str], stdout: &str, stderr: &str| {
            let log = log(flags);
            assert_eq!(
                (log.text(), log.stderr.as_str()),
                (stdout.to_owned(), stderr),
                "{when} {flags:?}"
            );
        };
        expect(&[], STDOUT, STDERR);
        expect(&["--no-follow"], STDOUT, STDERR);
        expect(&["--stream", "stdout"], STDOUT, "");
        expect(&["--stream", "stderr"], "", STDERR);
        expect(&["--stream", "stdout", "--offset", "5"], "wo\ntail", "");
        expect(&["--stream", "stderr", "--offset", "9"], "", "");
        expect(&["--stream", "stdout", "--tail", "2"], "two\ntail", "");
        expect(&["--since", "2001-01-01T00:00:00Z"], STDOUT, STDERR);
        expect(&["--since", "2199-01-01T00:00:00Z"], "", "");
        let stamped = log(&["--timestamps", "--stream", "stdout"]).text();
        let words: Vec<&str> = stamped
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(words, ["one", "two", "tail"], "{when}: {stamped}");
        let count = daemon.status(&id)["log"].clone();
        assert_eq!(
            (&count["stdout_bytes"], &count["stderr_bytes"]),
            (&12.into(), &9.into()),
            "{when}"
        );
    };
    check("after its end");
    let moved = records(&daemon, &id, &[]);
    assert!(
        moved.starts_with(&live),
        "{moved:?} does not go on from {live:?}"
    );

    daemon.kill();
    daemon.serve();
    check("after a restart");
    assert_eq!(records(&daemon, &id, &[]), moved);
    assert_eq!(dirs(&daemon), Vec::<String>::new());

    daemon.rnx(["job", "delete", &id]).assert_code(0);
    daemon.rnx(["job", "log", &id]).assert_code(3);
    daemon.job(["true"]).assert_code(0);
    assert_eq!(
        dirs(&daemon),
        Vec::<String>::new(),
        "a silent job has none at any time"
    );
}

#[test]
fn output_moves_on_one_side_of_the_bound_only() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let write = |stdout: usize, stderr: usize| {
        let script = format!(
            "head -c {stdout} /dev/zero | tr '\\0' o; head -c {stderr} /dev/zero | tr '\\0' e >&2"
        );
        let id = daemon.submit(&[], &["sh", "-c", &script]);
        assert_eq!(daemon.ended(&id)["status"], "COMPLETED");
        (id, ["o".repeat(stdout), "e".repeat(stderr)])
    };
    let large = [write(4_097, 0), write(4_000, 97), write(0, 4_097)];
    let small = [write(4_096, 0), write(4_000, 96), write(0, 4_096)];
    for (id, _) in &small {
        has_moved(&daemon, id);
    }
    for (id, _) in &large {
        assert!(dir(&daemon, id).join("index").exists());
    }
    for (id, written) in large.iter().chain(&small) {
        let log = daemon.rnx(["job", "log", id]);
        assert!([log.text(), log.stderr] == *written, "{id}");
    }
}

#[test]
fn a_follower_is_held_open_across_the_move() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["sh", "-c", SCRIPT]);
    // One on each shard, or nearly so: each is a connection of its own.
    let followers: Vec<_> = (0..6)
        .map(|_| {
            let follow = daemon
                .client()
                .args(["job", "log", "--stream", "stdout", &id]);
            let (running, stdout) = Running::streaming(&follow);
            let mut stdout = BufReader::new(stdout);
            let mut begin = String::new();
            stdout.read_line(&mut begin).unwrap();
            stdout.read_line(&mut begin).unwrap();
            (running, stdout, begin)
        })
        .collect();
    end(&daemon, &id);
    has_moved(&daemon, &id);
    for (running, mut stdout, mut text) in followers {
        stdout.read_to_string(&mut text).unwrap();
        running.finish().assert_code(0);
        assert_eq!(text, STDOUT);
    }
}

#[test]
fn output_of_a_job_that_ended_or_was_lost_without_a_daemon_moves_at_the_next_start() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let ended = daemon.submit(
        &[],
        &["sh", "-c", "echo up; echo err >&2; sleep 1; echo down"],
    );
    daemon.wait_output(&ended, "up");
    let init = daemon.pids(&ended)[0];
    daemon.kill();
    wait_until(LONG, "it ends", || {
        Waiting::when(!init.is_alive(), || format!("{init:?}"))
    });
    daemon.serve();
    assert_eq!(daemon.ended(&ended)["outcome"]["reason"], "exited");

    let lost = daemon.submit(&[], &["sh", "-c", SCRIPT]);
    daemon.wait_output(&lost, "two");
    let keepers = daemon.helpers("joblet-keeper");
    daemon.kill();
    keepers.iter().for_each(|keeper| keeper.kill());
    daemon.serve();
    assert_eq!(daemon.ended(&lost)["outcome"]["reason"], "host_lost");

    for (id, stdout) in [(&ended, "up\ndown\n"), (&lost, "one\ntwo\n")] {
        has_moved(&daemon, id);
        let log = daemon.rnx(["job", "log", id]);
        assert_eq!(
            (log.text().as_str(), log.stderr.as_str()),
            (stdout, "err\n")
        );
    }
}

#[test]
fn a_daemon_killed_between_the_commit_and_the_removal_has_output_once() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let id = daemon.submit(&[], &["sh", "-c", SCRIPT]);
    daemon.wait_output(&id, "two");
    daemon.remember();
    let tracer = Tracer::seize(daemon.process());
    tracer.arm_at_unlink();
    let asked = daemon.client().args(["job", "stop", &id]).spawn();
    wait_until(
        LONG,
        "it removes a file, and is killed before it does",
        || Waiting::when(tracer.is_over(), || "it lives".to_owned()),
    );
    tracer.finish().expect("it was killed at a call");
    daemon.was_killed();
    drop(asked);

    // This is the moment: everything is in both places.
    let store = Reader::open(
        &daemon.base.join("store.db"),
        &SealKey::from_bytes(&[0; 32]),
    )
    .unwrap();
    let job = JobId::parse(&id).unwrap();
    let stored = store.output(job).unwrap().expect("the store has it");
    assert_eq!(
        (&stored.stdout[..], &stored.stderr[..]),
        (STDOUT.as_bytes(), STDERR.as_bytes())
    );
    for (name, contents) in [
        ("stdout", &stored.stdout),
        ("stderr", &stored.stderr),
        ("index", &stored.index),
    ] {
        assert_eq!(
            &fs::read(dir(&daemon, &id).join(name)).unwrap(),
            contents,
            "{name}"
        );
    }
    drop(store);

    daemon.serve();
    for _ in 0..2 {
        let log = daemon.rnx(["job", "log", &id]);
        assert_eq!((log.text().as_str(), log.stderr.as_str()), (STDOUT, STDERR));
        has_moved(&daemon, &id);
    }
    let status = daemon.ended(&id);
    assert_eq!(status["outcome"]["exit_code"], 3, "{status}");
    assert_eq!(status["log"]["stdout_bytes"], STDOUT.len(), "{status}");
}

/// Where a job has its files, if it has any.
fn dir(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.base.join("jobs").join(id)
}

/// Names of all jobs that have files.
fn dirs(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.base.join("jobs")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[track_caller]
fn has_moved(daemon: &Daemon, id: &str) {
    let dir = dir(daemon, id);
    wait_until(SHORT, "its files are gone", || {
        Waiting::when(!dir.exists(), || dir.display().to_string())
    });
}

/// Stops a job, and waits until it has ended by itself.
#[track_caller]
fn end(daemon: &Daemon, id: &str) {
    daemon.rnx(["job", "stop", id]).assert_code(0);
    assert_eq!(daemon.ended(id)["outcome"]["exit_code"], 3);
}

/// The log of a job as JSON: each byte of output in its order, with its stream and offset.
fn records(daemon: &Daemon, id: &str, flags: &[&str]) -> Vec<(String, u64, char)> {
    let log: Output = daemon.rnx(["job", "log", "--json", id].iter().chain(flags));
    log.assert_code(0);
    let mut bytes = Vec::new();
    for line in log.text().lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        let stream = record["stream"].as_str().unwrap();
        let offset = record["offset"].as_u64().unwrap();
        for (at, byte) in (offset..).zip(record["data"].as_str().unwrap().chars()) {
            bytes.push((stream.to_owned(), at, byte));
        }
    }
    bytes
}

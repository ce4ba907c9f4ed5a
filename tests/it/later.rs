//! Jobs that run later: schedules, the queue, keys of repeated submits, and what is deleted.

use std::thread;

use serde_json::Value;

use crate::harness::{Daemon, Host, LONG, SHORT, Waiting, wait_until};

#[test]
fn a_job_that_is_scheduled_once_runs_after_its_daemon_was_killed() {
    let Some(daemon) = start() else { return };
    let id = daemon.submit(&["--schedule", "1s"], &["sh", "-c", "echo ran; exit 4"]);
    let status = daemon.status(&id);
    assert_eq!(status["status"], "SCHEDULED", "{status}");
    assert_eq!(status["schedule"]["kind"], "once", "{status}");
    daemon.kill();
    daemon.serve();
    let status = daemon.ended(&id);
    assert_eq!(status["outcome"]["exit_code"], 4, "{status}");
    daemon.kill();
    daemon.serve();
    let log = daemon.rnx(["job", "log", &id]);
    assert_eq!(log.text(), "ran\n", "once and not again");
}

#[test]
fn a_schedule_repeats_as_jobs_of_its_own_until_it_is_removed() {
    let Some(daemon) = start() else { return };
    let id = daemon.submit(&["--schedule", "every 1s"], &["echo", "again"]);
    let repetitions = || -> Vec<Value> {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        let is_ours = |job: &&Value| job["schedule_id"] == id.as_str();
        list.as_array()
            .unwrap()
            .iter()
            .filter(is_ours)
            .cloned()
            .collect()
    };
    let ran = |count: usize| {
        wait_until(LONG, "it has run so often", || {
            let ended = repetitions()
                .iter()
                .filter(|job| job["status"] == "COMPLETED")
                .count();
            Waiting::when(ended >= count, || format!("{ended} of {count}"))
        });
    };
    ran(2);
    let list = daemon.rnx(["schedule", "list", "--json"]).json();
    assert!(list.to_string().contains(&id), "{list}");
    daemon.kill();
    daemon.serve();
    let before = repetitions().len();
    ran(before + 1);
    daemon.rnx(["schedule", "remove", &id]).assert_code(0);
    assert_eq!(daemon.state(&id), "CANCELED");
    // Each time ran once, whoever was killed meanwhile.
    let mut starts: Vec<String> = repetitions()
        .iter()
        .map(|job| job["created_time"].as_str().unwrap()[..19].to_owned())
        .collect();
    starts.sort();
    let count = starts.len();
    starts.dedup();
    assert_eq!(starts.len(), count, "{starts:?}");
}

#[test]
fn what_has_not_begun_can_be_canceled_and_what_has_cannot() {
    let Some(daemon) = start() else { return };
    let later = daemon.submit(&["--schedule", "1h"], &["true"]);
    daemon.rnx(["job", "cancel", &later]).assert_code(0);
    let status = daemon.ended(&later);
    assert_eq!(status["status"], "CANCELED", "{status}");
    assert_eq!(status["outcome"]["reason"], "canceled", "{status}");
    daemon.rnx(["job", "cancel", &later]).assert_code(0);
    let stopped = daemon.submit(&["--schedule", "every 1h"], &["true"]);
    daemon.rnx(["job", "stop", &stopped]).assert_code(0);
    assert_eq!(daemon.ended(&stopped)["status"], "CANCELED");
    let running = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&running, "RUNNING");
    daemon.rnx(["job", "cancel", &running]).assert_code(5);
    assert_eq!(daemon.state(&running), "RUNNING");
}

#[test]
fn a_daemon_with_a_bound_runs_so_many_jobs_and_the_others_in_their_order() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| bounded(&config, 1));
    let first = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&first, "RUNNING");
    let low = daemon.submit(&[], &["sh", "-c", "echo low"]);
    let high = daemon.submit(&["--priority", "5"], &["sleep", "600"]);
    for id in [&low, &high] {
        let status = daemon.status(id);
        assert_eq!(status["status"], "QUEUED", "{status}");
        let why = status["waits_for"].as_str().unwrap_or_default();
        assert!(!why.is_empty(), "{status}");
    }
    // The queue outlives its daemon.
    daemon.kill();
    daemon.serve();
    for id in [&low, &high] {
        assert_eq!(daemon.state(id), "QUEUED");
    }
    daemon.rnx(["job", "stop", &first]).assert_code(0);
    daemon.wait_state(&high, "RUNNING");
    assert_eq!(daemon.state(&low), "QUEUED");
    daemon.rnx(["job", "stop", &high]).assert_code(0);
    assert_eq!(daemon.ended(&low)["status"], "COMPLETED");
}

#[test]
fn a_full_queue_refuses_and_so_does_one_that_can_never_hold_the_job() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| {
        let mut value: Value = serde_saphyr::from_str(&bounded(&config, 1)).unwrap();
        value["jobs"]["queue_max"] = 1.into();
        value["jobs"]["memory_budget"] = "1GB".into();
        value.to_string()
    });
    let first = daemon.submit(&[], &["sleep", "600"]);
    let second = daemon.submit(&[], &["sleep", "600"]);
    let run = daemon.job(["true"]);
    run.assert_code(125);
    assert!(run.stderr.contains("queue"), "{run:?}");
    let run = daemon.rnx(["job", "run", "--max-memory=2048", "true"]);
    run.assert_code(125);
    assert!(run.stderr.contains("memory_budget"), "{run:?}");
    for id in [&second, &first] {
        daemon.rnx(["job", "stop", id]).assert_code(0);
    }
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn uploads_of_a_job_that_waits_are_there_when_it_runs_whoever_was_killed() {
    if !Host::Any.is_here() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("input");
    std::fs::write(&file, "what was uploaded\n").unwrap();
    let daemon = Daemon::start_with(|config| bounded(&config, 1));
    let first = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&first, "RUNNING");
    let upload = file.to_str().unwrap();
    let queued = daemon.submit(&["--upload", upload], &["cat", "input"]);
    assert_eq!(daemon.state(&queued), "QUEUED");
    let repeated = daemon.submit(
        &["--schedule", "every 1s", "--upload", upload],
        &["cat", "input"],
    );
    let gone = daemon.submit(&["--schedule", "1h", "--upload", upload], &["true"]);
    daemon.kill();
    std::fs::remove_file(&file).unwrap();
    daemon.serve();
    daemon.rnx(["job", "cancel", &gone]).assert_code(0);
    daemon.rnx(["job", "stop", &first]).assert_code(0);
    assert_eq!(daemon.ended(&queued)["status"], "COMPLETED");
    let log = |id: &str| daemon.rnx(["job", "log", id]).text();
    assert_eq!(log(&queued), "what was uploaded\n");
    let mut runs = Vec::new();
    wait_until(LONG, "the schedule has run twice", || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        runs = list
            .as_array()
            .unwrap()
            .iter()
            .filter(|job| job["schedule_id"] == repeated.as_str() && job["status"] == "COMPLETED")
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect();
        Waiting::when(runs.len() >= 2, || list.to_string())
    });
    for id in &runs {
        assert_eq!(log(id), "what was uploaded\n");
    }
    daemon.rnx(["schedule", "remove", &repeated]).assert_code(0);
    wait_until(SHORT, "no upload is left", || {
        let left: Vec<_> = std::fs::read_dir(daemon.base.join("spool"))
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        Waiting::when(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn fifty_clients_with_one_key_are_one_job() {
    let Some(daemon) = start() else { return };
    let flags = [
        "job",
        "run",
        "--json",
        "--idempotency-key",
        "once",
        "--",
        "sleep",
        "600",
    ];
    let ids: Vec<String> = thread::scope(|scope| {
        let runs: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    let run = daemon.rnx(flags);
                    run.assert_code(0);
                    run.json()["id"].as_str().unwrap().to_owned()
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let list = daemon.rnx(["job", "list", "--json"]).json();
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
    let other = daemon.rnx(["job", "run", "--json", "--idempotency-key", "once", "true"]);
    other.assert_code(5);
    daemon.kill();
    daemon.serve();
    let again = daemon.rnx(flags);
    assert_eq!(again.json()["id"], ids[0].as_str());
}

#[test]
fn deleted_jobs_are_gone_with_their_output_and_live_ones_stay() {
    let Some(daemon) = start() else { return };
    let done = daemon.submit(&[], &["echo", "words"]);
    assert_eq!(daemon.ended(&done)["status"], "COMPLETED");
    let dir = daemon.base.join("jobs").join(&done);
    let live = daemon.submit(&[], &["sleep", "600"]);
    daemon.rnx(["job", "delete", &live]).assert_code(5);
    daemon.rnx(["job", "delete", &done]).assert_code(0);
    daemon.rnx(["job", "status", &done]).assert_code(3);
    wait_until(SHORT, "its output is gone", || {
        Waiting::when(!dir.exists(), || dir.display().to_string())
    });
    for _ in 0..3 {
        daemon.job(["true"]).assert_code(0);
    }
    wait_until(SHORT, "all that have ended are deleted", || {
        let deleted = daemon.rnx(["job", "delete-all", "--json"]).json();
        assert_eq!(deleted["skipped_count"], 1, "{deleted}");
        let list = daemon.rnx(["job", "list", "--json"]).json();
        Waiting::when(list.as_array().unwrap().len() == 1, || list.to_string())
    });
    assert_eq!(daemon.state(&live), "RUNNING");
}

#[test]
fn secrets_of_waiting_jobs_are_nowhere_in_clear_text() {
    let Some(daemon) = start() else { return };
    let secret = "s3cret-of-the-test";
    let flags = [
        "--schedule",
        "1s",
        "--secret-env",
        &format!("TOKEN={secret}"),
    ];
    let id = daemon.submit(&flags, &["sh", "-c", "echo ${#TOKEN}"]);
    let is_clean = || {
        for name in ["store.db", "store.db-wal"] {
            let bytes = std::fs::read(daemon.base.join(name)).unwrap_or_default();
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!found, "{name} holds the secret");
        }
    };
    is_clean();
    daemon.kill();
    daemon.serve();
    assert_eq!(daemon.ended(&id)["status"], "COMPLETED");
    let log = daemon.rnx(["job", "log", &id]);
    assert_eq!(log.text(), format!("{}\n", secret.len()));
    is_clean();
}

fn start() -> Option<Daemon> {
    Host::Any.is_here().then(Daemon::start)
}

/// The configuration with this `jobs.max_running`.
fn bounded(config: &str, max_running: u64) -> String {
    let mut value: Value = serde_saphyr::from_str(config).unwrap();
    value["jobs"]["max_running"] = max_running.into();
    // Every JSON document is a YAML document.
    value.to_string()
}

//! What a job is seen to use while it runs.

use serde_json::Value;

use crate::harness::{Host, Shared};

static DAEMON: Shared = Shared::new();

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

fn cpu(sample: &Value) -> f64 {
    let part = |key| sample["cpu_seconds"][key].as_f64().unwrap();
    part("user") + part("system")
}

#[test]
fn a_followed_job_uses_more_and_more_until_its_outcome() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let spin = "n=0; while [ $n -lt 600000 ]; do n=$((n + 1)); done";
    let id = daemon.submit(&[], &["sh", "-c", spin]);
    let follow = [
        "job",
        "metrics",
        &id,
        "--json",
        "--follow",
        "--interval",
        "100ms",
    ];
    let followed = daemon.rnx(follow);
    followed.assert_code(0);
    let samples = lines(&followed.text());
    assert!(samples.len() >= 3, "{samples:?}");
    assert!(
        samples
            .windows(2)
            .all(|pair| cpu(&pair[0]) <= cpu(&pair[1])),
        "{samples:?}"
    );
    let status = daemon.status(&id);
    let outcome = &status["outcome"];
    assert_eq!(outcome["reason"], "exited", "{status}");
    assert_eq!(
        samples.last().unwrap()["cpu_seconds"],
        outcome["cpu_seconds"]
    );
    // Of a job that has ended there is only that.
    let after = daemon.rnx(["job", "metrics", &id, "--json"]);
    assert_eq!(lines(&after.text()), &samples[samples.len() - 1..]);
}

#[test]
fn a_job_that_has_ended_has_no_process_and_no_memory() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&["--max-memory", "64", "--max-pids", "50"], &["true"]);
    daemon.ended(&id);
    let last = daemon.rnx(["job", "metrics", &id, "--json"]);
    let last = &lines(&last.text())[0];
    assert_eq!(
        (&last["pids"], &last["memory_bytes"]),
        (&0.into(), &0.into()),
        "{last}"
    );
}

#[test]
fn looks_at_a_live_job_are_kept_with_it() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    let look = || {
        let looked = daemon.rnx(["job", "metrics", &id, "--json"]);
        looked.assert_code(0);
        lines(&looked.text())
    };
    let first = look();
    // Long enough that the next look is a new one: starting the client takes no time at all.
    let mut seen = look();
    while seen.len() == first.len() {
        seen = look();
    }
    assert_eq!(seen[..first.len()], first);
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
    assert_eq!(look().len(), 1);
    daemon
        .rnx(["job", "metrics", "00000000-0000-4000-8000-000000000000"])
        .assert_refused(3, "not found");
}

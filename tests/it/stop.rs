//! Ending a job from outside: TERM, grace, KILL, and what a Ctrl-C does.

use nix::sys::signal::Signal;

use crate::harness::{Host, SHORT, Shared, Waiting, wait_until};

static DAEMON: Shared = Shared::new();

/// Says `up` once its traps are set, then waits without a child that could be signalled in its place.
fn trapping(traps: &str) -> String {
    format!("{traps}; echo up; while :; do sleep 0.1; done")
}

#[test]
fn stop_sends_term_and_the_job_may_answer_it() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &[],
        &["sh", "-c", &trapping("trap 'echo bye; exit 3' TERM")],
    );
    daemon.wait_output(&id, "up");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "STOPPED", "{status}");
    assert_eq!(status["outcome"]["reason"], "stopped", "{status}");
    assert_eq!(status["outcome"]["exit_code"], 3, "{status}");
    assert!(
        status["outcome"]["by"]
            .as_str()
            .is_some_and(|by| !by.is_empty()),
        "{status}"
    );
    assert_eq!(daemon.rnx(["job", "log", &id]).text(), "up\nbye\n");
}

#[test]
fn a_job_that_ignores_term_is_killed_after_its_grace() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(
        &["--grace=1s"],
        &["sh", "-c", &trapping("trap '' TERM INT HUP")],
    );
    daemon.wait_output(&id, "up");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "STOPPED", "{status}");
    assert_eq!(status["outcome"]["signal"], 9, "{status}");
    daemon.rnx(["job", "wait", &id]).assert_code(137);
}

#[test]
fn asking_twice_or_after_the_end_is_no_error() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&["--grace=1s"], &["sh", "-c", &trapping("trap '' TERM")]);
    daemon.wait_output(&id, "up");
    let asked = daemon.rnx(["job", "stop", "--no-wait", &id]);
    asked.assert_code(0);
    assert_eq!(asked.text(), format!("{id} STOPPING\n"));
    let ended = daemon.rnx(["job", "stop", &id]);
    ended.assert_code(0);
    assert_eq!(ended.text(), format!("{id} STOPPED\n"));
    assert_eq!(daemon.state(&id), "STOPPED");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon
        .rnx(["job", "stop", "00000000-0000-4000-8000-000000000000"])
        .assert_refused(3, "not found");
}

#[test]
fn a_job_without_handlers_dies_of_term_and_takes_its_children_along() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "setsid sh -c 'trap \"\" TERM; sleep 600' & sleep 600 & echo up; wait";
    let id = daemon.submit(&[], &["sh", "-c", script]);
    daemon.wait_output(&id, "up");
    let members = daemon.pids(&id);
    assert!(
        members.len() >= 4,
        "init, the shell and its children: {members:?}"
    );
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
    wait_until(
        SHORT,
        "every process and the cgroup of the job is gone",
        || {
            let alive: Vec<_> = members.iter().filter(|p| p.is_alive()).collect();
            let leaves = daemon.leaves(&id);
            Waiting::when(alive.is_empty() && leaves.is_empty(), || {
                format!("{alive:?} {leaves:?}")
            })
        },
    );
}

#[test]
fn stopping_one_job_leaves_the_others_alone() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let ids: Vec<String> = (0..3)
        .map(|_| daemon.submit(&[], &["sleep", "600"]))
        .collect();
    for id in &ids {
        daemon.wait_state(id, "RUNNING");
    }
    daemon.rnx(["job", "stop", &ids[1]]).assert_code(0);
    daemon.ended(&ids[1]);
    assert_eq!(daemon.state(&ids[0]), "RUNNING");
    assert_eq!(daemon.state(&ids[2]), "RUNNING");
    daemon.rnx(["job", "stop", &ids[0], &ids[2]]).assert_code(0);
    assert_eq!(daemon.ended(&ids[0])["status"], "STOPPED");
    assert_eq!(daemon.ended(&ids[2])["status"], "STOPPED");
}

#[test]
fn the_first_ctrl_c_reaches_the_job_as_sigint() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = trapping("trap 'echo interrupted; exit 5' INT");
    let running = daemon
        .client()
        .args([
            "job",
            "run",
            "--name",
            "ctrl-c-once",
            "--",
            "sh",
            "-c",
            &script,
        ])
        .spawn();
    let id = wait_named(&daemon, "ctrl-c-once");
    daemon.wait_output(&id, "up");
    running.process().signal(Signal::SIGINT);
    let run = running.finish();
    run.assert_code(5);
    assert_eq!(run.text(), "up\ninterrupted\n");
}

#[test]
fn the_second_ctrl_c_detaches_and_the_job_goes_on_to_its_end() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = trapping("trap 'echo interrupted' INT; trap '' TERM");
    let flags = [
        "job",
        "run",
        "--name",
        "ctrl-c-twice",
        "--grace",
        "3600s",
        "--",
        "sh",
        "-c",
    ];
    let running = daemon.client().args(flags).arg(&script).spawn();
    let id = wait_named(&daemon, "ctrl-c-twice");
    daemon.wait_output(&id, "up");
    running.process().signal(Signal::SIGINT);
    daemon.wait_output(&id, "interrupted");
    running.process().signal(Signal::SIGINT);
    running.finish();
    assert_eq!(daemon.state(&id), "STOPPING");
    for process in daemon.pids(&id) {
        process.kill();
    }
    daemon.ended(&id);
}

/// Waits until a job of this name runs; its id.
fn wait_named(daemon: &crate::harness::Daemon, name: &str) -> String {
    wait_until(SHORT, &format!("a job named {name} is listed"), || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        let jobs = list.as_array().unwrap();
        match jobs.iter().find(|job| job["name"] == name) {
            Some(job) => Waiting::Done(job["id"].as_str().unwrap().to_owned()),
            None => Waiting::Seen(format!("{} jobs", jobs.len())),
        }
    })
}

//! What is left when a helper or the daemon is killed: the rest goes on, and in the end nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use crate::harness::{
    Daemon, Host, LONG, Mute, Output, Process, Requests, SHORT, Waiting, in_private_mounts, now,
    wait_until,
};
use nix::sys::signal::Signal;

const JOBS: usize = 200;

/// `argv[0]` of the process that is the jobs' parent.
const KEEPER: &str = "joblet-keeper";

/// Short name of the process that makes sandboxes.
const SPAWNER: &str = "joblet-spawner";

#[test]
fn the_daemon_is_killed_while_jobs_run_and_the_next_one_goes_on_with_them() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, JOBS);
    let before: Vec<Vec<Process>> = ids.iter().map(|id| daemon.pids(id)).collect();
    for _ in 0..2 {
        daemon.kill();
        daemon.serve();
        for (id, pids) in ids.iter().zip(&before) {
            wait_until(LONG, "the job is known to run", || {
                let status = daemon.status(id);
                Waiting::when(status["status"] == "RUNNING", || status.to_string())
            });
            assert_eq!(&daemon.pids(id), pids, "the same processes as before");
        }
    }
    daemon.job(["true"]).assert_code(0);
    let (stopped, killed) = ids.split_at(JOBS / 2);
    for id in stopped {
        daemon.rnx(["job", "stop", id]).assert_code(0);
    }
    for id in stopped {
        assert_eq!(daemon.ended(id)["outcome"]["reason"], "stopped");
    }
    for id in killed {
        assert_eq!(daemon.state(id), "RUNNING");
    }
    // Dropping the daemon proves that nothing of any of them is left.
}

#[test]
fn what_a_job_writes_while_there_is_no_daemon_is_not_lost() {
    let Some(daemon) = start() else { return };
    let script =
        "n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo line $n; echo err $n >&2; done; exit 7";
    let ids: Vec<String> = (0..4)
        .map(|_| daemon.submit(&[], &["sh", "-c", script]))
        .collect();
    daemon.kill();
    daemon.serve();
    for id in &ids {
        let status = daemon.ended(id);
        assert_eq!(status["outcome"]["exit_code"], 7, "{status}");
        let log = daemon.rnx(["job", "log", id]);
        let expect = |word| {
            (1..=3000)
                .map(|n| format!("{word} {n}\n"))
                .collect::<String>()
        };
        assert_eq!(log.text(), expect("line"));
        assert_eq!(log.stderr, expect("err"));
    }
}

#[test]
fn an_attached_run_goes_on_at_its_byte_while_its_daemon_is_killed_twice() {
    let Some(daemon) = start() else { return };
    let script =
        "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo line $n; sleep 0.01; done; exit 42";
    let running = daemon
        .client()
        .args(["job", "run", "--name", "attached", "--", "sh", "-c", script])
        .spawn();
    let begun = |text: &str| {
        wait_until(LONG, "it has written so much", || {
            let list = daemon.rnx(["job", "list", "--json"]).json();
            let id = list[0]["id"].as_str().unwrap_or_default();
            let log = daemon.rnx(["job", "log", "--no-follow", id]);
            Waiting::when(log.text().contains(text), || format!("{log:?}"))
        });
    };
    for text in ["line 40\n", "line 120\n"] {
        begun(text);
        daemon.kill();
        daemon.serve();
    }
    let output = running.finish();
    let expected: String = (1..=300).map(|n| format!("line {n}\n")).collect();
    assert_eq!(output.text(), expected);
    output.assert_code(42);
}

#[test]
fn a_job_that_ends_while_there_is_no_daemon_has_its_own_outcome() {
    let Some(daemon) = start() else { return };
    let id = daemon.submit(
        &[],
        &["sh", "-c", "echo up; read x < /work/never || exit 9"],
    );
    let slow = daemon.submit(&[], &["sh", "-c", "echo up; sleep 1; exit 11"]);
    daemon.wait_output(&slow, "up");
    let init = daemon.pids(&slow)[0];
    daemon.kill();
    wait_until(LONG, "it ends", || {
        Waiting::when(!init.is_alive(), || format!("{init:?}"))
    });
    daemon.serve();
    assert_eq!(daemon.ended(&id)["outcome"]["exit_code"], 9);
    let status = daemon.ended(&slow);
    assert_eq!(status["outcome"]["exit_code"], 11, "{status}");
    assert_eq!(status["outcome"]["reason"], "exited", "{status}");
}

#[test]
fn down_without_a_daemon_ends_what_a_killed_one_left() {
    let Some(daemon) = start() else { return };
    submit_many(&daemon, JOBS);
    daemon.kill();
    daemon.joblet(&["down"]).assert_code(0);
    wait_until(LONG, "no process and no cgroup of a job is left", || {
        let leaves = daemon.all_leaves();
        Waiting::when(leaves.is_empty(), || format!("{leaves:?}"))
    });
    daemon.serve();
    let list = daemon
        .rnx(["job", "list", "--json", "--limit", "1000"])
        .json();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), JOBS);
    for job in list {
        assert_eq!(job["outcome"]["reason"], "daemon_down", "{job}");
    }
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn a_killed_spawner_is_replaced_and_running_jobs_do_not_notice() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, JOBS);
    let keepers = keepers(&daemon);
    let helpers: BTreeSet<Process> = keepers
        .iter()
        .flat_map(|keeper| keeper.children())
        .filter(|p| is_helper(&daemon, *p))
        .collect();
    assert!(
        helpers.len() >= keepers.len(),
        "each keeper has a spawner: {helpers:?}"
    );
    for helper in &helpers {
        helper.kill();
    }
    // Some starts may fail in the moment; the next ones go through.
    wait_until(LONG, "jobs start again", || {
        let run = daemon.job(["nproc"]);
        let here = thread::available_parallelism().unwrap().get().to_string();
        Waiting::when(run.code == 0 && run.text().trim() == here, || {
            format!("{run:?}")
        })
    });
    for _ in 0..20 {
        daemon.job(["true"]).assert_code(0);
    }
    for id in &ids {
        assert_eq!(daemon.state(id), "RUNNING");
    }
}

#[test]
fn a_stuck_spawner_is_replaced_and_nobody_else_notices() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, 20);
    let spawners = spawners(&daemon);
    // A stopped process answers as little as one that waits in a path that hangs.
    for spawner in &spawners {
        spawner.signal(Signal::SIGSTOP);
    }
    let started: Vec<_> = (0..8)
        .map(|_| daemon.client().args(["job", "run", "true"]).spawn())
        .collect();
    for run in started {
        let output = run.finish();
        assert!(matches!(output.code, 0 | 125), "{output:?}");
    }
    wait_until(SHORT, "the stuck ones are gone", || {
        let alive: Vec<_> = spawners.iter().filter(|p| p.is_alive()).collect();
        // Only a shard that is asked for something notices that its spawner is stuck.
        let run = daemon.job(["true"]);
        Waiting::when(alive.is_empty() && run.code == 0, || {
            format!("{alive:?} {run:?}")
        })
    });
    for _ in 0..20 {
        daemon.job(["true"]).assert_code(0);
    }
    for id in &ids {
        assert_eq!(daemon.state(id), "RUNNING");
    }
}

#[test]
fn a_spawner_in_a_step_that_waits_for_a_path_is_replaced_and_nobody_else_notices() {
    stuck_in_a_path(Requests::Queued);
}

#[test]
fn a_spawner_in_a_step_that_cannot_even_be_killed_is_replaced_and_nobody_else_notices() {
    stuck_in_a_path(Requests::Taken);
}

fn stuck_in_a_path(requests: Requests) {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, 20);
    let spawners = spawners(&daemon);
    // The step that mounts `/dev/shm` looks it up in there.
    let mut mutes: Vec<Mute> = spawners
        .iter()
        .map(|spawner| Mute::over(*spawner, "/dev", requests))
        .collect();
    let begin = now();
    let mut asked: Vec<String> = (0..8).map(|_| daemon.submit(&[], &["true"])).collect();
    let mut states = BTreeMap::new();
    wait_until(SHORT, "each stuck one is gone, with one job", || {
        mutes.iter_mut().for_each(Mute::hear);
        let alive: Vec<_> = spawners.iter().filter(|p| p.is_alive()).collect();
        states = asked
            .iter()
            .map(|id| (id.clone(), daemon.state(id)))
            .collect();
        let lost = states.values().filter(|state| *state != "COMPLETED");
        let is_one_each = lost.count() + alive.len() == spawners.len();
        if is_one_each && !alive.is_empty() {
            // Only a shard that is asked for something notices that its spawner is stuck.
            asked.push(daemon.submit(&[], &["true"]));
        }
        Waiting::when(is_one_each && alive.is_empty(), || {
            format!("{alive:?} {states:?}")
        })
    });
    eprintln!(
        "{} spawners replaced after {:?}",
        spawners.len(),
        begin.elapsed()
    );
    daemon.job(["true"]).assert_code(0);
    if requests == Requests::Taken {
        // What nobody can kill ends when it is answered.
        drop(mutes);
    }
    for (id, state) in &states {
        if state != "COMPLETED" {
            let status = daemon.ended(id);
            assert_eq!(status["outcome"]["reason"], "start_failed", "{status}");
            assert_eq!(
                status["outcome"]["step"], "spawner stuck in a step",
                "{status}"
            );
        }
    }
    for id in &ids {
        assert_eq!(daemon.state(id), "RUNNING");
    }
}

#[test]
fn a_spawner_that_is_not_born_for_a_path_of_the_host_fails_its_job_and_the_next_one_works() {
    if !Host::Any.is_here() {
        return;
    }
    in_private_mounts(|| {
        let daemon = Daemon::start();
        let ids = submit_many(&daemon, 4);
        // The template root of the next spawners is copied from there.
        let mut mute = Mute::over(daemon.process(), "/etc/ssl", Requests::Taken);
        let before = spawners(&daemon);
        before.iter().for_each(|spawner| spawner.kill());
        wait_until(LONG, "every spawner has been replaced", || {
            let now = spawners_now(&daemon);
            let is_new = now.len() == before.len() && now.iter().all(|p| !before.contains(p));
            Waiting::when(is_new, || format!("{now:?}"))
        });
        let stuck = daemon.submit(&[], &["true"]);
        wait_until(SHORT, "its job has failed", || {
            mute.hear();
            let status = daemon.status(&stuck);
            let reason = &status["outcome"]["reason"];
            Waiting::when(reason == "start_failed", || status.to_string())
        });
        drop(mute);
        wait_until(SHORT, "jobs start again", || {
            let run = daemon.job(["true"]);
            Waiting::when(run.code == 0, || format!("{run:?}"))
        });
        for id in &ids {
            assert_eq!(daemon.state(id), "RUNNING");
        }
    });
}

#[test]
fn a_killed_keeper_is_replaced_and_its_jobs_end_as_lost() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, JOBS);
    let before = keepers(&daemon);
    for keeper in &before {
        keeper.kill();
    }
    wait_until(LONG, "jobs start again", || {
        let run = daemon.job(["true"]);
        Waiting::when(run.code == 0, || format!("{run:?}"))
    });
    wait_until(SHORT, "the dead keepers are reaped", || {
        let children = daemon.process().children();
        let left: Vec<_> = before.iter().filter(|p| children.contains(p)).collect();
        Waiting::when(left.is_empty(), || format!("{left:?}"))
    });
    let mut lost = 0;
    for id in &ids {
        let status = daemon.status(id);
        if status["status"] == "RUNNING" {
            assert!(
                !daemon.pids(id).is_empty(),
                "shown as running and dead: {status}"
            );
        } else {
            assert_eq!(status["outcome"]["reason"], "host_lost", "{status}");
            lost += 1;
        }
    }
    eprintln!("{lost} of {JOBS} jobs ended as lost");
}

#[test]
fn two_daemons_live_side_by_side() {
    let Some(one) = start() else { return };
    let two = Daemon::start();
    assert_ne!(one.instance, two.instance);
    let ids = submit_many(&two, 50);
    let before: Vec<Vec<Process>> = ids.iter().map(|id| two.pids(id)).collect();
    submit_many(&one, 20);
    one.kill();
    one.serve();
    one.job(["true"]).assert_code(0);
    one.joblet(&["down"]);
    for (id, pids) in ids.iter().zip(&before) {
        assert_eq!(two.state(id), "RUNNING");
        assert_eq!(&two.pids(id), pids, "the same processes as before");
    }
    two.job(["true"]).assert_code(0);
}

#[test]
fn sigterm_leaves_jobs_running_and_the_next_daemon_takes_them_over() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, 20);
    let before: Vec<Vec<Process>> = ids.iter().map(|id| daemon.pids(id)).collect();
    assert_eq!(daemon.terminate(), Some(0));
    for (id, pids) in ids.iter().zip(&before) {
        assert_eq!(&daemon.pids(id), pids);
    }
    daemon.serve();
    daemon.job(["true"]).assert_code(0);
    for (id, pids) in ids.iter().zip(&before) {
        assert_eq!(daemon.state(id), "RUNNING");
        assert_eq!(&daemon.pids(id), pids);
    }
}

#[test]
fn down_ends_jobs_and_helpers_and_tells_attached_clients_how_their_jobs_ended() {
    let Some(daemon) = start() else { return };
    let runs: Vec<_> = (0..6)
        .map(|_| {
            let script = "echo begun; sleep 600";
            daemon
                .client()
                .args(["job", "run", "sh", "-c", script])
                .spawn()
        })
        .collect();
    wait_until(LONG, "all jobs run", || {
        let list = daemon.rnx(["job", "list", "--json", "--status", "RUNNING"]);
        let count = list.json().as_array().unwrap().len();
        Waiting::when(count == runs.len(), || format!("{count} run"))
    });
    let helpers = daemon.process().descendants();
    assert!(!helpers.is_empty());
    daemon.joblet(&["down"]).assert_code(0);
    for run in runs {
        let output = run.finish();
        assert_eq!(output.text(), "begun\n", "{output:?}");
        // SIGTERM ended the command.
        output.assert_code(143);
    }
    wait_until(SHORT, "helpers and jobs are gone", || {
        let alive: Vec<String> = helpers
            .iter()
            .filter(|p| p.is_alive())
            .map(|p| format!("{} {}", p.pid, p.name()))
            .collect();
        let leaves = daemon.all_leaves();
        Waiting::when(alive.is_empty() && leaves.is_empty(), || {
            format!("{alive:?} {leaves:?}")
        })
    });
}

#[test]
fn a_draining_daemon_admits_nothing_and_ends_with_its_last_job() {
    let Some(daemon) = start() else { return };
    let id = daemon.submit(
        &[],
        &[
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done",
        ],
    );
    daemon.wait_output(&id, "up");
    assert_eq!(daemon.terminate(), Some(0));
    daemon.serve_with(&["--drain"]);
    let run = daemon.job(["true"]);
    run.assert_code(125);
    assert!(run.stderr.contains("admits no jobs"), "{run:?}");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    assert_eq!(daemon.ends(), Some(0));
    daemon.serve();
    assert_eq!(daemon.status(&id)["outcome"]["reason"], "stopped");
}

#[test]
fn a_daemon_that_serves_is_told_to_drain_by_a_signal() {
    let Some(daemon) = start() else { return };
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    for _ in 0..2 {
        daemon.process().signal(Signal::SIGUSR2);
        wait_until(SHORT, "nothing is admitted", || {
            let run = daemon.job(["true"]);
            Waiting::when(run.stderr.contains("admits no jobs"), || format!("{run:?}"))
        });
    }
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    assert_eq!(daemon.ends(), Some(0));
}

#[test]
fn a_replaced_crew_ends_with_its_last_job() {
    let Some(daemon) = start() else { return };
    let ids = submit_many(&daemon, 12);
    let before = keepers(&daemon);
    for helper in before.iter().flat_map(|keeper| keeper.children()) {
        if is_helper(&daemon, helper) {
            helper.kill();
        }
    }
    wait_until(LONG, "every crew has been replaced", || {
        let now = keepers(&daemon);
        Waiting::when(now.len() == 2 * before.len(), || format!("{now:?}"))
    });
    for id in &ids {
        assert_eq!(daemon.state(id), "RUNNING");
        daemon.rnx(["job", "stop", id]).assert_code(0);
    }
    for id in &ids {
        assert_eq!(daemon.ended(id)["status"], "STOPPED");
    }
    wait_until(LONG, "the old keepers have ended and are reaped", || {
        let children = daemon.process().children();
        let left: Vec<_> = before.iter().filter(|p| children.contains(p)).collect();
        Waiting::when(left.is_empty(), || format!("{left:?}"))
    });
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn a_second_daemon_on_the_same_directory_is_refused() {
    let Some(daemon) = start() else { return };
    let second = daemon.joblet(&["serve"]);
    assert_ne!(second.code, 0, "{second:?}");
    assert!(second.stderr.contains("in use"), "{second:?}");
    daemon.job(["true"]).assert_code(0);
}

#[test]
fn init_twice_keeps_what_is_there() {
    let Some(daemon) = start() else { return };
    let read = || {
        ["instance", "joblet.yml", "client.yml"]
            .map(|name| std::fs::read(daemon.base.join(name)).unwrap())
    };
    let before = read();
    let config = daemon.config.to_str().unwrap().to_owned();
    daemon
        .joblet(&["init", "--client-config", &config])
        .assert_code(0);
    assert_eq!(read(), before);
    daemon.job(["true"]).assert_code(0);
}

fn start() -> Option<Daemon> {
    Host::Any.is_here().then(Daemon::start)
}

/// Starts `count` sleeping jobs, a few at a time; their ids once all of them run.
fn submit_many(daemon: &Daemon, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let some = (count - ids.len()).min(16);
        let running: Vec<_> = (0..some)
            .map(|_| {
                daemon
                    .client()
                    .args(["job", "run", "--json", "sleep", "600"])
                    .spawn()
            })
            .collect();
        for run in running {
            let output: Output = run.finish();
            output.assert_code(0);
            ids.push(output.json()["id"].as_str().unwrap().to_owned());
        }
    }
    wait_until(LONG, "all jobs run", || {
        let list = daemon
            .rnx([
                "job", "list", "--json", "--status", "RUNNING", "--limit", "1000",
            ])
            .json();
        let count = list.as_array().unwrap().len();
        Waiting::when(count >= ids.len(), || format!("{count} of {}", ids.len()))
    });
    daemon.remember();
    ids
}

/// The keepers of a daemon.
fn keepers(daemon: &Daemon) -> Vec<Process> {
    let own = daemon.process();
    let found: Vec<Process> = daemon
        .helpers(KEEPER)
        .into_iter()
        .filter(|p| p.parent() == Some(own))
        .collect();
    assert!(!found.is_empty(), "the daemon has no helper {KEEPER}");
    found
}

/// The spawners of a daemon.
fn spawners(daemon: &Daemon) -> Vec<Process> {
    let found = spawners_now(daemon);
    assert!(!found.is_empty(), "no keeper has a child {SPAWNER}");
    found
}

/// The same, of which there may be none while they are replaced.
fn spawners_now(daemon: &Daemon) -> Vec<Process> {
    keepers(daemon)
        .iter()
        .flat_map(|keeper| keeper.children())
        .filter(|process| process.short_name() == SPAWNER)
        .collect()
}

/// Whether a process is a helper and no job: helpers are in a cgroup of their own.
fn is_helper(daemon: &Daemon, process: Process) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap_or_default();
    text.contains(&format!("joblet-{}/helpers", daemon.instance))
}

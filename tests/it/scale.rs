//! Many jobs at once, and what they cost. No test here asserts a time.

use std::sync::Arc;
use std::time::Duration;

use proto_rkyv::{After, Reason, Reply, Request, State, Stop, StopSignal, Submit, encode};
use tokio::sync::Semaphore;

use crate::harness::{
    Client, Daemon, Host, Identity, LONG, Process, Waiting, Wire, block_on, daemon_memory, now,
    wait_until,
};

#[test]
fn two_thousand_jobs_from_64_requests_at_a_time_on_one_connection_all_complete() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    // The first ones make what stays.
    run_many(&daemon, 400);
    let process = daemon.process();
    let (_, memory) = settled(&daemon);
    let descriptors = process.descriptors_in_use();
    run_many(&daemon, 2_000);
    wait_until(LONG, "descriptors of the daemon are back", || {
        let now = process.descriptors_in_use();
        Waiting::when(now <= descriptors + 4, || {
            format!("{now} descriptors, {descriptors} before")
        })
    });
    // A finished job is remembered (2 KiB of it at most); everything else is given back.
    let allowed = memory + (2_000 * (2 << 10)) + (4 << 20);
    wait_until(LONG, "memory of the daemon is back", || {
        let now = daemon_memory(process.pid, "VmRSS");
        Waiting::when(now <= allowed, || format!("{now} bytes, {memory} before"))
    });
    wait_until(LONG, "no leaf is left", || {
        let leaves = daemon.all_leaves();
        Waiting::when(leaves.is_empty(), || format!("{} leaves", leaves.len()))
    });
}

#[test]
fn an_idle_job_costs_two_descriptors_and_little_memory() {
    if !Host::Any.is_here() {
        return;
    }
    let count: usize = std::env::var("JOBLET_TEST_IDLE_JOBS").map_or(300, |n| n.parse().unwrap());
    let daemon = Daemon::start();
    run_many(&daemon, 100);
    let process = daemon.process();
    let (_, memory) = settled(&daemon);
    let descriptors = process.descriptors_in_use();
    let (available, kernel) = (mem_available(), kernel_memory());
    block_on(async {
        let wire = Client::of(&Identity::read(&daemon.config))
            .connect(daemon.address)
            .await
            .unwrap();
        for _ in 0..count {
            let mut stream = wire
                .submit(
                    Submit {
                        after: After::Detach,
                        ..Submit::default()
                    },
                    &["sleep", "6000"],
                )
                .await;
            stream.send.finish().unwrap();
            let answer = stream.reply().await;
            assert!(matches!(answer, Some(Reply::Accepted { .. })), "{answer:?}");
        }
    });
    wait_until(LONG, "all jobs run", || {
        let flags = [
            "job", "list", "--json", "--status", "RUNNING", "--limit", "100000",
        ];
        let running = daemon.rnx(flags).json().as_array().unwrap().len();
        Waiting::when(running >= count, || format!("{running} of {count}"))
    });
    daemon.remember();
    wait_until(LONG, "the daemon holds two descriptors a job", || {
        let now = process.descriptors_in_use();
        Waiting::when(now <= descriptors + 2 * count + 8, || {
            format!("{now} descriptors, {descriptors} before")
        })
    });
    let count = u64::try_from(count).unwrap();
    let each = daemon_memory(process.pid, "VmRSS").saturating_sub(memory + (2 << 20)) / count;
    let host = available.saturating_sub(mem_available()) / count;
    let kernel = kernel_memory().saturating_sub(kernel) / count;
    eprintln!(
        "an idle job costs the daemon {each} bytes and the host {host} bytes of MemAvailable, {kernel} bytes \
         of them the kernel's own"
    );
    assert!(each <= 16 << 10, "{each} bytes of the daemon a job");
    // Other tests run beside this one: what the host pays is shown, and judged by the bench.

    let helpers: Vec<Process> = ["joblet-keeper", "joblet-spawner", "joblet-maker"]
        .into_iter()
        .flat_map(|name| daemon.helpers_by_short_name(name))
        .collect();
    assert!(helpers.len() >= 3, "{helpers:?}");
    let ticks = || -> u64 {
        helpers
            .iter()
            .chain([&process])
            .map(|p| p.cpu_ticks())
            .sum()
    };
    let (mut since, mut before) = (now(), ticks());
    let used = wait_until(LONG, "nobody uses the processor for a while", || {
        let used = ticks() - before;
        if used > IDLE_TICKS {
            // Something of the start was still to be done, or it never ends.
            (since, before) = (now(), ticks());
        } else if since.elapsed() >= IDLE_WATCHED {
            return Waiting::Done(used);
        }
        Waiting::Seen(format!("{used} ticks in {:?}", since.elapsed()))
    });
    eprintln!("daemon and helpers of {count} idle jobs used {used} ticks in {IDLE_WATCHED:?}");
}

/// How long the daemon of idle jobs is watched.
const IDLE_WATCHED: Duration = Duration::from_secs(4);
/// What it and its helpers may use of the processor in that time, hundredths of a second.
const IDLE_TICKS: u64 = 1;

/// Runs so many jobs of `true` from 64 requests at a time on one connection.
fn run_many(daemon: &Daemon, count: usize) {
    block_on(async {
        let wire = Client::of(&Identity::read(&daemon.config))
            .connect(daemon.address)
            .await
            .unwrap();
        let turns = Arc::new(Semaphore::new(64));
        let mut runs = Vec::new();
        for _ in 0..count {
            let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
            let wire = wire.clone();
            runs.push(tokio::spawn(async move {
                let job = wire.run(&["true"]).await;
                drop(turn);
                job
            }));
        }
        for run in runs {
            let job = run
                .await
                .unwrap()
                .unwrap_or_else(|refused| panic!("{refused:?}"));
            assert_eq!(job.state, State::Completed, "{job:?}");
        }
    });
}

/// Descriptors and memory of a daemon that has nothing to do: the same at two looks.
fn settled(daemon: &Daemon) -> (usize, u64) {
    let pid = daemon.process();
    let mut last = (0, 0);
    let mut same = 0;
    wait_until(LONG, "the daemon has settled", || {
        let now = (pid.descriptors(), daemon_memory(pid.pid, "VmRSS"));
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same >= 10 {
            Waiting::Done(now)
        } else {
            Waiting::Seen(format!("{now:?}"))
        }
    })
}

fn mem_available() -> u64 {
    meminfo("MemAvailable")
}

/// What the kernel holds itself: unlike all that is available it hardly moves with what else runs on the host.
fn kernel_memory() -> u64 {
    ["SUnreclaim", "Percpu", "KernelStack", "PageTables"]
        .into_iter()
        .map(meminfo)
        .sum()
}

/// One line of /proc/meminfo, bytes.
fn meminfo(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn a_thousand_jobs_that_are_stopped_time_out_and_exit_at_once_have_one_outcome_each() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let mut ends = block_on(async {
        let wire = Client::of(&Identity::read(&daemon.config))
            .connect(daemon.address)
            .await
            .unwrap();
        let turns = Arc::new(Semaphore::new(32));
        let mut runs = Vec::new();
        for number in 0..1_000_u64 {
            let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
            let wire = wire.clone();
            runs.push(tokio::spawn(async move {
                let end = race(&wire, number).await;
                drop(turn);
                end
            }));
        }
        let mut ends = Vec::new();
        for run in runs {
            ends.push(run.await.unwrap());
        }
        ends
    });
    ends.sort_unstable();
    let count = |wanted: &str| ends.iter().filter(|end| **end == wanted).count();
    eprintln!(
        "{} exited, {} stopped, {} timed out",
        count("exited"),
        count("stopped"),
        count("timeout")
    );
    assert_eq!(ends.len(), 1_000);
    wait_until(LONG, "no leaf is left", || {
        let leaves = daemon.all_leaves();
        Waiting::when(leaves.is_empty(), || format!("{} leaves", leaves.len()))
    });
}

/// Runs a job whose exit, timeout and stop come at about the same time; says which of them it was.
async fn race(wire: &Wire, number: u64) -> &'static str {
    let submit = Submit {
        timeout_ms: Some(20 + number % 20),
        grace_ms: Some(number % 3),
        after: After::Wait,
        ..Submit::default()
    };
    let mut job = wire.submit(submit, &["sleep", "0.03"]).await;
    job.send.finish().unwrap();
    let Some(Reply::Accepted { id, .. }) = job.reply().await else {
        panic!("job {number} was not accepted");
    };
    tokio::time::sleep(Duration::from_millis(number % 40)).await;
    let mut stop = wire.open().await;
    let request = Request::Stop(Stop {
        job: uuid::Uuid::from_bytes(id).to_string(),
        signal: StopSignal::Term,
    });
    stop.send
        .write_all(&encode(&request).unwrap())
        .await
        .unwrap();
    stop.send.finish().unwrap();
    assert!(matches!(stop.reply().await, Some(Reply::Done { .. })));
    let Some(Reply::Ended(end)) = job.reply().await else {
        panic!("job {number} did not end");
    };
    let outcome = end.outcome.as_ref().expect("an outcome");
    let last = end.transitions.last().expect("a state").state;
    assert_eq!(last, end.state);
    let ended = |state| {
        matches!(
            state,
            State::Completed | State::Failed | State::Stopped | State::Timeout | State::Canceled
        )
    };
    assert_eq!(end.transitions.iter().filter(|t| ended(t.state)).count(), 1);
    match (&outcome.reason, end.state) {
        (Reason::Exited, State::Completed) => "exited",
        (Reason::Stopped { .. }, State::Stopped) => "stopped",
        (Reason::Timeout, State::Timeout) => "timeout",
        other => panic!("job {number} ended as {other:?}"),
    }
}

//! Limits: each is tried by a job that wants more, and what came of it stands in its outcome.

use std::{fs, path::Path};

use serde_json::Value;

use crate::harness::{Daemon, Host, Shared, now};

static DAEMON: Shared = Shared::new();

/// A file of the host that every job sees and that is larger than what the tests read of it.
fn large_file() -> String {
    let files = fs::read_dir("/usr/bin").unwrap().flatten();
    let large = files.filter_map(|entry| {
        let meta = fs::metadata(entry.path()).ok()?;
        (meta.is_file() && meta.len() > 4 << 20).then(|| entry.path())
    });
    let path = large.min().expect("a program of 4 MiB in /usr/bin");
    path.to_str().unwrap().to_owned()
}

fn outcome<'a>(status: &'a Value, key: &str) -> &'a Value {
    &status["outcome"][key]
}

fn number(status: &Value, key: &str) -> f64 {
    outcome(status, key)
        .as_f64()
        .unwrap_or_else(|| panic!("no {key} in {status}"))
}

/// Two processes that want a core each for two seconds; prints the CPU time of both.
const SPIN: &str = "
import os, time
end = time.monotonic() + 2
child = os.fork()
while time.monotonic() < end: pass
if child:
    os.waitpid(child, 0)
    t = os.times()
    print(t.user + t.system + t.children_user + t.children_system)
";

#[test]
fn a_job_gets_no_more_cpu_time_than_its_share() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&["--max-cpu=50"], &["python3", "-c", SPIN]);
    let status = daemon.ended(&id);
    let seconds: f64 = daemon
        .rnx(["job", "log", &id])
        .text()
        .trim()
        .parse()
        .unwrap();
    let wall = number(&status, "wall_seconds");
    // A period that has begun may be used up after the clock was read.
    assert!(seconds < wall * 0.5 + 0.3, "{seconds} s in {wall} s");
    assert!(number(&status, "throttled_seconds") > 0.1, "{status}");
    let cpu = outcome(&status, "cpu_seconds");
    let counted = cpu["user"].as_f64().unwrap() + cpu["system"].as_f64().unwrap();
    assert!(counted >= seconds * 0.9, "{counted} counted of {seconds}");
}

#[test]
fn limits_larger_than_the_host_are_accepted() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let flags = ["job", "run", "--max-cpu=800", "--max-memory=16384", "true"];
    daemon.rnx(flags).assert_code(0);
    let flags = [
        "job",
        "run",
        "--max-cpu=10000",
        "--max-memory=1000000G",
        "true",
    ];
    daemon.rnx(flags).assert_code(0);
    let flags = [
        "job",
        "run",
        "--max-cpu=0",
        "--max-memory=0",
        "--max-pids=0",
        "true",
    ];
    daemon.rnx(flags).assert_code(0);
}

#[test]
fn memory_beyond_the_limit_ends_the_whole_job_and_nobody_else() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let neighbour = daemon.submit(&["--max-memory=64"], &["sleep", "600"]);
    // The shell would say that it survived if only its child were killed.
    let script = "python3 -c 'b = bytearray(200 << 20)'; echo survived $?; sleep 60";
    let id = daemon.submit(&["--max-memory=64"], &["sh", "-c", script]);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "FAILED", "{status}");
    assert_eq!(outcome(&status, "reason"), "out_of_memory", "{status}");
    assert!(number(&status, "oom_kills") >= 1.0, "{status}");
    let peak = number(&status, "memory_peak_bytes");
    assert!((32e6..=68e6).contains(&peak), "{status}");
    assert_eq!(daemon.status(&neighbour)["status"], "RUNNING");
    daemon.rnx(["job", "stop", &neighbour]).assert_code(0);
    assert_eq!(daemon.ended(&neighbour)["outcome"]["reason"], "stopped");
}

#[test]
fn files_in_memory_count_as_memory() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let fill = "head -c 60M /dev/zero > /dev/shm/a; head -c 60M /dev/zero > /tmp/a; sleep 60";
    let id = daemon.submit(&["--max-memory=64"], &["sh", "-c", fill]);
    let status = daemon.ended(&id);
    assert_eq!(outcome(&status, "reason"), "out_of_memory", "{status}");
}

#[test]
fn a_process_that_dies_by_itself_is_not_out_of_memory() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&["--max-memory=64"], &["sh", "-c", "kill -KILL $$"]);
    let status = daemon.ended(&id);
    assert_eq!(outcome(&status, "reason"), "signaled", "{status}");
    assert_eq!(outcome(&status, "signal"), 9, "{status}");
    assert_eq!(number(&status, "oom_kills"), 0.0, "{status}");
}

/// Bytes a second that `command`, which moves `bytes`, came to in a job with `--max-iobps=1M`.
fn rate(command: &str, bytes: f64) -> f64 {
    let daemon = DAEMON.get(Host::Any).unwrap();
    let flags = ["--max-iobps=1M", "--work-size=256M"];
    let id = daemon.submit(&flags, &["sh", "-c", command]);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "COMPLETED", "{status}");
    bytes / number(&status, "wall_seconds")
}

#[test]
fn synced_writes_and_direct_reads_keep_to_their_rate() {
    if DAEMON.get(Host::Any).is_none() {
        return;
    }
    let megabyte = f64::from(1 << 20);
    let written = rate(
        "dd if=/dev/zero of=/work/f bs=64k count=64 conv=fdatasync",
        4.0 * megabyte,
    );
    // The first bytes of a period go at once.
    assert!(written < 1.5 * megabyte, "{written}");
    let read = rate(
        &format!(
            "dd if={} of=/dev/null bs=64k count=64 iflag=direct",
            large_file()
        ),
        4.0 * megabyte,
    );
    assert!(read < 1.5 * megabyte, "{read}");
}

#[test]
fn buffered_writes_keep_to_their_rate() {
    if DAEMON.get(Host::V2).is_none() {
        return;
    }
    let megabyte = f64::from(1 << 20);
    // syncfs(2) has the kernel's own threads write: what they write is the job's all the same.
    let written = rate(
        "dd if=/dev/zero of=/work/f bs=64k count=64 && sync -f /work/f",
        4.0 * megabyte,
    );
    assert!(written < 1.5 * megabyte, "{written}");
}

#[test]
fn what_holds_partly_is_said_in_the_status() {
    let Some(daemon) = DAEMON.get(Host::Hybrid) else {
        return;
    };
    let id = daemon.submit(&["--max-iobps=1M"], &["true"]);
    let status = daemon.ended(&id);
    let caveats = status["caveats"].as_array().unwrap();
    assert_eq!(caveats.len(), 1, "{status}");
    assert!(
        caveats[0]["note"].as_str().unwrap().contains("buffered"),
        "{status}"
    );
    let id = daemon.submit(&["--max-memory=64"], &["true"]);
    assert_eq!(daemon.ended(&id)["caveats"].as_array().unwrap().len(), 0);
}

#[test]
fn a_fork_bomb_stays_within_its_number_and_others_start() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let alone = median_run_ms(&daemon);
    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 60";
    let flags = ["--max-pids=64", "--max-cpu=50", "--grace=0s"];
    let id = daemon.submit(&flags, &["bash", "-c", bomb]);
    for _ in 0..5 {
        daemon.job(["true"]).assert_code(0);
        assert!(daemon.pids(&id).len() <= 64);
    }
    let beside = median_run_ms(&daemon);
    // Shown, not judged: other tests run beside this one.
    eprintln!(
        "`rnx job run true` takes {beside:.1} ms beside a fork bomb and {alone:.1} ms without: {:.2} times",
        beside / alone
    );
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    let status = daemon.ended(&id);
    assert!(number(&status, "pids_peak") <= 64.0, "{status}");
    assert!(number(&status, "pids_refused") >= 1.0, "{status}");
}

#[test]
fn a_job_with_every_limit_starts_and_what_that_adds_is_told() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let limited = ["--max-cpu=50", "--max-memory=256", "--max-pids=64"];
    let mut micros = [Vec::new(), Vec::new()];
    for round in 0..62 {
        let flags = if round % 2 == 0 { &limited[..] } else { &[] };
        let run = daemon
            .client()
            .args(["job", "run", "--json", "--wait"])
            .args(flags)
            .arg("true")
            .run();
        run.assert_code(0);
        let start = run.json()["outcome"]["start_micros"].as_u64().unwrap();
        micros[round % 2].push(start);
    }
    let [with, without] = micros.map(|mut starts| {
        starts.sort_unstable();
        starts[starts.len() / 2]
    });
    // Shown, not judged: other tests run beside this one.
    eprintln!("start_micros, the median: {with} with limits, {without} without, in turn");
}

/// The median of a few whole `rnx job run true`, milliseconds.
fn median_run_ms(daemon: &Daemon) -> f64 {
    let mut times: Vec<_> = (0..21)
        .map(|_| {
            let begin = now();
            daemon.job(["true"]).assert_code(0);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

#[test]
fn a_job_that_asks_for_one_core_has_that_one_and_cannot_have_another() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "
import os
print(os.sched_getaffinity(0))
try: os.sched_setaffinity(0, {0})
except OSError as e: print(e.errno)
print(os.sched_getaffinity(0))
";
    let run = daemon.rnx(["job", "run", "--cpu-cores=1", "python3", "-c", script]);
    run.assert_code(0);
    // The kernel refuses a set that has no core in common with the job's.
    assert_eq!(run.text(), "{1}\n22\n{1}\n");
    let run = daemon.rnx(["job", "run", "--cpu-cores", "1", "nproc"]);
    assert_eq!(run.text(), "1\n");
    let run = daemon.rnx(["job", "run", "--cpu-cores=0-1", "nproc"]);
    assert_eq!(run.text(), "2\n");
}

#[test]
fn a_job_whose_time_is_over_is_gone_with_all_that_it_started() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "(setsid sh -c 'trap \"\" TERM; setsid sleep 60 & sleep 60' &); sleep 60";
    let flags = ["--timeout=1s", "--grace=1s"];
    let id = daemon.submit(&flags, &["sh", "-c", script]);
    let wait = daemon.rnx(["job", "wait", &id]);
    wait.assert_code(124);
    let status = daemon.ended(&id);
    assert_eq!(status["status"], "TIMEOUT", "{status}");
    assert_eq!(outcome(&status, "reason"), "timeout", "{status}");
    assert!(daemon.pids(&id).is_empty());
}

#[test]
fn requests_that_make_no_sense_are_refused_by_name() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for flag in [
        "--max-cpu=-1",
        "--max-cpu=10001",
        "--max-cpu=x",
        "--max-memory=-5",
        "--max-memory=5Q",
        "--max-memory=99999999999999999999",
        "--max-iobps=",
        "--max-iobps=1X",
        "--max-pids=-1",
        "--cpu-cores=",
        "--cpu-cores=3-1",
        "--cpu-cores=a",
    ] {
        let run = daemon.rnx(["job", "run", flag, "true"]);
        run.assert_code(2);
        assert!(run.stderr.contains("error:"), "{flag}: {run:?}");
    }
    for (flag, word) in [
        ("--cpu-cores=4095", "core 4095"),
        ("--max-memory=1", "6"),
        ("--max-iobps=1", "4096"),
    ] {
        let run = daemon.rnx(["job", "run", flag, "true"]);
        run.assert_code(2);
        assert!(run.stderr.contains(word), "{flag}: {run:?}");
    }
}

#[test]
fn a_cgroup_that_somebody_removed_changes_nothing_of_the_jobs_end() {
    let Some(daemon) = DAEMON.get(Host::Hybrid) else {
        return;
    };
    let id = daemon.submit(&[], &["sh", "-c", "sleep 60; exit 3"]);
    daemon.wait_state(&id, "RUNNING");
    let pids = daemon.pids(&id);
    let leaf = own_leaf("pids", pids[0].pid);
    let parent = Path::new(&leaf).parent().unwrap().to_owned();
    for pid in fs::read_to_string(format!("{leaf}/cgroup.procs"))
        .unwrap()
        .lines()
    {
        fs::write(parent.join("cgroup.procs"), pid).unwrap();
    }
    fs::remove_dir(&leaf).unwrap();
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    let status = daemon.ended(&id);
    assert_eq!(outcome(&status, "reason"), "stopped", "{status}");
}

/// The directory of a process in the hierarchy of version 1 with `controller`.
fn own_leaf(controller: &str, pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text
        .lines()
        .find_map(|line| line.split_once(&format!(":{controller}:")))
        .map(|(_, path)| path.to_owned());
    format!("/sys/fs/cgroup/{controller}{}", path.unwrap())
}

#[test]
fn the_doctor_tries_every_limit_and_every_wall_and_finds_them_standing() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx(["doctor", "--json"]);
    run.assert_code(0);
    let findings = run.json();
    let findings = findings.as_array().unwrap();
    for promise in [
        "max-cpu",
        "max-memory",
        "max-iobps",
        "max-pids",
        "cpu-cores",
        "timeout",
        "separate-namespaces",
        "no-capabilities",
        "read-only-system",
        "no-network",
        "filesystem-volumes",
        "memory-volumes",
    ] {
        let found = findings
            .iter()
            .find(|finding| finding["promise"] == promise);
        let found = found.unwrap_or_else(|| panic!("no {promise} in {findings:?}"));
        let partly = promise == "max-iobps" && Host::Hybrid.is_here();
        let expected = if partly { "partly" } else { "enforced" };
        assert_eq!(found["verdict"], expected, "{found}");
    }
    let left = daemon.rnx(["volume", "list"]).text();
    assert!(!left.contains("joblet-doctor-"), "{left}");
}

//! Limits as they are asked for: defaults, maxima, what is refused. Whether they hold is tested elsewhere.

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use serde_json::json;

use crate::harness::{Daemon, Host, Shared};

static DAEMON: Shared = Shared::new();

#[test]
fn a_job_shows_the_limits_it_asked_for_and_the_defaults_of_the_rest() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    // The highest one is never kept for the daemon.
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let core = (0..CpuSet::count()).rfind(|core| set.is_set(*core).unwrap());
    let core = core.unwrap();
    let core_text = core.to_string();
    let id = daemon.submit(&["--max-memory=512", "--cpu-cores", &core_text], &["true"]);
    let status = daemon.ended(&id);
    let expected = json!({
        "cpu_percent": null, "memory_bytes": 512 << 20, "io_bytes_per_second": null, "pids": 4_096,
        "cores": [core],
    });
    assert_eq!(status["limits"], expected, "{status}");
    for key in ["memory_peak_bytes", "pids_peak", "queued_seconds"] {
        assert!(status["outcome"].get(key).is_some(), "{key}: {status}");
    }
}

#[test]
fn what_no_host_can_give_is_refused_with_the_reason() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for (flag, words) in [
        ("--cpu-cores=9999", "there is no core 9999"),
        ("--cpu-cores=0-9999", "for jobs here"),
        ("--max-memory=5", "a memory limit of 5242880 bytes"),
        ("--max-iobps=4095", "an I/O limit of 4095 bytes a second"),
        ("--max-pids=1", "the job's init is one"),
        ("--max-cpu=10001", "10001"),
        ("--cpu-cores=3-1", "backwards"),
        ("--max-memory=lots", "no amount of memory"),
    ] {
        for detach in [&["-d"][..], &[]] {
            let words_given = [&["job", "run"], detach, &[flag, "true"]].concat();
            daemon.rnx(words_given).assert_refused(2, words);
        }
    }
    for flag in [
        "--max-cpu=0",
        "--max-memory=0",
        "--max-iobps=0",
        "--max-pids=0",
    ] {
        daemon.rnx(["job", "run", flag, "true"]).assert_code(0);
    }
}

#[test]
fn a_maximum_of_the_daemon_bounds_requests_and_defaults() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|config| {
        config.replace(
            "\njobs:\n",
            "\njobs:\n  max_pids: 100\n  max_memory: 1GB\n  default_memory: 2GB\n",
        )
    });
    let id = daemon.submit(&[], &["true"]);
    let limits = &daemon.ended(&id)["limits"];
    assert_eq!(
        (&limits["pids"], &limits["memory_bytes"]),
        (&json!(100), &json!(1 << 30))
    );
    let refused = |flag: &str, words: &str| {
        daemon
            .rnx(["job", "run", "-d", flag, "true"])
            .assert_refused(1, words);
    };
    refused("--max-pids=101", "above jobs.max_pids of this server, 100");
    refused("--max-pids=0", "jobs.max_pids is 100");
    refused("--max-memory=2G", "jobs.max_memory");
    daemon
        .rnx(["job", "run", "--max-pids=100", "true"])
        .assert_code(0);
}

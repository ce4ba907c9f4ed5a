//! The unit of `packaging/` below a real systemd: jobs outlive every end of `joblet serve`, and only that.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{
    Daemon, LONG, Output, Process, Running, SHORT, Waiting, joblet_binary, wait_until,
};

const UNIT: &str = include_str!("../../../packaging/joblet.service");
const UNIT_FILE: &str = "/etc/systemd/system/joblet.service";
/// What the unit starts.
const PROGRAM: &str = "/usr/local/bin/joblet";

/// Puts the daemon where `DelegateSubgroup=daemon` puts it since systemd 254. Once: an older one does not start the unit
/// again while it is divided.
const IN_A_SUBGROUP: &str = "[Service]
ExecStart=
ExecStart=/bin/sh -c 'cd /sys/fs/cgroup/system.slice/joblet.service && mkdir daemon && echo $$$$ >daemon/cgroup.procs && \
exec /usr/local/bin/joblet serve'
";

/// The daemon of the unit, started.
fn start() -> Daemon {
    start_with("")
}

/// The daemon of the unit with these changes, started.
fn start_with(changes: &str) -> Daemon {
    super::own_machine();
    let drop_in = Path::new("/run/systemd/system/joblet.service.d/changes.conf");
    fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    fs::write(drop_in, changes).unwrap();
    fs::create_dir_all("/usr/local/bin").unwrap();
    fs::copy(joblet_binary(), PROGRAM).unwrap();
    fs::write(UNIT_FILE, UNIT).unwrap();
    systemctl(&["daemon-reload"]).assert_code(0);
    // The disk of the system has less to spare than the reserve that a daemon keeps by default.
    let base = Path::new("/opt/joblet").to_owned();
    let daemon = Daemon::set_up(base, |config| {
        let mut value: Value = serde_saphyr::from_str(&config).unwrap();
        value["limits"] = json!({ "disk_reserve": "16MB" });
        // Every JSON document is a YAML document.
        value.to_string()
    });
    must(&["start", "joblet"]);
    daemon
}

fn systemctl(args: &[&str]) -> Output {
    let mut command = Command::new("systemctl");
    command.args(args);
    Running::start(command).finish()
}

/// A verb of systemctl that must succeed; else what the unit has said.
#[track_caller]
fn must(args: &[&str]) {
    let done = systemctl(args);
    if done.code != 0 {
        let mut journal = Command::new("journalctl");
        journal.args(["--no-pager", "--lines=80"]);
        let journal = Running::start(journal).finish();
        panic!("systemctl {args:?}: {done:?}\n{}", journal.text());
    }
}

/// A property of the unit.
fn property(name: &str) -> String {
    let shown = systemctl(&["show", "--property", name, "--value", "joblet"]);
    shown.text().trim().to_owned()
}

fn main_process() -> Process {
    let pid = property("MainPID").parse().unwrap();
    Process::of(pid).expect("the unit has a main process")
}

/// Waits until the unit is in this state.
#[track_caller]
fn is(state: &str) {
    wait_until(SHORT, &format!("the unit is {state}"), || {
        let seen = property("ActiveState");
        Waiting::when(seen == state, || format!("{seen} {}", property("Result")))
    });
}

/// A memory limit ends a job, and a processor limit slows one down.
#[track_caller]
fn limits_hold(daemon: &Daemon) {
    let hungry = daemon.submit(
        &["--max-memory=64"],
        &["python3", "-c", "print(len(bytearray(200 << 20)))"],
    );
    let status = daemon.ended(&hungry);
    assert_eq!(status["outcome"]["reason"], "out_of_memory", "{status}");
    let busy = daemon.submit(
        &["--max-cpu=20"],
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done",
        ],
    );
    let status = daemon.ended(&busy);
    assert_eq!(status["status"], "COMPLETED", "{status}");
    let throttled = status["outcome"]["throttled_seconds"].as_f64().unwrap();
    assert!(throttled > 0.0, "{status}");
}

#[test]
fn a_start_waits_until_it_is_ready_and_limits_hold_below_it() {
    let daemon = start();
    assert_eq!(property("ActiveState"), "active");
    assert_eq!(daemon.sh("echo at once"), "at once\n");
    let doctor = daemon.rnx(["doctor", "--json"]);
    doctor.assert_code(0);
    for finding in doctor.json().as_array().unwrap() {
        assert_eq!(finding["verdict"], "enforced", "{finding}");
    }
}

#[test]
fn jobs_of_a_daemon_in_a_subgroup_live_in_the_unit_with_their_limits() {
    let daemon = start_with(IN_A_SUBGROUP);
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    let leaf = daemon.leaves(&id);
    assert!(
        leaf[0].starts_with("/sys/fs/cgroup/system.slice/joblet.service"),
        "{leaf:?}"
    );
    limits_hold(&daemon);
}

#[test]
fn a_job_and_its_client_outlive_restart_kill_and_stop_of_the_unit() {
    let daemon = start();
    let script = "i=0; while [ ! -e /tmp/enough ]; do i=$((i+1)); echo $i; \
                  [ $((i % 50)) -ne 0 ] || sleep 0.1; done; echo last; exit 7";
    let attached = daemon
        .client()
        .args(["job", "run", "--name=attached", "--", "sh", "-c", script])
        .spawn();
    let id = wait_until(SHORT, "the job runs", || {
        let jobs = daemon.rnx(["job", "list", "--json", "--status=RUNNING"]);
        match jobs.json()[0]["id"].as_str() {
            Some(id) => Waiting::Done(id.to_owned()),
            None => Waiting::Seen(jobs.text()),
        }
    });
    daemon.wait_output(&id, "100\n");
    // Init and the command; what that runs comes and goes.
    let members = daemon.pids(&id)[..2].to_vec();
    let goes_on = |what: &str| {
        daemon.wait_state(&id, "RUNNING");
        assert_eq!(daemon.pids(&id)[..2], members, "after {what}");
        let lines = |text: String| text.lines().count();
        let before = lines(daemon.rnx(["job", "log", "--no-follow", &id]).text());
        wait_until(SHORT, "it goes on", || {
            let now = lines(daemon.rnx(["job", "log", "--no-follow", &id]).text());
            Waiting::when(now > before, || format!("{now} lines after {what}"))
        });
    };

    let first = main_process();
    must(&["restart", "joblet"]);
    assert_ne!(main_process(), first);
    goes_on("a restart");
    limits_hold(&daemon);

    let second = main_process();
    second.kill();
    wait_until(LONG, "systemd starts another one", || {
        let (state, pid) = (property("ActiveState"), property("MainPID"));
        let is_new = state == "active" && pid != second.pid.to_string();
        Waiting::when(is_new, || format!("{state} {pid}"))
    });
    goes_on("SIGKILL");

    must(&["stop", "joblet"]);
    is("inactive");
    assert!(members.iter().all(|process| process.is_alive()));
    must(&["start", "joblet"]);
    goes_on("a stop and a start");

    let root = format!("/proc/{}/root/tmp/enough", members[1].pid);
    fs::write(root, "").unwrap();
    let done = attached.finish();
    done.assert_code(7);
    let text = done.text();
    let (numbers, last) = text.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(last, "last");
    let expected = (1..=numbers.lines().count()).map(|n| n.to_string());
    assert!(numbers.lines().eq(expected), "{text}");
}

#[test]
fn a_drain_admits_nothing_and_the_unit_ends_with_the_last_job() {
    let daemon = start();
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    must(&["kill", "--kill-whom=main", "--signal=SIGUSR2", "joblet"]);
    wait_until(SHORT, "nothing is admitted", || {
        let run = daemon.job(["true"]);
        Waiting::when(run.code == 125, || format!("{run:?}"))
    });
    assert_eq!(daemon.state(&id), "RUNNING");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    is("inactive");
    assert_eq!(property("Result"), "success");
    assert_eq!(property("NRestarts"), "0");
    must(&["start", "joblet"]);
    assert_eq!(daemon.state(&id), "STOPPED");
}

#[test]
fn down_ends_everything_and_the_unit_stays_down() {
    let daemon = start();
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    let members = daemon.pids(&id);
    daemon.joblet(&["down"]).assert_code(0);
    is("inactive");
    assert!(members.iter().all(|process| !process.is_alive()));
    assert_eq!(property("Result"), "success");
    assert_eq!(property("NRestarts"), "0");
    must(&["start", "joblet"]);
    let status = daemon.status(&id);
    assert_eq!(status["outcome"]["reason"], "daemon_down", "{status}");
}

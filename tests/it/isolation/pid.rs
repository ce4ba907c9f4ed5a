//! A job sees its own processes only.

use super::DAEMON;
use crate::harness::{Host, Process, all_processes};

#[test]
fn proc_lists_the_processes_of_the_job_and_no_other() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let other = daemon.submit(&[], &["sleep", "601"]);
    daemon.wait_state(&other, "RUNNING");
    let listed =
        daemon.sh("ls /proc | grep -E '^[0-9]+$' | wc -l; cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    let (count, names) = listed.split_once('\n').unwrap();
    // init, the shell, and at most the three of the pipeline.
    assert!(count.trim().parse::<u32>().unwrap() <= 5, "{listed}");
    assert!(
        !names.contains("601") && !names.contains("joblet serve"),
        "{listed}"
    );
    daemon.rnx(["job", "stop", &other]).assert_code(0);
    daemon.ended(&other);
}

#[test]
fn the_command_is_in_a_pid_namespace_of_its_own() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let inside = daemon.sh("readlink /proc/self/ns/pid /proc/self/ns/pid_for_children; echo $$");
    let host = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let lines: Vec<&str> = inside.lines().collect();
    assert_eq!(lines[0], lines[1], "{inside}");
    assert_ne!(lines[0], host.to_str().unwrap(), "{inside}");
    assert!(lines[2].parse::<u32>().unwrap() < 10, "{inside}");
}

#[test]
fn two_jobs_share_no_namespace() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
    let (one, two) = (daemon.sh(script), daemon.sh(script));
    let host: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .iter()
        .map(|name| {
            std::fs::read_link(format!("/proc/self/ns/{name}"))
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    for (line, of_host) in one.lines().chain(two.lines()).zip(host.iter().cycle()) {
        assert_ne!(line, of_host, "a namespace of the host");
    }
    // An inode number may be used again after the first job's end, so this only holds while both live.
    let ids: Vec<String> = (0..2)
        .map(|_| daemon.submit(&[], &["sh", "-c", &format!("{script}; sleep 600")]))
        .collect();
    for id in &ids {
        daemon.wait_output(id, "uts:");
    }
    let seen: Vec<String> = ids
        .iter()
        .map(|id| daemon.rnx(["job", "log", "--no-follow", id]).text())
        .collect();
    for (a, b) in seen[0].lines().zip(seen[1].lines()) {
        assert_ne!(a, b);
    }
    for id in &ids {
        daemon.rnx(["job", "stop", id]).assert_code(0);
        daemon.ended(id);
    }
}

#[test]
fn orphans_are_reaped_and_leave_no_zombie() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "for i in 1 2 3 4 5; do sh -c 'true & true &'; done; sleep 0.3; \
                  grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    assert_eq!(daemon.sh(script).trim(), "0");
}

#[test]
fn a_job_has_ended_when_none_of_its_processes_is_left() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let name = format!("left{}", std::process::id());
    // One with much memory takes a while to die.
    let script = format!(
        "mkfifo up; perl -e '$0 = \"{name}\"; $much = \"x\" x 1e8; open UP, \">up\"; close UP; sleep 600' & \
         cat up"
    );
    for _ in 0..5 {
        daemon.sh(&script);
        let left = all_processes().into_iter().filter_map(Process::of);
        let left: Vec<_> = left.filter(|one| one.short_name() == name).collect();
        assert_eq!(left, []);
    }
}

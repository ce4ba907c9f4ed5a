//! A job is in a cgroup of its own from before its first instruction until its last process is gone.

use std::fs;

use super::DAEMON;
use crate::harness::{Host, SHORT, Waiting, wait_until};

#[test]
fn every_process_of_a_job_is_in_its_own_leaf_and_the_leaf_ends_with_it() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["sh", "-c", "sleep 600 & sleep 600"]);
    daemon.wait_state(&id, "RUNNING");
    wait_until(
        SHORT,
        "init, the shell and two sleeps are in the leaf",
        || {
            let pids = daemon.pids(&id);
            Waiting::when(pids.len() == 4, || format!("{pids:?}"))
        },
    );
    let leaves = daemon.leaves(&id);
    assert!(!leaves.is_empty());
    for process in daemon.pids(&id) {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap();
        let unified = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .unwrap();
        assert!(
            unified.ends_with(&format!("joblet-{}/{id}", daemon.instance)),
            "{text}"
        );
    }
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
    wait_until(SHORT, "the leaf is gone", || {
        let leaves = daemon.leaves(&id);
        Waiting::when(leaves.is_empty(), || format!("{leaves:?}"))
    });
}

#[test]
fn a_job_sees_itself_at_the_root_of_the_cgroup_tree() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let text = daemon.sh("cat /proc/self/cgroup");
    let unified = text.lines().find(|line| line.starts_with("0::")).unwrap();
    assert_eq!(unified, "0::/", "{text}");
    assert!(!text.contains(&daemon.instance), "{text}");
}

//! What execve(2) and fork(2) hand on is the plan's, never the daemon's.

use super::DAEMON;
use crate::harness::Host;

#[test]
fn the_environment_is_the_promised_one() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx(["job", "run", "--env", "MINE=1", "env"]);
    run.assert_code(0);
    let text = run.text();
    let mut names: Vec<&str> = text
        .lines()
        .map(|line| line.split_once('=').unwrap().0)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["HOME", "JOB_ID", "LANG", "MINE", "PATH", "PWD", "USER"],
        "{text}"
    );
    for line in [
        "HOME=/work",
        "LANG=C.UTF-8",
        "PWD=/work",
        "USER=job",
        "MINE=1",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("JOB_ID="))
        .unwrap();
    assert_eq!(id.len(), 36, "{text}");
    assert_eq!(daemon.status(id)["id"], id);
}

#[test]
fn a_user_may_replace_every_variable() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let run = daemon.rnx([
        "job",
        "run",
        "-e",
        "HOME=/tmp",
        "-e",
        "LANG=C",
        "sh",
        "-c",
        "echo $HOME $LANG",
    ]);
    assert_eq!(run.text(), "/tmp C\n");
}

#[test]
fn umask_session_signals_and_personality_are_set() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let status = daemon.sh(
        "umask; cat /proc/self/status; cat /proc/self/personality; cut -d' ' -f6 /proc/self/stat",
    );
    assert!(status.starts_with("0022\n"), "{status}");
    let value = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    for set in ["SigBlk:", "SigIgn:", "SigPnd:", "ShdPnd:"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    let mut last = status.lines().rev();
    let session: u32 = last.next().unwrap().parse().unwrap();
    assert!(session > 0, "a session of the job's own pid namespace");
    assert_eq!(last.next().unwrap(), "00000000", "personality");
}

#[test]
fn the_job_is_a_likelier_victim_of_the_oom_killer_than_the_daemon() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let inside: i32 = daemon
        .sh("cat /proc/self/oom_score_adj")
        .trim()
        .parse()
        .unwrap();
    let path = format!("/proc/{}/oom_score_adj", daemon.process().pid);
    let of_daemon: i32 = std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        inside > of_daemon,
        "{inside} in the job, {of_daemon} of the daemon"
    );
}

#[test]
fn resource_limits_do_not_come_from_the_daemon() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let text = daemon.sh("cat /proc/self/limits");
    let soft = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        soft("Max core file size"),
        "0",
        "a dump would be written by the host"
    );
    assert_eq!(soft("Max cpu time"), "unlimited");
    let files: u64 = soft("Max open files").parse().unwrap();
    assert!(files >= 1024, "{files} descriptors");
}

#[test]
fn the_session_keyring_is_fresh() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    // A key of uid 0 on the host would show up here with its permissions.
    let keys = daemon.sh("cat /proc/keys 2>/dev/null | wc -l");
    assert!(keys.trim().parse::<u32>().unwrap() <= 2, "{keys}");
}

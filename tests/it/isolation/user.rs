//! A job is nobody on the host and holds no privilege inside, whatever its uid.

use std::fs;

use super::DAEMON;
use crate::harness::Host;

#[test]
fn every_capability_set_of_every_process_of_the_command_is_empty() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for user in ["1000", "0", "65534"] {
        let script = "sh -c 'grep -E \"^(Cap|NoNewPrivs)\" /proc/self/status'; grep -E '^(Cap|NoNewPrivs)' /proc/$$/status";
        let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", script]);
        run.assert_code(0);
        let text = run.text();
        assert_eq!(text.lines().count(), 12, "{text}");
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap();
            let expected = if name == "NoNewPrivs" {
                "1"
            } else {
                "0000000000000000"
            };
            assert_eq!(value.trim(), expected, "uid {user}: {line}");
        }
    }
}

#[test]
fn ids_are_the_jobs_own_range_on_the_host() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let ids: Vec<String> = (0..2)
        .map(|_| daemon.submit(&["--user", "0"], &["sleep", "600"]))
        .collect();
    let mut bases = Vec::new();
    for id in &ids {
        daemon.wait_state(id, "RUNNING");
        let pids = daemon.pids(id);
        let map = fs::read_to_string(format!("/proc/{}/uid_map", pids[1].pid)).unwrap();
        let fields: Vec<u64> = map.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert_eq!(
            (fields[0], fields[2], fields.len()),
            (0, 65_536, 3),
            "{map}"
        );
        assert!(fields[1] >= 65_536, "a range of the host: {map}");
        let status = fs::read_to_string(format!("/proc/{}/status", pids[1].pid)).unwrap();
        let uids = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .unwrap();
        assert!(
            uids.split_whitespace()
                .all(|uid| uid.parse::<u64>().unwrap() == fields[1]),
            "{uids}"
        );
        bases.push(fields[1]);
    }
    assert_ne!(bases[0], bases[1], "two jobs share ids");
    for id in &ids {
        daemon.rnx(["job", "stop", id]).assert_code(0);
        daemon.ended(id);
    }
}

#[test]
fn no_further_user_namespace_can_be_made() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "unshare -U true 2>/dev/null && exit 1; \
                  (echo 10 > /proc/sys/user/max_user_namespaces) 2>/dev/null && exit 1; \
                  cat /proc/sys/user/max_user_namespaces";
    assert_eq!(daemon.sh(script), "0\n");
    let run = daemon.rnx(["job", "run", "--user", "0", "sh", "-c", script]);
    run.assert_code(0);
}

#[test]
fn a_setuid_program_gives_nothing() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let script = "cp /usr/bin/id /work/id && chmod 4755 /work/id && /work/id -u";
    assert_eq!(daemon.sh(script), "1000\n");
    assert_ne!(daemon.job(["su", "-c", "true"]).code, 0);
}

#[test]
fn a_job_cannot_change_who_it_is() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for user in ["1000", "0"] {
        for attempt in [
            "setpriv --reuid 65534 --clear-groups true",
            "setpriv --reuid 1 true",
            "chown 5 /work",
        ] {
            // setpriv exits with 127 when it is refused, so whether it is there is asked apart.
            let script = format!(
                "command -v {} >/dev/null || exit 60; if {attempt}; then exit 61; fi; echo refused",
                attempt.split(' ').next().unwrap()
            );
            let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", &script]);
            run.assert_code(0);
            assert_eq!(run.text(), "refused\n", "{attempt} as {user}: {run:?}");
        }
    }
}

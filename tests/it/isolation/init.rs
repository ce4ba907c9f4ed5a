//! PID 1 of a job is ours: the job cannot signal, trace, limit, re-pin or look into it.

use super::{DAEMON, syscall_number};
use crate::harness::Host;

/// Runs `attempt` against PID 1 as uid 1000 and as uid 0 of the job: it must fail, and the job must go on.
#[track_caller]
fn refused(attempt: &str) {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for user in ["1000", "0"] {
        let script =
            format!("if {{ {attempt}; }} >/dev/null; then echo allowed; exit 1; fi; echo refused");
        let run = daemon.rnx(["job", "run", "--user", user, "sh", "-c", &script]);
        run.assert_code(0);
        assert_eq!(run.text(), "refused\n", "{attempt} as {user}: {run:?}");
    }
}

#[test]
fn it_cannot_be_signalled() {
    for signal in ["TERM", "KILL", "STOP", "INT", "USR1", "SEGV", "0"] {
        refused(&format!("kill -{signal} 1"));
    }
}

#[test]
fn it_cannot_be_traced() {
    // PTRACE_ATTACH is 16, PTRACE_SEIZE 0x4206.
    let number = syscall_number(101, 117);
    for request in [16, 0x4206] {
        refused(&format!(
            "perl -e 'exit(syscall({number}, {request}, 1, 0, 0) == 0 ? 0 : 1)'"
        ));
    }
}

#[test]
fn it_cannot_be_limited() {
    refused("prlimit --pid 1 --cpu=1:1");
    refused("prlimit --pid 1 --nofile=3:3");
    refused("renice -n 19 -p 1");
}

#[test]
fn it_cannot_be_pinned() {
    refused("taskset -p 1 1");
    refused("chrt -i -p 0 1");
}

#[test]
fn it_cannot_be_looked_into() {
    for entry in ["fd", "map_files", "ns"] {
        refused(&format!(
            "test -n \"$(ls -l /proc/1/{entry} 2>/dev/null | grep -- '->')\""
        ));
    }
    for entry in ["environ", "maps", "mem", "auxv", "syscall", "stack"] {
        refused(&format!(
            "test -n \"$(head -c 1 /proc/1/{entry} 2>/dev/null | od -An -tx1)\""
        ));
    }
    for link in ["exe", "root", "cwd"] {
        refused(&format!("readlink /proc/1/{link}"));
    }
    // process_vm_readv is 310 on x86-64 and 270 on arm64.
    let number = syscall_number(310, 270);
    let script = r#"my $b = "x" x 8; my $l = pack("PQ", $b, 8); my $r = pack("QQ", 0x400000, 8); "#;
    refused(&format!(
        "perl -e '{script}exit(syscall({number}, 1, $l, 1, $r, 1, 0) > 0 ? 0 : 1)'"
    ));
}

#[test]
fn its_own_rights_are_the_four_it_needs() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let id = daemon.submit(&[], &["sleep", "600"]);
    daemon.wait_state(&id, "RUNNING");
    let init = daemon.pids(&id)[0];
    let status = std::fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    let value = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    // CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7, CAP_SETPCAP 8.
    assert_eq!(value("CapEff:"), "00000000000001e0");
    assert_eq!(value("CapPrm:"), "00000000000001e0");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
}

//! System V IPC and POSIX queues end at the job's border.

use std::process::Command;

use super::DAEMON;
use crate::harness::Host;

#[test]
fn objects_of_the_host_are_out_of_sight_and_those_of_a_job_die_with_it() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let made = Command::new("ipcmk").args(["--queue"]).output().unwrap();
    assert!(made.status.success());
    let text = String::from_utf8(made.stdout).unwrap();
    let id = text.rsplit(' ').next().unwrap().trim().to_owned();
    let seen = daemon.sh("tail -n +2 /proc/sysvipc/msg | wc -l; ipcmk -Q > /dev/null; tail -n +2 /proc/sysvipc/msg | wc -l");
    let removed = Command::new("ipcrm")
        .args(["--queue-id", &id])
        .status()
        .unwrap();
    assert!(removed.success());
    assert_eq!(seen, "0\n1\n");
    assert_eq!(daemon.sh("tail -n +2 /proc/sysvipc/msg | wc -l"), "0\n");
}

#[test]
fn shared_memory_files_are_private() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    daemon.sh("echo x > /dev/shm/joblet-it");
    assert_eq!(daemon.sh("ls -A /dev/shm | wc -l"), "0\n");
    assert!(!std::path::Path::new("/dev/shm/joblet-it").exists());
}

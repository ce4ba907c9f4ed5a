//! A small disk below the base directory: output keeps its hands off the reserve, and a full one hurts nobody.

use crate::harness::{
    Daemon, Filler, Host, SHORT, Waiting, free, on_a_disk_of, wait_until, with_reserve,
};

const DISK: u64 = 48 << 20;
const RESERVE: u64 = 16 << 20;
/// What the daemon itself may write to the disk besides output: its journal and indexes.
const OWN: u64 = 1 << 20;

#[test]
fn output_stops_before_the_reserve_and_goes_on_when_there_is_space() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let filler = Filler::of(disk, 8 << 20);
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, RESERVE));
        let before = free(disk);
        let more = before + (4 << 20);
        let script = format!("head -c {more} /dev/zero; echo still here >&2");
        let id = daemon.submit(&[], &["sh", "-c", &script]);
        let status = daemon.ended(&id);
        assert_eq!(status["status"], "COMPLETED", "{status}");
        let count = |name: &str| status["log"][name].as_u64().unwrap();
        let stored = count("stdout_bytes") + count("stderr_bytes");
        assert_eq!(stored + count("dropped_bytes"), more + 11, "{status}");
        let room = before - RESERVE;
        assert!(
            stored <= room && stored >= room / 2,
            "{stored} bytes stored where there was room for {room}: {status}"
        );
        assert!(
            free(disk) + OWN >= RESERVE,
            "{} bytes are left of the reserve",
            free(disk)
        );
        let log = daemon.rnx(["job", "log", "--stream=stdout", &id]);
        log.assert_code(0);
        assert_eq!(
            u64::try_from(log.stdout.len()).unwrap(),
            count("stdout_bytes")
        );
        drop(filler);
        let filler = Filler::of(disk, free(disk) - RESERVE / 2);
        refused(&daemon);

        drop(filler);
        wait_until(SHORT, "output is stored again", || {
            let run = daemon.job(["echo", "back"]);
            Waiting::when(run.code == 0 && run.text() == "back\n", || {
                format!("{run:?}")
            })
        });
    });
}

#[test]
fn a_full_disk_ends_in_a_clear_word_and_the_daemon_goes_on() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        let [sleeper, stopped] = [(); 2].map(|()| daemon.submit(&[], &["sleep", "600"]));
        for id in [&sleeper, &stopped] {
            daemon.wait_state(id, "RUNNING");
        }
        let filler = Filler::of(disk, DISK);
        assert_eq!(free(disk), 0);
        refused(&daemon);
        assert_eq!(daemon.state(&sleeper), "RUNNING");
        daemon.rnx(["job", "stop", &stopped]).assert_code(0);
        assert_eq!(daemon.ended(&stopped)["status"], "STOPPED");
        drop(filler);
        wait_until(SHORT, "a job and its output are as ever", || {
            let run = daemon.job(["sh", "-c", "echo out; exit 3"]);
            Waiting::when(run.code == 3 && run.text() == "out\n", || {
                format!("{run:?}")
            })
        });
        assert_eq!(daemon.state(&sleeper), "RUNNING");
        daemon.rnx(["job", "stop", &sleeper]).assert_code(0);
        assert_eq!(daemon.ended(&sleeper)["status"], "STOPPED");
        // What could not be written down then was written later.
        assert_eq!(daemon.terminate(), Some(0));
        daemon.serve();
        for id in [&sleeper, &stopped] {
            assert_eq!(daemon.status(id)["outcome"]["reason"], "stopped");
        }
    });
}

/// A submit is refused with a word about the disk, and leaves no job.
fn refused(daemon: &Daemon) {
    let count = || {
        let list = daemon.rnx(["job", "list", "--json"]).json();
        list.as_array().unwrap().len()
    };
    let before = count();
    let run = daemon.job(["true"]);
    run.assert_code(125);
    assert!(run.stderr.contains("disk"), "{run:?}");
    assert_eq!(count(), before);
}

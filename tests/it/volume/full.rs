//! Volumes on a host whose disk is nearly full: who may take space stands still, and nothing is lost.

use nix::mount::{MsFlags, mount};

use crate::harness::{
    Daemon, Filler, Host, LONG, SHORT, Waiting, free, on_a_disk_of, wait_until, with_reserve,
};

const DISK: u64 = 192 << 20;
const RESERVE: u64 = 96 << 20;

#[test]
fn below_the_reserve_who_may_take_space_stands_still_until_there_is_some() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, limit);
        daemon.create("data", "1GB");
        daemon.create("cache", "1GB");
        // A little at a time, so that what it has written is on the disk when it is looked at.
        let script = "n=0; while n=$((n+1)); do \
                      dd if=/dev/zero of=/volumes/data/f$n bs=64k count=4 conv=fsync status=none || exit 3; \
                      echo $n; done";
        let writers: Vec<String> = (0..2)
            .map(|_| daemon.submit(&["--volume", "data"], &["sh", "-c", script]))
            .collect();
        let reader = daemon.submit(&["--volume", "data:ro"], &["sleep", "600"]);
        let stranger = daemon.submit(&[], &["sleep", "600"]);
        for id in &writers {
            wait_until(LONG, "it stands still and says why", || {
                let status = daemon.status(id);
                let why = status["waits_for"].as_str().unwrap_or_default();
                match status["status"].as_str() {
                    Some("RUNNING" | "INITIALIZING") => {
                        Waiting::when(why.contains("frozen"), || status.to_string())
                    }
                    _ => Waiting::Never(status.to_string()),
                }
            });
        }
        for id in [&reader, &stranger] {
            let status = daemon.status(id);
            assert!(status["waits_for"].is_null(), "{status}");
        }
        assert!(free(disk) > 0);
        let filler = Filler::until(disk, RESERVE / 2);
        // The daemon looks at the disk now and then.
        wait_until(SHORT, "no job is admitted", || {
            let refused = daemon.with("data", "true");
            Waiting::when(refused.stderr.contains("disk"), || format!("{refused:?}"))
        });
        let refused = daemon.rnx(["volume", "create", "more", "--size=1MB"]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("disk"), "{refused:?}");
        drop(filler);
        // The next daemon finds them as they are.
        daemon.kill();
        daemon.serve();
        wait_until(SHORT, "it still stands still", || {
            let status = daemon.status(&writers[0]);
            let why = status["waits_for"].as_str().unwrap_or_default();
            Waiting::when(why.contains("frozen"), || status.to_string())
        });
        // Who stands still can be stopped.
        daemon.rnx(["job", "stop", &writers[0]]).assert_code(0);
        assert_eq!(daemon.ended(&writers[0])["status"], "STOPPED");

        let before = daemon.with_log(&writers[1]);
        mount(
            None::<&str>,
            disk,
            None::<&str>,
            MsFlags::MS_REMOUNT,
            Some("size=512M"),
        )
        .unwrap();
        wait_until(LONG, "it goes on", || {
            let status = daemon.status(&writers[1]);
            let lines = daemon.with_log(&writers[1]);
            let goes_on = status["waits_for"].is_null() && lines > before;
            Waiting::when(goes_on, || format!("{lines} lines, {status}"))
        });
        for id in [&writers[1], &reader, &stranger] {
            daemon.rnx(["job", "stop", id]).assert_code(0);
            assert_eq!(daemon.ended(id)["status"], "STOPPED");
        }
        assert!(daemon.volume("data")["damage"].is_null());
        for name in ["data", "cache"] {
            daemon.remove(name).assert_code(0);
        }
    });
}

#[test]
fn a_frozen_job_can_be_killed_and_its_time_goes_on() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, limit);
        daemon.create("data", "1GB");
        let stubborn = "trap '' TERM; echo up; while :; do sleep 1; done";
        let [timed, killed] = [["--timeout", "10s"], ["--grace", "100ms"]].map(|flags| {
            let flags = [&["--volume", "data"], &flags[..]].concat();
            daemon.submit(&flags, &["sh", "-c", stubborn])
        });
        for id in [&timed, &killed] {
            daemon.wait_output(id, "up");
        }
        let filler = Filler::until(disk, RESERVE / 2);
        for id in [&timed, &killed] {
            wait_until(SHORT, "it stands still", || {
                let status = daemon.status(id);
                let why = status["waits_for"].as_str().unwrap_or_default();
                Waiting::when(why.contains("frozen"), || status.to_string())
            });
        }
        daemon.rnx(["job", "stop", &killed]).assert_code(0);
        assert_eq!(daemon.ended(&killed)["status"], "STOPPED");
        assert_eq!(daemon.ended(&timed)["status"], "TIMEOUT");
        drop(filler);
        wait_until(SHORT, "jobs are admitted again", || {
            let run = daemon.with("data", "ls -A /volumes/data");
            Waiting::when(run.code == 0 && run.text().is_empty(), || {
                format!("{run:?}")
            })
        });
    });
}

#[test]
fn without_a_reserve_a_full_disk_costs_what_was_not_synced_and_no_more() {
    if !Host::Any.is_here() {
        return;
    }
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        for name in ["data", "other"] {
            daemon.create(name, "1GB");
            let script = format!("echo kept > /volumes/{name}/x; sync /volumes/{name}/x");
            daemon.with(name, &script).ok();
        }
        let filler = Filler::until(disk, 16 << 20);
        // What is told of it depends on which write the disk refuses; that one is refused is certain.
        let fill = "exec dd if=/dev/zero of=/volumes/data/fill bs=1M count=64 conv=fsync";
        let filled = daemon.with("data", fill);
        assert_ne!(filled.code, 0, "{filled:?}");
        drop(filler);
        let script = |name: &str| {
            format!("set -e; cd /volumes/{name}; rm -f fill; echo more > y; sync y; cat x")
        };
        // It is checked before the next job has it, or before the one after that when only that finds that it has
        // failed.
        wait_until(SHORT, "it is whole again", || {
            let run = daemon.with("data", &script("data"));
            Waiting::when(run.code == 0 && run.text() == "kept\n", || {
                format!("{run:?}")
            })
        });
        assert_eq!(daemon.with("other", &script("other")).ok(), "kept\n");
        for name in ["data", "other"] {
            let damage = daemon.volume(name)["damage"].clone();
            assert!(damage.is_null(), "{name}: {damage}");
        }
    });
}

fn limit(config: String) -> String {
    with_reserve(&config, RESERVE)
}

impl Daemon {
    /// How many lines a job has written.
    fn with_log(&self, id: &str) -> usize {
        let log = self.rnx(["job", "log", "--no-follow", id]);
        log.text().lines().count()
    }
}

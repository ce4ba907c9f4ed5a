//! What is said of volumes: when each was made, in words for people and for programs.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use crate::harness::{Daemon, Host};

#[test]
fn when_a_volume_was_made_is_said_in_the_readers_zone_and_never_changes() {
    let Some(daemon) = Host::Any.is_here().then(Daemon::start) else {
        return;
    };
    let clock = || Timestamp::now().as_nanosecond();
    let mut made = Vec::new();
    for (name, kind) in [("first", "filesystem"), ("second", "memory")] {
        let before = clock();
        daemon
            .rnx(["volume", "create", name, "--size=1MB", "--type", kind])
            .assert_code(0);
        let volume = daemon.volume(name);
        let created: Timestamp = volume["created"].as_str().unwrap().parse().unwrap();
        assert!(
            (before..=clock()).contains(&created.as_nanosecond()),
            "{volume}"
        );
        made.push((name, created));
    }
    let check = |what: &str| {
        // UTC, and what is five hours and three quarters ahead of it.
        for (zone, offset) in [("UTC0", 0), ("XYZ-5:45", 5 * 3600 + 45 * 60)] {
            let listed = daemon
                .client()
                .zone(zone)
                .args(["volume", "list"])
                .run()
                .ok();
            let lines: Vec<&str> = listed.lines().collect();
            assert_eq!(lines.len(), 1 + made.len(), "{listed}");
            assert!(lines[0].ends_with("  CREATED"), "{listed}");
            let zone = TimeZone::fixed(Offset::from_seconds(offset).unwrap());
            for (line, (name, created)) in lines[1..].iter().zip(&made) {
                let [date, time] = ["%Y-%m-%d", "%H:%M:%S"]
                    .map(|format| created.to_zoned(zone.clone()).strftime(format).to_string());
                let words: Vec<&str> = line.split_whitespace().collect();
                assert_eq!(words[0], *name, "{what}");
                assert_eq!(words[3..], [date, time], "{what}");
            }
        }
        for (name, created) in &made {
            let volume = daemon.volume(name);
            let now: Timestamp = volume["created"].as_str().unwrap().parse().unwrap();
            assert_eq!(now, *created, "{what}");
        }
    };
    check("at first");
    for name in ["first", "second"] {
        let write = format!("echo x > /volumes/{name}/x");
        daemon.with(name, &write).ok();
    }
    check("after a job");
    daemon.kill();
    daemon.serve();
    check("after a kill");
    // As after a reboot: memory volumes are empty, and as old as they were.
    daemon.kill();
    daemon.joblet(&["down"]).assert_code(0);
    daemon.serve();
    check("after all was taken down");
}

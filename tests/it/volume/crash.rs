//! A daemon that is killed while it makes and removes volumes, and while a hundred jobs write to a hundred of them:
//! what was acknowledged is there, what was not is whole or gone, and nothing strays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::harness::{
    Daemon, Dice, Host, LONG, Output, SHORT, Tracer, Waiting, loop_devices, now, wait_until,
};

/// Of how many calls of the daemon one is tried, unless all are asked for.
const STRIDE: u64 = 9;
/// Volumes, and jobs, at once.
const MANY: usize = 100;

#[test]
fn a_daemon_killed_at_any_call_of_making_and_removing_a_volume_leaves_it_whole_or_gone() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start_with(|text| text.replace("# shards: 0", "shards: 1"));
    daemon.create("witness", "1MB");
    daemon
        .with("witness", "echo kept > /volumes/witness/x")
        .ok();
    let witness = daemon.volume("witness");
    let is_all = std::env::var_os("JOBLET_TEST_EVERY_CALL").is_some_and(|v| v == "1");
    let stride = if is_all { 1 } else { STRIDE };
    let begin = now();
    let mut ends = BTreeMap::<String, u64>::new();
    let mut kills = 0;
    let mut call = 1 + Dice::of_the_day("kills of volumes").below(stride);
    loop {
        let create = ["volume", "create", "victim", "--size=1MB"];
        let (made, made_at) = killed_at(&daemon, call, &create);
        let is_there = daemon.names().contains("victim");
        assert!(
            is_there || made.as_ref().is_none_or(|made| made.code != 0),
            "killed at call {call}: it was said to be made and is not there"
        );
        consistent(&daemon, &format!("killed at call {call} of a create"));
        if !is_there {
            daemon.create("victim", "1MB");
        }
        let script = "test -z \"$(ls -A /volumes/victim)\" && echo x > /volumes/victim/x";
        daemon.with("victim", script).ok();
        let (removed, removed_at) = killed_at(&daemon, call, &["volume", "remove", "victim"]);
        let was_there = is_there;
        let is_there = daemon.names().contains("victim");
        assert!(
            !is_there || removed.as_ref().is_none_or(|removed| removed.code != 0),
            "killed at call {call}: it was said to be removed and is there"
        );
        consistent(&daemon, &format!("killed at call {call} of a remove"));
        if is_there {
            // Not begun is not touched.
            assert_eq!(daemon.with("victim", "cat /volumes/victim/x").ok(), "x\n");
            daemon.remove("victim").assert_code(0);
        }
        kills += u64::from(made_at) + u64::from(removed_at);
        let end = format!("created {was_there}, removed {}", !is_there);
        *ends.entry(end).or_default() += 1;
        assert_eq!(daemon.volume("witness"), witness);
        if !made_at && !removed_at {
            break;
        }
        call += stride;
    }
    assert_eq!(
        daemon.with("witness", "cat /volumes/witness/x").ok(),
        "kept\n"
    );
    eprintln!(
        "killed {kills} times, the last at call {call}, in {:?}: {ends:?}",
        begin.elapsed()
    );
}

/// Runs `rnx ARGS…`, kills the daemon before its call number `call` from then on, and starts the next one. What the
/// client was told, when it was told something; and whether the daemon was killed before that.
fn killed_at(daemon: &Daemon, call: u64, args: &[&str]) -> (Option<Output>, bool) {
    daemon.remember();
    let tracer = Tracer::seize(daemon.process());
    tracer.arm(call);
    let running = daemon.client().args(args).spawn();
    let client = running.process();
    wait_until(LONG, "the client is answered or the daemon is dead", || {
        let is_over = tracer.is_over() || !client.is_alive();
        Waiting::when(is_over, || format!("{} calls", tracer.count()))
    });
    let told = (!client.is_alive()).then(|| running.finish());
    let killed = tracer.finish();
    daemon.was_killed();
    // A program that it was just starting has its descriptors for a moment longer.
    let lock = daemon.base.join("lock");
    wait_until(SHORT, "nobody has the lock", || {
        let file = fs::File::open(&lock).unwrap();
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        Waiting::when(locked.is_ok(), || format!("{locked:?}"))
    });
    daemon.serve();
    (told, killed.is_some())
}

#[test]
fn a_hundred_jobs_on_a_hundred_volumes_outlive_their_daemon() {
    if !Host::Any.is_here() {
        return;
    }
    let daemon = Daemon::start();
    let name = |number: usize| format!("v{number:03}");
    let begin = now();
    for number in 0..MANY {
        daemon.create(&name(number), "4MB");
    }
    let made = begin.elapsed();
    // Each says what it has synced, and goes on until it is told to end.
    let script = |volume: &str| {
        format!(
            "cd /volumes/{volume}; n=0; until test -e end; do n=$((n+1)); \
             echo $n > new; sync new; mv new count; sync .; echo $n; sleep 0.2; done"
        )
    };
    let ids: Vec<String> = (0..MANY)
        .map(|number| {
            let volume = name(number);
            daemon.submit(&["--volume", &volume], &["sh", "-c", &script(&volume)])
        })
        .collect();
    for id in &ids {
        daemon.wait_output(id, "1\n");
    }
    let list = |daemon: &Daemon| -> Vec<_> {
        let strip = |mut volume: serde_json::Value| {
            volume["used_bytes"].take();
            volume
        };
        daemon.volumes().into_iter().map(strip).collect()
    };
    let before = list(&daemon);
    assert_eq!(before.len(), MANY);
    for round in 0..2 {
        daemon.kill();
        daemon.serve();
        assert_eq!(list(&daemon), before, "round {round}");
        consistent(&daemon, "after a kill");
    }
    for number in 0..MANY {
        fs::write(
            daemon
                .base
                .join(format!("volumes/{}/data/end", name(number))),
            "",
        )
        .unwrap();
    }
    for (number, id) in ids.iter().enumerate() {
        let status = daemon.ended(id);
        assert_eq!(status["status"], "COMPLETED", "{status}");
        let log = daemon.rnx(["job", "log", id]).text();
        let path = daemon
            .base
            .join(format!("volumes/{}/data/count", name(number)));
        let count = fs::read_to_string(path).unwrap();
        assert_eq!(log.lines().last(), count.lines().last());
        let expected: Vec<String> = (1..=log.lines().count()).map(|n| n.to_string()).collect();
        assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    }
    let names: Vec<String> = (0..MANY).map(name).collect();
    let removing = now();
    daemon
        .client()
        .args(["volume", "remove"])
        .args(&names)
        .run()
        .assert_code(0);
    eprintln!(
        "{MANY} volumes made in {made:?}, removed in {:?}",
        removing.elapsed()
    );
    assert!(daemon.volumes().is_empty());
    consistent(&daemon, "after all were removed");
}

impl Daemon {
    fn names(&self) -> BTreeSet<String> {
        let volumes = self.volumes();
        let name = |volume: &serde_json::Value| volume["name"].as_str().unwrap().to_owned();
        volumes.iter().map(name).collect()
    }
}

/// Directories, mounts and loop devices are those of the volumes that are listed, and none of them is damaged.
#[track_caller]
fn consistent(daemon: &Daemon, what: &str) {
    let volumes = daemon.base.join("volumes");
    let names = daemon.names();
    for volume in daemon.volumes() {
        assert!(volume["damage"].is_null(), "{what}: {volume}");
    }
    wait_until(SHORT, &format!("nothing strays: {what}"), || {
        let directories: BTreeSet<String> = fs::read_dir(&volumes)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mounts = mounted(&volumes);
        let looped: Vec<String> = loop_devices(&volumes)
            .into_iter()
            .filter_map(|(_, file)| {
                let rest = Path::new(&file).strip_prefix(&volumes).ok()?;
                Some(rest.iter().next()?.to_str()?.to_owned())
            })
            .collect();
        let is_right = directories == names
            && BTreeSet::from_iter(mounts.clone()) == names
            && mounts.len() == names.len()
            && BTreeSet::from_iter(looped.clone()) == names
            && looped.len() == names.len();
        Waiting::when(is_right, || {
            format!(
                "{names:?}; directories {directories:?}, mounts {mounts:?}, loop devices {looped:?}"
            )
        })
    });
}

/// Volumes that are mounted, once for each mount.
fn mounted(volumes: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter_map(|line| {
            let point = Path::new(line.split(' ').nth(4)?);
            let mut rest = point.strip_prefix(volumes).ok()?.iter();
            let name = rest.next()?.to_str()?.to_owned();
            (rest.next()? == "data").then_some(name)
        })
        .collect()
}

//! A database on a volume: the program that is most particular about the directory it is given.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::harness::{Daemon, Host, Output, on_a_disk_of, with_reserve};

const DISK: u64 = 512 << 20;

#[test]
fn initdb_makes_a_database_on_a_fresh_volume_and_the_next_job_finds_what_was_committed() {
    if !Host::Any.is_here() {
        return;
    }
    // Of its own: a database syncs a thousand files.
    on_a_disk_of(DISK, |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        keeps_databases(&daemon);
    });
}

fn keeps_databases(daemon: &Daemon) {
    let bin = programs();
    // Its root must be empty for that, and belong to who runs initdb; below it everything is initdb's own. Who that is
    // must have a name, and not be root's.
    for (volume, below, user) in [
        ("root", "", None),
        ("deep", "/main", None),
        ("theirs", "", Some("65534:65534")),
    ] {
        daemon.create(volume, "256MB");
        let directory = format!("/volumes/{volume}{below}");
        let run = |script: &str| {
            run(
                daemon,
                volume,
                user,
                &format!("set -e; PATH={bin}:$PATH; {script}"),
            )
        };
        let made = run(&format!(
            "initdb --pgdata={directory} --username=owner --auth=trust --encoding=UTF8 --locale=C > /work/said; \
             pg_controldata {directory} | grep '^Database cluster state'; stat -c '%a %u' {directory}; id -u"
        ));
        let lines: Vec<String> = made.ok().lines().map(str::to_owned).collect();
        let [state, mode_and_owner, uid] = &lines[..] else {
            panic!("{made:?}")
        };
        assert!(state.ends_with("shut down"), "{made:?}");
        assert_eq!(*mode_and_owner, format!("700 {uid}"));
        let committed = run(&format!(
            "printf 'create table t (x text);\\ninsert into t values ($$kept$$);\\n' \
             | postgres --single -D {directory} postgres > /dev/null"
        ));
        committed.assert_code(0);
        // A volume is where it was when the machine starts again.
        daemon.kill();
        daemon.joblet(&["down"]).assert_code(0);
        daemon.serve();
        let found = run(&format!(
            "echo 'select x from t' | postgres --single -D {directory} postgres; \
             pg_controldata {directory} | grep '^Database cluster state'"
        ));
        let text = found.ok();
        assert!(text.contains("x = \"kept\""), "{found:?}");
        assert!(text.trim_end().ends_with("shut down"), "{found:?}");
        // From outside: whoever it was, the files belong to the one user that volumes have.
        let version = format!("volumes/{volume}/data{below}/PG_VERSION");
        let version = daemon.base.join(version);
        assert_eq!(fs::metadata(&version).unwrap().uid(), 1000);
        let version = fs::read_to_string(version).unwrap();
        assert!(bin.contains(version.trim()), "{version} of {bin}");
        daemon.remove(volume).assert_code(0);
    }
}

/// `bash -c SCRIPT` in a job, as `user` of the job.
fn run(daemon: &Daemon, volume: &str, user: Option<&str>, script: &str) -> Output {
    let mut run = daemon.client().args(["job", "run", "--volume", volume]);
    if let Some(user) = user {
        run = run.args(["--user", user]);
    }
    run.args(["--", "bash", "-c", script]).run()
}

/// Where Debian keeps those of its newest PostgreSQL.
fn programs() -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("the Debian package postgresql");
    let newest: Option<PathBuf> = versions
        .map(|version| version.unwrap().path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .max();
    newest
        .expect("the Debian package postgresql")
        .display()
        .to_string()
}

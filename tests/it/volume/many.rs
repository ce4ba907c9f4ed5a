//! Volumes with as many files as they have room for: each counts, none costs the daemon or another volume anything.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Daemon, Host, SHORT, Waiting, daemon_memory, free, loop_devices, now, on_a_disk_of, patient,
    wait_until, with_reserve,
};

/// Files, unless `JOBLET_TEST_FILES` says another number: making a million takes an emulated processor minutes.
const FILES: u64 = 1_000_000;
/// Directories of them.
const DIRECTORIES: u64 = 100;
/// Their inodes and names, and what the daemon writes: a third of a gigabyte.
const DISK: u64 = 1 << 30;
/// What the daemon may have written into its own files meanwhile.
const OWN_FILES: u64 = 4 << 20;
/// How long what is asked of a volume takes, whatever is in it.
const QUICK: Duration = Duration::from_secs(1);

#[test]
fn a_million_files_in_a_volume_cost_nobody_else_anything_and_go_with_it_at_once() {
    if !Host::Any.is_here() {
        return;
    }
    let files = std::env::var("JOBLET_TEST_FILES").map_or(FILES, |n| n.parse().unwrap());
    on_a_disk_of(DISK, move |disk| {
        let daemon = Daemon::start_in(disk, |config| with_reserve(&config, 0));
        daemon.create("other", "10MB");
        daemon.with("other", "echo kept > /volumes/other/x").ok();
        let (memory, space) = (daemon_memory(daemon.process().pid, "RssAnon"), free(disk));
        // An inode for each block of 4 KiB.
        daemon.create("many", "4GB");
        let begin = now();
        daemon.fill("many", files);
        let filled = begin.elapsed();

        let counted = "df --output=iused /volumes/many | tail -1; find /volumes/many -type f | wc -l; \
                       ls /volumes/many/7 | tail -1; test -e /volumes/many/7/0";
        let counted = daemon.with("many", counted).ok();
        let words: Vec<&str> = counted.split_whitespace().collect();
        let used: u64 = words[0].parse().unwrap();
        // Eleven are the file system's own, and its lost+found is not there.
        assert_eq!(used, files + DIRECTORIES + 10, "{counted}");
        assert_eq!(words[1], files.to_string());
        // The last by its name.
        assert!(words[2].starts_with("99"), "{counted}");

        let begin = now();
        let many = daemon.volume("many");
        let list = daemon.volumes();
        let asked = begin.elapsed();
        assert!(asked < patient(QUICK), "{asked:?}");
        let names: Vec<&Value> = list.iter().map(|volume| &volume["name"]).collect();
        assert_eq!(names, ["many", "other"]);
        assert_eq!(list[0], many);
        let in_job = "df -B1 --output=used /volumes/many | tail -1";
        let in_job: u64 = daemon.with("many", in_job).ok().trim().parse().unwrap();
        assert_eq!(many["used_bytes"], in_job, "{many}");
        assert!(many["damage"].is_null(), "{many}");

        assert_eq!(daemon.with("other", "cat /volumes/other/x").ok(), "kept\n");
        let now_used = daemon_memory(daemon.process().pid, "RssAnon");
        // Two bytes for each of a million: the jobs themselves are remembered.
        assert!(
            now_used < memory + (2 << 20),
            "{now_used} bytes of memory, {memory} before"
        );

        let taken = space - free(disk);
        let begin = now();
        daemon.remove("many").assert_code(0);
        let removed = begin.elapsed();
        // The kernel forgets each of them first; to delete them takes as long as to make them.
        assert!(removed < filled / 2, "{removed:?} after {filled:?}");
        wait_until(SHORT, "its space is the host's again", || {
            let left = free(disk);
            let devices = loop_devices(&daemon.base.join("volumes/many"));
            let is_back = left + OWN_FILES >= space && devices.is_empty();
            Waiting::when(is_back, || format!("{left} of {space}, {devices:?}"))
        });
        assert_eq!(daemon.with("other", "cat /volumes/other/x").ok(), "kept\n");
        eprintln!(
            "{files} files made in {filled:?} took {taken} bytes of the host; inspect and list in {asked:?}, \
             removed in {removed:?}, back after {:?}; memory {memory} and then {now_used}",
            begin.elapsed()
        );
    });
}

#[test]
fn a_volume_without_inodes_is_full_for_its_jobs_alone_and_whole_when_some_are_deleted() {
    let Some(daemon) = Host::Any.is_here().then(Daemon::start) else {
        return;
    };
    daemon.create("small", "1MB");
    daemon.create("other", "1MB");
    let fill = "cd /volumes/small; n=0; while true > $n; do n=$((n+1)); done 2> why; \
                df --output=iavail . | tail -1; cat why; ls | wc -l; echo $n";
    let filled = daemon.with("small", fill).ok();
    let lines: Vec<&str> = filled.lines().map(str::trim).collect();
    let [left, why, listed, made] = lines[..] else {
        panic!("{filled}")
    };
    assert_eq!(left, "0");
    assert!(why.contains("No space left on device"), "{filled}");
    let (listed, made): (u64, u64) = (listed.parse().unwrap(), made.parse().unwrap());
    // And the file with the reason.
    assert_eq!(listed, made + 1, "{filled}");
    // One for each block of 1 KiB.
    assert!(made > 1_000, "{filled}");
    let volume = daemon.volume("small");
    assert!(volume["damage"].is_null(), "{volume}");
    assert!(volume["used_bytes"].as_u64().unwrap() < 1 << 20, "{volume}");
    let goes_on = "echo x > /volumes/other/x && cat /volumes/other/x";
    assert_eq!(daemon.with("other", goes_on).ok(), "x\n");
    // Space there is, and a file that is there may grow.
    let after = "cd /volumes/small; echo more >> 0; rm 1 2; echo y > new; cat 0 new";
    assert_eq!(daemon.with("small", after).ok(), "more\ny\n");
    for name in ["small", "other"] {
        daemon.remove(name).assert_code(0);
    }
}

impl Daemon {
    /// Makes `files` empty files in [`DIRECTORIES`] directories of a volume, from within one job.
    #[track_caller]
    fn fill(&self, volume: &str, files: u64) {
        // One call for each file, and a process for each processor.
        const SCRIPT: &str = "\
import os, sys
root, files, directories = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def make(first, step):
    for directory in range(first, directories, step):
        path = f'{root}/{directory}'
        os.mkdir(path)
        os.chdir(path)
        for name in range(files // directories):
            os.mknod(str(name))
step = os.cpu_count()
children = []
for first in range(step):
    child = os.fork()
    if child == 0:
        make(first, step)
        os._exit(0)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
";
        let root = format!("/volumes/{volume}");
        self.client()
            .args(["job", "run", "--volume", volume, "--", "python3", "-c"])
            .args([SCRIPT, &root, &files.to_string(), &DIRECTORIES.to_string()])
            .run()
            .assert_code(0);
    }
}

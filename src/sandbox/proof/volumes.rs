//! What a job sees of the volumes it was given, and what it cannot do about them.

use std::{
    ffi::CString,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use super::bench::{Bench, Report, Request};
use crate::{
    job::User,
    limits,
    sys::{
        detached::{MountOption, mount_detached},
        mount::{self as trees, Attributes},
        userns,
    },
};

/// Who owns the root of a volume on its disk.
const DISK_OWNER: u32 = 1000;

/// A file system of its own, mounted somewhere as a volume is: only such a mount can be copied everywhere.
struct FileSystem {
    root: OwnedFd,
    point: TempDir,
}

impl FileSystem {
    fn new() -> Self {
        let options = [
            MountOption::Pair(c"size", c"1048576"),
            MountOption::Pair(c"uid", c"1000"),
            MountOption::Pair(c"gid", c"1000"),
            MountOption::Pair(c"mode", c"0755"),
        ];
        let root = mount_detached(c"tmpfs", c"volume", &options).unwrap();
        let point = TempDir::new().unwrap();
        let target = CString::new(point.path().as_os_str().as_bytes()).unwrap();
        trees::attach(root.as_fd(), &target).unwrap();
        Self { root, point }
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // Best effort: a test that failed has said why.
        let _ = umount2(self.point.path(), MntFlags::MNT_DETACH);
    }
}

/// What of it a job gets whose command is user `id` and whose first host id is `ids_base`.
fn attachment(
    volume: &FileSystem,
    ids_base: u32,
    id: u32,
    attributes: Option<Attributes>,
) -> OwnedFd {
    let tree = trees::clone_mount(volume.root.as_fd()).unwrap();
    let users = userns::with_one_id(DISK_OWNER, ids_base + id, ids_base + id).unwrap();
    trees::map_owners(tree.as_fd(), users.as_fd(), attributes).unwrap();
    tree
}

/// A job of user `id` with one volume, `data`.
fn request(script: &str, volume: &FileSystem, id: u32) -> Request {
    let mut request = Request::shell(script);
    request.user = User { uid: id, gid: id };
    let tree = attachment(volume, request.ids_base, id, None);
    request.volumes = vec![("data", tree)];
    request
}

fn output(report: &Report) -> &str {
    assert_eq!(
        (report.code(), report.stderr.as_str()),
        (0, ""),
        "{report:?}"
    );
    &report.stdout
}

#[test]
fn a_job_sees_its_volumes_and_no_other_and_one_without_sees_none() {
    let bench = Bench::new();
    let volume = FileSystem::new();
    let mut two = request("ls /volumes; ls /volumes/data", &volume, 1000);
    let second = attachment(&FileSystem::new(), two.ids_base, 1000, None);
    two.volumes.insert(0, ("second", second));
    assert_eq!(output(&bench.run(&two)), "data\nsecond\n");
    let none = Request::shell("ls -A /volumes; grep -c volumes /proc/self/mountinfo");
    let report = bench.run(&none);
    assert_eq!(
        (report.stdout.as_str(), report.stderr.as_str()),
        ("0\n", "")
    );
}

#[test]
fn what_jobs_of_different_users_write_is_each_ones_own() {
    let bench = Bench::new();
    let volume = FileSystem::new();
    let script = "cd /volumes/data; for f in *; do [ -e $f ] && echo more >> $f && cat $f; done
        touch $(id -u); chmod 600 *; stat -c '%n %u:%g' . *";
    for (id, expected) in [
        (1000, ". 1000:1000\n1000 1000:1000\n"),
        (2000, "more\n. 2000:2000\n1000 2000:2000\n2000 2000:2000\n"),
        (0, "more\nmore\nmore\n. 0:0\n0 0:0\n1000 0:0\n2000 0:0\n"),
    ] {
        assert_eq!(output(&bench.run(&request(script, &volume, id))), expected);
    }
}

#[test]
fn programs_that_walk_a_fresh_volume_find_nothing_they_may_not() {
    let script = "cd /volumes; chmod -R 755 data && tar -C data -cf /work/backup.tar . && find data -type f \
        && du -s data >/dev/null && mkdir -p data/a/b && rm -r data/a && ls -A data && echo done";
    let report = Bench::new().run(&request(script, &FileSystem::new(), 1000));
    assert_eq!(output(&report), "done\n");
}

#[test]
fn nothing_can_be_made_beside_a_volume_and_no_volume_taken_away_or_changed() {
    // Not even by the job's root, who may everything that the job's user namespace has a say in.
    for id in [0, 1000] {
        let script = "for c in 'touch /volumes/x' 'mkdir /volumes/x' 'rmdir /volumes/data' 'mv /volumes/data /volumes/y' \
            'umount /volumes/data' 'umount -l /volumes/data' 'umount -l /volumes' 'mount -o remount,rw /volumes' \
            'mount -o remount,bind,suid,dev /volumes/data' 'mount -t tmpfs x /volumes/data' 'mknod /volumes/data/d c 1 3' \
            'chown 1:1 /volumes/data'; do $c >/dev/null 2>&1 && echo \"$c\"; done; true";
        let report = Bench::new().run(&request(script, &FileSystem::new(), id));
        assert_eq!(output(&report), "", "as user {id}");
    }
}

#[test]
fn mounts_of_volumes_are_nosuid_nodev_and_what_they_lie_in_is_read_only() {
    let mut request = request(
        "grep ' /volumes' /proc/self/mountinfo",
        &FileSystem::new(),
        1000,
    );
    let tree = attachment(
        &FileSystem::new(),
        request.ids_base,
        1000,
        Some(Attributes::READ_ONLY),
    );
    request.volumes.push(("config", tree));
    let report = Bench::new().run(&request);
    let mut lines: Vec<(&str, &str)> = output(&report)
        .lines()
        .map(|line| {
            let mut words = line.split(' ').skip(4);
            (words.next().unwrap(), words.next().unwrap())
        })
        .collect();
    // The kernel's order is that of its own tree.
    lines.sort_unstable();
    let targets: Vec<&str> = lines.iter().map(|(target, _)| *target).collect();
    assert_eq!(targets, ["/volumes", "/volumes/config", "/volumes/data"]);
    for (target, options) in lines {
        let is_writable = target == "/volumes/data";
        assert_eq!(
            options.starts_with("rw,"),
            is_writable,
            "{target} {options}"
        );
        assert!(options.contains("nosuid,nodev"), "{target} {options}");
    }
}

#[test]
fn a_read_only_volume_cannot_be_written_to() {
    let script = "touch /volumes/data/x || chmod 777 /volumes/data || echo refused";
    let mut request = request(script, &FileSystem::new(), 1000);
    let read_only = Some(Attributes::READ_ONLY);
    let tree = attachment(&FileSystem::new(), request.ids_base, 1000, read_only);
    request.volumes = vec![("data", tree)];
    let report = Bench::new().run(&request);
    assert_eq!(report.stdout, "refused\n");
    assert_eq!(report.stderr.matches("Read-only file system").count(), 2);
}

#[test]
fn as_many_volumes_as_a_job_may_have_are_attached() {
    let names: Vec<&'static str> = (0..limits::JOB_VOLUMES_MAX)
        .map(|number| &*format!("v{number}").leak())
        .collect();
    let mut request = Request::shell("ls /volumes | wc -l");
    request.volumes = names
        .into_iter()
        .map(|name| {
            (
                name,
                attachment(&FileSystem::new(), request.ids_base, 1000, None),
            )
        })
        .collect();
    let expected = format!("{}\n", limits::JOB_VOLUMES_MAX);
    assert_eq!(output(&Bench::new().run(&request)), expected);
}

#[test]
fn a_mount_that_does_not_fit_the_plan_is_a_failed_start_and_the_next_job_runs() {
    let bench = Bench::new();
    let mut bad = request("true", &FileSystem::new(), 1000);
    bad.plan = Some(Request::shell("true").plan().bytes().to_vec());
    let job = bench.start(&bad);
    assert!(job.birth.failure.is_some());
    drop(job);
    let report = bench.run(&request("ls /volumes", &FileSystem::new(), 1000));
    assert_eq!(output(&report), "data\n");
}

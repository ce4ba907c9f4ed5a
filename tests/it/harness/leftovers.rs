//! What an instance may leave behind: files below its base directory, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::process::{Process, all};
use super::wait::{SHORT, Waiting, wait_until};

/// Everything of an instance that is still there, a line each.
pub(crate) fn find(base: &Path, instance: &str, seen: &BTreeSet<Process>) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(
        cgroups(instance)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    left.extend(
        seen.iter()
            .filter(|p| p.is_alive())
            .map(|p| format!("process {} {:?} was ours", p.pid, p.name())),
    );
    left.extend(
        loop_devices(base)
            .into_iter()
            .map(|(name, file)| format!("loop device {name} on {file}")),
    );
    left.extend(in_proc(base));
    left
}

/// Waits until nothing is left: the kernel detaches mounts and loop devices a little after the last close.
///
/// # Panics
/// When something stays.
#[track_caller]
pub(crate) fn assert_none(base: &Path, instance: &str, seen: &BTreeSet<Process>) {
    wait_until(SHORT, "nothing of the instance is left", || {
        let left = find(base, instance, seen);
        Waiting::when(left.is_empty(), || left.join("\n  "))
    });
}

/// Directories `joblet-<instance>` in any hierarchy, at most three levels down.
pub(crate) fn cgroups(instance: &str) -> Vec<PathBuf> {
    let name = format!("joblet-{instance}");
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str() == Some(&name) {
                found.push(entry.path());
            } else if depth < 3 {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

/// Loop devices whose backing file lies below `base`.
pub(crate) fn loop_devices(base: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            file.starts_with(base.to_str()?)
                .then(|| (name, file.trim_end().to_owned()))
        })
        .collect()
}

/// Mounts and open files below `base` in any process: helpers that lost their parent are found by these.
fn in_proc(base: &Path) -> Vec<String> {
    let base = base.to_str().unwrap();
    let mut left = Vec::new();
    for pid in all() {
        if pid == std::process::id() {
            continue;
        }
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let mounts = fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
        left.extend(
            mounts
                .lines()
                .filter(|l| l.contains(base))
                .map(|l| format!("mount seen by {pid}: {l}")),
        );
        for entry in fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(base)) {
                left.push(format!("process {pid} has {} open", entry.path().display()));
            }
        }
    }
    left
}

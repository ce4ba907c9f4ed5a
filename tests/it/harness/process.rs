//! Processes as `/proc` shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    start: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let fields = stat(pid)?;
        Some(Self {
            pid,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it is still there and not a zombie.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self) && stat(self.pid).is_some_and(|fields| fields[0] != "Z")
    }

    /// SIGKILL, if it is still this process.
    pub(crate) fn kill(self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
    }

    /// A signal, if it is still this process.
    pub(crate) fn signal(self, signal: nix::sys::signal::Signal) {
        if self.is_alive() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid).unwrap());
            // Gone in the meantime is what the caller wanted.
            let _ = nix::sys::signal::kill(pid, signal);
        }
    }

    /// Its `argv[0]`.
    pub(crate) fn name(self) -> String {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(raw.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
    }

    /// Its short name, which a process that was forked and not executed gives itself.
    pub(crate) fn short_name(self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        text.trim_end().to_owned()
    }

    /// Direct children.
    pub(crate) fn children(self) -> Vec<Self> {
        let table = parents();
        table
            .iter()
            .filter(|(_, parent)| **parent == self.pid)
            .filter_map(|(pid, _)| Self::of(*pid))
            .collect()
    }

    /// All that descend from it, without itself.
    pub(crate) fn descendants(self) -> BTreeSet<Self> {
        let table = parents();
        let mut found = BTreeSet::new();
        let mut new = vec![self.pid];
        while let Some(parent) = new.pop() {
            for (pid, _) in table.iter().filter(|(_, of)| **of == parent) {
                if let Some(process) = Self::of(*pid)
                    && found.insert(process)
                {
                    new.push(*pid);
                }
            }
        }
        found
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// How many descriptors a daemon has open but for those of cgroups and namespaces that wait for a job: how many
    /// of these are in stock goes up and down with every start.
    pub(crate) fn descriptors_in_use(self) -> usize {
        let is_in_use = |target: &str| {
            !target.contains("/ready-")
                && !target.starts_with("user:")
                && !target.starts_with("net:")
        };
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .filter(|target| is_in_use(&target.to_string_lossy()))
            .count()
    }

    /// Processor time of all its threads so far, user and system, in clock ticks.
    pub(crate) fn cpu_ticks(self) -> u64 {
        let fields = stat(self.pid).expect("it is alive");
        let [user, system] = [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap());
        user + system
    }

    /// Parent of this process.
    pub(crate) fn parent(self) -> Option<Self> {
        Self::of(*parents().get(&self.pid)?)
    }
}

/// All process numbers.
pub(crate) fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Fields of `/proc/PID/stat` from the state on (proc(5) counts that one as 3).
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn parents() -> BTreeMap<u32, u32> {
    all()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?)))
        .collect()
}

/// A number from `/proc/PID/status` in bytes, `VmRSS` or `VmHWM`.
pub(crate) fn daemon_memory(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

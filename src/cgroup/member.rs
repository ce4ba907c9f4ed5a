//! Which cgroup a process lives in.

use std::fs;

use super::Tree;
use crate::job::JobId;

impl Tree {
    /// Whether process `pid` lives in the cgroup of `job`. A process that is gone lives nowhere.
    ///
    /// # Source
    /// cgroups(7), "/proc/[pid]/cgroup": the line of the unified hierarchy begins with `0::`.
    #[must_use]
    pub fn holds(&self, job: JobId, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return false;
        };
        let name = job.to_string();
        let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
        unified.and_then(|path| path.rsplit('/').next()) == Some(name.as_str())
    }

    /// Whether no process lives in the cgroup of `job` but `pid`, or none at all. Zombies do not count. `false` when
    /// that cannot be read.
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/cgroup-v2.rst`, "cgroup.procs": each process once, by the id that the reader's
    /// own pid namespace has for it.
    #[must_use]
    pub fn holds_only(&self, job: JobId, pid: u32) -> bool {
        let procs = self.dir.read(&format!("{job}/cgroup.procs"));
        procs.is_ok_and(|text| text.lines().all(|line| line.parse() == Ok(pid)))
    }
}

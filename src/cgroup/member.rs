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
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        let name = job.to_string();
        let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
        unified.and_then(|path| path.rsplit('/').next()) == Some(name.as_str())
    }
}

//! What a dead daemon left of its cgroups: what is still needed stays, all else is emptied and removed.

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use super::{
    CgroupError, HELPERS, Place, Tree,
    dir::{self, Dir},
    directory_name,
    v1::SEAT,
};
use crate::job::JobId;

/// What of an instance lives on under the next daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spared {
    /// Jobs that a keeper holds.
    pub jobs: HashSet<JobId>,
    /// Those keepers, by process id.
    pub keepers: Vec<u32>,
}

impl Tree {
    /// Whether anything has ever run in the leaf of `job`; `None` when it has no leaf.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    ///
    /// # Source
    /// Linux `Documentation/admin-guide/cgroup-v2.rst`, "cpu.stat": counted whether or not the controller is
    /// enabled.
    pub fn has_run(&self, job: JobId) -> Result<Option<bool>, CgroupError> {
        match self.usage(job) {
            Ok(usage) => Ok(Some(usage.cpu_user_us + usage.cpu_system_us > 0)),
            Err(CgroupError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Kills every process of the tree but those of `spared`, and removes the leaves that are empty then. Blocks,
    /// at most for `wait`. Returns how many leaves there were to remove, or `None` when some process did not end.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove_all_but(
        &self,
        spared: &Spared,
        wait: Duration,
    ) -> Result<Option<usize>, CgroupError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "start-up and tear-down, before and after any shard"
        )]
        let (start, now) = (Instant::now(), Instant::now);
        let mut left: Vec<JobId> = self.leaves()?;
        left.retain(|job| !spared.jobs.contains(job));
        let count = left.len();
        loop {
            for job in &left {
                match self.kill(*job) {
                    Ok(()) | Err(CgroupError::Missing(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let helpers = self.end_helpers(spared)?;
            let mut busy = Vec::new();
            for job in left {
                match self.remove(job) {
                    Ok(()) | Err(CgroupError::Missing(_)) => {}
                    Err(CgroupError::Busy { .. }) => busy.push(job),
                    Err(error) => return Err(error),
                }
            }
            left = busy;
            if left.is_empty() && helpers == 0 {
                return Ok(Some(count));
            }
            if now().duration_since(start) >= wait {
                return Ok(None);
            }
            pause();
        }
    }

    /// Kills helpers that are not spared; how many there are.
    fn end_helpers(&self, spared: &Spared) -> Result<usize, CgroupError> {
        let procs = Dir::open(self.path().join(HELPERS))?.read("cgroup.procs")?;
        let mut count = 0;
        for pid in procs.lines().filter_map(|line| line.parse::<i32>().ok()) {
            if u32::try_from(pid).is_ok_and(|pid| spared.keepers.contains(&pid)) {
                continue;
            }
            count += 1;
            // It is in a cgroup of ours, and nobody else's process can get there.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        Ok(count)
    }

    /// Gives cgroups of version 1 that `pid`, a process of `job`, lives in the job's name: its daemon may have died
    /// between the two.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn name_seat(job: JobId, pid: u32) -> Result<(), CgroupError> {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return Ok(()); // It is gone.
        };
        for (controller, place) in Place::legacy()? {
            let path = text.lines().find_map(|line| {
                let (names, path) = line.split_once(':')?.1.split_once(':')?;
                names
                    .split(',')
                    .any(|name| name == controller.v1_name())
                    .then_some(path)
            });
            let Some(path) = path.filter(|path| is_seat(path)) else {
                continue;
            };
            let from = place.mount.join(path.trim_start_matches('/'));
            let to = from.with_file_name(job.to_string());
            fs::rename(&from, &to).map_err(|source| CgroupError::Write { path: from, source })?;
        }
        Ok(())
    }

    /// Removes the cgroups of version 1 of `instance` but those of `spared`; no process may be left in them.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn remove_legacy_but(instance: &str, spared: &Spared) -> Result<(), CgroupError> {
        let name = directory_name(instance)?;
        for (_, place) in Place::legacy()? {
            for path in dir::find(&place.mount, &name)? {
                for leaf in dir::directories(&path)? {
                    let is_spared =
                        JobId::parse(&leaf).is_some_and(|job| spared.jobs.contains(&job));
                    if !is_spared {
                        Dir::open(path.join(leaf))?.remove()?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_seat(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with(SEAT))
}

#[expect(
    clippy::disallowed_methods,
    reason = "start-up, before any shard: processes that were killed need a moment"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

//! Killing a daemon at a moment that was chosen, not a little later.

use super::wait::{SHORT, Waiting, wait_until};
use super::{Daemon, Process};

impl Daemon {
    /// SIGKILL for `joblet serve` this very moment. Unlike [`Daemon::kill`] it does not look first who is there:
    /// call [`Daemon::remember`] before.
    pub(crate) fn kill_now(&self) {
        let mut served = self.served.lock().unwrap();
        let mut child = served.child.take().expect("the daemon is being served");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Notes that somebody else has killed `joblet serve` and waited for it.
    pub(crate) fn was_killed(&self) {
        // Not waited for: its number may be another process's by now.
        drop(self.served.lock().unwrap().child.take());
    }

    /// Runs `joblet serve` and kills it as soon as its log is `bytes` long, which may be before it accepts, or when
    /// it has said that it does.
    pub(crate) fn serve_and_kill(&self, bytes: usize) {
        let already = self.spawn_serve(&[]);
        wait_until(SHORT, "the daemon says so much", || {
            let text = self.said_since(already);
            Waiting::when(text.len() >= bytes || text.contains("ready"), || text)
        });
        self.kill_now();
    }

    /// Keepers and spawners of the daemon that live: each keeper with its spawner, if it has one.
    pub(crate) fn crews(&self) -> Vec<(Process, Option<Process>)> {
        let is_helper = |process: &Process| {
            let path = format!("/proc/{}/cgroup", process.pid);
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.contains(&format!("joblet-{}/helpers", self.instance))
        };
        let spawner = |keeper: &Process| {
            let mut children = keeper.children().into_iter();
            children.find(|p| p.short_name() == "joblet-spawner" && is_helper(p))
        };
        let keepers = self.process().children().into_iter();
        keepers
            .filter(|p| p.name().contains("joblet-keeper") && p.is_alive())
            .map(|keeper| (keeper, spawner(&keeper)))
            .collect()
    }
}

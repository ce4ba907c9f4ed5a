//! The configuration file that `joblet init` writes: every key, its default and what it means.

use std::net::SocketAddr;

/// The text of a fresh file that listens on `listen`; every other key is a comment with its default.
#[must_use]
pub fn default_file(listen: SocketAddr) -> String {
    TEMPLATE.replace("{listen}", &listen.to_string())
}

const TEMPLATE: &str = "\
# Configuration of joblet. A line that is commented out shows the default.
# Sizes: bytes, or a number with KB, MB, GB or TB (1 KB = 1024 bytes). Durations: 30s, 10min, 2h30m, 1d.
# Unknown keys and values out of range are refused when the daemon starts.

version: 1

server:
  # Address and port for clients. The environment variable JOBLET_LISTEN wins over it.
  listen: \"{listen}\"
  # Threads that serve, one a core; 0 is every core that the daemon may run on. At most 128.
  # shards: 0

limits:
  # Output of one job that is stored. What happens beyond it: drop (the job goes on, the rest of its
  # output is counted and thrown away) or stop (the job is stopped).
  # log_bytes: 1GB
  # log_policy: drop
  # Free space on the file system of the base directory that jobs never use up.
  # disk_reserve: 1GB
  # /work of a job: in memory, charged to the job, when it asks for nothing else; a sparse disk image
  # when its uploads need more.
  # work_memory_bytes: 64MB
  # work_bytes: 10GB
  # How long the disk image of an ended job can still be read, and how many jobs' there are at most. Each
  # holds its bytes on the disk and a loop device; the oldest one goes first.
  # work_keep: 10min
  # work_keep_jobs: 64
  # Ended jobs that are remembered, with their output: how many, for how long after their end (0 is for
  # ever), and how much output of theirs in all (0 is no bound). The one that ended first is forgotten first.
  # history_jobs: 100000
  # history_age: 0
  # history_bytes: 0
  # /tmp and /dev/shm of a job, in memory.
  # tmp_bytes: 64MB
  # shm_bytes: 64MB

jobs:
  # Time between SIGTERM and SIGKILL for a job that did not ask for another one.
  # grace: 10s
  # Limits of a job that asked for none; 0 is unlimited. CPU in percent of one core, memory, bytes a second
  # of input and of output, processes and threads. A default above its maximum below is the maximum.
  # default_cpu: 0
  # default_memory: 0
  # default_iobps: 0
  # default_pids: 4096
  # What no job may exceed; 0 is no maximum. A job that asks for more, or for no limit, is refused.
  # max_cpu: 0
  # max_memory: 0
  # max_iobps: 0
  # max_pids: 0
  # How many cores, the lowest ones, are kept for the daemon; jobs run on the others, at least on one. auto
  # is none on a machine with fewer than four cores, else one.
  # reserved_cores: auto
  # What jobs may have at once, all together: how many run, and the sum of their limits on memory and on CPU
  # (percent of one core); 0 is no bound. A job without such a limit counts as 0. A job that would be too
  # much waits (QUEUED): the highest priority is first, then the owner with the fewest running jobs, then the
  # oldest. A job that is larger than a budget is refused.
  # max_running: 0
  # memory_budget: 0
  # cpu_budget: 0
  # How many jobs may wait; further ones are refused.
  # queue_max: 10000

# A job that asks for a limit which this machine cannot enforce is refused; with true it runs without that
# limit, and its status says so. `rnx doctor` shows what is enforced.
# best_effort: false

ids:
  # Host user and group ids that jobs run as: `count` ranges of 65536 ids each, from `first` on. They
  # must not be anybody else's: see /etc/passwd, /etc/subuid and other daemons of this machine.
  # first: 2147483648
  # count: 32767

store:
  # What an acknowledged submit or end of a job survives: process (the daemon may be killed at any moment; a
  # power loss may take the last seconds) or power (a power loss too; every acknowledgement waits for the disk).
  # durability: process
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_fresh_file_means_the_defaults() {
        let text = default_file(Config::default().server.listen);
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
    }

    #[test]
    fn every_commented_key_is_known_and_shows_its_default() {
        let is_key = |line: &str| {
            let word = line.split(':').next().unwrap_or_default();
            line.contains(": ") && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        };
        let mut keys = 0;
        let mut text = String::new();
        for line in default_file(Config::default().server.listen).lines() {
            let (indent, bare) = line.split_at(line.len() - line.trim_start().len());
            match bare.strip_prefix("# ").filter(|rest| is_key(rest)) {
                Some(rest) => {
                    keys += 1;
                    text += &format!("{indent}{rest}\n");
                }
                None => text += &format!("{line}\n"),
            }
        }
        assert_eq!(keys, 31, "{text}");
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
    }
}

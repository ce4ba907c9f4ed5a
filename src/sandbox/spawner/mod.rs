//! The process that clones jobs.

use std::{os::fd::OwnedFd, path::PathBuf};

use crate::sys::keeper_calls::exit_now;

/// Where a spawner may put its scratch.
#[derive(Debug, Clone)]
pub struct SpawnerOptions {
    /// A directory of the daemon's, made by the caller.
    pub scratch_dir: PathBuf,
}

/// Reads until the daemon's end of the socket is closed, then ends.
pub fn run(daemon: OwnedFd, keeper: OwnedFd, options: SpawnerOptions) -> ! {
    let mut buffer = [0; 64];
    while !matches!(nix::unistd::read(&daemon, &mut buffer), Ok(0)) {}
    drop((keeper, options));
    exit_now(0)
}

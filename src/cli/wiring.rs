//! Where the command line meets the daemon: one function a door.

use std::os::fd::OwnedFd;

use anyhow::{Result, bail};
use joblet::{config::Config, host::Base, pki::PkiFiles};

/// Serves until told to end. The caller holds the lock of `base` and has checked the machine.
pub(super) fn run_daemon(base: &Base, _config: &Config, _keys: PkiFiles) -> Result<()> {
    bail!("this build cannot serve {}", base.root().display());
}

/// Runs as the keeper of a shard until its daemon lets it go.
pub(super) fn keeper(_socket: OwnedFd) -> Result<()> {
    bail!("this build has no keeper");
}

/// Ends and removes every kernel object that carries the instance of `base`: processes, cgroups, mounts, loop
/// devices. The caller holds the lock, so no daemon is making new ones.
pub(super) fn clear(_base: &Base) -> Result<()> {
    Ok(())
}

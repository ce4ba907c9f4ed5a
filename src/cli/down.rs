//! `joblet down`: end the daemon when one serves, then everything it has left.

use std::path::Path;

use anyhow::{Context, Result, bail};
use joblet::{
    config::Config,
    host::{Base, BaseError, BaseLock, Holder},
    job::units::format_duration,
    limits,
    pki::PkiFiles,
    shard::topology::Purpose,
};
use nix::sys::signal::Signal;

use super::{overrides, say, wiring};

pub(super) fn run(base: &Path) -> Result<()> {
    let base = Base::open(base)?;
    // With the lock in our hands no daemon can make what we are about to clear.
    let _lock = take_lock(&base)?;
    end_left_jobs(&base)?;
    wiring::clear(&base)?;
    say(&format!("{} is down", base.root().display()));
    Ok(())
}

/// Ends the jobs that a daemon left running as a daemon would: with the grace of each, and an outcome in the store.
fn end_left_jobs(base: &Base) -> Result<()> {
    if !base.has_keepers()? {
        return Ok(());
    }
    // A configuration or keys that cannot be read must not keep jobs alive: they are killed then.
    let config = Config::load(&base.config_file(), &overrides()).unwrap_or_default();
    let Ok(keys) = PkiFiles::load(&base.pki()) else {
        return Ok(());
    };
    say("ending the jobs that a daemon left running");
    if let Err(error) = wiring::run_daemon(base, &config, keys, Purpose::Down) {
        say(&format!(
            "they are killed, because they could not be ended in order: {error:#}"
        ));
    }
    Ok(())
}

/// Ends the daemon that holds the lock, if there is one, and takes the lock after it.
fn take_lock(base: &Base) -> Result<BaseLock> {
    match base.lock() {
        Err(BaseError::Held { .. }) => {
            end_daemon(base)?;
            base.lock()
                .context("the daemon has ended, and somebody took its place")
        }
        other => Ok(other?),
    }
}

/// Asks the daemon to end and waits; kills it when it does not.
fn end_daemon(base: &Base) -> Result<()> {
    let lock = base.lock_file();
    let Some(daemon) = base.holder()? else {
        // It may have ended between the two looks, and then there is nothing to end.
        if base.lock().is_ok() {
            return Ok(());
        }
        bail!(
            "{} is locked by a process that did not write its pid there; find it with: fuser {0}",
            lock.display()
        );
    };
    check_daemon(&daemon, &lock)?;
    // A configuration that cannot be read must not keep a daemon alive.
    let grace = Config::load(&base.config_file(), &overrides())
        .unwrap_or_default()
        .jobs
        .grace;
    let longest = grace + limits::DOWN_MARGIN;
    let pid = daemon.pid();
    say(&format!("asking the daemon, process {pid}, to end"));
    daemon
        .signal(Signal::SIGUSR1)
        .with_context(|| format!("send SIGUSR1 to process {pid}"))?;
    if daemon
        .wait(longest)
        .with_context(|| format!("wait for process {pid}"))?
    {
        return Ok(());
    }
    say(&format!(
        "process {pid} has not ended within {}; killing it",
        format_duration(longest)
    ));
    daemon
        .signal(Signal::SIGKILL)
        .with_context(|| format!("send SIGKILL to process {pid}"))?;
    if !daemon
        .wait(limits::DOWN_KILL_WAIT)
        .with_context(|| format!("wait for process {pid}"))?
    {
        bail!(
            "process {pid} was killed and does not end; it is stuck in the kernel, see /proc/{pid}/stack"
        );
    }
    Ok(())
}

/// Refuses to signal a process that holds the lock for another purpose, a backup for example.
fn check_daemon(holder: &Holder, lock: &Path) -> Result<()> {
    let name = holder.executable().file_name().unwrap_or_default();
    if name.as_encoded_bytes().starts_with(b"joblet") {
        return Ok(());
    }
    bail!(
        "{} is locked by process {}, which is {} and no joblet; end it yourself",
        lock.display(),
        holder.pid(),
        holder.executable().display()
    );
}

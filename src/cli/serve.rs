//! `joblet serve`: check everything that can be refused early, take the lock, run.

use std::{io::IsTerminal, path::Path};

use anyhow::{Context, Result, bail};
use joblet::{
    config::Config,
    host::{Base, preflight},
    pki::PkiFiles,
    shard::topology::Purpose,
};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{overrides, wiring};

pub(super) fn run(base: &Path, is_drain: bool) -> Result<()> {
    let base = Base::open(base)?;
    let config = Config::load(&base.config_file(), &overrides())?;
    start_log()?;
    let missing = preflight::check();
    if !missing.is_empty() {
        let list: Vec<_> = missing.iter().map(|one| format!("\n  {one}")).collect();
        bail!("this machine lacks what joblet needs:{}", list.concat());
    }
    let _lock = base.lock().context("one daemon serves a base directory")?;
    let keys = PkiFiles::load(&base.pki())
        .context("restore it from a backup, or see: joblet init --help")?;
    let purpose = if is_drain {
        Purpose::Drain
    } else {
        Purpose::Serve
    };
    wiring::run_daemon(&base, &config, keys, purpose)
}

/// Lines of the daemon's own log go to stderr; `JOBLET_LOG` says which.
pub(super) fn start_log() -> Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .with_env_var("JOBLET_LOG")
        .from_env()
        .context("JOBLET_LOG is no log filter; write for example info or joblet::shard=debug")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    Ok(())
}

//! `joblet doctor`: asks the daemon what its machine enforces, as a client that is known for this one question.
//!
//! The client speaks the wire and knows how to show the answer, so this process becomes it.

use std::{
    env,
    fs::{File, Permissions},
    os::{
        fd::AsRawFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result};
use joblet::{
    config::Config,
    host::Base,
    job::Role,
    pki::{self, Validity},
    sys::memfd,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{cert, overrides};

/// Whom the daemon sees.
const NAME: &str = "joblet doctor";
/// The node of the client file; nobody sees it.
const NODE: &str = "default";
/// How long the certificate holds: its key is never on a disk.
const DAYS: u32 = 1;

pub(super) fn run(base: &Path, json: bool) -> Result<()> {
    let base = Base::open(base)?;
    let config = Config::load(&base.config_file(), &overrides())?;
    let address = config.server.local_address().to_string();
    let authority = pki::load_authority(&base.pki())?;
    let validity = Validity::days(SystemTime::now(), DAYS);
    let identity = authority.issue(Role::Developer, NAME, validity)?;
    let text = cert::client_file(&base, &authority, NODE, &address, &identity);
    let file = inherited(&text).context("hand a client file on")?;
    let program = client();
    Err(become_client(&program, &file, json)).with_context(|| {
        let shown = program.display();
        format!("execute {shown}; `rnx doctor` asks the same where rnx is installed")
    })
}

/// The text as a file in memory that the next program has open and only we may read.
fn inherited(text: &str) -> Result<File> {
    let file = File::from(memfd::sealed(c"rnx-config.yml", text.as_bytes())?);
    file.set_permissions(Permissions::from_mode(0o600))?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(file)
}

/// The client beside our own program, else the one in `PATH`.
fn client() -> PathBuf {
    env::current_exe()
        .ok()
        .map(|own| own.with_file_name("rnx"))
        .filter(|beside| beside.is_file())
        .unwrap_or_else(|| PathBuf::from("rnx"))
}

/// Returns only when it cannot be executed.
#[expect(
    clippy::disallowed_methods,
    reason = "this process becomes the client before any shard exists"
)]
fn become_client(program: &Path, config: &File, json: bool) -> std::io::Error {
    Command::new(program)
        .arg("--config")
        .arg(format!("/proc/self/fd/{}", config.as_raw_fd()))
        .args(json.then_some("--json"))
        .arg("doctor")
        .exec()
}

//! A daemon of our own for the length of a comparison.

use std::{
    fs::{self, File},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::quiet;

/// How long a daemon may take until it accepts.
const READY: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Daemon {
    base: PathBuf,
    config: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Sets one up below `scratch` and returns once it accepts.
    pub(crate) fn start(scratch: &Path) -> Result<Self> {
        let (base, config, log) = (
            scratch.join("base"),
            scratch.join("client.yml"),
            scratch.join("log"),
        );
        let listen = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.to_string();
        let init = binary("joblet")?
            .args(["init", "--listen", &listen, "--base"])
            .arg(&base)
            .arg("--client-config")
            .arg(&config)
            .status()
            .context("joblet init")?;
        ensure!(init.success(), "joblet init: {init}");
        let child = binary("joblet")?
            .arg("serve")
            .arg("--base")
            .arg(&base)
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut daemon = Self {
            base,
            config,
            child: Some(child),
        };
        daemon.wait_ready(&log)?;
        Ok(daemon)
    }

    fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let begin = Instant::now();
        loop {
            let text = fs::read_to_string(log)?;
            if text.contains("ready") {
                return Ok(());
            }
            let child = self.child.as_mut().context("the daemon was started")?;
            if let Some(status) = child.try_wait()? {
                bail!("joblet serve: {status}: {text}");
            }
            ensure!(
                begin.elapsed() < READY,
                "joblet serve is not ready within {READY:?}: {text}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `rnx job run true`.
    pub(crate) fn run_true(&self) -> Command {
        let mut command = quiet(sibling("rnx"));
        command
            .arg("--config")
            .arg(&self.config)
            .args(["job", "run", "true"]);
        command
    }

    /// Ends it and everything it made.
    pub(crate) fn end(mut self) -> Result<()> {
        let status = self.down()?;
        ensure!(status, "joblet down failed");
        Ok(())
    }

    fn down(&mut self) -> Result<bool> {
        let done = binary("joblet")?
            .arg("down")
            .arg("--base")
            .arg(&self.base)
            .status()?;
        if let Some(mut child) = self.child.take() {
            if !done.success() {
                child.kill()?;
            }
            child.wait()?;
        }
        Ok(done.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            // We are here because something else failed already, and that is what is reported.
            let _ = self.down();
        }
    }
}

fn binary(name: &str) -> Result<Command> {
    let path = sibling(name);
    ensure!(
        path.exists(),
        "{} is missing; run `cargo xtask bench`, which builds it",
        path.display()
    );
    Ok(quiet(path))
}

/// A binary of the same build.
fn sibling(name: &str) -> PathBuf {
    std::env::current_exe()
        .unwrap_or_default()
        .with_file_name(name)
}

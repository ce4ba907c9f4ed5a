//! Who else runs an isolated `true` here, and with which command line.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{private::Daemon, quiet};

/// One row.
#[derive(Debug)]
pub(crate) struct Peer {
    /// For promises.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) shown: &'static str,
    pub(crate) command: Command,
    pub(crate) times: Vec<Duration>,
}

impl Peer {
    pub(crate) fn median(&self) -> Duration {
        self.at(50)
    }

    pub(crate) fn at(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    }
}

/// Name of the image that docker is given.
const IMAGE: &str = "joblet-compare";

/// All rows that run here: ours, the bare process, and each peer whose first run succeeds.
pub(crate) fn find(scratch: &Path, daemon: &Daemon) -> Result<Vec<Peer>> {
    install("bwrap", "bubblewrap");
    install("runc", "runc");
    let root = scratch.join("rootfs");
    make_root(&root)?;
    let mut rows = vec![
        ("rnx", "`rnx job run true`", Some(daemon.run_true())),
        ("bare", "`true`, nothing isolated", Some(quiet("true"))),
        (
            "bwrap",
            "`bwrap --unshare-all` (no cgroup)",
            is_there("bwrap").then(bwrap),
        ),
        (
            "runc",
            "`runc run`",
            is_there("runc").then(|| runc(scratch)).transpose()?,
        ),
        (
            "podman",
            "`podman run --net=none`",
            is_there("podman").then(|| podman(&root)),
        ),
        (
            "docker",
            "`docker run --rm --net=none`",
            is_there("docker").then(|| docker(&root)).flatten(),
        ),
    ];
    let mut peers = Vec::new();
    for (name, shown, command) in rows.drain(..) {
        let Some(mut command) = command else {
            eprintln!("not here: {name}");
            continue;
        };
        if command.status().is_ok_and(|status| status.success()) {
            peers.push(Peer {
                name,
                shown,
                command,
                times: Vec::new(),
            });
        } else {
            ensure!(name != "rnx", "{command:?} fails");
            eprintln!("does not run here: {command:?}");
        }
    }
    Ok(peers)
}

/// Takes back what [`find`] made outside of `scratch`.
pub(crate) fn clean(scratch: &Path) {
    if scratch.join("docker").exists() {
        // An image that stays does no harm; there is nothing better to do about it.
        let _ = quiet("docker").args(["rmi", "--force", IMAGE]).status();
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Installs a Debian package unless its program is there. A failure shows as a missing row.
fn install(program: &str, package: &str) {
    if is_there(program) {
        return;
    }
    eprintln!("installing {package}");
    let install = || {
        quiet("apt-get")
            .args(["install", "--yes", "--no-install-recommends", package])
            .status()
    };
    if !install().is_ok_and(|status| status.success()) {
        let _ = quiet("apt-get").arg("update").status();
        let _ = install();
    }
}

fn bwrap() -> Command {
    let mut command = quiet("bwrap");
    command.args([
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--ro-bind",
        "/usr",
        "/usr",
    ]);
    command.args([
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/lib",
        "/lib",
        "--symlink",
        "usr/lib64",
        "/lib64",
    ]);
    command.args([
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/work", "--chdir",
        "/work", "true",
    ]);
    command
}

/// A root that only needs `/usr` of the host mounted, with a static command for those that cannot have that.
fn make_root(root: &Path) -> Result<()> {
    for dir in ["usr", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for (name, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        symlink(target, root.join(name))?;
    }
    let floor = std::env::current_exe()?.with_file_name("floor");
    let written = quiet(&floor)
        .arg("--write-command")
        .arg(root.join("true"))
        .status();
    ensure!(
        written.is_ok_and(|status| status.success()),
        "{} is missing",
        floor.display()
    );
    Ok(())
}

/// A bundle as `runc spec` makes it, with the host's `/usr` and no terminal.
fn runc(scratch: &Path) -> Result<Command> {
    let status = quiet("runc")
        .arg("spec")
        .arg("--bundle")
        .arg(scratch)
        .status()
        .context("runc spec")?;
    ensure!(status.success(), "runc spec: {status}");
    let path = scratch.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = json!(["/usr/bin/true"]);
    let usr = json!({ "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] });
    spec["mounts"]
        .as_array_mut()
        .context("a specification has mounts")?
        .push(usr);
    write(&path, &spec.to_string())?;
    let mut command = quiet("runc");
    command
        .arg("run")
        .arg("--bundle")
        .arg(scratch)
        .arg(format!("joblet-compare-{}", std::process::id()));
    Ok(command)
}

fn podman(root: &Path) -> Command {
    let mut command = quiet("podman");
    command
        .args(["run", "--rm", "--net=none", "--rootfs"])
        .arg(root)
        .arg("/true");
    command
}

/// An image with nothing but the static command; nothing when there is no docker daemon.
fn docker(root: &Path) -> Option<Command> {
    let marker = root.with_file_name("docker");
    let script = format!(
        "tar -C '{}' -c true | docker import - {IMAGE}",
        root.display()
    );
    let imported = quiet("sh")
        .args(["-c", &script])
        .status()
        .is_ok_and(|status| status.success());
    if !imported {
        return None;
    }
    write(&marker, "").ok()?;
    let mut command = quiet("docker");
    command.args(["run", "--rm", "--net=none", IMAGE, "/true"]);
    Some(command)
}

#[expect(clippy::disallowed_methods, reason = "a tool without a shard")]
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

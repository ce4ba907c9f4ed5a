//! Where on a cgroup2 host the tree may stand so that its leaves have controllers.
//!
//! A cgroup with processes cannot hand controllers down ("no internal processes"), the root excepted. So:
//! below our own cgroup when we are alone in it, as in a delegated unit or a container, and step down into a
//! leaf beside the tree; else at the root of the hierarchy, when that is the real one; else below our own
//! cgroup without controllers, and say why.
//!
//! # Source
//! Linux `Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process Constraint", "Delegation".

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    CgroupError, Controller, Place,
    dir::{self, Dir},
};

/// What is added to the tree's name for the cgroup that the daemon itself steps down into.
const DAEMON: &str = "-daemon";
/// Weight of that cgroup: ten times that of the whole tree.
const WEIGHT: &str = "1000";

/// Where the tree stands.
#[derive(Debug)]
pub(super) struct Standing {
    /// The cgroup that the tree is made in.
    pub(super) parent: PathBuf,
    /// Why leaves lack controllers that the kernel has.
    pub(super) trouble: Option<String>,
}

impl Standing {
    /// Finds a place for the tree called `name` and readies it.
    pub(super) fn find(place: &Place, name: &str) -> Result<Self, CgroupError> {
        let own = Dir::open(place.own.clone())?;
        let here = Self {
            parent: place.own.clone(),
            trouble: None,
        };
        if wanted(&own)?.is_empty() || hand_down(&own).is_ok() {
            return Ok(here);
        }
        let others = others_in(&own)?;
        if others == 0 && !is_real_root(&own) {
            let leaf = Dir::make(place.own.join(format!("{name}{DAEMON}")))?;
            leaf.write("cgroup.procs", "0")?;
            let trouble = hand_down(&own).err().map(|error| said(&error));
            if leaf.has("cpu.weight") {
                // Output is read and requests are answered however many jobs spin in the tree beside it.
                leaf.write("cpu.weight", WEIGHT)?;
            }
            return Ok(Self { trouble, ..here });
        }
        let root = Dir::open(place.mount.clone())?;
        if is_real_root(&root) && hand_down(&root).is_ok() {
            return Ok(Self {
                parent: place.mount.clone(),
                ..here
            });
        }
        Ok(Self {
            trouble: Some(format!(
                "{others} other processes live in {}: start joblet in a cgroup of its own, as a systemd \
                 unit with Delegate=yes or as the first process of a container",
                place.own.display()
            )),
            ..here
        })
    }
}

/// Gives the cgroups below `dir` all of our controllers that it has. One that the kernel will not hand down
/// for a reason of its own is left out; that `dir` has processes is an error.
pub(super) fn hand_down(dir: &Dir) -> Result<(), CgroupError> {
    for controller in wanted(dir)? {
        let name = controller.v2_name();
        match dir.write("cgroup.subtree_control", &format!("+{name}")) {
            Err(CgroupError::Write { source, path })
                if source.kind() == io::ErrorKind::ResourceBusy =>
            {
                return Err(CgroupError::Write { path, source });
            }
            Err(error) => tracing::warn!(name, %error, "a controller is not handed down"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Our controllers that `dir` has and does not hand down yet.
fn wanted(dir: &Dir) -> Result<Vec<Controller>, CgroupError> {
    let has = dir.read("cgroup.controllers")?;
    let handed = dir.read("cgroup.subtree_control")?;
    let names = |text: &str, name| text.split_whitespace().any(|word| word == name);
    Ok(Controller::ALL
        .into_iter()
        .filter(|controller| {
            let name = controller.v2_name();
            names(&has, name) && !names(&handed, name)
        })
        .collect())
}

/// How many processes live there beside us.
fn others_in(dir: &Dir) -> Result<usize, CgroupError> {
    let us = std::process::id().to_string();
    let members = dir.read("cgroup.procs")?;
    Ok(members.lines().filter(|line| *line != us).count())
}

/// Only the root of the whole hierarchy lacks this file, whatever a cgroup namespace shows.
fn is_real_root(dir: &Dir) -> bool {
    !dir.has("cgroup.type")
}

fn said(error: &CgroupError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Removes every cgroup below `mount` that a daemon with the tree `name` had stepped down into. When we are that
/// daemon we go back to where we came from.
pub(super) fn step_up_from(mount: &Path, name: &str) -> Result<(), CgroupError> {
    for path in dir::find(mount, &format!("{name}{DAEMON}"))? {
        let daemon = Dir::open(path.clone())?;
        let us = std::process::id().to_string();
        let is_ours = daemon.read("cgroup.procs")?.lines().any(|line| line == us);
        if let (true, Some(parent)) = (is_ours, path.parent()) {
            let parent = Dir::open(parent.to_owned())?;
            // A cgroup that hands controllers down takes no processes.
            let handed = parent.read("cgroup.subtree_control")?;
            for name in handed.split_whitespace() {
                parent.write("cgroup.subtree_control", &format!("-{name}"))?;
            }
            parent.write("cgroup.procs", "0")?;
        }
        daemon.remove()?;
    }
    Ok(())
}

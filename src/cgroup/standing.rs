//! Where on a cgroup2 host the tree may stand so that its leaves have controllers.
//!
//! A cgroup with processes cannot hand controllers down ("no internal processes"), the root excepted. So:
//!
//! ```text
//! at the real root                            there
//! in a subgroup of a service of systemd       in the service's cgroup, which is ours to divide
//! in a unit of systemd itself, or not alone   at the real root, if we see it
//! alone in any other cgroup, as in a          there; we step down into a leaf beside the tree
//! container, or without a root to go to
//! else                                        below our own cgroup without controllers, and we say why
//! ```
//! Below a unit we would stand in its way: systemd starts a service in the unit's own cgroup, which the kernel refuses
//! once that hands controllers down to jobs that outlive a restart. It asks for a subgroup since 254
//! (`DelegateSubgroup=`).
//!
//! # Source
//! Linux `Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process Constraint", "Delegation".

use std::{
    ffi::OsStr,
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
    /// Where a tree stands already.
    pub(super) fn at(parent: &Path) -> Self {
        Self {
            parent: parent.to_owned(),
            trouble: None,
        }
    }

    /// Finds a place for the tree called `name` and readies it.
    pub(super) fn find(place: &Place, name: &str) -> Result<Self, CgroupError> {
        let own = Dir::open(place.own.clone())?;
        let here = |trouble| Self {
            parent: place.own.clone(),
            trouble,
        };
        if let Some(service) = service_of_subgroup(place)
            && others_in(&service)? == 0
            && hand_down(&service).is_ok()
        {
            prefer(&own)?;
            return Ok(Self::at(service.path()));
        }
        // Not tried with processes in it: controllers of threads can be handed down then, and take all others away.
        if wanted(&own)?.is_empty() || (is_real_root(&own) && hand_down(&own).is_ok()) {
            return Ok(here(None));
        }
        let others = others_in(&own)?;
        if others > 0 || is_unit(&place.own) {
            let root = Dir::open(place.mount.clone())?;
            if is_real_root(&root) && hand_down(&root).is_ok() {
                return Ok(Self::at(&place.mount));
            }
        }
        if others > 0 {
            return Ok(here(Some(format!(
                "{others} other processes live in {}: start joblet in a cgroup of its own, as a systemd \
                 unit with Delegate=yes or as the first process of a container",
                place.own.display()
            ))));
        }
        let leaf = Dir::make(place.own.join(format!("{name}{DAEMON}")))?;
        leaf.write("cgroup.procs", "0")?;
        let trouble = hand_down(&own).err().map(|error| said(&error));
        prefer(&leaf)?;
        Ok(here(trouble))
    }
}

/// Has output read and requests answered however many jobs spin in the tree beside the daemon's cgroup.
fn prefer(daemon: &Dir) -> Result<(), CgroupError> {
    if daemon.has("cpu.weight") {
        daemon.write("cpu.weight", WEIGHT)?;
    }
    Ok(())
}

/// Whether systemd has made a cgroup for a unit that has processes: units have such names, and nobody else should.
fn is_unit(path: &Path) -> bool {
    let kind = path.extension().and_then(OsStr::to_str);
    matches!(kind, Some("service" | "scope"))
}

/// The service whose cgroup is divided, with us in a part of it.
fn service_of_subgroup(place: &Place) -> Option<Dir> {
    let parent = place.own.parent()?;
    let is_service = parent.extension() == Some(OsStr::new("service"));
    let is_below = parent.starts_with(&place.mount) && !is_unit(&place.own);
    Dir::open(parent.to_owned())
        .ok()
        .filter(|_| is_service && is_below)
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

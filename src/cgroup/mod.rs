//! Cgroups: one tree an instance, one leaf a job, and the limits of both.
//!
//! ```text
//! <own cgroup>/joblet-<instance>/helpers          keepers, spawners, makers
//!                               /<job uuid>       one job, from before its first instruction
//! ```
//! The tree lies in cgroup2. A leaf there serves to name all processes of a job at once: to kill them, and to
//! know that none is left. Its limits are files of the leaf ([`v2`]) or, on a hybrid host whose controllers
//! sit in hierarchies of version 1, of cgroups of the same name there ([`v1`]). Which of the two, is found for
//! each controller. Every call goes through a descriptor of the tree that is opened once, so no path outside
//! it can be touched, and a running job costs no descriptor.

mod controller;
mod device;
mod dir;
mod member;
mod place;
mod remains;
mod standing;
mod tree;
mod v1;
mod v2;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use controller::{Controller, Enforcement};
pub use device::Device;
pub use place::Place;
pub use remains::Spared;
pub use tree::{Leaf, Tree};
pub use v1::{Seat, SeatMemory};

use self::dir::Dir;
use crate::job::{JobId, Limits, Usage};

/// Directory of the helper processes.
const HELPERS: &str = "helpers";
/// What the directory of every instance begins with.
const PREFIX: &str = "joblet-";

/// One version of cgroups, and the controllers that this host has in it.
trait Backend {
    /// What it does for a controller; `None` when it does not have it.
    fn enforcement(&self, controller: Controller) -> Option<Enforcement>;

    /// Sets the limits of a leaf.
    fn limit(
        &self,
        tree: &Dir,
        leaf: &str,
        limits: &Limits,
        devices: &[Device],
    ) -> Result<(), CgroupError>;

    /// Adds what it has counted of a leaf. What cannot be read is left as it is.
    fn account(&self, tree: &Dir, leaf: &str, usage: &mut Usage);

    /// Adds what a leaf has now. What cannot be read is left as it is.
    fn account_now(&self, tree: &Dir, leaf: &str, usage: &mut Usage);
}

/// What can go wrong with a cgroup.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// This host has no cgroup2 hierarchy that we can see.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// There is one, but nothing can be made in it.
    #[error("cgroup2 is mounted read-only on {}", .path.display())]
    ReadOnly {
        /// Its mount point.
        path: PathBuf,
    },
    /// The instance's name would not be one directory.
    #[error("instance {0:?} is not made of letters and digits")]
    Instance(String),
    /// A leaf of this job exists.
    #[error("cgroup of job {0} exists")]
    Exists(JobId),
    /// No leaf of this job exists.
    #[error("no cgroup of job {0}")]
    Missing(JobId),
    /// There are processes in it, or some that just ended are not out of it yet: try again.
    #[error("cgroup {} is in use", .path.display())]
    Busy {
        /// Which.
        path: PathBuf,
    },
    /// Making a directory or opening one failed.
    #[error("make {}", .path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading a file or directory failed.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing a file or removing a directory failed.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn directory_name(instance: &str) -> Result<String, CgroupError> {
    if instance.is_empty() || !instance.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(CgroupError::Instance(instance.to_owned()));
    }
    Ok(format!("{PREFIX}{instance}"))
}

#[cfg(test)]
mod tests;

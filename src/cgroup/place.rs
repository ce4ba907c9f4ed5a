//! Where the cgroup hierarchies are mounted, and where in them this process lives.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::{CgroupError, Controller};
use crate::sys::mountinfo::{self, Mount};

/// One hierarchy as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its mount point: of cgroup2 `/sys/fs/cgroup` on a pure host, `/sys/fs/cgroup/unified` on a hybrid one.
    pub mount: PathBuf,
    /// The directory of our own cgroup in it.
    pub own: PathBuf,
    /// Whether nothing can be made there.
    pub read_only: bool,
}

impl Place {
    /// Looks for cgroup2.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`], [`CgroupError::Read`].
    pub fn find() -> Result<Self, CgroupError> {
        let (mounts, membership) = look()?;
        let own = own_path(&membership, "");
        best(&mounts, "cgroup2", CGROUP2_SUPER_MAGIC, |_| true)
            .map(|mount| Self::on(mount, &own))
            .ok_or(CgroupError::NotMounted)
    }

    /// The hierarchies of version 1 that have one of our controllers, one for each controller: several may
    /// share one, as `cpu,cpuacct` often do.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn legacy() -> Result<Vec<(Controller, Self)>, CgroupError> {
        let (mounts, membership) = look()?;
        let found = Controller::ALL.into_iter().filter_map(|controller| {
            let name = controller.v1_name();
            let has = |mount: &Mount| mount.options.split(',').any(|option| option == name);
            let mount = best(&mounts, "cgroup", CGROUP_SUPER_MAGIC, has)?;
            Some((controller, Self::on(mount, &own_path(&membership, name))))
        });
        Ok(found.collect())
    }

    fn on(mount: &Mount, own: &Path) -> Self {
        let inside = own.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let own = mount.point.join(inside);
        Self {
            own: if own.is_dir() {
                own
            } else {
                mount.point.clone()
            },
            mount: mount.point.clone(),
            read_only: mount.read_only,
        }
    }
}

fn look() -> Result<(Vec<Mount>, String), CgroupError> {
    let read = |path: &str, source| CgroupError::Read {
        path: path.into(),
        source,
    };
    let mounts = mountinfo::read().map_err(|source| read("/proc/self/mountinfo", source))?;
    let membership = fs::read_to_string("/proc/self/cgroup")
        .map_err(|source| read("/proc/self/cgroup", source))?;
    Ok((mounts, membership))
}

/// The mount to use of those that `suit`: one that is writable, if there is one.
fn best<'a>(
    mounts: &'a [Mount],
    kind: &str,
    magic: FsType,
    suits: impl Fn(&Mount) -> bool,
) -> Option<&'a Mount> {
    mounts
        .iter()
        .filter(|mount| mount.kind == kind && suits(mount))
        // One that is covered by another mount answers with that one's type.
        .filter(|mount| statfs(&mount.point).is_ok_and(|stat| stat.filesystem_type() == magic))
        .min_by_key(|mount| mount.read_only)
}

/// Our path in the hierarchy of `controller` (empty: cgroup2), from the text of `/proc/self/cgroup`; the root
/// when it lies outside what we may see.
///
/// # Source
/// cgroups(7), "/proc/[pid]/cgroup".
fn own_path(membership: &str, controller: &str) -> PathBuf {
    membership
        .lines()
        .find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = if controller.is_empty() {
                number == "0" && controllers.is_empty()
            } else {
                controllers.split(',').any(|name| name == controller)
            };
            is_it.then(|| PathBuf::from(path))
        })
        .filter(|path| {
            path.components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        })
        .unwrap_or_else(|| PathBuf::from("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_path_is_the_line_of_the_controller_or_of_none() {
        for (text, controller, expected) in [
            ("9:pids:/x\n0::/\n", "", "/"),
            ("9:pids:/x\n0::/\n", "pids", "/x"),
            (
                "0::/system.slice/joblet.service\n",
                "",
                "/system.slice/joblet.service",
            ),
            ("4:memory:/a\n0::/b c\n", "", "/b c"),
            ("3:cpu,cpuacct:/a:b\n0::/\n", "cpu", "/a:b"),
            ("0::/../outside\n", "", "/"),
            ("4:memory:/a\n", "", "/"),
            ("4:memory:/a\n", "pids", "/"),
        ] {
            assert_eq!(own_path(text, controller), Path::new(expected), "{text:?}");
        }
    }

    #[test]
    fn the_place_of_this_process_lists_this_process() {
        let pid = std::process::id().to_string();
        let legacy = Place::legacy().unwrap().into_iter().map(|(_, place)| place);
        for place in legacy.chain([Place::find().unwrap()]) {
            let members = fs::read_to_string(place.own.join("cgroup.procs")).unwrap();
            assert!(members.lines().any(|line| line == pid), "{place:?}");
        }
    }
}

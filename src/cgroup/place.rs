//! Where cgroup2 is mounted, and where in it this process lives.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::CgroupError;
use crate::sys::mountinfo;

/// The cgroup2 hierarchy as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its mount point: `/sys/fs/cgroup` on a pure host, `/sys/fs/cgroup/unified` on a hybrid one.
    pub mount: PathBuf,
    /// The directory of our own cgroup in it.
    pub own: PathBuf,
    /// Whether nothing can be made there.
    pub read_only: bool,
}

impl Place {
    /// Looks for it.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`], [`CgroupError::Read`].
    pub fn find() -> Result<Self, CgroupError> {
        let read = |path: &str, source| CgroupError::Read { path: path.into(), source };
        let mounts = mountinfo::read().map_err(|source| read("/proc/self/mountinfo", source))?;
        let membership =
            fs::read_to_string("/proc/self/cgroup").map_err(|source| read("/proc/self/cgroup", source))?;
        let own = own_path(&membership);
        let mut found: Vec<_> = mounts
            .into_iter()
            .filter(|mount| mount.kind == "cgroup2")
            // One that is covered by another mount answers with that one's type.
            .filter(|mount| {
                statfs(&mount.point).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
            })
            .collect();
        found.sort_by_key(|mount| mount.read_only);
        let mount = found.into_iter().next().ok_or(CgroupError::NotMounted)?;
        let inside = own.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let own = mount.point.join(inside);
        let own = if own.is_dir() { own } else { mount.point.clone() };
        Ok(Self { mount: mount.point, own, read_only: mount.read_only })
    }
}

/// Our path in cgroup2, from the text of `/proc/self/cgroup`; the root when it lies outside what we may see.
fn own_path(membership: &str) -> PathBuf {
    membership
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(PathBuf::from)
        .filter(|path| {
            path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        })
        .unwrap_or_else(|| PathBuf::from("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_path_is_the_line_without_a_controller() {
        for (text, expected) in [
            ("9:pids:/x\n0::/\n", "/"),
            ("0::/system.slice/joblet.service\n", "/system.slice/joblet.service"),
            ("4:memory:/a\n0::/b c\n", "/b c"),
            ("0::/../outside\n", "/"),
            ("4:memory:/a\n", "/"),
        ] {
            assert_eq!(own_path(text), Path::new(expected), "{text:?}");
        }
    }

    #[test]
    fn the_place_of_this_process_lists_this_process() {
        let place = Place::find().unwrap();
        let members = fs::read_to_string(place.own.join("cgroup.procs")).unwrap();
        let pid = std::process::id().to_string();
        assert!(members.lines().any(|line| line == pid), "{place:?}");
    }
}

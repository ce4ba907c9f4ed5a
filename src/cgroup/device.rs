//! Block devices behind files: what an I/O limit is set on.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use nix::sys::stat::{major, minor};

use crate::sys::mountinfo;

/// A whole disk, never a partition: those have no limits of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// The disks that hold the file or directory at `path`: the one it lies on and those below that one. Empty
    /// when it lies on none, as in a tmpfs.
    #[must_use]
    pub fn behind(path: &Path) -> Vec<Self> {
        let Ok(meta) = fs::metadata(path) else {
            return Vec::new();
        };
        let on = Self::from_number(meta.dev());
        if on.major == 0 {
            // btrfs and overlays have a number of their own; the mount names the device.
            source_of(path).map_or_else(Vec::new, Self::with_lower)
        } else {
            on.with_lower()
        }
    }

    /// The disks behind a file system of device number `dev`, as stat(2) gives it.
    #[must_use]
    pub fn of(dev: u64) -> Vec<Self> {
        let on = Self::from_number(dev);
        if on.major == 0 {
            Vec::new()
        } else {
            on.with_lower()
        }
    }

    fn from_number(dev: u64) -> Self {
        let narrow = |number| u32::try_from(number).unwrap_or(0);
        Self {
            major: narrow(major(dev)),
            minor: narrow(minor(dev)),
        }
    }

    /// Itself, as a whole disk, and the disks that it is made of.
    fn with_lower(self) -> Vec<Self> {
        let whole = self.whole();
        let mut all = vec![whole];
        let lower = format!("/sys/dev/block/{}:{}/slaves", whole.major, whole.minor);
        for entry in fs::read_dir(lower).into_iter().flatten().flatten() {
            if let Some(device) = parse(&entry.path().join("dev")) {
                all.extend(device.with_lower());
            }
        }
        all.sort_unstable_by_key(|device| (device.major, device.minor));
        all.dedup();
        all
    }

    fn whole(self) -> Self {
        let own = format!("/sys/dev/block/{}:{}", self.major, self.minor);
        let own = Path::new(&own);
        if own.join("partition").exists() {
            // The entry is a link to the partition's directory, which lies in its disk's.
            let disk = fs::canonicalize(own).ok();
            let disk = disk.as_deref().and_then(Path::parent);
            disk.and_then(|disk| parse(&disk.join("dev")))
                .unwrap_or(self)
        } else {
            self
        }
    }
}

/// Reads a file that says `254:0`.
fn parse(path: &Path) -> Option<Device> {
    let text = fs::read_to_string(path).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Device {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// The device that the mount which holds `path` was made from.
fn source_of(path: &Path) -> Option<Device> {
    let path = fs::canonicalize(path).ok()?;
    let mounts = mountinfo::read().ok()?;
    let mount = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count())?;
    let rdev = fs::metadata(&mount.source).ok()?.rdev();
    (rdev != 0).then(|| Device::from_number(rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_behind_a_path_are_disks_that_exist() {
        for device in Device::behind(Path::new("/")) {
            let entry = format!("/sys/dev/block/{}:{}", device.major, device.minor);
            assert!(Path::new(&entry).exists(), "{device:?}");
            assert!(!Path::new(&entry).join("partition").exists(), "{device:?}");
        }
    }

    #[test]
    fn nothing_is_behind_memory() {
        assert!(Device::behind(Path::new("/proc")).is_empty());
        assert!(Device::behind(Path::new("/nowhere/at/all")).is_empty());
    }
}

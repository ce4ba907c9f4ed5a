//! A small disk of a test's own, filled by somebody else.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;

use super::in_private_mounts;

/// The configuration with this `limits.disk_reserve`.
pub(crate) fn with_reserve(config: &str, reserve: u64) -> String {
    let mut value: serde_json::Value = serde_saphyr::from_str(config).unwrap();
    value["limits"]["disk_reserve"] = reserve.into();
    // Every JSON document is a YAML document.
    value.to_string()
}

/// Free space, bytes.
pub(crate) fn free(disk: &Path) -> u64 {
    let seen = statvfs(disk).unwrap();
    seen.blocks_available() * seen.fragment_size()
}

/// Somebody else's file on the disk.
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Writes `bytes`, or as many as there is space for.
    pub(crate) fn of(disk: &Path, bytes: u64) -> Self {
        let (filler, copied) = Self::write(disk, bytes);
        assert!(
            copied.is_ok() || free(disk) == 0,
            "{copied:?} with {} bytes free",
            free(disk)
        );
        filler
    }

    /// Leaves so much free.
    pub(crate) fn until(disk: &Path, left: u64) -> Self {
        let (filler, copied) = Self::write(disk, free(disk) - left);
        copied.unwrap();
        filler
    }

    fn write(disk: &Path, bytes: u64) -> (Self, io::Result<u64>) {
        let path = disk.join("filler");
        let mut file = File::create(&path).unwrap();
        let zeros = File::open("/dev/zero").unwrap();
        let copied = io::copy(&mut zeros.take(bytes), &mut file);
        (Self(path), copied)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Runs `test` with a fresh file system of `bytes`, which nobody else sees.
pub(crate) fn on_a_disk_of(bytes: u64, test: impl FnOnce(&Path) + Send + 'static) {
    let place = tempfile::tempdir().unwrap();
    let disk = place.path().to_path_buf();
    in_private_mounts(move || {
        let size = format!("size={bytes}");
        let (source, kind) = (Some("disk"), Some("tmpfs"));
        mount(source, &disk, kind, MsFlags::empty(), Some(size.as_str())).unwrap();
        test(&disk);
    });
}

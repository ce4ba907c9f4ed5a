//! Volumes in memory: a tmpfs, or an image in one.
//!
//! Kernels before 6.3 cannot map the owners of a tmpfs. There a memory volume is what a filesystem volume is, an ext4
//! image on a loop device, only that the image lies in a tmpfs: every job keeps ids of its own and nothing is shared
//! but the volume. It costs a second copy of what is read often.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::sys::statvfs::statvfs;

use super::{
    disk::{self, DISK_OWNER, not_done},
    error::VolumeError,
    geometry::Geometry,
    place::{Place, file},
};
use crate::{
    job::VolumeSpec,
    sys::{
        detached::{MountOption, mount_detached},
        mount as trees, mountinfo, userns,
    },
};

/// Bytes for which one inode is allowed: the kernel's memory for it is not part of the size.
const BYTES_PER_INODE: u64 = 4_096;
/// Fewest inodes of a tmpfs.
const INODES_MIN: u64 = 1_024;
/// The source of our tmpfs, as mount tables show it.
const SOURCE: &str = "joblet";

/// Whether this kernel maps the owners of a tmpfs.
///
/// # Errors
/// What making one, or a user namespace, gives.
pub(super) fn is_mapped_here() -> io::Result<bool> {
    let tmpfs = mount_detached(c"tmpfs", c"joblet", &[MountOption::Pair(c"size", c"4096")])?;
    let users = userns::with_one_id(DISK_OWNER, DISK_OWNER, DISK_OWNER)?;
    match trees::map_owners(tmpfs.as_fd(), users.as_fd(), None) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes an empty memory volume that is mounted on nothing; `is_mapped` says of what.
pub(super) fn make(
    place: &Place,
    spec: &VolumeSpec,
    is_mapped: bool,
) -> Result<OwnedFd, VolumeError> {
    let bytes = spec.size.bytes();
    if is_mapped {
        let inodes = (bytes / BYTES_PER_INODE).max(INODES_MIN);
        return tmpfs(place, bytes, inodes, "0755", DISK_OWNER);
    }
    let geometry = Geometry::without_journal(bytes);
    Place::make_directory(&place.memory)?;
    let below = tmpfs(place, geometry.image_bytes, 8, "0700", 0)?;
    attach(place, &below, &place.memory)?;
    disk::make(place, &place.memory_image, &geometry)
}

/// Attaches a mount of the volume where it is to be seen.
pub(super) fn attach(place: &Place, tree: &OwnedFd, on: &Path) -> Result<(), VolumeError> {
    use std::os::unix::ffi::OsStrExt;
    let target = CString::new(on.as_os_str().as_bytes()).expect("a path of ours without NUL");
    trees::attach(tree.as_fd(), &target)
        .map_err(|source| not_done("attach", place, "attach a mount", source))
}

fn tmpfs(
    place: &Place,
    bytes: u64,
    inodes: u64,
    mode: &str,
    owner: u32,
) -> Result<OwnedFd, VolumeError> {
    let text = |value: String| CString::new(value).expect("digits");
    let (size, inodes, owner) = (
        text(bytes.to_string()),
        text(inodes.to_string()),
        text(owner.to_string()),
    );
    let (mode, source) = (text(mode.to_owned()), text(SOURCE.to_owned()));
    let options = [
        MountOption::Pair(c"size", &size),
        MountOption::Pair(c"nr_inodes", &inodes),
        MountOption::Pair(c"mode", &mode),
        MountOption::Pair(c"uid", &owner),
        MountOption::Pair(c"gid", &owner),
    ];
    mount_detached(c"tmpfs", &source, &options)
        .map_err(|source| not_done("mount", place, "mount a tmpfs", source))
}

/// Refuses a memory volume for which this host has not the memory: what is available now, less what the memory
/// volumes in `directory` may still take.
pub(super) fn check_fits(directory: &Path, spec: &VolumeSpec) -> Result<(), VolumeError> {
    let bytes = spec.size.bytes();
    let available = available().saturating_sub(promised(directory)?);
    if bytes <= available {
        return Ok(());
    }
    Err(VolumeError::Memory {
        name: spec.name.clone(),
        bytes,
        available,
    })
}

/// Bytes of memory that programs could have without swapping; 0 when the kernel does not say.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Bytes that memory volumes in `directory` may have and have not taken yet.
fn promised(directory: &Path) -> Result<u64, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let mounts = mountinfo::read().map_err(file("read", table))?;
    let ours = mounts
        .iter()
        .filter(|mount| mount.kind == "tmpfs" && mount.point.starts_with(directory));
    let free = ours.map(|mount| {
        let found = statvfs(&mount.point);
        // One that has just gone promises nothing.
        found.map_or(0, |found| found.blocks_free() * found.fragment_size())
    });
    Ok(free.sum())
}

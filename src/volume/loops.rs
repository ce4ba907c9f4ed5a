//! Which file stands behind which loop device.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use crate::sys::loopdev;

/// What the kernel appends to the path of a file that has lost its name.
pub(super) const DELETED: &str = " (deleted)";
const BLOCK: &str = "/sys/block";

/// The backing file of the loop device with number `device`, as the kernel names it; `None` when that is no loop
/// device, or a free one. Looked up by its number and not by looking through all: there may be one a job.
pub(super) fn image_of(device: u64) -> Option<PathBuf> {
    image_behind(&directory_of(device))
}

/// The node of a block device below `/dev`.
pub(super) fn node_of(device: u64) -> io::Result<PathBuf> {
    // A link to the device's directory, whose name is the device's.
    let name = fs::canonicalize(directory_of(device))?;
    Ok(Path::new("/dev").join(name.file_name().unwrap_or_default()))
}

fn directory_of(device: u64) -> PathBuf {
    PathBuf::from(format!(
        "/sys/dev/block/{}:{}",
        major(device),
        minor(device)
    ))
}

/// The backing file of the block device with this directory below `/sys`.
fn image_behind(block: &Path) -> Option<PathBuf> {
    let backing = fs::read(block.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(backing.trim_ascii_end())))
}

/// The loop devices of this machine whose backing file lies below `directory`, with that file as the kernel names
/// it, deleted ones included.
///
/// # Errors
/// What reading `/sys/block` gives.
pub(super) fn below(directory: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        let entry = entry?;
        if let Some(image) = image_behind(&entry.path())
            && image.starts_with(directory)
        {
            devices.push((Path::new("/dev").join(entry.file_name()), image));
        }
    }
    Ok(devices)
}

/// Gives a loop device back, now or with its last user.
///
/// # Errors
/// What opening it or LOOP_CLR_FD says.
pub(super) fn detach(device: &Path) -> io::Result<()> {
    match File::open(device) {
        Ok(open) => loopdev::detach(open.as_fd()),
        // Nobody has it any more.
        Err(free) if free.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(error),
    }
}

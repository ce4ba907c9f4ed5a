//! Where a volume lies below the base directory, and what is mounted there.
//!
//! ```text
//! BASE/volumes/                 0700: contents belong to ids that people of the host may have
//!   NAME/.joblet_volume_meta.json   for people; never read back
//!   NAME/disk.img                   filesystem: the image
//!   NAME/memory/disk.img            memory, where the kernel cannot map the owners of a tmpfs: a tmpfs with an image
//!   NAME/data/                      what is in it, mounted
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, open},
    mount::{MntFlags, umount2},
    sys::{
        stat::{Mode, fstat, stat},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
};

use super::{
    error::{Damage, VolumeError},
    loops::{self, DELETED},
};
use crate::{
    job::{VolumeKind, VolumeName},
    sys::mountinfo,
};

const IMAGE: &str = "disk.img";

/// The paths of one volume.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: VolumeName,
    /// All of it.
    pub(super) directory: PathBuf,
    /// Where its contents are mounted.
    pub(super) data: PathBuf,
    /// The image of a filesystem volume.
    pub(super) image: PathBuf,
    /// The tmpfs under a memory volume that is an image.
    pub(super) memory: PathBuf,
    /// Its image.
    pub(super) memory_image: PathBuf,
    /// For people.
    pub(super) meta: PathBuf,
}

/// The root of a volume that is mounted in its place.
#[derive(Debug)]
pub(super) struct Root {
    /// Not to be read through: an O_PATH descriptor.
    pub(super) fd: OwnedFd,
    /// Number of the device under it; of no meaning for a tmpfs.
    pub(super) device: u64,
}

/// One volume at a time is changed by one caller.
pub(super) type Lock = Flock<File>;

impl Place {
    pub(super) fn new(volumes: &Path, name: &VolumeName) -> Self {
        let directory = volumes.join(name.as_str());
        let memory = directory.join("memory");
        Self {
            name: name.clone(),
            data: directory.join("data"),
            image: directory.join(IMAGE),
            memory_image: memory.join(IMAGE),
            memory,
            meta: directory.join(".joblet_volume_meta.json"),
            directory,
        }
    }

    /// Waits until nobody else changes the volume. `None` when there is no such directory.
    pub(super) fn lock(&self) -> Result<Option<Lock>, VolumeError> {
        let directory = match File::open(&self.directory) {
            Ok(directory) => directory,
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file("open", &self.directory)(source)),
        };
        Flock::lock(directory, FlockArg::LockExclusive)
            .map(Some)
            .map_err(|(_, errno)| file("lock", &self.directory)(errno.into()))
    }

    /// The root of what is mounted on `data`, if that is this volume; `None` when nothing is.
    pub(super) fn root(&self, kind: VolumeKind) -> Result<Option<Root>, VolumeError> {
        let look = |errno: Errno| file("open", &self.data)(errno.into());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match open(&self.data, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(look(errno)),
        };
        let device = fstat(&fd).map_err(look)?.st_dev;
        let above = stat(&self.directory).map_err(look)?.st_dev;
        if device == above {
            return Ok(None);
        }
        let image = match kind {
            VolumeKind::Filesystem => &self.image,
            VolumeKind::Memory => {
                if fstatfs(&fd).map_err(look)?.filesystem_type() == TMPFS_MAGIC {
                    return Ok(Some(Root { fd, device }));
                }
                &self.memory_image
            }
        };
        match loops::image_of(device) {
            Some(behind) if behind == *image => Ok(Some(Root { fd, device })),
            Some(behind) if is_deleted(&behind, image) => {
                Err(self.damaged(Damage::ImageGone(image.clone())))
            }
            _ => Err(self.damaged(Damage::Covered(self.data.clone()))),
        }
    }

    pub(super) fn damaged(&self, damage: Damage) -> VolumeError {
        VolumeError::Damaged {
            name: self.name.clone(),
            damage,
        }
    }

    /// Makes a directory of it that need not be there.
    pub(super) fn make_directory(path: &Path) -> Result<(), VolumeError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(file("make", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what is there of it, mounted or not; what is not ours stays and is named.
    pub(super) fn erase(&self) -> Result<(), VolumeError> {
        unmount_below(&self.directory)?;
        detach_loops(&self.directory, |_| true)?;
        for path in [&self.image, &self.meta] {
            gone(fs::remove_file(path)).map_err(file("remove", path))?;
        }
        for path in [&self.data, &self.memory, &self.directory] {
            gone(fs::remove_dir(path)).map_err(file("remove", path))?;
        }
        Ok(())
    }
}

fn is_deleted(behind: &Path, image: &Path) -> bool {
    let mut deleted = image.as_os_str().to_owned();
    deleted.push(DELETED);
    behind.as_os_str() == deleted
}

/// Takes every mount at `directory` and below it away, what covers first: at once out of sight, for good with its
/// last user. Returns where they were.
pub(super) fn unmount_below(directory: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let mounts = mountinfo::read().map_err(file("read", table))?;
    let mut points: Vec<PathBuf> = mounts
        .into_iter()
        .map(|mount| mount.point)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.reverse();
    for point in &points {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(file("unmount", point)(errno.into())),
        }
    }
    Ok(points)
}

/// Gives back the loop devices whose image lies below `directory` and `is_meant`: one that is in use goes with its
/// last user. Returns how many.
pub(super) fn detach_loops(
    directory: &Path,
    is_meant: impl Fn(&Path) -> bool,
) -> Result<usize, VolumeError> {
    let devices = loops::below(directory).map_err(file("read", Path::new("/sys/block")))?;
    let mut count = 0;
    for (device, _) in devices.iter().filter(|(_, image)| is_meant(image)) {
        loops::detach(device).map_err(file("detach", device))?;
        count += 1;
    }
    Ok(count)
}

/// What was not there is gone as well.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// `map_err` with what was done to which path.
pub(super) fn file(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> VolumeError + use<> {
    let path = path.to_owned();
    move |source| VolumeError::File {
        action,
        path,
        source,
    }
}

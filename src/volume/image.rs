//! `/work` on disk: a sparse image of the size asked, for one job, gone with its last user.
//!
//! The image has a name only while it is being made. Then the loop device holds the file, the mount holds the
//! device (which is auto-cleared), and a descriptor holds the mount, which is in nobody's mount table: when
//! the last descriptor and the job are gone, by whatever death, the kernel takes it all away. Only a crash
//! while one is being made leaves something for [`clean`].
//!
//! A job that outlived its daemon holds its disk by itself: the next daemon opens the job's own `/work`, and has
//! then what the last one had.
//!
//! No journal and no barriers: nothing of this outlives the machine's power.

use std::{
    collections::HashSet,
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::{Mode, fstat},
    unistd::{UnlinkatFlags, unlinkat},
};
use thiserror::Error;

use super::{
    loops::{self, DELETED},
    mkfs::{self, ToolError},
};
use crate::{
    job::JobId,
    limits::{WORK_BYTES_MAX, WORK_BYTES_MIN, WORK_BYTES_RANGE},
    sys::{
        detached::{MountOption, mount_detached},
        loopdev,
    },
};

/// Directory of the images, below the base directory.
const DIRECTORY: &str = "work";
const EXTENSION: &str = "img";
const BLOCK_BYTES: u32 = 4_096;
/// What a job's `/work` shall be.
#[derive(Debug, Clone, Copy)]
pub struct WorkOptions<'a> {
    /// The daemon's base directory; the image is made in `work` below it.
    pub base_dir: &'a Path,
    /// Whose it is.
    pub job: JobId,
    /// Size of the image, bytes; rounded up to 4 KiB. A few percent of it are the file system's own.
    pub bytes: u64,
    /// Host id of the user that owns its root directory.
    pub uid: u32,
    /// Host id of the group.
    pub gid: u32,
}

/// Why there is no disk for `/work`.
#[derive(Debug, Error)]
pub enum WorkError {
    /// Not between the bounds.
    #[error("size of /work is {bytes} bytes, not between {WORK_BYTES_MIN} and {WORK_BYTES_MAX}")]
    Size {
        /// What was asked.
        bytes: u64,
    },
    /// No file system on it.
    #[error("make a file system on {}", .path.display())]
    Mkfs {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ToolError,
    },
    /// Making or removing an image.
    #[error("make {}", .path.display())]
    Make {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No loop device.
    #[error("attach {} to a loop device", .path.display())]
    Attach {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Not mounted.
    #[error("mount {}", .device.display())]
    Mount {
        /// The loop device.
        device: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What an earlier daemon left could not be listed.
    #[error("read {}", .path.display())]
    Read {
        /// Which file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What an earlier daemon left could not be detached.
    #[error("detach {}", .device.display())]
    Detach {
        /// The loop device.
        device: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The disk under one job's `/work`. It ends when this, duplicates of `tree` and the job's own mount are gone.
#[derive(Debug)]
pub struct WorkImage {
    /// The root of a mounted file system: nosuid, nodev, at first an empty directory of mode 0755 that is attached
    /// nowhere. Hand a duplicate to `move_mount`, or open files through it. Of an adopted one it is the job's
    /// own `/work`; files are opened through it, also when the job is gone.
    pub tree: OwnedFd,
    /// Its loop device, for printing.
    pub device: PathBuf,
}

/// What [`clean`] found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Loop devices told to go.
    pub devices: usize,
    /// Image files removed.
    pub images: usize,
}

impl WorkImage {
    /// Makes an empty disk. Blocks, for some ten milliseconds.
    ///
    /// # Errors
    /// [`WorkError`]; nothing is left then.
    pub fn create(options: &WorkOptions<'_>) -> Result<Self, WorkError> {
        if !WORK_BYTES_RANGE.contains(&options.bytes) {
            return Err(WorkError::Size {
                bytes: options.bytes,
            });
        }
        let directory = options.base_dir.join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(|source| WorkError::Make {
            path: directory.clone(),
            source,
        })?;
        let path = directory.join(format!("{}.{EXTENSION}", options.job));
        let make = |source| WorkError::Make {
            path: path.clone(),
            source,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = file.map_err(make)?;
        let filled = fill(&file, &path, options);
        // From here the file has no name: whatever happens, it goes with its last user.
        let unnamed = fs::remove_file(&path).map_err(make);
        let device = filled?;
        unnamed?;
        let source =
            CString::new(device.path.as_os_str().as_bytes()).expect("a path of ours without NUL");
        let tree = mount_detached(
            c"ext4",
            &source,
            &[
                MountOption::Flag(c"noinit_itable"), // a sparse file is zeros already: writing them uses space
                MountOption::Flag(c"nobarrier"),     // nothing here has to survive a power cut
                MountOption::Pair(c"errors", c"remount-ro"),
            ],
        )
        .map_err(|source| WorkError::Mount {
            device: device.path.clone(),
            source,
        })?;
        // Programs that want an empty directory must find one.
        unlinkat(&tree, "lost+found", UnlinkatFlags::RemoveDir).map_err(|error| {
            WorkError::Mount {
                device: device.path.clone(),
                source: error.into(),
            }
        })?;
        Ok(Self {
            tree,
            device: device.path,
        })
    }

    /// The disk of job `job`, of this base directory, that outlived its daemon; `pid` is of its init. `None` when
    /// its `/work` is no disk of ours, or the process has ended. Call it while the keeper says that the job is
    /// not gone. Blocks.
    ///
    /// # Errors
    /// [`WorkError::Read`].
    pub fn adopt(base_dir: &Path, job: JobId, pid: u32) -> Result<Option<Self>, WorkError> {
        let path = PathBuf::from(format!("/proc/{pid}/root/work"));
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let read = |source| WorkError::Read {
            path: path.clone(),
            source,
        };
        let tree = match open(&path, flags, Mode::empty()) {
            Ok(tree) => tree,
            Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
            Err(error) => return Err(read(error.into())),
        };
        let device = fstat(&tree).map_err(|error| read(error.into()))?.st_dev;
        let Some(image) = loops::image_of(device) else {
            return Ok(None);
        };
        let directory = canonical(base_dir)?;
        if directory.is_none_or(|directory| job_of(&image, &directory) != Some(job)) {
            return Ok(None);
        }
        let device = loops::node_of(device).map_err(read)?;
        Ok(Some(Self { tree, device }))
    }

    /// Gives the disk up. It is gone at once when nobody else uses it, else with its last user.
    pub fn discard(self) {
        drop(self.tree);
    }
}

/// Gives the image its size, its file system and a device.
fn fill(
    file: &File,
    path: &Path,
    options: &WorkOptions<'_>,
) -> Result<loopdev::LoopDevice, WorkError> {
    let bytes = options.bytes.next_multiple_of(u64::from(BLOCK_BYTES));
    file.set_len(bytes).map_err(|source| WorkError::Make {
        path: path.to_owned(),
        source,
    })?;
    format(path, options.uid, options.gid)?;
    loopdev::attach(file.as_fd(), BLOCK_BYTES).map_err(|source| WorkError::Attach {
        path: path.to_owned(),
        source,
    })
}

fn format(path: &Path, uid: u32, gid: u32) -> Result<(), WorkError> {
    let (block, extended) = (
        BLOCK_BYTES.to_string(),
        format!("root_owner={uid}:{gid},nodiscard,lazy_itable_init=1"),
    );
    let arguments = [
        "-m",
        "0",
        "-b",
        &block,
        "-O",
        "^has_journal,^resize_inode",
        "-E",
        &extended,
    ];
    mkfs::make(path, &arguments, None).map_err(|source| WorkError::Mkfs {
        path: path.to_owned(),
        source,
    })
}

/// Removes what daemons of this base directory left when they died: detaches loop devices whose backing file
/// lies in its `work` (one still in use goes with its last user) and deletes images, but for those of the jobs
/// `spared`, which live. No daemon of it runs.
///
/// # Errors
/// [`WorkError::Read`], [`WorkError::Detach`], [`WorkError::Make`].
pub fn clean(base_dir: &Path, spared: &HashSet<JobId>) -> Result<Cleaned, WorkError> {
    let mut cleaned = Cleaned::default();
    let Some(directory) = canonical(base_dir)? else {
        return Ok(cleaned);
    };
    let is_spared =
        |image: &Path| job_of(image, &directory).is_some_and(|job| spared.contains(&job));
    for (device, image) in loops_below(&directory)? {
        if is_spared(&image) {
            continue;
        }
        loops::detach(&device).map_err(|source| WorkError::Detach { device, source })?;
        cleaned.devices += 1;
    }
    let read = |source| WorkError::Read {
        path: directory.clone(),
        source,
    };
    for entry in fs::read_dir(&directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension() == Some(OsStr::new(EXTENSION)) && !is_spared(&path) {
            fs::remove_file(&path).map_err(|source| WorkError::Make { path, source })?;
            cleaned.images += 1;
        }
    }
    Ok(cleaned)
}

/// The directory of images as the kernel writes its path; `None` when there is none.
fn canonical(base_dir: &Path) -> Result<Option<PathBuf>, WorkError> {
    let directory = base_dir.join(DIRECTORY);
    match directory.canonicalize() {
        Ok(directory) => Ok(Some(directory)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(WorkError::Read {
            path: directory,
            source,
        }),
    }
}

/// Whose image in `directory` that is, named or deleted.
fn job_of(image: &Path, directory: &Path) -> Option<JobId> {
    let name = image.strip_prefix(directory).ok()?.to_str()?;
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    JobId::parse(name.strip_suffix(EXTENSION)?.strip_suffix('.')?)
}

/// The loop devices of this machine whose backing file lies below `directory`, named or deleted.
///
/// # Errors
/// [`WorkError::Read`].
pub fn devices_backed_below(directory: &Path) -> Result<Vec<PathBuf>, WorkError> {
    let devices = loops_below(directory)?;
    Ok(devices.into_iter().map(|(device, _)| device).collect())
}

fn loops_below(directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, WorkError> {
    loops::below(directory).map_err(|source| WorkError::Read {
        path: PathBuf::from("/sys/block"),
        source,
    })
}

#[cfg(test)]
mod tests;

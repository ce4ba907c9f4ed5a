//! `/work` on disk: a sparse image of the size asked, for one job, gone with its last user.
//!
//! The image has a name only while it is being made. Then the loop device holds the file, the mount holds the
//! device (which is auto-cleared), and a descriptor holds the mount, which is in nobody's mount table: when
//! the last descriptor and the job are gone, by whatever death, the kernel takes it all away. Only a crash
//! while one is being made leaves something for [`clean`].
//!
//! No journal and no barriers: nothing of this outlives the machine's power.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use nix::unistd::{UnlinkatFlags, unlinkat};
use thiserror::Error;

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
/// Where Debian and others keep it; a daemon's PATH often lacks these.
const MKFS: [&str; 3] = [
    "/usr/sbin/mkfs.ext4",
    "/sbin/mkfs.ext4",
    "/usr/local/sbin/mkfs.ext4",
];

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
    /// The program that makes file systems is not installed.
    #[error("mkfs.ext4 is not installed (Debian package e2fsprogs)")]
    NoMkfs,
    /// It failed.
    #[error("mkfs.ext4 on {}: {status}: {}", .path.display(), .words.trim_end())]
    Mkfs {
        /// The image.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said on stderr.
        words: String,
    },
    /// Making or removing an image, or starting mkfs.ext4.
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
    /// The root of a mounted file system that is attached nowhere: nosuid, nodev, an empty directory of mode
    /// 0755. Hand a duplicate to `move_mount`, or open files through it.
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
    let program = MKFS
        .into_iter()
        .find(|program| Path::new(program).exists())
        .ok_or(WorkError::NoMkfs)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a short-lived program, waited for on the blocking pool"
    )]
    let output = Command::new(program)
        .env_clear()
        .args(["-q", "-F", "-m", "0", "-b", &BLOCK_BYTES.to_string()])
        .args(["-O", "^has_journal,^resize_inode"])
        .args([
            "-E",
            &format!("root_owner={uid}:{gid},nodiscard,lazy_itable_init=1"),
        ])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| WorkError::Make {
            path: path.to_owned(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(WorkError::Mkfs {
        path: path.to_owned(),
        status: output.status,
        words,
    })
}

/// Removes what daemons of this base directory left when they died: detaches loop devices whose backing file
/// lies in its `work` (one still in use goes with its last user) and deletes images. No daemon of it runs.
///
/// # Errors
/// [`WorkError::Read`], [`WorkError::Detach`], [`WorkError::Make`].
pub fn clean(base_dir: &Path) -> Result<Cleaned, WorkError> {
    let directory = base_dir.join(DIRECTORY);
    let mut cleaned = Cleaned::default();
    let directory = match directory.canonicalize() {
        Ok(directory) => directory,
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        Err(source) => {
            return Err(WorkError::Read {
                path: directory,
                source,
            });
        }
    };
    for device in devices_backed_below(&directory)? {
        let detach = |source| WorkError::Detach {
            device: device.clone(),
            source,
        };
        let open = File::open(&device).map_err(detach)?;
        loopdev::detach(open.as_fd()).map_err(detach)?;
        cleaned.devices += 1;
    }
    let read = |source| WorkError::Read {
        path: directory.clone(),
        source,
    };
    for entry in fs::read_dir(&directory).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension() == Some(OsStr::new(EXTENSION)) {
            fs::remove_file(&path).map_err(|source| WorkError::Make { path, source })?;
            cleaned.images += 1;
        }
    }
    Ok(cleaned)
}

/// The loop devices of this machine whose backing file lies below `directory`, named or deleted.
///
/// # Errors
/// [`WorkError::Read`].
pub fn devices_backed_below(directory: &Path) -> Result<Vec<PathBuf>, WorkError> {
    let block = Path::new("/sys/block");
    let read = |source| WorkError::Read {
        path: block.to_owned(),
        source,
    };
    let mut devices = Vec::new();
    for entry in fs::read_dir(block).map_err(read)? {
        let entry = entry.map_err(read)?;
        // No such file: it is no loop device, or a free one.
        let Ok(backing) = fs::read(entry.path().join("loop/backing_file")) else {
            continue;
        };
        if Path::new(OsStr::from_bytes(backing.trim_ascii_end())).starts_with(directory) {
            devices.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::MetadataExt};

    use nix::{
        fcntl::{OFlag, openat},
        sys::{
            stat::{Mode, fstat},
            statvfs::{FsFlags, fstatvfs},
        },
    };
    use tempfile::TempDir;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn options(base: &TempDir, bytes: u64) -> WorkOptions<'_> {
        WorkOptions {
            base_dir: base.path(),
            job: JobId::random(),
            bytes,
            uid: 70_001,
            gid: 70_002,
        }
    }

    fn devices(base: &TempDir) -> Vec<PathBuf> {
        devices_backed_below(&base.path().canonicalize().unwrap()).unwrap()
    }

    fn open(image: &WorkImage, name: &str, flags: OFlag) -> File {
        openat(&image.tree, name, flags, Mode::from_bits_retain(0o644))
            .unwrap()
            .into()
    }

    #[test]
    fn a_fresh_disk_is_empty_owned_by_the_job_and_in_no_mount_table() {
        let base = TempDir::new().unwrap();
        let image = WorkImage::create(&options(&base, 64 * MIB)).unwrap();
        let root = fstat(&image.tree).unwrap();
        assert_eq!(
            (root.st_uid, root.st_gid, root.st_mode & 0o7777),
            (70_001, 70_002, 0o755)
        );
        let entries = fs::read_dir(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&image.tree)
        ));
        assert_eq!(entries.unwrap().count(), 0);
        let flags = fstatvfs(&image.tree).unwrap().flags();
        assert!(
            flags.contains(FsFlags::ST_NOSUID | FsFlags::ST_NODEV),
            "{flags:?}"
        );
        let device = image.device.to_str().unwrap().to_owned();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(&format!(" {device} ")), "{table}");
        assert_eq!(
            fs::read_dir(base.path().join(DIRECTORY)).unwrap().count(),
            0,
            "the image has no name"
        );
        image.discard();
    }

    #[test]
    fn the_size_is_enforced_and_what_was_written_before_is_there() {
        let base = TempDir::new().unwrap();
        let image = WorkImage::create(&options(&base, 16 * MIB)).unwrap();
        let mut file = open(&image, "big", OFlag::O_CREAT | OFlag::O_RDWR);
        let block = vec![7_u8; 256 << 10];
        let mut written = 0;
        let error = loop {
            match file.write(&block) {
                Ok(count) => written += count as u64,
                Err(error) => break error,
            }
            assert!(written <= 16 * MIB, "more than the size");
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(written >= 14 * MIB, "{written} of 16 MiB usable");
        assert_eq!(file.metadata().unwrap().size(), written);
        drop(file);
        image.discard();
    }

    #[test]
    fn ten_gibibytes_that_nobody_writes_cost_next_to_nothing() {
        let base = TempDir::new().unwrap();
        let before = fstatvfs(File::open(base.path()).unwrap()).unwrap();
        let image = WorkImage::create(&options(&base, 10 << 30)).unwrap();
        let inside = fstatvfs(&image.tree).unwrap();
        let bytes = inside.blocks_available() * inside.fragment_size();
        assert!(bytes > 9_800 << 20, "{bytes} usable");
        // The file has no name to ask; its device knows it.
        let device = image.device.file_name().unwrap().to_str().unwrap();
        let size: u64 = fs::read_to_string(format!("/sys/block/{device}/size"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(size * 512, 10 << 30);
        let after = fstatvfs(File::open(base.path()).unwrap()).unwrap();
        let used =
            before.blocks_free().saturating_sub(after.blocks_free()) * before.fragment_size();
        assert!(
            used < 1 << 30,
            "{used} bytes of the host used (others write here too)"
        );
        image.discard();
    }

    #[test]
    fn a_discarded_disk_leaves_no_device_and_one_in_use_stays_until_its_last_user() {
        let base = TempDir::new().unwrap();
        let image = WorkImage::create(&options(&base, 8 * MIB)).unwrap();
        assert_eq!(devices(&base), std::slice::from_ref(&image.device));
        let used = open(&image, "file", OFlag::O_CREAT | OFlag::O_RDWR);
        image.discard();
        assert_eq!(devices(&base).len(), 1, "a file of it is open");
        drop(used);
        until_gone(&base);
    }

    /// The kernel clears a device right after its last close, not always before that returns.
    fn until_gone(base: &TempDir) {
        for _ in 0..1_000 {
            if devices(base).is_empty() {
                return;
            }
            nix::poll::poll(&mut [], 10_u16).unwrap();
        }
        panic!("left: {:?}", devices(base));
    }

    #[test]
    fn what_a_crash_left_is_cleaned_and_nothing_of_another_base() {
        let (ours, theirs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let other = WorkImage::create(&options(&theirs, 8 * MIB)).unwrap();
        let crashed = WorkImage::create(&options(&ours, 8 * MIB)).unwrap();
        File::create(ours.path().join(DIRECTORY).join("half-made.img")).unwrap();
        File::create(ours.path().join(DIRECTORY).join("no image")).unwrap();
        assert_eq!(
            clean(ours.path()).unwrap(),
            Cleaned {
                devices: 1,
                images: 1
            }
        );
        drop(crashed);
        until_gone(&ours);
        assert_eq!(clean(ours.path()).unwrap(), Cleaned::default());
        assert_eq!(devices(&theirs), std::slice::from_ref(&other.device));
        assert_eq!(
            clean(Path::new("/nonexistent")).unwrap(),
            Cleaned::default()
        );
        other.discard();
        until_gone(&theirs);
    }

    #[test]
    fn sizes_out_of_bounds_and_a_second_image_of_a_job_are_refused() {
        let base = TempDir::new().unwrap();
        for bytes in [0, WORK_BYTES_MIN - 1, WORK_BYTES_MAX + 1] {
            let refused = WorkImage::create(&options(&base, bytes)).unwrap_err();
            assert!(matches!(refused, WorkError::Size { .. }), "{refused}");
        }
        let smallest = WorkImage::create(&options(&base, WORK_BYTES_MIN)).unwrap();
        smallest.discard();
        let options = options(&base, 8 * MIB);
        File::create(
            base.path()
                .join(DIRECTORY)
                .join(format!("{}.img", options.job)),
        )
        .unwrap();
        assert!(matches!(
            WorkImage::create(&options),
            Err(WorkError::Make { .. })
        ));
        until_gone(&base);
    }
}

//! The disk under a volume: its image as a loop device, checked when it has to be, mounted.
//!
//! ```text
//! image ──loop──► is it mounted anywhere? ──no──► does it want a check? ──► e2fsck -p ──► mount
//!                          └─yes: a job holds it ────────────────────────────────────────► mount again, the same one
//! ```
//! It is never formatted again. A journal that has not been played back is the kernel's business; e2fsck is asked
//! when there is none and the machine stopped while it was mounted, and when the kernel has noted an error.
//!
//! It is not mounted with `discard`: when a journal is given up, as on a host disk that is full, the kernel discards also
//! what a transaction that never became whole had freed, and files that are still there are zeros. [`trim`] is told
//! when to give space back, and does so for what is free on the disk.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    poll::poll,
    sys::stat::fstatat,
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{
    error::{Damage, VolumeError},
    geometry::Geometry,
    loops,
    mkfs::{self, Mended},
    place::{Place, file},
};
use crate::{
    limits::VOLUME_RELEASE_MAX,
    sys::{
        detached::{MountOption, mount_detached},
        loopdev::{self, LoopDevice},
        trim,
    },
};

/// Who owns the root directory of a volume, on the disk: the one id that jobs' users are mapped to.
pub const DISK_OWNER: u32 = 1000;
const LOST_AND_FOUND: &str = "lost+found";

/// A disk that is mounted nowhere yet.
#[derive(Debug)]
pub(super) struct Disk {
    /// Its root.
    pub(super) tree: OwnedFd,
    /// e2fsck has repaired something.
    pub(super) is_repaired: bool,
}

/// What is needed of an ext4 super block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SuperBlock {
    block_bytes: u32,
    /// The kernel would mount it, but somebody should look first.
    wants_check: bool,
}

/// Makes the image at `image`, a file system on it, and mounts that on nothing. Nothing but the file is left on error.
pub(super) fn make(
    place: &Place,
    image: &Path,
    geometry: &Geometry,
) -> Result<OwnedFd, VolumeError> {
    let open = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(image);
    let open = open.map_err(file("make", image))?;
    open.set_len(geometry.image_bytes)
        .map_err(file("give its size to", image))?;
    let blocks = geometry.image_bytes / geometry.block_bytes;
    mkfs::make(image, &geometry.arguments(DISK_OWNER), Some(blocks)).map_err(|source| {
        VolumeError::Format {
            name: place.name.clone(),
            source,
        }
    })?;
    // What is told to be there must be there after a power cut.
    open.sync_all().map_err(file("write", image))?;
    let block_bytes = u32::try_from(geometry.block_bytes).expect("1 or 4 KiB");
    let device = loopdev::attach(open.as_fd(), block_bytes).map_err(no_loop(place))?;
    let tree = mount(place, &device.path)?;
    drop_lost_and_found(&tree);
    Ok(tree)
}

/// Mounts the file system in `image`, which was whole once, on nothing.
pub(super) fn open(place: &Place, image: &Path) -> Result<Disk, VolumeError> {
    let mut open = match File::options().read(true).write(true).open(image) {
        Ok(open) => open,
        Err(gone) if gone.kind() == ErrorKind::NotFound => {
            return Err(place.damaged(Damage::ImageGone(image.to_owned())));
        }
        Err(source) => return Err(file("open", image)(source)),
    };
    if let Some(device) = device_of(image)? {
        return open_device(place, image, &open, &device);
    }
    let mut is_repaired = false;
    let read = |open: &mut File| SuperBlock::read(open).map_err(file("read", image));
    let found = match read(&mut open)? {
        Some(found) => found,
        // There are copies of it, and e2fsck finds them.
        None => {
            is_repaired = mend(place, image, image)? == Mended::Repaired;
            read(&mut open)?.ok_or_else(|| no_file_system(place, image))?
        }
    };
    let device = loopdev::attach(open.as_fd(), found.block_bytes).map_err(no_loop(place))?;
    let disk = open_device(place, image, &open, &device)?;
    Ok(Disk {
        is_repaired: disk.is_repaired || is_repaired,
        ..disk
    })
}

fn open_device(
    place: &Place,
    image: &Path,
    mut open: &File,
    device: &LoopDevice,
) -> Result<Disk, VolumeError> {
    let mut is_repaired = false;
    if !is_mounted(&device.path).map_err(file("open", &device.path))? {
        let found = SuperBlock::read(&mut open).map_err(file("read", image))?;
        if found.is_none_or(|found| found.wants_check) {
            is_repaired = mend(place, image, &device.path)? == Mended::Repaired;
        }
    }
    let tree = match mount(place, &device.path) {
        Ok(tree) => tree,
        // The kernel finds it structurally wrong where the super block said nothing.
        Err(VolumeError::Mount { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::EUCLEAN | libc::EBADMSG | libc::EINVAL)
            ) =>
        {
            is_repaired |= mend(place, image, &device.path)? == Mended::Repaired;
            mount(place, &device.path)?
        }
        Err(other) => return Err(other),
    };
    if is_repaired {
        drop_lost_and_found(&tree);
    }
    Ok(Disk { tree, is_repaired })
}

/// Whether the kernel has noted an error in the file system on device `number`. Since 6.12, and where that was ported
/// back, its mount is not read-only then, so its flags do not tell.
pub(super) fn is_failing(number: u64) -> bool {
    let Ok(node) = loops::node_of(number) else {
        return false;
    };
    let name = node.file_name().unwrap_or_default();
    let noted = Path::new("/sys/fs/ext4").join(name).join("errors_count");
    fs::read_to_string(noted).is_ok_and(|count| count.trim() != "0")
}

/// Gives the host what is free in a file system, and what was deleted before is. Returns how many bytes that were.
pub(super) fn trim(root: &OwnedFd) -> io::Result<u64> {
    // What is free on the disk, not only in memory, or a power cut would find files without their bytes.
    nix::unistd::syncfs(root)?;
    trim::free_blocks(root.as_fd())
}

/// Keeps a loop device from going with the last mount of it.
pub(super) fn hold(number: u64) -> io::Result<File> {
    File::open(loops::node_of(number)?)
}

/// Waits until nobody has a device mounted, or for as long as [`VOLUME_RELEASE_MAX`]. A job keeps it; a process that was
/// just forked, or given mounts of its own, lets go of what it has inherited in a moment.
pub(super) fn until_unused(number: u64) -> io::Result<()> {
    const LOOK_MS: u16 = 10;
    let node = loops::node_of(number)?;
    for _ in 0..VOLUME_RELEASE_MAX.as_millis() / u128::from(LOOK_MS) {
        if !is_mounted(&node)? {
            break;
        }
        poll(&mut [], LOOK_MS)?;
    }
    Ok(())
}

/// The loop device that has the image already: while a job holds what is mounted there, another would be the same
/// bytes twice.
fn device_of(image: &Path) -> Result<Option<LoopDevice>, VolumeError> {
    let devices = loops::below(image).map_err(file("read", Path::new("/sys/block")))?;
    for (path, behind) in devices {
        if behind != image {
            continue;
        }
        let device = File::options().read(true).write(true).open(&path);
        let device = device.map_err(file("open", &path))?.into();
        // It may have gone between the two looks.
        if loops::below(image).is_ok_and(|now| now.contains(&(path.clone(), behind))) {
            return Ok(Some(LoopDevice { device, path }));
        }
    }
    Ok(None)
}

fn is_mounted(device: &Path) -> io::Result<bool> {
    match File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
    {
        Ok(_) => Ok(false),
        Err(held) if held.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

fn mount(place: &Place, device: &Path) -> Result<OwnedFd, VolumeError> {
    let source = CString::new(device.as_os_str().as_bytes()).expect("a path of ours without NUL");
    let options = [
        MountOption::Flag(c"noinit_itable"), // a sparse image is zeros already: writing them uses space
        MountOption::Pair(c"errors", c"remount-ro"),
    ];
    mount_detached(c"ext4", &source, &options)
        .map_err(|source| not_done("mount", place, "mount a file system", source))
}

fn mend(place: &Place, image: &Path, device: &Path) -> Result<Mended, VolumeError> {
    mkfs::mend(device).map_err(|source| {
        place.damaged(Damage::Unrepaired {
            path: image.to_owned(),
            source,
        })
    })
}

/// Programs that want an empty directory must find one. e2fsck makes another; what it has put there stays.
fn drop_lost_and_found(tree: &OwnedFd) {
    let is_ours = fstatat(
        tree,
        LOST_AND_FOUND,
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .is_ok_and(|found| found.st_uid == 0);
    if is_ours {
        // Not empty, or the volume is full and read-only: it is in nobody's way then.
        let _ = unlinkat(tree, LOST_AND_FOUND, UnlinkatFlags::RemoveDir);
    }
}

fn no_file_system(place: &Place, image: &Path) -> VolumeError {
    place.damaged(Damage::NoFileSystem(image.to_owned()))
}

fn no_loop(place: &Place) -> impl FnOnce(io::Error) -> VolumeError {
    let name = place.name.clone();
    move |source| {
        if is_right_missing(&source) {
            VolumeError::NotPermitted {
                name,
                action: "use loop devices",
                source,
            }
        } else {
            VolumeError::Loop { name, source }
        }
    }
}

/// An error of the kernel's about a mount; `needed` is what the daemon then has no right to.
pub(super) fn not_done(
    action: &'static str,
    place: &Place,
    needed: &'static str,
    source: io::Error,
) -> VolumeError {
    if is_right_missing(&source) {
        VolumeError::NotPermitted {
            name: place.name.clone(),
            action: needed,
            source,
        }
    } else {
        VolumeError::Mount {
            action,
            name: place.name.clone(),
            source,
        }
    }
}

fn is_right_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

impl SuperBlock {
    /// Reads that of an image; `None` when there is none.
    ///
    /// # Source
    /// Linux `Documentation/filesystems/ext4/super.rst`.
    fn read(mut image: impl Read + Seek) -> io::Result<Option<Self>> {
        const AT: u64 = 1024;
        const BYTES: usize = 104;
        const MAGIC: u16 = 0xEF53;
        const STATE_VALID: u16 = 1;
        const STATE_ERRORS: u16 = 2;
        const COMPAT_JOURNAL: u32 = 4;
        let mut bytes = [0; BYTES];
        image.seek(SeekFrom::Start(AT))?;
        match image.read_exact(&mut bytes) {
            Err(short) if short.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let (magic, state, log_block) = (half(0x38), half(0x3A), word(0x18));
        if magic != MAGIC || log_block > 6 {
            return Ok(None);
        }
        let has_journal = word(0x5C) & COMPAT_JOURNAL != 0;
        let was_left_mounted = state & STATE_VALID == 0;
        Ok(Some(Self {
            block_bytes: 1024 << log_block,
            wants_check: state & STATE_ERRORS != 0 || (was_left_mounted && !has_journal),
        }))
    }
}

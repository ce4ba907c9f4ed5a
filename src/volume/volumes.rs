//! Named volumes: made, restored, attached, removed. What exists is the caller's to know; here it is done.
//!
//! ```text
//! create ─► image · file system · mount on data/          nothing is left when a step fails
//! restore ─► mounted and ours: left alone; else checked and mounted. Never formatted
//! attach ─► a detached copy of the mount, its owners mapped to one job's user
//! remove ─► out of sight at once, space free with the last user
//! ```
//! Nothing is remembered between two calls: each looks at what lies below the base directory and what is mounted there,
//! so that it may be made again after a crash anywhere in it.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use jiff::Timestamp;
use nix::{
    fcntl::{OFlag, openat},
    mount::{MntFlags, umount2},
    sys::{
        stat::Mode,
        statvfs::{FsFlags, Statvfs, fstatvfs},
    },
};
use serde_json::json;

use super::{
    disk::{self, DISK_OWNER, not_done},
    error::{Damage, VolumeError},
    geometry::Geometry,
    memory, mkfs,
    place::{self, Place, Root, file},
};
use crate::{
    job::{VolumeKind, VolumeName, VolumeSpec},
    sys::{
        durable,
        mount::{self as trees, Attributes},
        userns,
    },
};

/// Directory of the volumes, below the base directory.
const DIRECTORY: &str = "volumes";

/// The volumes of one base directory.
#[derive(Debug)]
pub struct Volumes {
    /// As the kernel writes its path.
    directory: PathBuf,
    /// Whether the owners of a tmpfs can be mapped; asked when it is needed first.
    maps_tmpfs: OnceLock<bool>,
}

/// Host ids of the user that a job's files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOwner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What [`Volumes::restore`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// Nothing: it was mounted.
    Kept,
    /// Mounted it; nothing had to be repaired.
    Mounted,
    /// Mounted it after e2fsck had repaired something.
    Repaired,
    /// Made a memory volume anew, empty.
    Emptied,
}

/// What [`Volumes::clean`] has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CleanedVolumes {
    /// Volumes of which something was left.
    pub volumes: usize,
    /// Loop devices told to go.
    pub devices: usize,
}

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes of files in it.
    pub used_bytes: u64,
    /// Bytes of its image that have no space on the host's disk yet; 0 in memory.
    pub unallocated_bytes: u64,
    /// The kernel has noted an error, as when the host's disk is full. Where there is a journal it takes no more writes.
    pub is_failing: bool,
}

impl Volumes {
    /// The volumes of `base_dir`; makes their directory.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn open(base_dir: &Path) -> Result<Self, VolumeError> {
        let path = base_dir.join(DIRECTORY);
        durable::make_private_dir(&path).map_err(file("make", &path))?;
        let directory = path.canonicalize().map_err(file("find", &path))?;
        Ok(Self {
            directory,
            maps_tmpfs: OnceLock::new(),
        })
    }

    /// What volumes of `kind` are made of on this host.
    ///
    /// # Errors
    /// [`VolumeError::Tool`] when mkfs.ext4 is needed and not there, [`VolumeError::Mapping`] when the kernel makes no
    /// tmpfs or no user namespace.
    pub fn mechanism(&self, kind: VolumeKind) -> Result<String, VolumeError> {
        let image = || -> Result<String, VolumeError> {
            let version = mkfs::version().map_err(VolumeError::Tool)?;
            Ok(format!(
                "ext4 by {version} on a loop device, idmapped mount"
            ))
        };
        match kind {
            VolumeKind::Filesystem => image(),
            VolumeKind::Memory if memory::is_mapped_here().map_err(VolumeError::Mapping)? => {
                Ok("idmapped tmpfs".to_owned())
            }
            VolumeKind::Memory => Ok(format!(
                "an image in a tmpfs, whose owners this kernel cannot map: {}",
                image()?
            )),
        }
    }

    /// Makes an empty volume and mounts it at `BASE/volumes/NAME/data`.
    ///
    /// # Errors
    /// [`VolumeError`]; nothing is left then.
    pub fn create(&self, spec: &VolumeSpec, created_ns: i64) -> Result<(), VolumeError> {
        let place = self.place(&spec.name);
        if spec.kind == VolumeKind::Memory {
            memory::check_fits(&self.directory, spec)?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&place.directory)
            .map_err(|source| {
                if source.kind() == ErrorKind::AlreadyExists {
                    let name = spec.name.clone();
                    return VolumeError::Exists { name };
                }
                file("make", &place.directory)(source)
            })?;
        let _lock = place.lock()?;
        self.fill(&place, spec, created_ns).map_err(|error| {
            // What this cannot undo is undone by the next remove of it; the first error is the one to tell.
            let _ = place.erase();
            error.of_creation()
        })
    }

    fn fill(&self, place: &Place, spec: &VolumeSpec, created_ns: i64) -> Result<(), VolumeError> {
        Place::make_directory(&place.data)?;
        let tree = match spec.kind {
            VolumeKind::Filesystem => {
                let geometry = Geometry::of(spec.size.bytes());
                disk::make(place, &place.image, &geometry)?
            }
            VolumeKind::Memory => memory::make(place, spec, self.maps_tmpfs(place)?)?,
        };
        memory::attach(place, &tree, &place.data)?;
        write_new(&place.meta, &meta(spec, created_ns)).map_err(file("write", &place.meta))?;
        for path in [&place.directory, &self.directory] {
            durable::sync_dir(path).map_err(file("write", path))?;
        }
        Ok(())
    }

    /// Removes what there is of a volume, whole or half-made: it is out of sight at once, and its space is free when
    /// the last job that holds it has ended. Nothing to remove is no error.
    ///
    /// # Errors
    /// [`VolumeError::File`]; it can be called again.
    pub fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let place = self.place(name);
        let _lock = place.lock()?;
        place.erase()?;
        durable::sync_dir(&self.directory).map_err(file("write", &self.directory))
    }

    /// Brings a volume that was made once to where it can be attached: one that is mounted is left alone, another is
    /// checked when it has to be and mounted, a memory volume that is gone is made anew, empty. Never formats.
    ///
    /// # Errors
    /// [`VolumeError`], of this volume alone.
    pub fn restore(&self, spec: &VolumeSpec) -> Result<Restored, VolumeError> {
        let place = self.place(&spec.name);
        if spec.kind == VolumeKind::Memory {
            Place::make_directory(&place.directory)?;
        }
        let _lock = self.lock(&place)?;
        self.bring(&place, spec).map(|(_, restored)| restored)
    }

    /// Removes what lies in the directory of volumes, or is mounted there or in a loop device of it, and is none of
    /// `known`. What no volume can be called is left alone.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn clean(&self, known: &HashSet<VolumeName>) -> Result<CleanedVolumes, VolumeError> {
        let is_unknown = |image: &Path| {
            let name = image.strip_prefix(&self.directory).ok();
            let name = name.and_then(|name| name.iter().next()?.to_str());
            let name = name.and_then(|name| VolumeName::parse(name).ok());
            name.is_none_or(|name| !known.contains(&name))
        };
        // Also those whose image has lost its name to a remove that did not get further.
        let devices = place::detach_loops(&self.directory, is_unknown)?;
        let mut volumes = 0;
        let read = || file("read", &self.directory);
        for entry in fs::read_dir(&self.directory).map_err(read())? {
            let entry = entry.map_err(read())?;
            let name = entry.file_name();
            let name = name.to_str().and_then(|name| VolumeName::parse(name).ok());
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let Some(name) = name.filter(|name| is_directory && !known.contains(name)) {
                self.remove(&name)?;
                volumes += 1;
            }
        }
        Ok(CleanedVolumes { volumes, devices })
    }

    /// A copy of the volume's mount for one job, attached nowhere: what is the volume's owner's on the disk is
    /// `owner`'s through it. A volume that has failed is checked first.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn attach(
        &self,
        spec: &VolumeSpec,
        owner: HostOwner,
        is_read_only: bool,
    ) -> Result<OwnedFd, VolumeError> {
        let place = self.place(&spec.name);
        let _lock = self.lock(&place)?;
        let (root, _) = self.bring(&place, spec)?;
        let tree = trees::clone_mount(root.fd.as_fd())
            .map_err(|source| not_done("copy the mount of", &place, "copy a mount", source))?;
        let users = userns::with_one_id(DISK_OWNER, owner.uid, owner.gid).map_err(|source| {
            not_done("map the owner of", &place, "make a user namespace", source)
        })?;
        let attributes = is_read_only.then_some(Attributes::READ_ONLY);
        trees::map_owners(tree.as_fd(), users.as_fd(), attributes)
            .map_err(|source| not_done("map the owner of", &place, "map owners", source))?;
        Ok(tree)
    }

    /// How full a volume is.
    ///
    /// # Errors
    /// [`VolumeError`]; one that is not mounted is damaged.
    pub fn usage(&self, spec: &VolumeSpec) -> Result<VolumeUsage, VolumeError> {
        let place = self.place(&spec.name);
        let root = self.mounted(&place, spec.kind)?;
        let found = stat(&place, &root)?;
        let used_blocks = found.blocks().saturating_sub(found.blocks_free());
        let unallocated_bytes = match spec.kind {
            VolumeKind::Filesystem => {
                let image = fs::metadata(&place.image).map_err(file("look at", &place.image))?;
                image.len().saturating_sub(image.blocks() * 512)
            }
            VolumeKind::Memory => 0,
        };
        Ok(VolumeUsage {
            used_bytes: used_blocks * found.fragment_size(),
            unallocated_bytes,
            is_failing: is_failing(&root, found.flags()),
        })
    }

    /// Gives space on the host's disk back that files had which are deleted; returns how many bytes. To be called when
    /// a job that had the volume has ended, and when the disk is short of space: a fifth of a second for a gibibyte, a
    /// few milliseconds when there is nothing to do. A tmpfs needs none of it.
    ///
    /// # Errors
    /// [`VolumeError`]; one that is not mounted is damaged.
    pub fn trim(&self, spec: &VolumeSpec) -> Result<u64, VolumeError> {
        let place = self.place(&spec.name);
        let root = self.root(spec)?;
        let is_disk = spec.kind == VolumeKind::Filesystem || place.memory.exists();
        if !is_disk {
            return Ok(0);
        }
        disk::trim(&root).map_err(file("trim", &place.data))
    }

    /// The root directory of a volume, for the daemon itself: owners are those on the disk, [`DISK_OWNER`].
    ///
    /// # Errors
    /// [`VolumeError`]; one that is not mounted is damaged.
    pub fn root(&self, spec: &VolumeSpec) -> Result<OwnedFd, VolumeError> {
        let place = self.place(&spec.name);
        let root = self.mounted(&place, spec.kind)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&root.fd, ".", flags, Mode::empty())
            .map_err(|errno| file("open", &place.data)(errno.into()))
    }

    /// Takes all mounts away, for a daemon that goes for good. Images stay; memory volumes are empty afterwards.
    /// Returns how many volumes were mounted.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn unmount_all(&self) -> Result<usize, VolumeError> {
        let points = place::unmount_below(&self.directory)?;
        let volumes: HashSet<&Path> = points.iter().filter_map(|point| point.parent()).collect();
        Ok(volumes.len())
    }

    fn place(&self, name: &VolumeName) -> Place {
        Place::new(&self.directory, name)
    }

    /// The lock of a volume that is to be there.
    fn lock(&self, place: &Place) -> Result<place::Lock, VolumeError> {
        place
            .lock()?
            .ok_or_else(|| place.damaged(Damage::ImageGone(place.image.clone())))
    }

    /// The root of a volume that is to be mounted.
    fn mounted(&self, place: &Place, kind: VolumeKind) -> Result<Root, VolumeError> {
        place
            .root(kind)?
            .ok_or_else(|| place.damaged(Damage::NotMounted))
    }

    /// The root of a volume that is mounted and takes writes; what has to be done for that is done.
    fn bring(&self, place: &Place, spec: &VolumeSpec) -> Result<(Root, Restored), VolumeError> {
        let mut held = None;
        if let Some(root) = place.root(spec.kind)? {
            if !is_failing(&root, stat(place, &root)?.flags()) {
                return Ok((root, Restored::Kept));
            }
            // Out of sight, so that its last user here is gone and it can be checked; its device must not go with it.
            let device_number = root.device;
            let device = disk::hold(device_number).map_err(file("hold", &place.data))?;
            held = Some(device);
            drop(root);
            umount2(&place.data, MntFlags::MNT_DETACH)
                .map_err(|errno| file("unmount", &place.data)(errno.into()))?;
            disk::until_unused(device_number).map_err(file("look at", &place.data))?;
        }
        let restored = match spec.kind {
            VolumeKind::Filesystem => self.open_disk(place, &place.image)?,
            // A failed one is still there: its image is in memory, not lost.
            VolumeKind::Memory if held.is_some() => self.open_disk(place, &place.memory_image)?,
            VolumeKind::Memory => {
                place::unmount_below(&place.directory)?;
                Place::make_directory(&place.data)?;
                let tree = memory::make(place, spec, self.maps_tmpfs(place)?)?;
                memory::attach(place, &tree, &place.data)?;
                Restored::Emptied
            }
        };
        drop(held);
        let root = self.mounted(place, spec.kind)?;
        if is_failing(&root, stat(place, &root)?.flags()) {
            return Err(place.damaged(Damage::Failing));
        }
        Ok((root, restored))
    }

    fn open_disk(&self, place: &Place, image: &Path) -> Result<Restored, VolumeError> {
        Place::make_directory(&place.data)?;
        let disk = disk::open(place, image)?;
        memory::attach(place, &disk.tree, &place.data)?;
        Ok(if disk.is_repaired {
            Restored::Repaired
        } else {
            Restored::Mounted
        })
    }

    fn maps_tmpfs(&self, place: &Place) -> Result<bool, VolumeError> {
        if let Some(known) = self.maps_tmpfs.get() {
            return Ok(*known);
        }
        let found = memory::is_mapped_here()
            .map_err(|source| not_done("map the owner of", place, "mount a tmpfs", source))?;
        Ok(*self.maps_tmpfs.get_or_init(|| found))
    }
}

fn stat(place: &Place, root: &Root) -> Result<Statvfs, VolumeError> {
    fstatvfs(&root.fd).map_err(|errno| file("look at", &place.data)(errno.into()))
}

/// Whether it has to be checked before it is used on.
fn is_failing(root: &Root, flags: FsFlags) -> bool {
    flags.contains(FsFlags::ST_RDONLY) || disk::is_failing(root.device)
}

/// Writes a file under its own name: half of it goes with a half-made volume, as one of another name would not.
fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// What lies beside a volume for people to read.
fn meta(spec: &VolumeSpec, created_ns: i64) -> Vec<u8> {
    let created = Timestamp::from_nanosecond(i128::from(created_ns)).ok();
    let meta = json!({
        "name": spec.name.as_str(),
        "size": spec.size.text(),
        "size_bytes": spec.size.bytes(),
        "type": spec.kind.word(),
        "created": created.map(|created| created.to_string()),
    });
    format!("{meta:#}\n").into_bytes()
}

#[cfg(test)]
mod tests;

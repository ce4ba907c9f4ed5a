//! What can be wrong with a volume, and what to do about it.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::PathBuf,
};

use thiserror::Error;

use super::mkfs::ToolError;
use crate::job::{Refusal, RefusalCode, VolumeName};

/// Why something could not be done to a volume.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// There is one of that name, or something else in its place.
    #[error("volume {name} already exists")]
    Exists {
        /// Which.
        name: VolumeName,
    },
    /// The daemon lacks a right to make a volume.
    #[error("failed to create volume: operation not permitted")]
    CreationNotPermitted {
        /// What it was not allowed to do.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The daemon lacks a right.
    #[error("volume {name}: operation not permitted")]
    NotPermitted {
        /// Which.
        name: VolumeName,
        /// What it was not allowed to do.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A memory volume larger than memory.
    #[error(
        "memory volume {name} of {bytes} bytes is more than this host can hold: {available} bytes of memory are free"
    )]
    Memory {
        /// Which.
        name: VolumeName,
        /// Its size.
        bytes: u64,
        /// What there is, less what other memory volumes may still take.
        available: u64,
    },
    /// mkfs.ext4.
    #[error("make a file system for volume {name}")]
    Format {
        /// Which.
        name: VolumeName,
        /// Why not.
        #[source]
        source: ToolError,
    },
    /// A program that volumes are made with.
    #[error("look at what volumes are made with")]
    Tool(#[source] ToolError),
    /// Whether owners can be mapped cannot be found out.
    #[error("map the owner of a tmpfs")]
    Mapping(#[source] io::Error),
    /// No loop device.
    #[error("find a loop device for volume {name}")]
    Loop {
        /// Which.
        name: VolumeName,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel did not mount, or map the owner of a mount.
    #[error("{action} volume {name}")]
    Mount {
        /// What was done.
        action: &'static str,
        /// Which.
        name: VolumeName,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file or directory of a volume.
    #[error("{action} {}", .path.display())]
    File {
        /// What was done.
        action: &'static str,
        /// To which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its contents cannot be reached as they are.
    #[error("volume {name} is damaged")]
    Damaged {
        /// Which.
        name: VolumeName,
        /// What is wrong.
        #[source]
        damage: Damage,
    },
}

/// What is wrong with a volume that was whole once.
#[derive(Debug, Error)]
pub enum Damage {
    /// Somebody has deleted its image.
    #[error("its image {} is gone", .0.display())]
    ImageGone(PathBuf),
    /// The image holds no file system that could be repaired without losing anything.
    #[error("its image {} cannot be repaired", .path.display())]
    Unrepaired {
        /// The image.
        path: PathBuf,
        /// What e2fsck said.
        #[source]
        source: ToolError,
    },
    /// The image holds no file system.
    #[error("its image {} holds no file system", .0.display())]
    NoFileSystem(PathBuf),
    /// Something that is not this volume is mounted in its place.
    #[error("something else is mounted on {}", .0.display())]
    Covered(PathBuf),
    /// It is not mounted.
    #[error("it is not mounted")]
    NotMounted,
    /// It has failed, and cannot be checked before the last job that holds it has ended.
    #[error("it has failed, as on a full host disk, and is checked when no job holds it")]
    Failing,
}

impl VolumeError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists { name } => {
                format!("choose another name, or remove it: rnx volume remove {name}")
            }
            Self::CreationNotPermitted { action, .. } | Self::NotPermitted { action, .. } => {
                format!(
                    "joblet may not {action}: it needs root with CAP_SYS_ADMIN, /dev/loop-control and the loop devices"
                )
            }
            Self::Memory { .. } => "choose a smaller size, or --type filesystem".to_owned(),
            Self::Format {
                source: ToolError::Missing { .. },
                ..
            }
            | Self::Tool(ToolError::Missing { .. }) => "install e2fsprogs on the daemon's host".to_owned(),
            Self::Loop { source, .. } if source.kind() == ErrorKind::NotFound => {
                "the daemon's host has no loop devices: load the kernel module loop".to_owned()
            }
            Self::Loop { .. } => "remove volumes, or end jobs with a /work on disk".to_owned(),
            Self::Damaged { name, damage } => match damage {
                Damage::ImageGone(_) => {
                    format!("put its image back, or remove it: rnx volume remove {name}")
                }
                Damage::NoFileSystem(path) | Damage::Unrepaired { path, .. } => {
                    format!("on the daemon's host: e2fsck -f {}", path.display())
                }
                Damage::Covered(path) => {
                    format!("on the daemon's host: umount {}", path.display())
                }
                Damage::NotMounted => "start the daemon again".to_owned(),
                Damage::Failing => "stop the jobs that hold it".to_owned(),
            },
            _ if self.is_disk_full() => "free space on the daemon's disk".to_owned(),
            Self::Mapping(_) => {
                "joblet needs root with CAP_SYS_ADMIN, and user namespaces that are not switched off".to_owned()
            }
            Self::Format { .. } | Self::Tool(_) | Self::Mount { .. } | Self::File { .. } => {
                return None;
            }
        })
    }

    /// As a client is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Exists { .. } => RefusalCode::Conflict,
            Self::Memory { .. } => RefusalCode::TooLarge,
            Self::CreationNotPermitted { .. }
            | Self::NotPermitted { .. }
            | Self::Format { .. }
            | Self::Tool(_)
            | Self::Mapping(_)
            | Self::Loop { .. }
            | Self::Mount { .. }
            | Self::File { .. }
            | Self::Damaged { .. } => RefusalCode::Failed,
        };
        let mut message = self.to_string();
        // The guide's words end there; what was not permitted is in the hint.
        if !matches!(
            self,
            Self::CreationNotPermitted { .. } | Self::NotPermitted { .. }
        ) {
            let mut cause = self.source();
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
        }
        let refusal = Refusal::new(code, message);
        match self.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }

    /// The same of a volume that is being made: the guide's words where a right is missing.
    pub(super) fn of_creation(self) -> Self {
        if let Self::NotPermitted { action, source, .. } = self {
            Self::CreationNotPermitted { action, source }
        } else {
            self
        }
    }

    fn is_disk_full(&self) -> bool {
        if let Self::File { source, .. } | Self::Mount { source, .. } = self {
            source.kind() == ErrorKind::StorageFull
        } else if let Self::Format { source, .. } = self {
            matches!(source, ToolError::Failed { words, .. } if words.contains("No space left"))
        } else {
            false
        }
    }
}

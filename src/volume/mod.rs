//! Storage of jobs: the disk image under a large `/work`, and named volumes that outlive jobs.
//!
//! Everything here blocks, and is called on the blocking pool.

mod disk;
mod error;
mod geometry;
mod image;
mod loops;
mod memory;
mod mkfs;
mod place;
#[cfg(test)]
mod testing;
mod volumes;

pub use disk::DISK_OWNER;
pub use error::{Damage, VolumeError};
pub use image::{Cleaned, WorkError, WorkImage, WorkOptions, clean, devices_backed_below};
pub use mkfs::ToolError;
pub use volumes::{CleanedVolumes, HostOwner, Restored, VolumeUsage, Volumes};

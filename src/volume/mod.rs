//! Storage of jobs: now only the disk image under a large `/work`; named volumes use the same mechanism.

mod image;

pub use image::{Cleaned, WorkError, WorkImage, WorkOptions, clean, devices_backed_below};

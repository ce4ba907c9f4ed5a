//! Shards: each owns its jobs.

pub mod conclude;
pub mod core;
pub mod effect;
mod handle;
pub mod reactor;

pub use handle::{Handle, Output, Settings, Submission, Tree, TreeItem, UploadSink};

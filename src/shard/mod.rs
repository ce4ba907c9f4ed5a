//! Shards: each owns its jobs.

mod handle;

pub use handle::{Handle, Output, Settings, Submission, Tree, TreeItem, UploadSink};

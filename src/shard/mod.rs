//! Shards: each is one thread on one core and owns its jobs outright.
//!
//! ```text
//!   handle, output, upload, tree     what a front may ask, on any shard
//!        │            remote         calls to the shard that owns the job
//!        ▼
//!   driver ──events──► reactor ──effects──► driver
//!        │             core, conclude       (pure)
//!        ├─ launch     from a spec to a recipe in the spawner's hands
//!        ├─ desk       crews of helper processes and ready namespaces
//!        ├─ spool      uploads of jobs that run later, and their way into each run
//!        ├─ retire     output brought home, everything given back
//!        ├─ small      little output, from its files into the store
//!        ├─ metrics    what live jobs use, for those who ask
//!        ├─ records    what the store is asked to keep; history reads it
//!        ├─ volumes    which there are, who has them, and their mounts for each start
//!        └─ timers
//!   queue              who may run, where what runs at once is bounded (pure)
//!   beneath            files in what others may change
//!   topology           how shards come up and go down together
//!   sim                (tests) the reactor on virtual time, with faults
//! ```
//! It knows no wire type and no front by name.

mod admission;
mod alarms;
mod beneath;
mod body;
mod conclude;
pub mod core;
mod desk;
mod driver;
pub mod effect;
mod front_door;
mod handle;
mod history;
mod inherit;
mod launch;
mod metrics;
mod output;
mod places;
mod prune;
pub mod queue;
pub mod reactor;
mod recall;
mod records;
mod remote;
mod repeat;
mod retire;
mod seats;
#[cfg(test)]
mod sim;
mod small;
mod spool;
mod submission;
mod timers;
pub mod topology;
mod tree;
mod upload;
mod volumes;

pub use handle::{Handle, Settings};
pub use output::Output;
pub use submission::Submission;
pub use tree::{Tree, TreeItem};
pub use upload::UploadSink;
pub use volumes::VolumeSink;

//! What isolates a job: a pure plan, the processes that carry it out, and the job's PID 1.
//!
//! ```text
//! crew       the three helper processes of a shard, as the daemon sees them
//!  ├ adopt   finds keepers that outlived their daemon; they say what they hold in an `inventory`
//!  ├ keeper  parent of the jobs, holder of their descriptors; speaks `wire`, hears of a `birth`
//!  ├ spawner walks a `plan` that came with a `start` and clones; its children's root is from `rootfs`
//!  └ pool    makes user and network namespaces ahead of need, on ranges of `identity`
//! init       PID 1 of a job
//! ```

pub mod adopt;
pub mod birth;
pub mod crew;
pub mod identity;
pub mod init;
pub mod inventory;
pub mod keeper;
pub mod plan;
pub mod pool;
#[cfg(test)]
mod proof;
pub mod rootfs;
pub mod spawner;
pub mod start;
pub mod wire;

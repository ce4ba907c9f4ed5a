//! What isolates a job: a pure plan, the helper that walks it, and the job's PID 1.

pub mod birth;
pub mod init;
pub mod plan;
#[cfg(test)]
mod proof;
pub mod rootfs;
pub mod spawner;
pub mod start;

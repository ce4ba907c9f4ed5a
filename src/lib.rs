//! Joblet: a daemon that runs Linux jobs nobody has to trust.
//!
//! The rooms, from the wire down; `ARCHITECTURE.md` draws them.
//!
//! - [`front`] turns bytes into authorised, typed requests. It knows no kernel feature of a job.
//! - [`doctor`] tries every promise in jobs of its own.
//! - [`shard`] owns jobs: a pure reactor decides, a driver does. It knows no wire type.
//! - [`sandbox`], [`cgroup`], [`log`], [`volume`], [`store`] each own one thing a job is made of; none names
//!   another.
//! - [`rt`] is the runtime and alone names monoio; [`sys`] holds kernel calls and alone is unsafe.
//! - [`job`] and [`limits`] are the vocabulary below everybody; [`pki`], [`config`] and [`host`] serve the
//!   command line and start-up.

pub mod cgroup;
pub mod config;
pub mod doctor;
pub mod front;
pub mod host;
pub mod job;
pub mod limits;
pub mod log;
pub mod pki;
pub mod rt;
pub mod sandbox;
pub mod shard;
pub mod store;
pub mod sys;
pub mod volume;

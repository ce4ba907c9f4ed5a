//! Integration tests: what the product promises, looked at from outside and from inside a job.
//!
//! One binary, so that one link serves all. Every test that needs the kernel starts (or shares) a private
//! daemon in a directory of its own and leaves nothing behind; see `harness`.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    reason = "tests run beside the product: they may block, panic, start processes and print"
)]

/// Who may do what: certificates, roles, owners.
mod auth;
/// Limits as they are asked for.
mod bounds;
/// What is left when a helper or the daemon is killed: nothing.
mod crash;
/// A daemon that is killed again and again, at any moment and at any call: nothing acknowledged is lost.
mod crash_suite;
/// A host whose disk is nearly, and really, full.
mod disk;
/// The user's guide to volumes, block by block.
mod guide;
/// Private daemons, the client, and waiting without sleeping.
mod harness;
/// Peers that lie, stall and vanish.
mod hostile;
/// One file per promise, looked at from inside a job.
mod isolation;
/// Jobs that wait: for their time, for the queue, for a client that asks again.
mod later;
/// What a job may use, tried by one that wants more.
mod limits;
/// Output: every byte, in order, once.
mod log;
/// A machine of its own, whose clock, power and init system may be played with.
mod machine;
/// What a job is seen to use.
mod metrics;
/// Running a command: arguments, environment, streams, exit codes.
mod run;
/// Many jobs at once, and what they cost.
mod scale;
/// `joblet init`, `cert issue`, `down`, and what they refuse.
mod setup;
/// Output that needs no files once its job has ended.
mod small;
/// Ending a job from outside.
mod stop;
/// Which room may name which, and what no file may say.
mod tidy;
/// Files into and out of `/work`.
mod upload;
/// Named storage that outlives jobs.
mod volume;

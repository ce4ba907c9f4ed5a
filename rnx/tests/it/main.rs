//! The client against a server of our own making: `server` speaks the wire and says what a test tells it.
//!
//! `library` is about requests, `resume` about connections that are lost, `schedule` about what runs later, `volume` about
//! volumes, `stop` about stopping, `trust` about certificates and everything else that prevents a connection, `command`
//! about the program: codes, streams, JSON, signals; `linkage` about how it is linked; `local` about `--local`.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "clippy excepts `mod tests`, but not the helpers of an integration test"
)]

mod command;
mod library;
mod local;
mod resume;
mod schedule;
mod server;
mod start;
mod stop;
mod trust;
mod volume;

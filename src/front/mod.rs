//! From bytes to authorised, typed requests, and back.
//!
//! `quic` moves bytes, `tls` says whose they are, `session` reads frames and serves one request a stream,
//! `authorise` decides whether it may, `convert` is where wire types end. This room knows no kernel feature
//! of a job: it asks its shard's [`crate::shard::Handle`] for everything.

pub mod authorise;
mod quic;
mod tls;

pub use quic::{Datagram, ForwardHook, steering};
pub use tls::TlsError;

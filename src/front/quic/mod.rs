//! QUIC on one shard: quinn-proto and quinn-udp driven by hand, without locks.
//!
//! ```text
//! socket ──datagrams──► endpoint ──events──► connection ──wakes──► request tasks (SendHalf, RecvHalf)
//!    ▲                      │  ▲                                          │ write, read
//!    └──────transmits───────┘  └───────────── work queue ◄── mark dirty ──┘
//! ```
//! One task a shard is the endpoint. Request code runs as tasks of the same thread and touches its connection
//! through `Rc<Link>`: a write puts bytes into the connection, marks it dirty and wakes the endpoint, which
//! sends them in the same turn of the event loop. This room knows streams of bytes and certificates; frames
//! and requests belong to `session`.

mod connection;
mod deadlines;
mod endpoint;
mod socket;
pub mod steering;
mod stream;
#[cfg(test)]
mod tests;
mod transport;
mod wait;
mod work;

pub(crate) use endpoint::{Endpoint, RequestStream};
pub(crate) use stream::{RecvHalf, SendHalf, StreamError};
pub(crate) use transport::{Keys, Transport};
pub(crate) use work::{Phase, Work};

pub use endpoint::{Datagram, ForwardHook};

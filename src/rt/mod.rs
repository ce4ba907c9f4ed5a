//! The runtime of a shard: one pinned thread, one io_uring, nothing `Send`. The only room that names monoio.
//!
//! - [`run`], [`spawn`], [`yield_io`]: the thread itself.
//! - [`now`], [`wall_ns`], [`sleep`], [`sleep_until`], [`timeout`]: time.
//! - [`Ready`], [`File`], [`Ring`], [`Gate`], [`blocking`]: the kernel, never waiting for it on this thread.
//! - [`mail`]: messages between threads. [`Event`], [`Notify`], [`Watch`], [`oneshot`], [`or`]: within one.
//!
//! Rules that hold here so that nobody else has to know them: a future of an operation that carries bytes is
//! never dropped half-way by us (the kernel's answer would be lost), readiness and time may be; the runtime
//! is never torn down in a living process; timers are whole milliseconds, rounded up.

mod clock;
mod file;
mod gate;
mod local;
pub mod mail;
mod pool;
mod ready;
mod ring;
mod runtime;
mod select;
#[cfg(test)]
pub(crate) mod testing;

pub use clock::{Elapsed, mono_ns, now, sleep, sleep_until, timeout, wall_ns};
pub use file::{File, OpenHow};
pub use gate::{Gate, Pass};
pub use local::{Event, Listener, Notify, OneshotReceiver, OneshotSender, Watch, oneshot};
pub use pool::{BlockingError, blocking};
pub use ready::Ready;
pub use ring::Ring;
pub use runtime::{Options, Panicked, RunError, Task, ring, run, spawn, yield_io};
pub use select::{Either, or};

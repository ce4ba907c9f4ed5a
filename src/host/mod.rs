//! What this machine is and has, and where a daemon keeps its things on it.
//!
//! [`Base`] is the directory that one daemon owns, [`Instance`] the mark on every kernel object it makes,
//! [`BaseLock`] the proof that nobody else is serving there. [`preflight`] says what the machine lacks.

mod base;
mod holder;
mod instance;
pub mod preflight;

pub use base::{Base, BaseError, BaseLock};
pub use holder::Holder;
pub use instance::Instance;

//! What this machine is and has, where a daemon keeps its things on it, and what it left behind.
//!
//! [`Base`] is the directory that one daemon owns, [`Instance`] the mark on every kernel object it makes,
//! [`BaseLock`] the proof that nobody else is serving there. [`preflight`] says what the machine lacks;
//! [`recover`] ends and removes what carries our instance and belongs to nobody.

mod base;
mod holder;
mod instance;
pub mod preflight;
mod recover;

pub use base::{Base, BaseError, BaseLock};
pub use holder::Holder;
pub use instance::Instance;
pub use recover::{RecoverError, Report, recover};

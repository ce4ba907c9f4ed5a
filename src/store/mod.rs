//! What outlives the daemon: jobs and volumes, in a SQLite database that one thread writes.
//!
//! [`Store::open`] starts that thread; a [`Writer`] hands it a [`Change`] and hears of it after the commit; a
//! [`Reader`] answers questions about all jobs there ever were, so that nobody keeps them in memory. What an answered
//! change survives is the [`Durability`]. Values of secrets are in it only while their job has not ended, and sealed.
//!
//! The types of the job room stay free of any format: `record` mirrors them privately.

mod apply;
mod change;
mod checkpoint;
mod error;
mod key;
mod reader;
mod record;
mod row;
mod schema;
mod seal;
mod volumes;
mod writer;

pub use change::{Change, Done, SmallOutput};
pub use error::{OpenError, StoreError};
pub use key::{Key, Remembered};
pub use reader::{Cursor, ListQuery, Live, Reader};
pub use seal::SealKey;
pub use volumes::{StoredVolume, StoredVolumes, VolumeState};
pub use writer::{Answer, Options, Rejected, Store, Writer};

/// What an answered change survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The death of the daemon in any way: it is with the kernel. Of a power loss the database recovers too, but the
    /// last changes may be missing.
    #[default]
    Process,
    /// A power loss: the commit waits for the disk.
    Power,
}

#[cfg(test)]
mod tests;

//! Volumes of all shards: the first shard keeps their registry, every shard asks it.
//!
//! ```text
//! registry   which there are and who has them             (pure)
//! space      who stands still while the disk is full      (pure)
//! keep       made and removed, with the store on each side
//! hold       a job has its volumes, and gives them back
//! attach     their mounts, for one start
//! guard      looks at the disk, freezes and thaws
//! trim       gives the host back what deleted files had
//! restore    what a former daemon left of them
//! door       what a front may ask; sink takes what is copied in
//! ```
//! A job without volumes costs no word between shards.

mod attach;
mod door;
mod guard;
mod hold;
mod keep;
mod registry;
mod restore;
mod sink;
mod space;
mod trim;

use std::{cell::RefCell, collections::BTreeSet};

pub use self::sink::VolumeSink;
pub(super) use self::{registry::Registry, restore::restore};
use crate::{
    job::{ShardIndex, VolumeName},
    rt::Notify,
};

/// The shard that keeps the registry.
const KEEPER: ShardIndex = 0;

/// What the first shard knows of volumes; empty on the others.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    registry: RefCell<Registry>,
    /// A job has got volumes.
    held: Notify,
    /// Volumes in which files may have been deleted.
    untrimmed: RefCell<BTreeSet<VolumeName>>,
    has_untrimmed: Notify,
}

impl Shelf {
    pub(super) fn new(registry: Registry) -> Self {
        Self {
            registry: RefCell::new(registry),
            ..Self::default()
        }
    }
}

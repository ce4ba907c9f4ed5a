//! What the driver holds of one job that has not ended: descriptors and leases, each with one owner.

use std::{os::fd::OwnedFd, rc::Rc};

use super::{desk::Link, effect::Effect, metrics::Samples, seats::MemoryCgroup};
use crate::{
    log::{Capture, Progress},
    rt::OneshotSender,
    sandbox::identity::IdRange,
    store::{Key, SmallOutput},
    volume::WorkImage,
};

/// A job's resources. Filled while the sandbox is made, emptied by [`super::retire`].
#[derive(Debug)]
pub(super) struct Body {
    /// How far its output is; made before anything else so that a follower can come at once.
    pub(super) progress: Rc<Progress>,
    pub(super) capture: Option<Rc<Capture>>,
    /// Whether it has a cgroup.
    pub(super) has_leaf: bool,
    /// Whether memory can run out in it alone.
    pub(super) has_memory_limit: bool,
    /// The name that its cgroups of version 1 still have; empty once they have the job's.
    pub(super) seat: Option<String>,
    /// That one of those is for memory.
    pub(super) memory: Option<MemoryCgroup>,
    pub(super) ids: Option<IdRange>,
    pub(super) image: Option<WorkImage>,
    /// All its output, once that is drained and when it is small.
    pub(super) output: Option<SmallOutput>,
    /// Our end of init's control socket, until the go is given.
    pub(super) control: Option<OwnedFd>,
    /// init's end of the upload socket, until init exists: a recipe may have to be sent twice.
    pub(super) upload: Option<OwnedFd>,
    /// It has volumes, which its shard gives back.
    pub(super) has_volumes: bool,
    /// It was ended before its init had died, which its cgroup then waits for.
    pub(super) is_reaped: bool,
    /// Its processes stand still: the host's disk is full.
    pub(super) is_frozen: bool,
    /// The idempotency key it was submitted with, until the store has its record.
    pub(super) key: Option<Key>,
    /// The crew that makes, or made, the job.
    pub(super) link: Option<Rc<Link>>,
    /// init's process id, for printing and for `/proc`.
    pub(super) pid: Option<u32>,
    /// What it was seen to use.
    pub(super) samples: Samples,
    /// How far it is, is on its way into the store so many times.
    pub(super) notes: usize,
    /// Signals and kills that wait for that, in order.
    pub(super) held_back: Vec<Effect>,
    /// Whoever asked for the end, and is answered when the store knows.
    pub(super) awaiting_note: Vec<OneshotSender<()>>,
}

impl Body {
    pub(super) fn new() -> Self {
        Self {
            progress: Rc::default(),
            capture: None,
            has_leaf: false,
            has_memory_limit: false,
            seat: None,
            memory: None,
            ids: None,
            image: None,
            output: None,
            control: None,
            upload: None,
            has_volumes: false,
            is_reaped: false,
            is_frozen: false,
            key: None,
            link: None,
            pid: None,
            samples: Samples::default(),
            notes: 0,
            held_back: Vec::new(),
            awaiting_note: Vec::new(),
        }
    }
}

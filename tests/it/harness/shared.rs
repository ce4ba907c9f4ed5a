//! One daemon for a file of tests, for as long as one of them runs.

use std::ops::Deref;
use std::sync::{Arc, Mutex, Weak};
use std::thread::panicking;

use super::{Daemon, Host};

/// Where the tests of a file find their daemon: the first starts it, the last one out ends it and fails if
/// something is left.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<Weak<Daemon>>);

/// One test's hold on a shared daemon.
#[derive(Debug)]
pub(crate) struct Held(Arc<Daemon>);

impl Shared {
    /// An empty place.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// The daemon, or nothing when the test is not for this host.
    pub(crate) fn get(&self, host: Host) -> Option<Held> {
        if !host.is_here() {
            return None;
        }
        // A test that fails while it starts the daemon poisons the lock; the next one starts another.
        let mut place = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(daemon) = place.upgrade() {
            return Some(Held(daemon));
        }
        let daemon = Arc::new(Daemon::start());
        *place = Arc::downgrade(&daemon);
        Some(Held(daemon))
    }
}

impl Deref for Held {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The last one out dumps in Daemon::drop.
        if panicking() && Arc::strong_count(&self.0) > 1 {
            self.0.dump();
        }
    }
}

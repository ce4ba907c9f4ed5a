//! When each connection wants to be looked at again, without scanning them.
//!
//! Lazy: a deadline that moves later keeps its early entry, which then fires once for nothing. Almost every
//! packet moves a connection's deadline later, so this saves two tree operations a packet.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use quinn_proto::ConnectionHandle;

/// At most one entry a connection, never later than the deadline last set.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    ordered: BTreeSet<(Instant, usize)>,
    by_handle: HashMap<usize, Instant>,
}

impl Deadlines {
    /// Sees to it that `handle` is due at `at` or earlier; never, if there is no deadline and no earlier entry.
    pub(super) fn set(&mut self, handle: ConnectionHandle, at: Option<Instant>) {
        let Some(at) = at else { return };
        if let Some(entry) = self.by_handle.get_mut(&handle.0) {
            if *entry <= at {
                return;
            }
            self.ordered.remove(&(*entry, handle.0));
            *entry = at;
        } else {
            self.by_handle.insert(handle.0, at);
        }
        self.ordered.insert((at, handle.0));
    }

    /// Forgets a connection that is gone.
    pub(super) fn remove(&mut self, handle: ConnectionHandle) {
        if let Some(at) = self.by_handle.remove(&handle.0) {
            self.ordered.remove(&(at, handle.0));
        }
    }

    /// Takes out one connection that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<ConnectionHandle> {
        let (at, handle) = *self.ordered.first()?;
        if at > now {
            return None;
        }
        self.ordered.pop_first();
        self.by_handle.remove(&handle);
        Some(ConnectionHandle(handle))
    }

    /// The earliest entry.
    pub(super) fn next(&self) -> Option<Instant> {
        self.ordered.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_fire_in_order_at_or_before_their_deadline_and_once() {
        let start = crate::rt::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
        deadlines.set(ConnectionHandle(1), Some(at(30)));
        deadlines.set(ConnectionHandle(2), Some(at(20)));
        deadlines.set(ConnectionHandle(1), Some(at(10)));
        deadlines.set(ConnectionHandle(2), Some(at(90)));
        deadlines.set(ConnectionHandle(3), Some(at(5)));
        deadlines.set(ConnectionHandle(4), None);
        deadlines.remove(ConnectionHandle(3));
        assert_eq!(deadlines.next(), Some(at(10)));
        assert_eq!(deadlines.pop_due(at(9)), None);
        assert_eq!(deadlines.pop_due(at(100)), Some(ConnectionHandle(1)));
        assert_eq!(deadlines.pop_due(at(100)), Some(ConnectionHandle(2)));
        assert_eq!(deadlines.pop_due(at(100)), None);
        assert_eq!(deadlines.next(), None);
        deadlines.set(ConnectionHandle(2), Some(at(90)));
        assert_eq!(deadlines.next(), Some(at(90)));
    }
}

//! How much the requests of a shard hold together.
//!
//! One request is bounded by its own limits; thousands at their limits at once would not be. What a peer sends
//! ahead or is slow to take is counted here, and a request that would go beyond the bound is told to come
//! back later.

use std::{cell::Cell, rc::Rc};

use crate::job::{Refusal, RefusalCode};

/// A number of bytes that reservations share.
#[derive(Debug, Clone)]
pub(in crate::front) struct Budget {
    left: Rc<Cell<usize>>,
}

/// Some of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    left: Rc<Cell<usize>>,
    bytes: usize,
}

impl Budget {
    /// All of `bytes` is free.
    pub(in crate::front) fn new(bytes: usize) -> Self {
        Self {
            left: Rc::new(Cell::new(bytes)),
        }
    }

    /// A reservation of nothing yet.
    pub(super) fn reserve(&self) -> Reservation {
        Reservation {
            left: Rc::clone(&self.left),
            bytes: 0,
        }
    }
}

impl Reservation {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`RefusalCode::Busy`] when so many are not free; nothing is taken then.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let left = self.left.get().checked_sub(bytes).ok_or_else(busy)?;
        self.left.set(left);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.left.set(self.left.get() + self.bytes);
    }
}

/// What a peer is told when a bound of the whole shard is reached.
pub(super) fn busy() -> Refusal {
    Refusal::new(
        RefusalCode::Busy,
        "the server has too many requests at once",
    )
    .hint("try again later")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_share_a_bound_and_give_back_what_they_took() {
        let budget = Budget::new(10);
        let (mut first, mut second) = (budget.reserve(), budget.reserve());
        first.grow(4).unwrap();
        first.grow(2).unwrap();
        second.grow(4).unwrap();
        assert_eq!(second.grow(1).unwrap_err().code, RefusalCode::Busy);
        drop(first);
        second.grow(6).unwrap();
        assert!(second.grow(1).is_err());
        drop(second);
        budget.reserve().grow(10).unwrap();
        assert!(budget.reserve().grow(11).is_err());
    }
}

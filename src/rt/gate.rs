//! Admits a bounded number at once, first come first served.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::Poll,
};

use super::local::{Seat, Waiters};

/// Lets at most so many through at once.
#[derive(Debug)]
pub struct Gate {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    free: Cell<usize>,
    inside: Cell<usize>,
    waiters: RefCell<Waiters>,
}

impl Gate {
    /// A gate for `count` at once.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let inner =
            Inner { free: Cell::new(count), inside: Cell::new(0), waiters: RefCell::new(Waiters::default()) };
        Self { inner: Rc::new(inner) }
    }

    /// Waits in line and goes in; dropping the pass goes out.
    ///
    /// # Cancel
    /// Leaves the line.
    pub async fn enter(&self) -> Pass {
        // Dropped last, also when the future is: whoever leaves the line lets the next one look.
        let _leave = Leave(&self.inner);
        let mut seat = Seat::new(&self.inner.waiters);
        poll_fn(|cx| {
            let inner = &self.inner;
            let is_first = inner.waiters.borrow().is_first(seat.id());
            if inner.free.get() == 0 || !is_first {
                seat.take(cx.waker());
                return Poll::Pending;
            }
            inner.free.set(inner.free.get() - 1);
            inner.inside.set(inner.inside.get() + 1);
            Poll::Ready(())
        })
        .await;
        Pass(self.inner.clone())
    }

    /// Whether whoever holds a pass is the only one, and nobody waits.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.inner.inside.get() <= 1 && self.inner.waiters.borrow().is_empty()
    }
}

impl Inner {
    fn let_in_next(&self) {
        if self.free.get() > 0 {
            self.waiters.borrow().wake_first();
        }
    }
}

struct Leave<'a>(&'a Inner);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.let_in_next();
    }
}

/// The right to be inside.
#[derive(Debug)]
pub struct Pass(Rc<Inner>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.inside.set(self.0.inside.get() - 1);
        self.0.let_in_next();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rt::{Either, or, sleep, spawn, testing::on_shard};

    #[test]
    fn no_more_than_the_count_are_inside_and_they_enter_in_order() {
        on_shard(|| async {
            let gate = Rc::new(Gate::new(2));
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..10)
                .map(|i| {
                    let (gate, order) = (gate.clone(), order.clone());
                    spawn(async move {
                        let _pass = gate.enter().await;
                        assert!(gate.inner.inside.get() <= 2);
                        order.borrow_mut().push(i);
                        sleep(Duration::from_millis(1)).await;
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), (0..10).collect::<Vec<_>>());
            assert_eq!((gate.inner.free.get(), gate.inner.inside.get()), (2, 0));
        });
    }

    #[test]
    fn one_who_leaves_the_line_does_not_take_the_turn_of_the_next() {
        on_shard(|| async {
            let gate = Rc::new(Gate::new(1));
            let first = gate.enter().await;
            let quitter = or(gate.enter(), sleep(Duration::from_millis(1)));
            let waiting = {
                let gate = gate.clone();
                spawn(async move { drop(gate.enter().await) })
            };
            assert!(matches!(quitter.await, Either::Right(())));
            drop(first);
            waiting.await.unwrap();
            assert!(gate.is_alone());
        });
    }
}

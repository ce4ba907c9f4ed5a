//! What the endpoint's task has to do next, and how others wake it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::{connection::Link, endpoint::Datagram};
use crate::limits;

/// How far the endpoint is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Connections and requests are accepted.
    Serving,
    /// New connections are refused; the others go on.
    Refusing,
    /// Connections are closed and the endpoint returns.
    Closing,
}

/// Shared by the endpoint and everybody on its thread who gives it something to do.
#[derive(Debug)]
pub(crate) struct Work {
    dirty: RefCell<VecDeque<Rc<Link>>>,
    forwarded: RefCell<VecDeque<Datagram>>,
    phase: Cell<Phase>,
    waker: RefCell<Option<Waker>>,
    requests: Cell<usize>,
}

impl Work {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            dirty: RefCell::default(),
            forwarded: RefCell::default(),
            phase: Cell::new(Phase::Serving),
            waker: RefCell::default(),
            requests: Cell::new(0),
        })
    }

    /// Puts a connection into the queue, which must not hold it yet, and wakes the endpoint.
    pub(super) fn push(&self, link: Rc<Link>) {
        self.dirty.borrow_mut().push_back(link);
        self.wake();
    }

    pub(super) fn pop(&self) -> Option<Rc<Link>> {
        self.dirty.borrow_mut().pop_front()
    }

    pub(super) fn dirty_count(&self) -> usize {
        self.dirty.borrow().len()
    }

    /// Copies the queue, oldest first, into `out`.
    pub(super) fn peek_all(&self, out: &mut Vec<Rc<Link>>) {
        out.extend(self.dirty.borrow().iter().cloned());
    }

    /// Takes a datagram that another shard received for this one. Lost when too many wait, as datagrams may be.
    pub(crate) fn forwarded(&self, datagram: Datagram) {
        let mut queue = self.forwarded.borrow_mut();
        if queue.len() < limits::FORWARDED_DATAGRAMS_MAX {
            queue.push_back(datagram);
            drop(queue);
            self.wake();
        }
    }

    pub(super) fn pop_forwarded(&self) -> Option<Datagram> {
        self.forwarded.borrow_mut().pop_front()
    }

    /// Moves on towards the end; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.set(self.phase.get().max(phase));
        self.wake();
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Requests whose streams are still in use.
    pub(crate) fn requests(&self) -> usize {
        self.requests.get()
    }

    pub(super) fn request_begins(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    pub(super) fn request_ends(&self) {
        self.requests.set(self.requests.get() - 1);
    }

    /// Ready when there is something to do. While the socket is full only what comes in counts.
    pub(super) fn poll_news(&self, cx: &Context<'_>, is_blocked: bool) -> Poll<()> {
        let can_send = !self.dirty.borrow().is_empty() || self.phase.get() == Phase::Closing;
        if !self.forwarded.borrow().is_empty() || (can_send && !is_blocked) {
            return Poll::Ready(());
        }
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The endpoint does not wait any more: what it does itself must not wake it.
    pub(super) fn forget_waker(&self) {
        self.waker.borrow_mut().take();
    }

    fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

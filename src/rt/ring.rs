//! The shard's second ring: what monoio's lacks.
//!
//! Operations of one turn of the event loop are given to the kernel together, by one task; another waits
//! through the first ring until the second has answers. An operation whose future is dropped goes on and
//! keeps its descriptors open until the kernel has answered.

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    fmt,
    future::{Future, poll_fn},
    io,
    path::Path,
    rc::Rc,
    task::{Poll, Waker},
};

use super::{Ready, spawn};
use crate::{
    limits,
    sys::uring::{SideRing, Splice},
};

#[derive(Default)]
struct Answer {
    result: Cell<Option<i32>>,
    waker: Cell<Option<Waker>>,
}

/// The second ring of this thread.
pub struct Ring {
    side: RefCell<SideRing<Rc<Answer>>>,
    has_queued: Cell<bool>,
    submitter: Cell<Option<Waker>>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.side.borrow().fmt(f)
    }
}

impl Ring {
    /// Makes the ring and the two tasks that serve it.
    pub(super) fn start() -> io::Result<Rc<Self>> {
        let side = SideRing::new(limits::SIDE_RING_ENTRIES, limits::RING_WORKERS)?;
        let readiness = Ready::new(side.readiness()?)?;
        let ring = Rc::new(Self {
            side: RefCell::new(side),
            has_queued: Cell::new(false),
            submitter: Cell::new(None),
        });
        drop(spawn(ring.clone().submit_each_turn()));
        drop(spawn(ring.clone().reap_when(readiness)));
        Ok(ring)
    }

    /// Moves what is in a pipe, at most `splice.len` bytes, without waiting for more. 0 at its end.
    ///
    /// # Errors
    /// `EAGAIN` when the pipe is empty, `ENOSPC` when not one byte fits, otherwise as splice(2).
    ///
    /// # Cancel
    /// The bytes move all the same and nobody learns how many: never drop it half-way.
    pub async fn splice(&self, splice: Splice) -> io::Result<usize> {
        let answer = Rc::new(Answer::default());
        self.side.borrow_mut().push_splice(splice, answer.clone())?;
        let moved = self.answered(answer).await;
        usize::try_from(moved).map_err(|_| io::Error::from_raw_os_error(-moved))
    }

    /// Makes a directory with mode 0700.
    ///
    /// # Errors
    /// As mkdir(2).
    pub async fn mkdir(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_encoded_bytes())?;
        let answer = Rc::new(Answer::default());
        self.side.borrow_mut().push_mkdir(path, 0o700, answer.clone())?;
        match self.answered(answer).await {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    fn answered(&self, answer: Rc<Answer>) -> impl Future<Output = i32> {
        if !self.has_queued.replace(true)
            && let Some(waker) = self.submitter.take()
        {
            waker.wake();
        }
        poll_fn(move |cx| match answer.result.get() {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
    }

    async fn submit_each_turn(self: Rc<Self>) {
        poll_fn(|cx| {
            self.submitter.set(Some(cx.waker().clone()));
            if self.has_queued.replace(false) {
                let submitted = self.side.borrow_mut().submit();
                if let Err(error) = submitted {
                    // Busy or interrupted: make room and come back.
                    tracing::debug!(%error, "side ring took nothing");
                    self.reap();
                    self.has_queued.set(true);
                    cx.waker().wake_by_ref();
                }
            }
            Poll::<()>::Pending
        })
        .await;
    }

    async fn reap_when(self: Rc<Self>, readiness: Ready) {
        loop {
            if let Err(error) = readiness.readable().await {
                tracing::error!(%error, "side ring cannot be polled");
            }
            self.reap();
        }
    }

    fn reap(&self) {
        self.side.borrow_mut().reap(|answer, result| {
            answer.result.set(Some(result));
            if let Some(waker) = answer.waker.take() {
                waker.wake(); // Only queues the task.
            }
        });
    }
}

//! How the endpoint's task waits, and how it does not starve the others while it is busy.
//!
//! Pending polls of the socket are kept across turns: dropping one would cancel it in the kernel, which costs
//! more than it saves. Likewise a timer that is due earlier than needed is left to fire for nothing.

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use super::work::Work;
use crate::rt;

/// Busy turns after which timers and other threads' wakes get their chance.
const BUSY_TURNS_MAX: u32 = 16;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;
type Pending<T> = Option<Boxed<T>>;

/// The three things the endpoint waits for.
pub(super) struct Wait {
    ready: Rc<rt::Ready>,
    readable: Pending<io::Result<()>>,
    writable: Pending<io::Result<()>>,
    timer: Option<(Instant, Boxed<()>)>,
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("timer", &self.timer.as_ref().map(|(at, _)| at))
            .finish_non_exhaustive()
    }
}

impl Wait {
    pub(super) fn new(ready: rt::Ready) -> Self {
        Self {
            ready: Rc::new(ready),
            readable: None,
            writable: None,
            timer: None,
        }
    }

    /// Returns when the socket can be read, `work` has something, or `deadline` has passed; with
    /// `is_blocked`, also when the socket can be written.
    ///
    /// # Errors
    /// When the socket cannot be polled.
    pub(super) async fn for_news(
        &mut self,
        work: &Work,
        deadline: Option<Instant>,
        is_blocked: bool,
    ) -> io::Result<()> {
        if let Some(at) = deadline
            && self.timer.as_ref().is_none_or(|(armed, _)| *armed > at)
        {
            self.timer = Some((at, Box::pin(rt::sleep_until(at))));
        }
        let news = poll_fn(|cx| {
            if work.poll_news(cx, is_blocked).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if let Some((_, timer)) = &mut self.timer
                && timer.as_mut().poll(cx).is_ready()
            {
                self.timer = None;
                return Poll::Ready(Ok(()));
            }
            let ready = &self.ready;
            if is_blocked {
                let start = || {
                    let ready = Rc::clone(ready);
                    Box::pin(async move { ready.writable().await }) as Boxed<_>
                };
                if let Poll::Ready(result) = poll_kept(&mut self.writable, start, cx) {
                    return Poll::Ready(result);
                }
                // A full socket still has to be read, or its acknowledgements would be lost.
            }
            let start = || {
                let ready = Rc::clone(ready);
                Box::pin(async move { ready.readable().await }) as Boxed<_>
            };
            poll_kept(&mut self.readable, start, cx)
        })
        .await;
        work.forget_waker();
        news
    }

    /// Lets every task that can run now do so, once.
    ///
    /// Waking oneself is no way to yield: the runtime puts such a task to the front of its queue. A task that
    /// wakes us from the back of the queue is.
    pub(super) async fn let_others_run() {
        // None: not begun. Others may wake us meanwhile, so the flag decides, not the poll.
        let mut have_run: Option<Rc<Cell<bool>>> = None;
        poll_fn(|cx| {
            if let Some(have_run) = &have_run {
                return if have_run.get() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
            let flag = Rc::clone(have_run.get_or_insert_default());
            let waker = cx.waker().clone();
            rt::spawn(async move {
                flag.set(true);
                waker.wake();
            });
            Poll::Pending
        })
        .await;
    }
}

fn poll_kept<T>(
    kept: &mut Pending<T>,
    start: impl FnOnce() -> Boxed<T>,
    cx: &mut Context<'_>,
) -> Poll<T> {
    let poll = kept.get_or_insert_with(start).as_mut().poll(cx);
    if poll.is_ready() {
        *kept = None;
    }
    poll
}

/// Counts turns without a wait.
#[derive(Debug, Default)]
pub(super) struct Turns(u32);

impl Turns {
    /// Between two busy turns: other tasks first; now and then a real operation that completes at once, since
    /// timers and other threads' wakes are looked at only between operations.
    ///
    /// # Errors
    /// When the socket cannot be polled.
    pub(super) async fn next(&mut self, wait: &Wait) -> io::Result<()> {
        self.0 += 1;
        if self.0.is_multiple_of(BUSY_TURNS_MAX) {
            wait.ready.writable().await
        } else {
            Wait::let_others_run().await;
            Ok(())
        }
    }
}

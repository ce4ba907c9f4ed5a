//! Waiting for each other within one thread: no locks, no atomics, nothing `Send`.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Those who wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    next_id: u64,
    line: VecDeque<(u64, Waker)>,
}

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Whether the waiter with this id, or a newcomer without one, is the next.
    pub(super) fn is_first(&self, id: Option<u64>) -> bool {
        self.line.front().is_none_or(|(first, _)| Some(*first) == id)
    }

    pub(super) fn wake_first(&self) {
        if let Some((_, waker)) = self.line.front() {
            waker.wake_by_ref();
        }
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.line.binary_search_by_key(&id, |(id, _)| *id).ok()
    }
}

/// A place in a line that is given up when dropped.
pub(super) struct Seat<'a> {
    waiters: &'a RefCell<Waiters>,
    id: Option<u64>,
}

impl<'a> Seat<'a> {
    pub(super) fn new(waiters: &'a RefCell<Waiters>) -> Self {
        Self { waiters, id: None }
    }

    pub(super) fn id(&self) -> Option<u64> {
        self.id
    }

    /// Takes a place at the end, or keeps the one it has, to be woken by `waker`.
    pub(super) fn take(&mut self, waker: &Waker) {
        let mut waiters = self.waiters.borrow_mut();
        if let Some(place) = self.id.and_then(|id| waiters.position(id)) {
            waiters.line[place].1.clone_from(waker);
            return;
        }
        let id = waiters.next_id;
        waiters.next_id += 1;
        waiters.line.push_back((id, waker.clone()));
        self.id = Some(id);
    }

    /// Whether somebody took it out of the line to wake it.
    fn was_called(&self) -> bool {
        self.id.is_some_and(|id| self.waiters.borrow().position(id).is_none())
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiters = self.waiters.borrow_mut();
        if let Some(place) = self.id.and_then(|id| waiters.position(id)) {
            waiters.line.remove(place);
        }
    }
}

/// Something that happens again and again: wakes everybody who has been listening.
#[derive(Debug, Default)]
pub struct Event {
    count: Cell<u64>,
    waiters: RefCell<Waiters>,
}

impl Event {
    /// One that has not happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens from this call on: what happens before the first poll is not missed.
    pub fn listen(&self) -> Listener<'_> {
        Listener { event: self, seen: self.count.get(), seat: Seat::new(&self.waiters) }
    }

    /// It happens.
    pub fn notify_all(&self) {
        self.count.set(self.count.get() + 1);
        let called = std::mem::take(&mut self.waiters.borrow_mut().line);
        for (_, waker) in called {
            waker.wake();
        }
    }
}

/// Ends when the event happens after [`Event::listen`].
pub struct Listener<'a> {
    event: &'a Event,
    seen: u64,
    seat: Seat<'a>,
}

impl fmt::Debug for Listener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Future for Listener<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.event.count.get() != self.seen {
            return Poll::Ready(());
        }
        self.seat.take(cx.waker());
        Poll::Pending
    }
}

/// Wakes one waiter at a time; a call that finds nobody is kept for the next who comes, once.
#[derive(Debug, Default)]
pub struct Notify {
    is_called: Cell<bool>,
    waiters: RefCell<Waiters>,
}

impl Notify {
    /// One that has not been called.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the one who has waited longest, or the next who comes.
    pub fn notify_one(&self) {
        let first = self.waiters.borrow_mut().line.pop_front();
        match first {
            Some((_, waker)) => waker.wake(),
            None => self.is_called.set(true),
        }
    }

    /// Waits for a call.
    ///
    /// # Cancel
    /// A call that had come to this waiter goes to the next one.
    pub async fn notified(&self) {
        let mut turn = Turn { notify: self, seat: Seat::new(&self.waiters), is_over: false };
        poll_fn(|cx| {
            if turn.seat.was_called() || turn.notify.is_called.replace(false) {
                turn.is_over = true;
                return Poll::Ready(());
            }
            turn.seat.take(cx.waker());
            Poll::Pending
        })
        .await;
    }
}

struct Turn<'a> {
    notify: &'a Notify,
    seat: Seat<'a>,
    is_over: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.seat.was_called() {
            self.notify.notify_one();
        }
    }
}

/// A value that is replaced from time to time, and how to wait for that.
#[derive(Debug, Default)]
pub struct Watch<T: Copy> {
    value: Cell<T>,
    version: Cell<u64>,
    changed: Event,
}

impl<T: Copy> Watch<T> {
    /// Starts with `value`, version 0.
    pub fn new(value: T) -> Self {
        Self { value: Cell::new(value), version: Cell::new(0), changed: Event::new() }
    }

    /// The value as it is now.
    pub fn get(&self) -> T {
        self.value.get()
    }

    /// Grows with each replacement.
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// Replaces the value and wakes all who wait.
    pub fn set(&self, value: T) {
        self.value.set(value);
        self.version.set(self.version.get() + 1);
        self.changed.notify_all();
    }

    /// Waits for a version other than `seen`, and returns it.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn changed(&self, seen: u64) -> u64 {
        while self.version.get() == seen {
            self.changed.listen().await;
        }
        self.version.get()
    }
}

struct Once<T> {
    value: Option<T>,
    waker: Option<Waker>,
    is_abandoned: bool,
}

/// The giving end of [`oneshot`].
pub struct OneshotSender<T>(Rc<RefCell<Once<T>>>);

/// The taking end of [`oneshot`]: a future of the value, or `None` when there will be none.
pub struct OneshotReceiver<T>(Rc<RefCell<Once<T>>>);

impl<T> fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneshotSender")
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneshotReceiver")
    }
}

/// One value from one task to another of the same thread.
#[must_use]
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let once = Rc::new(RefCell::new(Once { value: None, waker: None, is_abandoned: false }));
    (OneshotSender(once.clone()), OneshotReceiver(once))
}

impl<T> OneshotSender<T> {
    /// Gives the value.
    ///
    /// # Errors
    /// The value, when nobody waits for it any more.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut once = self.0.borrow_mut();
        if once.is_abandoned {
            return Err(value);
        }
        once.value = Some(value);
        Ok(())
    }

    /// Whether nobody waits any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.0.borrow().is_abandoned
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        let mut once = self.0.borrow_mut();
        once.is_abandoned = true;
        if let Some(waker) = once.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut once = self.0.borrow_mut();
        if once.value.is_some() || once.is_abandoned {
            return Poll::Ready(once.value.take());
        }
        once.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        self.0.borrow_mut().is_abandoned = true;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rt::{Either, or, sleep, spawn, testing::on_shard, timeout};

    #[test]
    fn an_event_between_listening_and_waiting_is_not_missed() {
        on_shard(|| async {
            let event = Event::new();
            let listener = event.listen();
            event.notify_all();
            listener.await;
            assert!(timeout(Duration::from_millis(1), event.listen()).await.is_err());
            assert!(event.waiters.borrow().is_empty(), "who stops listening leaves the line");
        });
    }

    #[test]
    fn a_call_goes_to_one_waiter_and_passes_on_when_that_one_gives_up() {
        on_shard(|| async {
            let notify = Rc::new(Notify::new());
            notify.notify_one();
            notify.notified().await;
            let other = {
                let notify = notify.clone();
                spawn(async move { notify.notified().await })
            };
            {
                let mut quitter = Box::pin(notify.notified());
                let nothing = or(&mut quitter, sleep(Duration::from_millis(1))).await;
                assert!(matches!(nothing, Either::Right(())));
                notify.notify_one();
                notify.notify_one();
            }
            other.await.unwrap();
            assert!(notify.is_called.get(), "the quitter's call is kept");
        });
    }

    #[test]
    fn a_watcher_sees_the_last_value_once() {
        on_shard(|| async {
            let watch = Rc::new(Watch::new(1));
            let writer = {
                let watch = watch.clone();
                spawn(async move {
                    watch.set(2);
                    watch.set(3);
                })
            };
            let seen = watch.changed(0).await;
            writer.await.unwrap();
            assert_eq!((watch.get(), seen), (3, watch.version()));
        });
    }

    #[test]
    fn a_oneshot_gives_its_value_or_none_when_the_sender_is_gone() {
        on_shard(|| async {
            let (sender, receiver) = oneshot();
            drop(spawn(async move { sender.send(7).unwrap() }));
            assert_eq!(receiver.await, Some(7));
            let (sender, receiver) = oneshot::<u8>();
            drop(spawn(async move { drop(sender) }));
            assert_eq!(receiver.await, None);
            let (sender, receiver) = oneshot();
            drop(receiver);
            assert!(sender.is_abandoned());
            assert_eq!(sender.send(1), Err(1));
        });
    }
}

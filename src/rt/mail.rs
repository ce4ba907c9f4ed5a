//! Messages between threads: a bounded ring for each pair and one doorbell for each receiver.
//!
//! A receiver that has looked at all its rings arms its bell, looks again and goes to sleep in a read of the
//! bell's eventfd; a sender that finds the bell armed writes it. Both sides put a full fence between their
//! store and their load, so that one of them sees the other: no message waits for a later one.
//!
//! ```text
//! sender:   push …  fence  armed? ── swap(false) was true ──► write(eventfd)
//! receiver: drain   arm    fence  anything? ── swap(false) was true ──► go on
//!                                    └── no, or the sender was first ──► read(eventfd)
//! ```
//! A full ring never blocks: the sender keeps the rest in a queue of its own, whose length it must bound, and
//! is rung when there is space. Rule against deadlock: inbound rings are drained whatever the state of the
//! outbound ones; bound the backlog by reading fewer *requests*.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::File;

/// The doorbell of one receiving thread, shared by all who send to it.
#[derive(Debug)]
pub struct Bell {
    eventfd: EventFd,
    is_armed: AtomicBool,
}

impl Bell {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn new() -> io::Result<Arc<Self>> {
        // Blocking: a READ through the ring arms a poll, and a plain thread wants to sleep in it.
        let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { eventfd, is_armed: AtomicBool::new(false) }))
    }

    /// Wakes the receiver if it sleeps or is about to. Cheap otherwise.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.is_armed.load(Ordering::Relaxed) && self.is_armed.swap(false, Ordering::AcqRel) {
            // Fails only when the counter overflows, and then it is readable anyway.
            let _ = self.eventfd.write(1);
        }
    }

    /// Puts the calling thread to sleep until the bell rings, unless `look` finds work. May wake for nothing.
    ///
    /// For threads that are no shard; a shard has a [`Sleeper`].
    pub fn wait(&self, look: impl FnOnce() -> bool) {
        if self.arm(look) {
            // An interrupted read is a wake-up for nothing; the caller looks again anyway.
            let _ = self.eventfd.read();
        }
    }

    /// Whether to sleep. When a sender has disarmed it first, its token is on the way and must be consumed.
    fn arm(&self, look: impl FnOnce() -> bool) -> bool {
        self.is_armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !(look() && self.is_armed.swap(false, Ordering::AcqRel))
    }
}

/// Makes a ring of `capacity` messages from the thread of bell `from` to the thread of bell `to`.
#[must_use]
pub fn link<T>(capacity: usize, from: &Arc<Bell>, to: &Arc<Bell>) -> (Tx<T>, Rx<T>) {
    let (producer, consumer) = RingBuffer::new(capacity);
    let wants_space = Arc::new(AtomicBool::new(false));
    let tx = Tx { producer, wants_space: wants_space.clone(), to: to.clone(), backlog: VecDeque::new() };
    (tx, Rx { consumer, wants_space, from: from.clone() })
}

/// The sending end. Belongs to the thread of the bell it was made with.
pub struct Tx<T> {
    producer: Producer<T>,
    wants_space: Arc<AtomicBool>,
    to: Arc<Bell>,
    backlog: VecDeque<T>,
}

impl<T> fmt::Debug for Tx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("backlog", &self.backlog.len()).finish_non_exhaustive()
    }
}

impl<T> Tx<T> {
    /// Queues a message. Nobody is woken before [`Tx::flush`]: post all of a turn, then flush once.
    pub fn post(&mut self, message: T) {
        if self.backlog.is_empty() {
            if let Err(PushError::Full(message)) = self.producer.push(message) {
                self.backlog.push_back(message);
            }
        } else {
            self.backlog.push_back(message);
        }
    }

    /// Sends what is queued, as far as there is space, and rings the receiver. Call it again when the own bell
    /// has rung and [`Tx::can_flush`].
    pub fn flush(&mut self) {
        loop {
            while let Some(message) = self.backlog.pop_front() {
                if let Err(PushError::Full(message)) = self.producer.push(message) {
                    self.backlog.push_front(message);
                    break;
                }
            }
            if self.backlog.is_empty() {
                break;
            }
            self.wants_space.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.producer.slots() == 0 {
                break; // The receiver rings our bell. Otherwise space came in between.
            }
        }
        self.to.ring();
    }

    /// Messages that did not fit into the ring yet.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Whether a flush would get something of the backlog across: part of what a sleeper looks at.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        !self.backlog.is_empty() && self.producer.slots() > 0
    }

    /// Whether the receiver is gone.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }
}

/// The receiving end.
pub struct Rx<T> {
    consumer: Consumer<T>,
    wants_space: Arc<AtomicBool>,
    from: Arc<Bell>,
}

impl<T> fmt::Debug for Rx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rx").field("messages", &self.consumer.slots()).finish_non_exhaustive()
    }
}

impl<T> Rx<T> {
    /// Hands at most `most` messages to `each`, in the order they were posted; returns how many.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(T)) -> usize {
        let mut count = 0;
        while count < most
            && let Ok(message) = self.consumer.pop()
        {
            each(message);
            count += 1;
        }
        if count > 0 {
            fence(Ordering::SeqCst);
            if self.wants_space.load(Ordering::Relaxed) && self.wants_space.swap(false, Ordering::AcqRel) {
                self.from.ring();
            }
        }
        count
    }

    /// Whether there is nothing: what a sleeper looks at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.consumer.is_empty()
    }

    /// Whether the sender is gone. Messages may still be there.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.consumer.is_abandoned()
    }
}

type Reading = Pin<Box<dyn Future<Output = (io::Result<usize>, Box<[u8; 8]>)>>>;

/// Lets a shard wait for its bell.
pub struct Sleeper {
    bell: Arc<Bell>,
    eventfd: Rc<File>,
    /// The one read in flight; it outlives a dropped `sleep`, so that no token is lost with it.
    reading: Option<Reading>,
    buffer: Option<Box<[u8; 8]>>,
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper").field("bell", &self.bell).finish_non_exhaustive()
    }
}

impl Sleeper {
    /// For the one task that serves this bell.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new(bell: &Arc<Bell>) -> io::Result<Self> {
        let eventfd = Rc::new(File::from_fd(bell.eventfd.as_fd().try_clone_to_owned()?)?);
        Ok(Self { bell: bell.clone(), eventfd, reading: None, buffer: None })
    }

    /// Sleeps until the bell rings, unless `look` finds work. May wake for nothing.
    ///
    /// # Errors
    /// When the eventfd cannot be read; never in practice.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn sleep(&mut self, look: impl FnOnce() -> bool) -> io::Result<()> {
        if !self.bell.arm(look) {
            return Ok(());
        }
        let reading = self.reading.get_or_insert_with(|| {
            let eventfd = self.eventfd.clone();
            let buffer = self.buffer.take().unwrap_or_default();
            Box::pin(async move { eventfd.read_counter(buffer).await })
        });
        let (read, buffer) = reading.await;
        self.reading = None;
        self.buffer = Some(buffer);
        read.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::{Dice, on_shard};

    const MESSAGES: u64 = 1_000_000;

    #[test]
    fn a_million_messages_with_random_pauses_arrive_in_order_and_none_is_lost() {
        let (sender_bell, shard_bell) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (mut tx, mut rx) = link::<u64>(8, &sender_bell, &shard_bell);
        let sender = std::thread::spawn(move || {
            let mut dice = Dice::new(1);
            for message in 0..MESSAGES {
                tx.post(message);
                tx.flush();
                while tx.backlog() > 0 {
                    sender_bell.wait(|| tx.can_flush());
                    tx.flush();
                }
                dice.pause();
            }
        });
        on_shard(move || async move {
            let mut sleeper = Sleeper::new(&shard_bell).unwrap();
            let (mut next, mut dice) = (0, Dice::new(2));
            while next < MESSAGES {
                let count = rx.drain(64, |message| {
                    assert_eq!(message, next);
                    next += 1;
                });
                dice.pause();
                if count == 0 {
                    sleeper.sleep(|| !rx.is_empty()).await.unwrap();
                }
            }
        });
        sender.join().unwrap();
    }

    #[test]
    fn two_shards_exchange_more_than_their_rings_hold_without_deadlock() {
        let (left_bell, right_bell) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (to_right, from_left) = link::<u64>(16, &left_bell, &right_bell);
        let (to_left, from_right) = link::<u64>(16, &right_bell, &left_bell);
        let count = 100_000;
        let side = move |bell: Arc<Bell>, mut tx: Tx<u64>, mut rx: Rx<u64>| {
            move || async move {
                let mut sleeper = Sleeper::new(&bell).unwrap();
                let (mut sent, mut next) = (0, 0);
                while next < count || tx.backlog() > 0 {
                    while sent < count && tx.backlog() < 32 {
                        tx.post(sent);
                        sent += 1;
                    }
                    tx.flush();
                    let got = rx.drain(256, |message| {
                        assert_eq!(message, next);
                        next += 1;
                    });
                    let is_over = next == count && tx.backlog() == 0;
                    if got == 0 && !is_over && (sent == count || tx.backlog() >= 32) {
                        sleeper.sleep(|| !rx.is_empty() || tx.can_flush()).await.unwrap();
                    }
                }
            }
        };
        let right = side(right_bell, to_left, from_left);
        let other = std::thread::spawn(move || on_shard(right));
        on_shard(side(left_bell, to_right, from_right));
        other.join().unwrap();
    }

    #[test]
    fn a_sleep_that_was_dropped_loses_no_token() {
        on_shard(|| async {
            let bell = Bell::new().unwrap();
            let mut sleeper = Sleeper::new(&bell).unwrap();
            for _ in 0..3 {
                let short = std::time::Duration::from_millis(1);
                assert!(crate::rt::timeout(short, sleeper.sleep(|| false)).await.is_err());
            }
            bell.ring();
            sleeper.sleep(|| false).await.unwrap();
            assert!(sleeper.reading.is_none());
        });
    }
}

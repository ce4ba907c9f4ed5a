//! Timers of jobs: one ordered set and one task a shard, so that a job that ends takes its timers along.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
    time::Instant,
};

use super::{
    driver::Shard,
    effect::{Event, Timer},
};
use crate::{
    job::JobId,
    rt::{self, Notify},
};

/// Every timer of one shard.
#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: RefCell<BTreeMap<(Instant, u64), (JobId, Timer)>>,
    by_job: RefCell<HashMap<(JobId, Timer), (Instant, u64)>>,
    next: Cell<u64>,
    changed: Notify,
}

impl Timers {
    /// Sets a timer; one of the same kind that is set is replaced.
    pub(super) fn set(&self, id: JobId, timer: Timer, at: Instant) {
        self.clear(id, timer);
        let key = (at, self.next.replace(self.next.get() + 1));
        self.by_job.borrow_mut().insert((id, timer), key);
        let mut by_time = self.by_time.borrow_mut();
        let is_first = by_time.first_key_value().is_none_or(|(first, _)| key < *first);
        by_time.insert(key, (id, timer));
        if is_first {
            self.changed.notify_one();
        }
    }

    fn clear(&self, id: JobId, timer: Timer) {
        if let Some(key) = self.by_job.borrow_mut().remove(&(id, timer)) {
            self.by_time.borrow_mut().remove(&key);
        }
    }

    /// Clears every timer of a job.
    pub(super) fn clear_all(&self, id: JobId) {
        self.clear(id, Timer::Timeout);
        self.clear(id, Timer::Grace);
    }

    fn first(&self) -> Option<Instant> {
        self.by_time.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    fn pop_due(&self, now: Instant) -> Option<(JobId, Timer)> {
        let mut by_time = self.by_time.borrow_mut();
        let first = by_time.first_entry().filter(|entry| entry.key().0 <= now)?;
        let due = first.remove();
        self.by_job.borrow_mut().remove(&due);
        Some(due)
    }
}

impl Shard {
    /// Feeds timers as they fall due, for ever.
    pub(super) async fn serve_timers(self: Rc<Self>) {
        loop {
            while let Some((id, timer)) = self.timers.pop_due(rt::now()) {
                self.feed(Event::Timer(id, timer));
            }
            let changed = self.timers.changed.notified();
            match self.timers.first() {
                Some(at) => {
                    let _ = rt::or(changed, rt::sleep_until(at)).await;
                }
                None => changed.await,
            }
        }
    }
}

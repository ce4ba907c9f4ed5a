//! Alarms on the wall clock: one ordered set, one kernel timer and one task a shard.
//!
//! The kernel says when the clock is set, so a jump forward is heard at once and nobody wakes up to look.
//!
//! # Source
//! timerfd_create(2), TFD_TIMER_CANCEL_ON_SET.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    io,
    os::fd::AsFd,
    rc::Rc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

use super::{driver::Shard, effect::Event};
use crate::{
    job::JobId,
    rt::{self, Notify, Ready},
};

/// The alarms of one shard.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    by_time: RefCell<BTreeSet<(i64, JobId)>>,
    by_job: RefCell<HashMap<JobId, i64>>,
    changed: Notify,
}

impl Alarms {
    /// Sets the alarm of a job, nanoseconds since the epoch; one that is set is replaced.
    pub(super) fn set(&self, id: JobId, wall_ns: i64) {
        self.clear(id);
        self.by_job.borrow_mut().insert(id, wall_ns);
        self.by_time.borrow_mut().insert((wall_ns, id));
        self.changed.notify_one();
    }

    pub(super) fn clear(&self, id: JobId) {
        if let Some(wall_ns) = self.by_job.borrow_mut().remove(&id) {
            self.by_time.borrow_mut().remove(&(wall_ns, id));
        }
    }

    fn first(&self) -> Option<i64> {
        self.by_time.borrow().first().map(|(wall_ns, _)| *wall_ns)
    }

    fn pop_due(&self, now_ns: i64) -> Option<JobId> {
        let mut by_time = self.by_time.borrow_mut();
        let (wall_ns, id) = *by_time.first()?;
        if wall_ns > now_ns {
            return None;
        }
        by_time.pop_first();
        self.by_job.borrow_mut().remove(&id);
        Some(id)
    }
}

/// The kernel's timer on the wall clock.
struct Bell {
    timer: TimerFd,
    ready: Ready,
}

impl Bell {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        let ready = Ready::new(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { timer, ready })
    }

    /// Waits until the wall clock has reached that, or has been set.
    async fn rings(&self, wall_ns: i64) -> io::Result<()> {
        let at = Duration::from_nanos(u64::try_from(wall_ns).unwrap_or(1).max(1));
        let set = self.timer.set(
            Expiration::OneShot(TimeSpec::from_duration(at)),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
        );
        match set {
            // The clock was set while nobody waited here, and that was not read yet.
            Err(Errno::ECANCELED) => return Ok(()),
            other => other?,
        }
        self.ready.readable().await?;
        // ECANCELED says that the clock was set; either way it is looked at again.
        let _ = self.timer.wait();
        Ok(())
    }
}

impl Shard {
    /// Feeds alarms as they fall due, for ever.
    pub(super) async fn serve_alarms(self: Rc<Self>) {
        let bell = match Bell::new() {
            Ok(bell) => bell,
            Err(error) => {
                tracing::error!(shard = self.index, %error, "schedules do not run");
                return;
            }
        };
        loop {
            while let Some(id) = self.alarms.pop_due(self.moment().wall_ns) {
                self.feed(Event::Due(id));
            }
            let changed = self.alarms.changed.notified();
            match self.alarms.first() {
                None => changed.await,
                Some(wall_ns) => {
                    if let rt::Either::Right(Err(error)) =
                        rt::or(changed, bell.rings(wall_ns)).await
                    {
                        tracing::error!(shard = self.index, %error, "schedules do not run");
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_come_in_the_order_of_their_times_and_once() {
        let alarms = Alarms::default();
        let [a, b, c] = [1, 2, 3].map(|n| JobId::from_bytes([n; 16]));
        alarms.set(a, 30);
        alarms.set(b, 10);
        alarms.set(c, 20);
        alarms.set(b, 40);
        alarms.clear(c);
        assert_eq!((alarms.first(), alarms.pop_due(29)), (Some(30), None));
        assert_eq!(alarms.pop_due(100), Some(a));
        assert_eq!(alarms.pop_due(100), Some(b));
        assert_eq!((alarms.pop_due(100), alarms.first()), (None, None));
    }
}

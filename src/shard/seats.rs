//! Cgroups of version 1 that wait for a job, and the word that memory ran out in one.
//!
//! Making them takes as long as the rest of a start, so a few are always ready. On a host of pure cgroup2
//! nothing of this is used: a leaf there is made in a moment, and the kernel ends the whole job by itself.

use std::{
    cell::{Cell, RefCell},
    collections::{HashSet, VecDeque},
    io,
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{driver::Shard, effect::Event};
use crate::{
    cgroup::{CgroupError, Seat},
    job::JobId,
    limits,
    rt::{self, BlockingError, Notify, Ready},
};

/// The seats of one shard.
#[derive(Debug)]
pub(super) struct Seats {
    ready: RefCell<VecDeque<Seat>>,
    taken: Notify,
    /// The kernel adds one when memory runs out in a cgroup of ours, and one when such a cgroup is removed.
    oom: Arc<EventFd>,
    /// Removals that the kernel has not told of yet.
    removals: Cell<u64>,
    /// Calls on the blocking pool that make or remove cgroups.
    calls: Cell<usize>,
    has_returned: Notify,
    /// No job will come any more.
    is_closed: Cell<bool>,
}

impl Seats {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            ready: RefCell::default(),
            taken: Notify::default(),
            oom: Arc::new(EventFd::from_flags(flags)?),
            removals: Cell::new(0),
            calls: Cell::new(0),
            has_returned: Notify::default(),
            is_closed: Cell::new(false),
        })
    }

    /// Makes no more seats, and waits until nothing makes or removes a cgroup. What is left is removed as a whole.
    pub(super) async fn close(&self) {
        self.is_closed.set(true);
        while self.calls.get() > 0 {
            self.has_returned.notified().await;
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BlockingError> {
        self.calls.set(self.calls.get() + 1);
        let result = rt::blocking(what, work).await;
        self.calls.set(self.calls.get() - 1);
        self.has_returned.notify_one();
        result
    }
}

impl Shard {
    /// A seat for a job; `None` where jobs need none.
    pub(super) async fn take_seat(self: &Rc<Self>) -> Result<Option<Seat>, CgroupError> {
        if !self.host.cgroups.has_seats() {
            return Ok(None);
        }
        let ready = self.seats.ready.borrow_mut().pop_front();
        self.seats.taken.notify_one();
        if ready.is_some() {
            return Ok(ready);
        }
        let mut made = self.make_seats(1).await?;
        Ok(made.pop())
    }

    async fn make_seats(&self, count: usize) -> Result<Vec<Seat>, CgroupError> {
        let (host, oom) = (Arc::clone(&self.host), Arc::clone(&self.seats.oom));
        let make = move || {
            (0..count)
                .map(|_| host.cgroups.make_seat(oom.as_fd()))
                .collect()
        };
        self.seats
            .call("make cgroups", make)
            .await
            .unwrap_or_else(|error| {
                Err(CgroupError::Make {
                    path: "ready".into(),
                    source: io::Error::other(error),
                })
            })
    }

    /// Keeps seats ready, for ever.
    pub(super) async fn serve_seats(self: Rc<Self>) {
        if !self.host.cgroups.has_seats() {
            return;
        }
        let mut is_full = false;
        while !self.seats.is_closed.get() {
            let have = self.seats.ready.borrow().len();
            // Not with each that is taken: making one holds the lock that its job needs for joining.
            if have > limits::SEATS_LOW && is_full {
                self.seats.taken.notified().await;
                continue;
            }
            is_full = false;
            if have >= limits::SEATS_READY {
                is_full = true;
                continue;
            }
            match self
                .make_seats((limits::SEATS_READY - have).min(limits::SEATS_AT_ONCE))
                .await
            {
                Ok(made) => self.seats.ready.borrow_mut().extend(made),
                Err(error) => {
                    // Each start tries for itself, and says so.
                    tracing::warn!(%error, "cgroups cannot be made ahead");
                    self.seats.taken.notified().await;
                }
            }
        }
    }

    /// Ends jobs in which memory ran out, as a whole, for ever.
    pub(super) async fn serve_memory(self: Rc<Self>) {
        let watched = self
            .seats
            .oom
            .as_fd()
            .try_clone_to_owned()
            .and_then(Ready::new);
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => {
                tracing::error!(%error, "nobody hears when memory runs out in a job");
                return;
            }
        };
        while watched.readable().await.is_ok() {
            let told = self.seats.oom.read().unwrap_or(0);
            // Those of removals come too; one that is missed now comes with the next removal.
            let expected = self.seats.removals.get();
            self.seats.removals.set(expected.saturating_sub(told));
            if told > expected {
                self.end_those_out_of_memory(told - expected).await;
            }
        }
    }

    /// Looks for `count` jobs in which a process was killed, and ends them. The kernel tells before it kills, so
    /// it is looked again a few times; it may also find memory elsewhere and kill nobody.
    async fn end_those_out_of_memory(self: &Rc<Self>, count: u64) {
        let mut found = HashSet::new();
        let mut pause = limits::OOM_LOOK_FIRST;
        while pause <= limits::OOM_LOOK_LAST {
            for id in self.bounded_jobs() {
                if self.host.cgroups.oom_kills(id) > 0 && found.insert(id) {
                    self.feed(Event::OutOfMemory(id));
                }
            }
            if found.len() as u64 >= count {
                return;
            }
            rt::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Live jobs with a memory limit.
    fn bounded_jobs(&self) -> Vec<JobId> {
        let bodies = self.bodies.borrow();
        bodies
            .iter()
            .filter(|(_, body)| body.has_memory_limit)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Removes a job's cgroups, once.
    pub(super) async fn remove_cgroups(
        &self,
        id: JobId,
        seat: Option<String>,
    ) -> Result<(), CgroupError> {
        if !self.host.cgroups.has_seats() {
            return self.host.cgroups.remove(id);
        }
        let removals = &self.seats.removals;
        removals.set(removals.get() + 1);
        let host = Arc::clone(&self.host);
        let remove = move || {
            if let Some(seat) = seat {
                host.cgroups.remove_seat(&seat)?;
            }
            host.cgroups.remove(id)
        };
        let removed = self
            .seats
            .call("remove cgroups", remove)
            .await
            .unwrap_or(Err(CgroupError::Missing(id)));
        if removed.is_err() {
            removals.set(removals.get().saturating_sub(1));
        }
        removed
    }
}

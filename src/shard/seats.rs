//! Cgroups of version 1 that wait for a job, and the word that memory ran out in one.
//!
//! Making them takes as long as the rest of a start, so a few are always ready. On a host of pure cgroup2
//! nothing of this is used: a leaf there is made in a moment, and the kernel ends the whole job by itself.
//!
//! A job with a memory limit always has a cgroup for memory, one without only while there are few of those:
//! see [`limits::MEMORY_COUNTED_JOBS`].

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
    cgroup::{CgroupError, Leaf, Seat, SeatMemory},
    job::{JobId, Limits},
    limits,
    rt::{self, BlockingError, Notify, Ready},
};

/// How many cgroups for memory a shard has that no limit asks for: those of jobs and those that are ready.
#[derive(Debug, Clone)]
struct Counted {
    now: Rc<Cell<usize>>,
    most: usize,
}

impl Counted {
    fn new(shards: usize) -> Self {
        Self {
            now: Rc::default(),
            most: limits::MEMORY_COUNTED_JOBS / shards.max(1),
        }
    }

    /// Takes the places of so many of `wanted` as there are left, and says of how many.
    fn take(&self, wanted: usize) -> usize {
        let taken = wanted.min(self.most.saturating_sub(self.now.get()));
        self.now.set(self.now.get() + taken);
        taken
    }

    fn give_back(&self, places: usize) {
        self.now.set(self.now.get().saturating_sub(places));
    }
}

/// That a job's memory is counted by version 1: the kernel tells of the removal of its cgroup. Goes when that
/// is removed.
#[derive(Debug)]
pub(super) struct MemoryCgroup {
    /// Where it has a place; a memory limit needs none.
    place: Option<Counted>,
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Some(counted) = &self.place {
            counted.give_back(1);
        }
    }
}

/// The seats of one shard.
#[derive(Debug)]
pub(super) struct Seats {
    ready: RefCell<VecDeque<Seat>>,
    taken: Notify,
    counted: Counted,
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
    /// Those of one of `shards` shards.
    pub(super) fn new(shards: usize) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            ready: RefCell::default(),
            taken: Notify::default(),
            counted: Counted::new(shards),
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
    /// Makes the cgroups of a job, and says whether one of them is for memory in version 1.
    pub(super) async fn make_cgroups(
        self: &Rc<Self>,
        id: JobId,
        limits: &Limits,
    ) -> Result<(Leaf, Option<MemoryCgroup>), CgroupError> {
        let (seat, memory) = match self.take_seat(limits).await? {
            Some((seat, memory)) => (Some(seat), memory),
            None => (None, None),
        };
        let made = self.host.cgroups.create(id, limits, seat);
        if made.is_err() && memory.is_some() {
            // The seat was removed.
            self.expect_removal();
        }
        Ok((made?, memory))
    }

    /// A seat for a job; `None` where jobs need none.
    async fn take_seat(
        self: &Rc<Self>,
        limits: &Limits,
    ) -> Result<Option<(Seat, Option<MemoryCgroup>)>, CgroupError> {
        if !self.host.cgroups.has_seats() {
            return Ok(None);
        }
        let has_limit = limits.memory_bytes.is_some();
        let ready = {
            let mut ready = self.seats.ready.borrow_mut();
            // One without a limit takes the oldest, whose memory is counted while there are places.
            let at = ready.iter().position(|seat| !has_limit || is_counted(seat));
            ready.remove(at.unwrap_or(0))
        };
        self.seats.taken.notify_one();
        let seat = match ready {
            Some(seat) => Some(seat),
            None => self.make_seats(1).await?.pop(),
        };
        let Some(seat) = seat else { return Ok(None) };
        let counted = &self.seats.counted;
        Ok(Some(match (seat.memory(), has_limit) {
            (SeatMemory::Uncounted, false) => (seat, None),
            (SeatMemory::Uncounted, true) => self.count_memory(seat).await?,
            (SeatMemory::Counted, true) => {
                counted.give_back(1);
                (seat, Some(MemoryCgroup { place: None }))
            }
            (SeatMemory::Counted, false) => {
                let place = Some(counted.clone());
                (seat, Some(MemoryCgroup { place }))
            }
        }))
    }

    /// Gives a seat the cgroup for memory that a limit needs.
    async fn count_memory(&self, seat: Seat) -> Result<(Seat, Option<MemoryCgroup>), CgroupError> {
        let (host, oom) = (Arc::clone(&self.host), Arc::clone(&self.seats.oom));
        let count = move || host.cgroups.count_memory(seat, oom.as_fd());
        let seat = self
            .seats
            .call("make a cgroup", count)
            .await
            .unwrap_or_else(|error| Err(unmade(error)))?;
        let memory = match seat.memory() {
            SeatMemory::Counted => Some(MemoryCgroup { place: None }),
            // Version 2 does it, in the job's leaf.
            SeatMemory::Uncounted => None,
        };
        Ok((seat, memory))
    }

    /// Makes seats: as many as are wanted, or fewer when something fails after the first.
    async fn make_seats(&self, wanted: usize) -> Result<Vec<Seat>, CgroupError> {
        let (host, oom) = (Arc::clone(&self.host), Arc::clone(&self.seats.oom));
        let places = self.seats.counted.take(wanted);
        let make = move || {
            let mut made = Vec::with_capacity(wanted);
            for number in 0..wanted {
                let memory = if number < places {
                    SeatMemory::Counted
                } else {
                    SeatMemory::Uncounted
                };
                match host.cgroups.make_seat(memory, oom.as_fd()) {
                    Ok(seat) => made.push(seat),
                    Err(error) if made.is_empty() => return Err(error),
                    Err(_) => break, // the next try says why
                }
            }
            Ok(made)
        };
        let made = self
            .seats
            .call("make cgroups", make)
            .await
            .unwrap_or_else(|error| Err(unmade(error)));
        let used = made.iter().flatten().filter(|seat| is_counted(seat));
        let unused = places - used.count();
        self.seats.counted.give_back(unused);
        made
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

    /// Removes a job's cgroups, once; `has_memory` says whether there is one for memory in version 1.
    pub(super) async fn remove_cgroups(
        &self,
        id: JobId,
        seat: Option<String>,
        has_memory: bool,
    ) -> Result<(), CgroupError> {
        if !self.host.cgroups.has_seats() {
            return self.host.cgroups.remove(id);
        }
        if has_memory {
            self.expect_removal();
        }
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
        if has_memory && removed.is_err() {
            let removals = &self.seats.removals;
            removals.set(removals.get().saturating_sub(1));
        }
        removed
    }

    /// Watches the memory of a job that a former daemon started. What it missed is told at once.
    pub(super) fn watch_memory_again(self: &Rc<Self>, id: JobId) {
        match self
            .host
            .cgroups
            .watch_memory_again(id, self.seats.oom.as_fd())
        {
            Ok(true) => {
                if let Some(body) = self.bodies.borrow_mut().get_mut(&id) {
                    body.memory = Some(MemoryCgroup { place: None });
                }
                // A job without a limit of its own may have been hit when the host ran out.
                if self.bounded_jobs().contains(&id) && self.host.cgroups.oom_kills(id) > 0 {
                    self.feed(Event::OutOfMemory(id));
                }
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(job_id = %id, %error, "nobody hears when memory runs out in a job");
            }
        }
    }

    fn expect_removal(&self) {
        let removals = &self.seats.removals;
        removals.set(removals.get() + 1);
    }
}

fn is_counted(seat: &Seat) -> bool {
    seat.memory() == SeatMemory::Counted
}

fn unmade(error: BlockingError) -> CgroupError {
    CgroupError::Make {
        path: "ready".into(),
        source: io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_up_to_the_bound_and_again_when_a_place_is_free() {
        let counted = Counted::new(2);
        let most = limits::MEMORY_COUNTED_JOBS / 2;
        assert_eq!(counted.take(most - 1), most - 1);
        assert_eq!(counted.take(1), 1);
        assert_eq!(counted.take(1), 0);
        counted.give_back(3);
        assert_eq!(counted.take(8), 3);
        assert_eq!(counted.take(8), 0);
        let place = Some(counted.clone());
        drop(MemoryCgroup { place });
        assert_eq!(counted.take(8), 1);
        drop(MemoryCgroup { place: None });
        assert_eq!(counted.take(8), 0);
    }

    #[test]
    fn all_shards_together_keep_to_the_bound_and_each_has_a_part() {
        for shards in [1, 2, 3, 100, usize::try_from(limits::SHARDS_MAX).unwrap()] {
            let each = Counted::new(shards).take(usize::MAX);
            assert!((1..=limits::MEMORY_COUNTED_JOBS / shards).contains(&each));
        }
    }
}

//! Fresh namespaces that are ready for jobs, the host ids they are made for, and when more are made.
//!
//! Making a pair takes a core for a quarter of a millisecond. On a small host that core is the one on which the
//! spawner or the store would work for the very start that took the last pair, so more are asked for when starts
//! have paused, or when few are left.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::AsFd,
    rc::Rc,
};

use super::{Link, Makers, chain};
use crate::{
    limits, rt,
    sandbox::{
        identity::{IdRange, IdRanges},
        pool::{self, Answer, NamespacePool, Namespaces, PoolError},
    },
    shard::{driver::Shard, effect::StartFailure},
};

/// What is ready, what is asked for, and the ids that are left.
#[derive(Debug)]
pub(in crate::shard) struct Stock {
    pool: RefCell<NamespacePool>,
    ids: RefCell<IdRanges>,
    /// No host ids are left: starts fail until some are given back.
    is_out_of_ids: Cell<bool>,
    /// Pairs taken so far: starts have paused when it stands still.
    taken: Cell<u64>,
    /// Somebody waits for that.
    waits_for_pause: Cell<bool>,
}

impl Stock {
    pub(super) fn new(ids: IdRanges) -> Self {
        Self {
            pool: RefCell::default(),
            ids: RefCell::new(ids),
            is_out_of_ids: Cell::new(false),
            taken: Cell::new(0),
            waits_for_pause: Cell::new(false),
        }
    }

    /// Gives host ids back; true when starts have waited for that.
    pub(super) fn free_ids(&self, ids: IdRange) -> bool {
        self.ids.borrow_mut().free(ids);
        self.is_out_of_ids.replace(false)
    }

    fn take(&self) -> Option<Namespaces> {
        let namespaces = self.pool.borrow_mut().take()?;
        self.taken.set(self.taken.get() + 1);
        Some(namespaces)
    }

    fn is_low(&self) -> bool {
        self.pool.borrow().ready() < limits::NAMESPACES_LOW
    }

    /// What was asked of a pool maker will not be answered.
    pub(super) fn forget_requested(&self) {
        let mut ids = self.ids.borrow_mut();
        for requested in self.pool.borrow_mut().forget_requested() {
            ids.free(requested);
        }
    }
}

impl Shard {
    /// The crew for a new job and fresh namespaces for it. Waits while there are none.
    pub(in crate::shard) async fn crew_and_namespaces(
        self: &Rc<Self>,
    ) -> Result<(Rc<Link>, Namespaces), StartFailure> {
        let give_up = rt::now() + limits::NAMESPACES_WAIT;
        loop {
            let changed = self.desk.has_changed.listen();
            let link = self.desk.current.borrow().clone();
            if let Some(link) = link {
                if let Some(namespaces) = self.desk.stock.take() {
                    self.refill_in_time();
                    return Ok((link, namespaces));
                }
                // Ids may have been given back since the last try.
                self.refill();
                if self.desk.stock.is_out_of_ids.get() {
                    return Err(StartFailure {
                        step: "lease host ids".to_owned(),
                        errno: libc::EAGAIN,
                    });
                }
            } else if self.desk.trouble.borrow().is_some() {
                return Err(StartFailure {
                    step: "start helper processes".to_owned(),
                    errno: libc::EAGAIN,
                });
            }
            // They may never come: their descriptors cannot be received while the daemon has none left.
            let left = give_up.saturating_duration_since(rt::now());
            if left.is_zero() || rt::timeout(left, changed).await.is_err() {
                return Err(StartFailure {
                    step: "wait for fresh namespaces".to_owned(),
                    errno: libc::EAGAIN,
                });
            }
        }
    }

    /// Sees to it that what was taken is replaced: now when few are left, else when starts have paused.
    fn refill_in_time(self: &Rc<Self>) {
        let stock = &self.desk.stock;
        if stock.is_low() {
            return self.refill();
        }
        if stock.waits_for_pause.replace(true) {
            return;
        }
        let shard = Rc::clone(self);
        rt::spawn(async move {
            let stock = &shard.desk.stock;
            loop {
                let taken = stock.taken.get();
                rt::sleep(limits::STARTS_PAUSE).await;
                if taken == stock.taken.get() || stock.is_low() {
                    break;
                }
            }
            stock.waits_for_pause.set(false);
            shard.refill();
        });
    }

    /// Asks the pool maker for all that is missing.
    pub(super) fn refill(&self) {
        let Some(link) = self.desk.current.borrow().clone() else {
            return;
        };
        let stock = &self.desk.stock;
        let mut pool = stock.pool.borrow_mut();
        let mut ranges = stock.ids.borrow_mut();
        while pool.wanted() > 0 {
            let ids = match ranges.allocate() {
                Ok(ids) => ids,
                Err(error) => {
                    if pool.ready() == 0 && !stock.is_out_of_ids.replace(true) {
                        tracing::warn!(shard = self.index, %error, "jobs cannot be started");
                    }
                    return;
                }
            };
            let Some(makers) = &link.makers else { return };
            if let Err(error) = pool::request(makers.maker.fd.as_fd(), ids) {
                ranges.free(ids);
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(crew = link.number, %error, "the pool maker takes no request");
                }
                return;
            }
            pool.note_requested(ids);
        }
    }

    pub(super) async fn hear_maker(self: Rc<Self>, link: Rc<Link>) {
        let Some(Makers { maker, .. }) = &link.makers else {
            return;
        };
        loop {
            match pool::receive(maker.fd.as_fd()) {
                Ok(Some(answer)) if self.is_current(&link) => self.take_namespaces(answer).await,
                // Its ids have been given back; the next crew's maker is asked instead.
                Ok(Some(_)) => {}
                Ok(None) => {
                    if maker.ready.readable().await.is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => {
                    // An answer is lost, out of descriptors for example; what was asked for is asked again.
                    tracing::warn!(crew = link.number, %error, "a pool maker cannot be heard");
                    if !self.is_current(&link) {
                        break;
                    }
                    self.desk.stock.forget_requested();
                    rt::sleep(limits::CREW_RETRY_FIRST).await;
                    self.refill();
                }
            }
        }
        self.retire(&link, "its pool maker ended");
    }

    async fn take_namespaces(self: &Rc<Self>, answer: Answer) {
        let put = self.desk.stock.pool.borrow_mut().put(answer);
        match put {
            Ok(()) => self.desk.has_changed.notify_all(),
            Err(error) => {
                tracing::warn!(
                    shard = self.index,
                    error = chain(&error),
                    "namespaces could not be made"
                );
                if let PoolError::Make { ids, .. } = error {
                    self.desk.stock.ids.borrow_mut().free(ids);
                    rt::sleep(limits::CREW_RETRY_FIRST).await;
                }
            }
        }
        self.refill_in_time();
    }
}

//! Keepers of former daemons: heard by one shard, and told by each shard that owns jobs of theirs.
//!
//! A former daemon may have had another number of shards, so a keeper's jobs may be anybody's now. Each owner has
//! a link of its own to command it through, on the same socket; events are passed on by the shard that hears.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
};

use super::{Channel, Link};
use crate::{
    job::{JobId, ShardIndex},
    rt::{self, Notify},
    sandbox::{
        crew::Helper,
        wire::{KeeperCommand, KeeperEvent},
    },
    shard::driver::Shard,
};

impl Shard {
    /// Gives an event of a job to the shard that owns it.
    pub(super) fn pass_on(&self, owner: ShardIndex, link: &Link, event: KeeperEvent) {
        let keeper = link.pid;
        self.remote.post(
            owner,
            Box::new(move |there| there.on_foreign_event(keeper, event)),
        );
    }

    fn on_foreign_event(self: &Rc<Self>, keeper: u32, event: KeeperEvent) {
        let link = self
            .desk
            .foreign
            .borrow()
            .iter()
            .find(|link| link.pid == keeper)
            .cloned();
        if let Some(link) = link {
            self.on_job_event(&link, event);
        }
    }

    /// Takes on the keeper of a former daemon, with the jobs of it that are ours. `hears` says whether its events
    /// come to this shard; they are asked for with [`Shard::hear_adopted`].
    ///
    /// # Errors
    /// A socket that cannot be watched.
    pub(in crate::shard) fn take_on(
        &self,
        pid: u32,
        socket: &OwnedFd,
        jobs: impl IntoIterator<Item = JobId>,
        hears: Option<Helper>,
    ) -> io::Result<Rc<Link>> {
        let number = self.desk.next.replace(self.desk.next.get() + 1);
        let is_heard = hears.is_some();
        let link = Rc::new(Link {
            number,
            pid,
            keeper: Channel::new(socket)?,
            makers: None,
            crew: RefCell::default(),
            adopted: RefCell::new(hears),
            pending: RefCell::default(),
            jobs: RefCell::new(jobs.into_iter().collect()),
            is_stuck: Cell::new(false),
            is_spent: Cell::new(true),
            has_work: Notify::default(),
        });
        let links = if is_heard {
            &self.desk.retired
        } else {
            &self.desk.foreign
        };
        links.borrow_mut().push(Rc::clone(&link));
        Ok(link)
    }

    /// Hears an adopted keeper out. It ends by itself when the last of its jobs is released.
    pub(in crate::shard) fn hear_adopted(self: &Rc<Self>, link: Rc<Link>, strangers: Vec<JobId>) {
        for id in strangers {
            link.command(KeeperCommand::Release { id });
        }
        link.command(KeeperCommand::Exit);
        rt::spawn(Rc::clone(self).hear_keeper(link));
    }

    /// Tells the other shards that a keeper that we heard has ended.
    pub(super) fn tell_keeper_lost(&self, keeper: u32) {
        for shard in (0..self.shards).filter(|shard| *shard != self.index) {
            self.remote.post(
                shard,
                Box::new(move |there| there.on_foreign_keeper_lost(keeper)),
            );
        }
    }

    fn on_foreign_keeper_lost(self: &Rc<Self>, keeper: u32) {
        let (lost, kept): (Vec<_>, Vec<_>) = self
            .desk
            .foreign
            .take()
            .into_iter()
            .partition(|link| link.pid == keeper);
        self.desk.foreign.replace(kept);
        for link in lost {
            let shard = Rc::clone(self);
            rt::spawn(async move { shard.orphan_jobs(&link).await });
        }
    }
}

//! A shard's crews: the helper processes that make and hold its jobs, and how they are replaced.
//!
//! ```text
//! none ─► current ─► retired (its spawner is gone, its keeper holds the jobs it has)
//!   ▲         │         ▲
//!   └─────────┘         └── keepers of former daemons are that from the beginning
//! a new crew is started; starts wait for it
//! ```
//! A recipe that the spawner never read is made again. The one it was making when it died may have begun,
//! so that job fails: nothing is ever run twice.

mod adopted;
mod stock;

use std::{
    cell::{Cell, RefCell},
    collections::{HashSet, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Instant,
};

use self::stock::Stock;
use super::{
    driver::Shard,
    effect::{Event, ExecFailure, Exit, ExitStatus, StartFailure},
};
use crate::{
    job::JobId,
    limits,
    rt::{self, Notify, Ready},
    sandbox::{
        crew::{Crew, CrewError, Helper},
        identity::{IdRange, IdRanges},
        init::record::step,
        plan::Step,
        start::{self, StartFds},
        wire::{EVENT_BYTES, ExitedRecord, KeeperCommand, KeeperEvent, StartedRecord},
    },
    sys::scm,
};

/// The crews of one shard and the namespaces that are ready.
#[derive(Debug)]
pub(super) struct Desk {
    current: RefCell<Option<Rc<Link>>>,
    /// Crews whose keeper still holds jobs.
    retired: RefCell<Vec<Rc<Link>>>,
    /// Keepers of former daemons that another shard hears and that hold jobs of ours.
    foreign: RefCell<Vec<Rc<Link>>>,
    stock: Stock,
    has_changed: rt::Event,
    next: Cell<u32>,
    /// Why there is no crew, when starting one failed.
    trouble: RefCell<Option<String>>,
    /// Every job has ended for good: a helper that ends is not replaced.
    is_closed: Cell<bool>,
}

/// One crew as the driver sees it.
#[derive(Debug)]
pub(super) struct Link {
    number: u32,
    /// Taken when the crew is ended.
    crew: RefCell<Option<Crew>>,
    /// Process id of its keeper.
    pid: u32,
    keeper: Channel,
    /// None of a keeper that was taken over.
    makers: Option<Makers>,
    /// The keeper of a former daemon, with the shard that hears it.
    adopted: RefCell<Option<Helper>>,
    /// Recipes the spawner has not answered for, oldest first.
    pending: RefCell<VecDeque<(JobId, Instant)>>,
    /// Jobs whose end this keeper will tell.
    jobs: RefCell<HashSet<JobId>>,
    is_stuck: Cell<bool>,
    /// All that its spawner ever did is known: it makes no job any more.
    is_spent: Cell<bool>,
    has_work: Notify,
}

/// The helpers that make jobs and namespaces.
#[derive(Debug)]
struct Makers {
    spawner: Channel,
    maker: Channel,
}

/// A helper's socket: what is sent and received through, and what is waited for.
#[derive(Debug)]
struct Channel {
    fd: OwnedFd,
    ready: Ready,
}

impl Channel {
    fn new(socket: &OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: socket.try_clone()?,
            ready: Ready::new(socket.try_clone()?)?,
        })
    }
}

impl Desk {
    /// No crew yet; `ids` are the host ids of this shard's jobs.
    pub(super) fn new(ids: IdRanges) -> Self {
        Self {
            current: RefCell::default(),
            retired: RefCell::default(),
            foreign: RefCell::default(),
            stock: Stock::new(ids),
            has_changed: rt::Event::default(),
            next: Cell::new(0),
            trouble: RefCell::default(),
            is_closed: Cell::new(false),
        }
    }

    /// Gives back the host ids of a job that has ended.
    pub(super) fn free_ids(&self, ids: IdRange) {
        if self.stock.free_ids(ids) {
            self.has_changed.notify_all();
        }
    }

    /// Ends every helper. Jobs must have ended.
    pub(super) async fn shut_down(&self) {
        self.is_closed.set(true);
        let current = self.current.borrow_mut().take();
        let retired = std::mem::take(&mut *self.retired.borrow_mut());
        for link in current.into_iter().chain(retired) {
            let crew = link.crew.borrow_mut().take();
            if let Some(crew) = crew {
                report(rt::blocking("end a crew", move || crew.shut_down()).await);
            }
            let adopted = link.adopted.borrow_mut().take();
            if let Some(keeper) = adopted {
                report(rt::blocking("end a keeper", move || keeper.end_keeper()).await);
            }
        }
    }
}

impl Link {
    /// Sends one recipe; the spawner answers for it through the keeper, or dies.
    pub(super) async fn send_start(&self, id: JobId, start: &StartFds<'_>) -> io::Result<()> {
        loop {
            let Some(makers) = self.makers.as_ref().filter(|_| !self.is_spent.get()) else {
                return Err(io::ErrorKind::BrokenPipe.into());
            };
            match start::send(makers.spawner.fd.as_fd(), id, start) {
                Ok(()) => {
                    self.pending.borrow_mut().push_back((id, rt::now()));
                    self.jobs.borrow_mut().insert(id);
                    self.has_work.notify_one();
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    makers.spawner.ready.writable().await?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells the keeper something. A keeper that does not listen is found dead by its own reader.
    pub(super) fn command(self: &Rc<Self>, command: KeeperCommand) {
        match scm::send(self.keeper.fd.as_fd(), &command.encode(), &[]) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let link = Rc::clone(self);
                rt::spawn(async move {
                    if link.keeper.ready.writable().await.is_ok() {
                        link.command(command);
                    }
                });
            }
            Err(error) => tracing::debug!(crew = self.number, %error, "the keeper took no command"),
        }
    }

    /// Kills the spawner and the pool maker; the keeper and its jobs are not touched.
    fn kill_makers(&self) {
        if let Some(crew) = &*self.crew.borrow() {
            for helper in [&crew.spawner, &crew.maker] {
                if let Err(error) = helper.kill() {
                    tracing::error!(
                        crew = self.number,
                        error = chain(&error),
                        "a helper could not be killed"
                    );
                }
            }
        }
    }

    /// Forgets a job that has ended.
    pub(super) fn forget(&self, id: JobId) {
        self.jobs.borrow_mut().remove(&id);
    }

    fn answered(&self, id: JobId) {
        self.pending
            .borrow_mut()
            .retain(|(pending, _)| *pending != id);
    }
}

impl Shard {
    /// Puts a crew to work that was started before the shard's thread.
    ///
    /// # Errors
    /// A socket that cannot be watched.
    pub(super) async fn employ(self: &Rc<Self>, crew: Crew) -> io::Result<()> {
        let number = self.desk.next.replace(self.desk.next.get() + 1);
        let [spawner, keeper, maker] = match channels(&crew) {
            Ok(channels) => channels,
            Err(error) => {
                end(crew).await;
                return Err(error);
            }
        };
        let link = Rc::new(Link {
            number,
            pid: crew.keeper.pid,
            keeper,
            makers: Some(Makers { spawner, maker }),
            crew: RefCell::new(Some(crew)),
            adopted: RefCell::default(),
            pending: RefCell::default(),
            jobs: RefCell::default(),
            is_stuck: Cell::new(false),
            is_spent: Cell::new(false),
            has_work: Notify::default(),
        });
        self.desk.trouble.replace(None);
        self.desk.current.replace(Some(Rc::clone(&link)));
        rt::spawn(Rc::clone(self).hear_keeper(Rc::clone(&link)));
        rt::spawn(Rc::clone(self).hear_maker(Rc::clone(&link)));
        rt::spawn(Rc::clone(self).watch_spawner(link));
        self.refill();
        self.desk.has_changed.notify_all();
        Ok(())
    }

    fn is_current(&self, link: &Rc<Link>) -> bool {
        self.desk
            .current
            .borrow()
            .as_ref()
            .is_some_and(|current| Rc::ptr_eq(current, link))
    }

    async fn hear_keeper(self: Rc<Self>, link: Rc<Link>) {
        let mut buffer = [0; EVENT_BYTES];
        let mut none = Vec::new();
        loop {
            match scm::recv(link.keeper.fd.as_fd(), &mut buffer, &mut none) {
                Ok(0) => break,
                Ok(len) => match KeeperEvent::decode(&buffer[..len]) {
                    Ok(event) => self.on_keeper_event(&link, event),
                    Err(error) => {
                        tracing::error!(crew = link.number, %error, "a keeper's event is malformed")
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if link.keeper.ready.readable().await.is_err() {
                        break;
                    }
                }
                // It comes once, in front of what is still queued, when the keeper left a command unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    tracing::error!(crew = link.number, %error, "a keeper cannot be heard");
                    break;
                }
            }
        }
        self.on_keeper_lost(&link).await;
    }

    fn on_keeper_event(self: &Rc<Self>, link: &Rc<Link>, event: KeeperEvent) {
        match event {
            KeeperEvent::Ready => {}
            KeeperEvent::SpawnerGone => self.on_spawner_gone(link),
            KeeperEvent::Born { id, .. }
            | KeeperEvent::StepFailed { id, .. }
            | KeeperEvent::Started { id, .. }
            | KeeperEvent::Exited { id, .. }
            | KeeperEvent::Gone { id } => {
                let owner = id.owner(self.shards);
                if owner == self.index {
                    self.on_job_event(link, event);
                } else {
                    self.pass_on(owner, link, event);
                }
            }
        }
    }

    fn on_job_event(self: &Rc<Self>, link: &Rc<Link>, event: KeeperEvent) {
        match event {
            // Its start failed with the recipe on its way, and its end is in the store: nobody else lets go of it.
            KeeperEvent::Born { id, .. } | KeeperEvent::StepFailed { id, .. }
                if !self.bodies.borrow().contains_key(&id) =>
            {
                link.answered(id);
                link.command(KeeperCommand::Release { id });
            }
            KeeperEvent::Born { id, pid } => {
                link.answered(id);
                if let Some(body) = self.bodies.borrow_mut().get_mut(&id) {
                    body.pid = Some(pid);
                    body.upload = None;
                }
                self.feed(Event::Born(id));
            }
            KeeperEvent::StepFailed { id, step, errno } => {
                link.answered(id);
                self.kill(id);
                self.feed(Event::StepFailed(
                    id,
                    StartFailure {
                        step: Step::name(step).to_owned(),
                        errno,
                    },
                ));
            }
            KeeperEvent::Started { id, record } => self.feed(Event::Started(id, started(record))),
            KeeperEvent::Exited { id, record } => {
                self.feed(Event::Exited(id, exited(record)));
                if self.note_if_reaped(id) {
                    self.feed(Event::Reaped(id));
                }
            }
            KeeperEvent::Gone { id } => {
                link.jobs.borrow_mut().remove(&id);
                self.feed(Event::Gone(id));
            }
            KeeperEvent::Ready | KeeperEvent::SpawnerGone => {} // of no job
        }
    }

    /// All births the spawner had sent have been heard: what is pending now was not made.
    fn on_spawner_gone(self: &Rc<Self>, link: &Rc<Link>) {
        link.is_spent.set(true);
        self.retire(link, "its spawner ended");
        let pending: Vec<JobId> = link
            .pending
            .borrow_mut()
            .drain(..)
            .map(|(id, _)| id)
            .collect();
        let mut pending = pending.into_iter();
        if let Some(begun) = pending.next() {
            link.jobs.borrow_mut().remove(&begun);
            self.kill(begun);
            if link.is_stuck.get() {
                let step = "spawner stuck in a step".to_owned();
                let errno = libc::ETIMEDOUT;
                self.feed(Event::StepFailed(begun, StartFailure { step, errno }));
            } else if self.was_let_go(begun) {
                // It may have been born, and have run, without a word of it.
                let shard = Rc::clone(self);
                rt::spawn(async move {
                    shard.wait_until_empty(begun).await;
                    shard.feed(Event::Orphaned(begun));
                });
            } else {
                let step = "spawner".to_owned();
                self.feed(Event::StepFailed(begun, StartFailure { step, errno: 0 }));
            }
        }
        for id in pending {
            link.jobs.borrow_mut().remove(&id);
            self.feed(Event::Unsent(id));
        }
    }

    /// Whether a job has been given its go.
    fn was_let_go(&self, id: JobId) -> bool {
        let bodies = self.bodies.borrow();
        bodies.get(&id).is_some_and(|body| body.control.is_none())
    }

    /// Nobody will tell how the jobs of this keeper end: they are killed and end as lost.
    async fn on_keeper_lost(self: &Rc<Self>, link: &Rc<Link>) {
        link.is_spent.set(true);
        self.retire(link, "its keeper ended");
        self.desk
            .retired
            .borrow_mut()
            .retain(|retired| !Rc::ptr_eq(retired, link));
        link.pending.borrow_mut().clear();
        self.orphan_jobs(link).await;
        let adopted = link.adopted.borrow_mut().take();
        if let Some(keeper) = adopted {
            let pid = link.pid;
            self.tell_keeper_lost(pid);
            report(rt::blocking("end a keeper", move || keeper.end_keeper()).await);
        }
        let crew = link.crew.borrow_mut().take();
        if let Some(crew) = crew {
            end(crew).await;
        }
    }

    /// Ends the jobs of a keeper that has ended itself.
    async fn orphan_jobs(self: &Rc<Self>, link: &Rc<Link>) {
        let jobs: Vec<JobId> = link.jobs.borrow_mut().drain().collect();
        for id in &jobs {
            self.kill(*id);
        }
        for id in jobs {
            self.wait_until_empty(id).await;
            self.feed(Event::Orphaned(id));
        }
    }

    /// Takes a crew off new work and starts another.
    pub(super) fn retire(self: &Rc<Self>, link: &Rc<Link>, why: &str) {
        if !self.is_current(link) || self.desk.is_closed.get() {
            return;
        }
        tracing::warn!(
            shard = self.index,
            crew = link.number,
            why,
            "a crew is replaced"
        );
        self.desk.current.replace(None);
        self.desk.stock.forget_requested();
        link.kill_makers();
        link.command(KeeperCommand::Exit);
        self.desk.retired.borrow_mut().push(Rc::clone(link));
        let shard = Rc::clone(self);
        rt::spawn(async move { shard.start_crew().await });
    }

    async fn start_crew(self: Rc<Self>) {
        let mut pause = limits::CREW_RETRY_FIRST;
        loop {
            let host = std::sync::Arc::clone(&self.host);
            let started =
                rt::blocking("start a crew", move || Crew::start(&host.crew_options())).await;
            let trouble = match started {
                Ok(Ok(crew)) if self.desk.is_closed.get() => return end(crew).await,
                Ok(Ok(crew)) => match self.employ(crew).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                },
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            if self.desk.is_closed.get() {
                return;
            }
            tracing::error!(
                shard = self.index,
                error = trouble,
                "no crew could be started"
            );
            self.desk.trouble.replace(Some(trouble));
            self.desk.has_changed.notify_all();
            rt::sleep(pause).await;
            pause = (pause * 2).min(limits::CREW_RETRY_LAST);
        }
    }

    /// Ends a spawner that has been in one step for too long.
    async fn watch_spawner(self: Rc<Self>, link: Rc<Link>) {
        while self.is_current(&link) {
            let oldest = link.pending.borrow().front().map(|(_, since)| *since);
            let Some(since) = oldest else {
                link.has_work.notified().await;
                continue;
            };
            if rt::now().saturating_duration_since(since) < limits::SPAWNER_STUCK {
                rt::sleep_until(since + limits::SPAWNER_STUCK).await;
                continue;
            }
            link.is_stuck.set(true);
            return self.end_spawner(&link).await;
        }
    }

    /// Kills a spawner that is stuck, with the child it was making, and has the keeper account for it. None of
    /// them need to die for that: who waits for a file system that never answers cannot be killed.
    async fn end_spawner(self: &Rc<Self>, link: &Rc<Link>) {
        link.kill_makers();
        let begun = link.pending.borrow().front().map(|(id, _)| *id);
        if let Some(id) = begun {
            self.kill(id);
        }
        let give_up = rt::now() + limits::KILLED_WAIT;
        let has_ended = || {
            let crew = link.crew.borrow();
            crew.as_ref().is_none_or(|crew| crew.spawner.has_ended())
        };
        while !has_ended() && rt::now() < give_up {
            rt::sleep(limits::LEAF_RETRY_FIRST).await;
        }
        link.command(KeeperCommand::SpawnerKilled);
    }
}

/// The sockets of a crew, to be waited for.
fn channels(crew: &Crew) -> io::Result<[Channel; 3]> {
    Ok([
        Channel::new(&crew.spawner.socket)?,
        Channel::new(&crew.keeper.socket)?,
        Channel::new(&crew.maker.socket)?,
    ])
}

/// Kills a crew and reaps its keeper. Needs neither a thread nor a descriptor, which may be what is missing.
async fn end(crew: Crew) {
    let killed = crew.keeper.kill();
    while killed.is_ok() && !crew.keeper.has_ended() {
        rt::sleep(limits::LEAF_RETRY_LAST).await;
    }
    report(Ok(killed.and_then(|()| crew.shut_down())));
}

fn report(ended: Result<Result<(), CrewError>, rt::BlockingError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(error = chain(&error), "a crew did not end"),
        Err(error) => tracing::error!(error = chain(&error), "a crew did not end"),
    }
}

/// An error with what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn started(record: StartedRecord) -> Result<u64, ExecFailure> {
    let StartedRecord {
        step,
        errno,
        mono_ns,
    } = record;
    match errno {
        0 => Ok(mono_ns),
        libc::ENOENT | libc::ENOTDIR if step == step::EXECUTE => Err(ExecFailure::NotFound),
        _ if step == step::EXECUTE => Err(ExecFailure::NotExecutable(errno)),
        _ => Err(ExecFailure::Step(StartFailure {
            step: Step::name(u16::from(step)).to_owned(),
            errno,
        })),
    }
}

fn exited(record: ExitedRecord) -> Exit {
    let status = if libc::WIFSIGNALED(record.wait_status) {
        ExitStatus::Signal(libc::WTERMSIG(record.wait_status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(record.wait_status))
    };
    Exit {
        status,
        cpu_user_us: record.utime_us,
        cpu_system_us: record.stime_us,
    }
}

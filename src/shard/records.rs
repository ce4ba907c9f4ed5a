//! A shard's records in the store: what is asked of the store's thread, and what comes of it.
//!
//! Changes go out in the order of the events that cause them and are answered in that order. A job whose record
//! the store cannot take is refused. An outcome waits in memory, and its keeper's entry with it, until the store
//! takes it: nothing that ended is ever forgotten for want of disk.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use thiserror::Error;

use super::{
    desk::chain,
    driver::Shard,
    effect::{Effect, Event},
};
use crate::{
    job::{Accepted, JobId, JobView, Refusal, RefusalCode},
    limits,
    rt::{
        self, Notify, OneshotSender,
        mail::{Bell, Sleeper},
        oneshot,
    },
    store::{self, Change, Done, Rejected, StoreError, Writer},
};

/// What the store said to one change.
type Answer = Result<Done, Unkept>;

/// Why the store does not keep a change.
#[derive(Debug, Error)]
pub(super) enum Unkept {
    /// Too many changes wait for it.
    #[error("too many records wait for the store")]
    Backlog,
    /// It has ended: the daemon is going down.
    #[error("the store has ended")]
    Closed,
    /// It says why.
    #[error(transparent)]
    Refused(#[from] StoreError),
}

impl Unkept {
    /// Whether the same change may be taken later.
    const fn may_pass(&self) -> bool {
        match self {
            Self::Backlog | Self::Closed => true,
            Self::Refused(error) => match error {
                StoreError::Full | StoreError::Damaged { .. } | StoreError::Sqlite { .. } => true,
                StoreError::KeyConflict { .. }
                | StoreError::Exists { .. }
                | StoreError::Unknown { .. }
                | StoreError::HasEnded { .. }
                | StoreError::NoOutcome { .. }
                | StoreError::OutputTooLarge { .. }
                | StoreError::TooMany { .. }
                | StoreError::Row { .. }
                | StoreError::RowId
                | StoreError::VolumeExists { .. }
                | StoreError::VolumeUnknown { .. }
                | StoreError::VolumeRow { .. }
                | StoreError::Seal { .. }
                | StoreError::Unseal { .. } => false,
            },
        }
    }
}

/// The store as one shard sees it.
pub(super) struct Records {
    writer: Writer,
    /// This turn's changes, in order, until its other tasks have run.
    outbox: RefCell<Vec<(u64, Change, store::Answer)>>,
    /// Answers cross from the store's thread here; the bell is the shard's, the count says how many were sent.
    answers: mpsc::Sender<(u64, Answer)>,
    sent: Arc<AtomicU64>,
    bell: Arc<Bell>,
    waiting: RefCell<HashMap<u64, OneshotSender<Answer>>>,
    next: Cell<u64>,
    /// Changes that are not answered yet, and outcomes that wait to be offered again.
    open: Cell<usize>,
    idle: Notify,
}

/// The receiving end, for [`Shard::serve_records`].
pub(super) struct Inbox {
    answers: mpsc::Receiver<(u64, Answer)>,
    sent: Arc<AtomicU64>,
    sleeper: Sleeper,
}

impl Records {
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub(super) fn new(writer: Writer) -> io::Result<(Rc<Self>, Inbox)> {
        let (answers, inbox) = mpsc::channel();
        let sent = Arc::new(AtomicU64::new(0));
        let bell = Bell::new()?;
        let sleeper = Sleeper::new(&bell)?;
        let records = Rc::new(Self {
            writer,
            outbox: RefCell::default(),
            answers,
            sent: Arc::clone(&sent),
            bell,
            waiting: RefCell::default(),
            next: Cell::new(0),
            open: Cell::new(0),
            idle: Notify::default(),
        });
        let inbox = Inbox {
            answers: inbox,
            sent,
            sleeper,
        };
        Ok((records, inbox))
    }

    /// Hands a change to the store; waits for its commit.
    ///
    /// # Errors
    /// [`Unkept`].
    ///
    /// # Cancel
    /// The change is made all the same.
    pub(super) fn submit(self: &Rc<Self>, change: Change) -> impl Future<Output = Answer> + use<> {
        let ticket = self.next.replace(self.next.get() + 1);
        let (sender, receiver) = oneshot();
        self.waiting.borrow_mut().insert(ticket, sender);
        self.open.set(self.open.get() + 1);
        let (answers, sent, bell) = (
            self.answers.clone(),
            Arc::clone(&self.sent),
            Arc::clone(&self.bell),
        );
        let done = move |answer: Result<Done, StoreError>| {
            // A shard that is gone does not listen any more.
            if answers.send((ticket, answer.map_err(Unkept::from))).is_ok() {
                sent.fetch_add(1, Ordering::Release);
                bell.ring();
            }
        };
        let mut outbox = self.outbox.borrow_mut();
        outbox.push((ticket, change, Box::new(done)));
        if outbox.len() == 1 {
            let records = Rc::clone(self);
            rt::spawn(async move { records.hand_over() });
        }
        async move { receiver.await.unwrap_or(Err(Unkept::Closed)) }
    }

    /// Gives the store this turn's changes. Last in the turn: the kernel may run the thread that is woken in place of
    /// ours, and then all else that the turn began would wait for a commit.
    fn hand_over(&self) {
        for (ticket, change, done) in self.outbox.take() {
            let why = match self.writer.submit(change, done) {
                Ok(()) => continue,
                Err(Rejected::Full(_)) => Unkept::Backlog,
                Err(Rejected::Closed(_)) => Unkept::Closed,
            };
            let waiting = self.waiting.borrow_mut().remove(&ticket);
            if let Some(waiting) = waiting {
                let _ = waiting.send(Err(why));
            }
            self.closed();
        }
    }

    fn closed(&self) {
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.idle.notify_one();
        }
    }

    /// Something is under way until what is returned is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> Open {
        self.open.set(self.open.get() + 1);
        Open(Rc::clone(self))
    }

    /// Returns when every change that was submitted is answered, the store has every outcome, and what those jobs
    /// held is given back.
    pub(super) async fn settled(&self) {
        while self.open.get() > 0 {
            self.idle.notified().await;
        }
    }
}

/// Something that [`Records::settled`] waits for.
#[derive(Debug)]
pub(super) struct Open(Rc<Records>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

impl Shard {
    /// Takes the store's answers to those who wait for them, for ever.
    pub(super) async fn serve_records(self: Rc<Self>, mut inbox: Inbox) {
        let mut taken = 0;
        loop {
            while let Ok((ticket, answer)) = inbox.answers.try_recv() {
                taken += 1;
                let waiting = self.records.waiting.borrow_mut().remove(&ticket);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer);
                }
                self.records.closed();
            }
            let has_more = || inbox.sent.load(Ordering::Acquire) > taken;
            if let Err(error) = inbox.sleeper.sleep(has_more).await {
                tracing::error!(shard = self.index, %error, "the store cannot be heard");
                return;
            }
        }
    }

    /// Has the store keep an accepted job.
    pub(super) fn record_accepted(self: &Rc<Self>, id: JobId) {
        let Some(view) = self.live_view(id) else {
            return;
        };
        let key = self
            .bodies
            .borrow_mut()
            .get_mut(&id)
            .and_then(|body| body.key.take());
        let kept = self.records.submit(Change::Accept {
            job: Box::new(view),
            key,
        });
        let shard = Rc::clone(self);
        rt::spawn(async move {
            let result = match kept.await {
                // The same request was accepted before: that job is the answer, and this one never was.
                Ok(Done::Duplicate { id: first }) => {
                    let existing = Accepted {
                        id: first,
                        existing: true,
                    };
                    shard.answer_submitter(id, Ok(existing));
                    Err(duplicate(first))
                }
                Ok(_) => Ok(()),
                Err(error) => Err(unrecorded(&error)),
            };
            shard.feed(Event::Recorded(id, result));
        });
    }

    /// Has the store note how far a job is; what is to be done to it then waits for that. If the store cannot, or not
    /// in time, the next daemon knows less of that job.
    pub(super) fn record_progress(self: &Rc<Self>, id: JobId) {
        let Some(view) = self.live_view(id) else {
            return;
        };
        let noted = self.records.submit(Change::Update {
            job: Box::new(view),
        });
        if let Some(body) = self.bodies.borrow_mut().get_mut(&id) {
            body.notes += 1;
        }
        let shard = Rc::clone(self);
        rt::spawn(async move {
            match rt::timeout(limits::ENDING_NOTED_MAX, noted).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(job_id = %id, %error, "how far a job is, is not in the store");
                }
                Err(_) => {
                    tracing::warn!(job_id = %id, "the store takes its time to note how far a job is");
                }
            }
            shard.on_noted(id);
        });
    }

    /// Has the store note that a job which waited is being made, however long that takes.
    pub(super) fn record_begun(self: &Rc<Self>, id: JobId) {
        let shard = Rc::clone(self);
        rt::spawn(async move {
            while let Some(view) = shard.live_view(id) {
                let job = Box::new(view);
                match shard.records.submit(Change::Update { job }).await {
                    Ok(_) => return shard.feed(Event::Begun(id)),
                    Err(error) if error.may_pass() => rt::sleep(limits::STORE_RETRY).await,
                    // It was refused, or has ended.
                    Err(_) => return,
                }
            }
        });
    }

    fn on_noted(self: &Rc<Self>, id: JobId) {
        let (held_back, awaiting) = match self.bodies.borrow_mut().get_mut(&id) {
            Some(body) => {
                body.notes = body.notes.saturating_sub(1);
                if body.notes > 0 {
                    return;
                }
                (
                    std::mem::take(&mut body.held_back),
                    std::mem::take(&mut body.awaiting_note),
                )
            }
            // It ended by itself meanwhile.
            None => return,
        };
        for effect in held_back {
            self.perform(effect);
        }
        for asker in awaiting {
            let _ = asker.send(());
        }
    }

    /// Waits until the store knows how far a job is, if that is on its way.
    pub(super) async fn noted_progress(&self, id: JobId) {
        let noted = match self.bodies.borrow_mut().get_mut(&id) {
            Some(body) if body.notes > 0 => {
                let (sender, receiver) = oneshot();
                body.awaiting_note.push(sender);
                receiver
            }
            Some(_) | None => return,
        };
        // An error is that the job has ended and been released meanwhile.
        let _ = noted.await;
    }

    /// Whether this effect is done later, because the store does not know yet how far the job is.
    pub(super) fn holds_back(&self, effect: &Effect) -> bool {
        let (Effect::Signal(id, _) | Effect::Kill(id)) = effect else {
            return false;
        };
        match self.bodies.borrow_mut().get_mut(id) {
            Some(body) if body.notes > 0 => {
                body.held_back.push(effect.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// Has the store keep an outcome, with output that is small, however long that takes.
    pub(super) fn record_outcome(self: &Rc<Self>, id: JobId) {
        let Some(view) = self.live_view(id) else {
            return;
        };
        let output = self
            .bodies
            .borrow_mut()
            .get_mut(&id)
            .and_then(|body| body.output.take());
        let shard = Rc::clone(self);
        let end = move |view: &JobView| Change::End {
            job: Box::new(view.clone()),
            output: output.clone(),
        };
        let mut kept = self.records.submit(end(&view));
        rt::spawn(async move {
            let mut is_told = false;
            let mut has_output = false;
            let waiting = shard.records.begin();
            loop {
                let error = match kept.await {
                    Ok(done) => {
                        has_output = done == Done::Ended { has_output: true };
                        break;
                    }
                    Err(error) => error,
                };
                if !error.may_pass() {
                    tracing::error!(job_id = %id, %error, "an outcome is not in the store");
                    break;
                }
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(job_id = %id, %error, "an outcome waits for the store");
                }
                shard.give_volumes_back(&view).await;
                // A full disk keeps nobody waiting, though a daemon that dies now may read the end otherwise.
                shard.wake_waiters(&view);
                shard.answer_submitter(id, Err(unrecorded(&error)));
                rt::sleep(limits::STORE_RETRY).await;
                kept = shard.records.submit(end(&view));
            }
            // Whoever hears of the end may remove what the job had.
            shard.give_volumes_back(&view).await;
            shard.wake_waiters(&view);
            shard.feed(Event::EndRecorded(id));
            if has_output {
                shard.remove_emptied(id);
            }
            drop(waiting);
        });
    }
}

fn duplicate(first: JobId) -> Refusal {
    Refusal::new(
        RefusalCode::Conflict,
        format!("job {first} has this idempotency key"),
    )
}

/// Why the store did not do what a peer asked for.
pub(super) fn refused(error: &Unkept) -> Refusal {
    Refusal::new(RefusalCode::Failed, chain(error))
}

/// A key that was used for another request.
pub(super) fn key_conflict(key: &str, id: JobId) -> Refusal {
    Refusal::new(
        RefusalCode::Conflict,
        format!("idempotency key {key} belongs to job {id}, which was asked for differently"),
    )
    .hint("use another key, or repeat the very same request")
}

/// Why a job that the store could not take is not accepted.
fn unrecorded(error: &Unkept) -> Refusal {
    match error {
        Unkept::Refused(StoreError::Full) => Refusal::new(
            RefusalCode::Busy,
            "the disk of the state directory is full and the job cannot be recorded",
        )
        .hint("jobs that run go on; submits are taken again when there is space"),
        Unkept::Refused(StoreError::KeyConflict { key, id }) => key_conflict(key, *id),
        Unkept::Backlog => {
            Refusal::new(RefusalCode::Busy, error.to_string()).hint("try again in a moment")
        }
        Unkept::Closed => Refusal::new(RefusalCode::Busy, "the daemon is going down"),
        Unkept::Refused(other) => Refusal::new(
            RefusalCode::Failed,
            format!("the job cannot be recorded: {}", chain(other)),
        ),
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

//! Calls between shards: a closure travels through the mailbox, runs where the data is, and its result
//! travels back.
//!
//! Only `Send` values cross. A call that is dropped by its caller still runs; its result is then thrown
//! away. Requests are refused when the ring to a shard is backed up; replies are always taken, so two busy
//! shards cannot wait for each other.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    pin::Pin,
    rc::Rc,
};

use super::driver::Shard;
use crate::{
    job::{Refusal, RefusalCode, ShardIndex},
    limits,
    rt::{
        self, OneshotSender,
        mail::{Rx, Sleeper, Tx},
        oneshot,
    },
};

/// What travels: runs on the receiving shard.
pub(crate) type Call = Box<dyn FnOnce(&Rc<Shard>) + Send>;

/// A future that stays on its shard.
pub(crate) type Local<R> = Pin<Box<dyn Future<Output = R>>>;

type Answer = Box<dyn Any + Send>;

/// One shard's ends of the mailbox.
pub(crate) struct Remote {
    /// To each other shard; `None` at our own place.
    out: Vec<Option<RefCell<Tx<Call>>>>,
    pending: RefCell<HashMap<u64, OneshotSender<Answer>>>,
    next: Cell<u64>,
}

impl Remote {
    pub(crate) fn new(out: Vec<Option<Tx<Call>>>) -> Self {
        Self {
            out: out.into_iter().map(|tx| tx.map(RefCell::new)).collect(),
            pending: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// Gives `call` to `shard`; never waits.
    pub(crate) fn post(&self, shard: ShardIndex, call: Call) {
        let tx = self.out[shard].as_ref().expect("nobody posts to itself");
        tx.borrow_mut().post(call);
    }

    fn backlog(&self, shard: ShardIndex) -> usize {
        self.out[shard].as_ref().map_or(0, |tx| tx.borrow().backlog())
    }

    fn flush(&self) {
        for tx in self.out.iter().flatten() {
            let mut tx = tx.borrow_mut();
            if tx.backlog() > 0 {
                tx.flush();
            }
        }
    }

    fn has_room_for_backlog(&self) -> bool {
        self.out.iter().flatten().any(|tx| {
            let tx = tx.borrow();
            tx.backlog() > 0 && tx.can_flush()
        })
    }
}

impl Shard {
    /// Runs `work` on `shard` and gives its result.
    ///
    /// # Errors
    /// `Busy` when that shard does not keep up.
    pub(crate) async fn on<R, F>(self: &Rc<Self>, shard: ShardIndex, work: F) -> Result<R, Refusal>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Shard>) -> Local<R> + Send + 'static,
    {
        if shard == self.index {
            return Ok(work(Rc::clone(self)).await);
        }
        if self.remote.backlog(shard) >= limits::MAILBOX_SLOTS {
            return Err(Refusal::new(RefusalCode::Busy, format!("shard {shard} does not keep up"))
                .hint("try again in a moment"));
        }
        let token = self.remote.next.replace(self.remote.next.get() + 1);
        let (sender, receiver) = oneshot();
        self.remote.pending.borrow_mut().insert(token, sender);
        let from = self.index;
        self.remote.post(
            shard,
            Box::new(move |there| {
                let work = work(Rc::clone(there));
                let there = Rc::clone(there);
                rt::spawn(async move {
                    let result = work.await;
                    there.remote.post(from, Box::new(move |here| here.answer(token, Box::new(result))));
                });
            }),
        );
        let answer = receiver.await.ok_or_else(|| Refusal::new(RefusalCode::Busy, "the daemon is going down"))?;
        Ok(*answer.downcast::<R>().expect("the answer to a call has the type the call was made with"))
    }

    fn answer(&self, token: u64, answer: Answer) {
        let sender = self.remote.pending.borrow_mut().remove(&token);
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }

    /// Serves the mailbox for ever: runs what arrives, pushes what could not leave.
    pub(crate) async fn serve_mailbox(self: Rc<Self>, mut inbound: Vec<Rx<Call>>, mut sleeper: Sleeper) {
        loop {
            let mut ran = 0;
            for rx in &mut inbound {
                ran += rx.drain(limits::MAILBOX_TURN, |call| call(&self));
            }
            self.remote.flush();
            if ran == 0 {
                let has_work = || inbound.iter().any(|rx| !rx.is_empty()) || self.remote.has_room_for_backlog();
                if let Err(error) = sleeper.sleep(has_work).await {
                    tracing::error!(shard = self.index, %error, "the mailbox cannot be waited for");
                    return;
                }
            }
        }
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("shards", &self.out.len()).finish_non_exhaustive()
    }
}

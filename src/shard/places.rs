//! Places in the daemon's queue: the first shard keeps it, every shard asks.
//!
//! Where no bound is configured nobody asks, and a job costs no word between shards.

use std::rc::Rc;

use super::{
    driver::Shard,
    effect::Event,
    queue::{Answer, Demand},
};
use crate::{
    job::{JobId, Refusal, ShardIndex, Spec},
    limits, rt,
};

/// The shard that keeps the queue.
const KEEPER: ShardIndex = 0;

impl Shard {
    /// Asks for a place for a job that does not exist yet.
    ///
    /// # Errors
    /// The queue's refusal; `Busy` when its shard does not keep up.
    pub(super) async fn ask_place(self: &Rc<Self>, demand: Demand) -> Result<Answer, Refusal> {
        self.on(KEEPER, move |there| {
            let answer = there.ask_here(demand);
            Box::pin(async move { answer })
        })
        .await?
    }

    /// Asks for a place for a job whose time has come.
    pub(super) fn ask(self: &Rc<Self>, id: JobId) {
        let Some(demand) = self.demand_of(id) else {
            return;
        };
        let owner = self.index;
        self.post_or_run(KEEPER, move |there| {
            let answer = there.ask_here(demand);
            there.post_or_run(owner, move |here| match answer {
                Ok(Answer::Granted) => here.feed(Event::Granted(id)),
                Ok(Answer::Waits(why)) => here.feed(Event::Waits(id, why)),
                Err(refusal) => {
                    // It was accepted: it waits until there is room.
                    here.feed(Event::Waits(id, refusal.message.clone()));
                    here.ask_again(id);
                }
            });
        });
    }

    /// Asks once more, later: the queue was full of others.
    fn ask_again(self: &Rc<Self>, id: JobId) {
        let shard = Rc::clone(self);
        rt::spawn(async move {
            rt::sleep(limits::QUEUE_RETRY).await;
            shard.ask(id);
        });
    }

    /// Tells the queue of a job that has a place already.
    pub(super) fn claim(self: &Rc<Self>, id: JobId) {
        if let Some(demand) = self.demand_of(id) {
            self.post_or_run(KEEPER, move |there| {
                there.queue.borrow_mut().restore_running(demand);
            });
        }
    }

    /// Gives a job's place back; whoever is granted one by that hears of it.
    pub(super) fn give_back(self: &Rc<Self>, id: JobId) {
        self.post_or_run(KEEPER, move |there| {
            let mut granted = Vec::new();
            there.queue.borrow_mut().give_back(id, &mut granted);
            there.tell_granted(granted);
        });
    }

    /// Asks the queue, which this shard keeps.
    fn ask_here(self: &Rc<Self>, demand: Demand) -> Result<Answer, Refusal> {
        let mut granted = Vec::new();
        let answer = self.queue.borrow_mut().ask(demand, &mut granted);
        self.tell_granted(granted);
        answer
    }

    fn tell_granted(self: &Rc<Self>, granted: Vec<JobId>) {
        for id in granted {
            self.post_or_run(id.owner(self.shards), move |owner| {
                owner.feed(Event::Granted(id));
            });
        }
    }

    /// What a queued job waits for now.
    pub(super) async fn why_queued(self: &Rc<Self>, id: JobId) -> Option<String> {
        self.on(KEEPER, move |there| {
            Box::pin(async move { there.queue.borrow().why(id) })
        })
        .await
        .ok()?
    }

    fn demand_of(&self, id: JobId) -> Option<Demand> {
        let view = self.live_view(id)?;
        let arrived_ns = view.transitions.first().map_or(0, |first| first.wall_ns);
        Some(demand(id, &view.owner, &view.spec, arrived_ns))
    }
}

/// What a job takes of what the queue counts.
pub(super) fn demand(id: JobId, owner: &str, spec: &Spec, arrived_ns: i64) -> Demand {
    Demand {
        id,
        owner: owner.to_owned(),
        priority: spec.priority,
        arrived_ns,
        memory_bytes: spec.limits.memory_bytes.unwrap_or(0),
        cpu_percent: spec.limits.cpu_percent.map_or(0, u64::from),
    }
}

//! The blocking pool of a shard: for the few calls that may wait and that no ring takes (mount, mkfs, netlink,
//! whole trees of files).
//!
//! At most [`limits::BLOCKING_THREADS_MAX`] threads a shard, made when first needed and named after what they
//! do; they run on every CPU the daemon may use, not on the shard's own. What finds no thread waits its turn
//! in a bounded queue. Nothing is locked: each thread has a channel for its work and a mailbox link back.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    ffi::CString,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, mpsc},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::prctl,
    unistd::Pid,
};
use thiserror::Error;

use super::{
    OneshotSender,
    mail::{Bell, Rx, Sleeper, Tx, link},
    oneshot, runtime, spawn,
};
use crate::limits;

/// Why blocking work has no result.
#[derive(Debug, Error)]
pub enum BlockingError {
    /// Too much is waiting already.
    #[error("{what}: {} calls are waiting already", limits::BLOCKING_QUEUE_MAX)]
    Full {
        /// What was to be done.
        what: &'static str,
    },
    /// No thread could be made and none exists.
    #[error("{what}: make a thread")]
    Thread {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The work itself panicked: a bug.
    #[error("{what}: panicked")]
    Panicked {
        /// What was being done.
        what: &'static str,
    },
}

/// Runs `work` on the shard's blocking pool. `what` names it, for people and for the thread's name.
///
/// # Errors
/// [`BlockingError`]; `work` has not been started, unless it panicked.
///
/// # Cancel
/// The work goes on; its result is dropped.
///
/// # Panics
/// Outside a shard.
pub fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, BlockingError>> {
    let (result_tx, result_rx) = mpsc::channel();
    let run = Box::new(move || {
        // Nobody waits any more when this fails.
        let _ = result_tx.send(work());
    });
    let done = runtime::pool().enqueue(what, run);
    async move {
        done?.await;
        result_rx.try_recv().map_err(|_| BlockingError::Panicked { what })
    }
}

struct Work {
    ticket: u64,
    what: &'static str,
    run: Box<dyn FnOnce() + Send>,
}

struct Worker {
    work: mpsc::Sender<Work>,
    done: Rx<u64>,
}

#[derive(Default)]
struct State {
    workers: Vec<Worker>,
    idle: Vec<usize>,
    queue: VecDeque<Work>,
    waiting: HashMap<u64, OneshotSender<()>>,
}

pub(super) struct Pool {
    state: RefCell<State>,
    next_ticket: Cell<u64>,
    bell: Arc<Bell>,
    cpus: CpuSet,
}

impl Pool {
    /// Makes the pool and the task that hears from its threads. They may run on `cpus`.
    pub(super) fn start(cpus: CpuSet) -> io::Result<Rc<Self>> {
        let bell = Bell::new()?;
        let mut sleeper = Sleeper::new(&bell)?;
        let pool = Rc::new(Self { state: RefCell::default(), next_ticket: Cell::new(0), bell, cpus });
        let served = pool.clone();
        drop(spawn(async move {
            loop {
                if !served.hear()
                    && let Err(error) = sleeper.sleep(|| served.has_news()).await
                {
                    tracing::error!(%error, "blocking pool cannot be heard");
                }
            }
        }));
        Ok(pool)
    }

    fn enqueue(
        &self,
        what: &'static str,
        run: Box<dyn FnOnce() + Send>,
    ) -> Result<super::OneshotReceiver<()>, BlockingError> {
        let mut state = self.state.borrow_mut();
        if state.queue.len() >= limits::BLOCKING_QUEUE_MAX {
            return Err(BlockingError::Full { what });
        }
        if state.idle.is_empty() && state.workers.len() < limits::BLOCKING_THREADS_MAX {
            match self.hire() {
                Ok(worker) => {
                    state.workers.push(worker);
                    let index = state.workers.len() - 1;
                    state.idle.push(index);
                }
                Err(source) if state.workers.is_empty() => {
                    return Err(BlockingError::Thread { what, source });
                }
                Err(_) => {} // Those there are will get to it.
            }
        }
        let ticket = self.next_ticket.get();
        self.next_ticket.set(ticket + 1);
        let (sender, receiver) = oneshot();
        state.waiting.insert(ticket, sender);
        state.queue.push_back(Work { ticket, what, run });
        state.assign();
        Ok(receiver)
    }

    fn hire(&self) -> io::Result<Worker> {
        let own_bell = Bell::new()?;
        let (work, inbox) = mpsc::channel();
        let (report, done) = link(2, &own_bell, &self.bell);
        let cpus = self.cpus;
        std::thread::Builder::new().name("joblet-blocking".into()).spawn(move || {
            // Otherwise it would inherit the shard's own CPU. Refused: it works there, only slower.
            let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
            work_off(&inbox, report);
        })?;
        Ok(Worker { work, done })
    }

    /// Takes the news of all workers; whether there was any.
    fn hear(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let mut tickets = Vec::new();
        for (index, worker) in state.workers.iter_mut().enumerate() {
            worker.done.drain(2, |ticket| tickets.push((index, ticket)));
        }
        for (index, ticket) in &tickets {
            state.idle.push(*index);
            if let Some(waiting) = state.waiting.remove(ticket) {
                // Nobody waits any more when this fails.
                let _ = waiting.send(());
            }
        }
        state.assign();
        !tickets.is_empty()
    }

    fn has_news(&self) -> bool {
        self.state.borrow().workers.iter().any(|worker| !worker.done.is_empty())
    }
}

impl State {
    fn assign(&mut self) {
        while let Some(work) = self.queue.pop_front() {
            let Some(worker) = self.idle.pop() else {
                self.queue.push_front(work);
                return;
            };
            let sent = self.workers[worker].work.send(work);
            assert!(sent.is_ok(), "a worker lives as long as its pool");
        }
    }
}

fn work_off(inbox: &mpsc::Receiver<Work>, mut report: Tx<u64>) {
    for work in inbox {
        // Longer names are cut to 15 bytes by the kernel.
        if let Ok(name) = CString::new(work.what) {
            let _ = prctl::set_name(&name);
        }
        // A panic is told by the missing result; the panic hook has printed it.
        let _ = catch_unwind(AssertUnwindSafe(work.run));
        report.post(work.ticket);
        report.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::on_shard;

    #[test]
    fn results_come_back_to_their_callers_and_a_panic_is_an_error() {
        on_shard(|| async {
            let calls: Vec<_> = (0..100).map(|i| blocking("count", move || i * 2)).collect();
            for (i, call) in calls.into_iter().enumerate() {
                assert_eq!(call.await.unwrap(), i * 2);
            }
            let error = blocking("fail", || panic!("on purpose")).await.unwrap_err();
            assert!(matches!(error, BlockingError::Panicked { what: "fail" }));
            assert_eq!(blocking("after it", || 1).await.unwrap(), 1);
            assert!(runtime::pool().state.borrow().workers.len() <= limits::BLOCKING_THREADS_MAX);
        });
    }

    #[test]
    fn a_full_queue_is_refused_and_what_was_taken_is_done() {
        on_shard(|| async {
            let barrier = Arc::new(std::sync::Barrier::new(limits::BLOCKING_THREADS_MAX + 1));
            let mut calls = Vec::new();
            for i in 0..limits::BLOCKING_THREADS_MAX + limits::BLOCKING_QUEUE_MAX {
                let barrier = (i < limits::BLOCKING_THREADS_MAX).then(|| barrier.clone());
                calls.push(blocking("hold", move || barrier.map(|barrier| barrier.wait()).is_some()));
            }
            let refused = blocking("one too many", || ()).await;
            assert!(matches!(refused, Err(BlockingError::Full { what: "one too many" })));
            barrier.wait();
            for call in calls {
                call.await.unwrap();
            }
        });
    }
}

//! Starts the runtime of a shard, and what every task of it can reach.

use std::{
    any::Any,
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    mem::ManuallyDrop,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use monoio::{IoUringDriver, RuntimeBuilder, task::JoinHandle};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::Pid,
};
use thiserror::Error;

use super::{Ready, Ring, pool::Pool};
use crate::limits;

/// How a shard runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The CPU it is pinned to; `None` leaves that to the kernel.
    pub cpu: Option<usize>,
    /// Entries of its ring: operations queued in one turn.
    pub entries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { cpu: None, entries: limits::RING_ENTRIES }
    }
}

/// Why a shard does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The thread is one already.
    #[error("this thread is a shard already")]
    Nested,
    /// No such CPU, or not for us.
    #[error("pin a shard to cpu {cpu}")]
    Pin {
        /// Which.
        cpu: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel has no io_uring for us, or not enough of something.
    #[error("make the ring of a shard")]
    Ring(#[source] io::Error),
}

struct Local {
    ring: Rc<Ring>,
    pool: Rc<Pool>,
    /// Always writable: waiting for it is a trip through the ring and nothing else.
    open_door: Rc<Ready>,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// Makes the calling thread a shard and runs `main` on it to its end.
///
/// Operations in flight at the end are left to the kernel and the runtime is never freed, because the kernel
/// may still write into its buffers: a daemon ends by exiting.
///
/// # Errors
/// [`RunError`]; `main` has not been called.
pub fn run<F: Future>(options: Options, main: impl FnOnce() -> F) -> Result<F::Output, RunError> {
    if LOCAL.with_borrow(Option::is_some) {
        return Err(RunError::Nested);
    }
    let cpus = sched_getaffinity(Pid::from_raw(0)).map_err(|e| RunError::Ring(e.into()))?;
    if let Some(cpu) = options.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        return Err(RunError::Pin { cpu, source: io::Error::last_os_error() });
    }
    let mut builder = io_uring06::IoUring::builder();
    builder.setup_single_issuer().setup_coop_taskrun();
    let runtime = RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(builder)
        .with_entries(options.entries)
        .enable_timer()
        .build()
        .map_err(RunError::Ring)?;
    let mut runtime = ManuallyDrop::new(runtime);
    runtime.block_on(async {
        let local = start_local(cpus).map_err(RunError::Ring)?;
        LOCAL.set(Some(local));
        Ok(main().await)
    })
}

fn start_local(cpus: CpuSet) -> io::Result<Local> {
    let door: OwnedFd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?.into();
    Ok(Local { ring: Ring::start()?, pool: Pool::start(cpus)?, open_door: Rc::new(Ready::new(door)?) })
}

fn local<T>(pick: impl FnOnce(&Local) -> T) -> T {
    LOCAL
        .with_borrow(|local| pick(local.as_ref().expect("only code inside `run` asks for the shard's parts")))
}

/// The second ring of this shard.
///
/// # Panics
/// Outside a shard.
#[must_use]
pub fn ring() -> Rc<Ring> {
    local(|local| local.ring.clone())
}

pub(super) fn pool() -> Rc<Pool> {
    local(|local| local.pool.clone())
}

/// Lets everybody else have a turn, timers and completions included.
///
/// A task that only wakes itself starves timers: the runtime looks at them when it waits for the kernel, and
/// it never does while a task is runnable. This is an operation that the kernel answers at once. Tasks that
/// may be busy for long call it every 16 turns or so.
///
/// # Panics
/// Outside a shard.
pub async fn yield_io() {
    let door = local(|local| local.open_door.clone());
    if let Err(error) = door.writable().await {
        tracing::error!(%error, "an eventfd cannot be polled");
    }
}

/// A task panicked: a bug, which ends that task and nothing else.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a task panicked")]
pub struct Panicked;

/// A task that has been started: a future of its result. Dropping it lets the task go on.
pub struct Task<T>(JoinHandle<Result<T, Panicked>>);

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("is_finished", &self.0.is_finished()).finish()
    }
}

impl<T> Task<T> {
    /// Whether its result is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Starts a task on this shard. Its panic is printed by the panic hook and ends only the task.
///
/// # Panics
/// Outside a shard.
pub fn spawn<F: Future + 'static>(future: F) -> Task<F::Output> {
    Task(monoio::spawn(async move {
        let mut future = pin!(future);
        poll_fn(|cx| {
            // After a panic the future is dropped and never polled again.
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Ok),
                Err(payload) => {
                    report(&*payload);
                    Poll::Ready(Err(Panicked))
                }
            }
        })
        .await
    }))
}

fn report(payload: &(dyn Any + Send)) {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("not text"), "a task panicked");
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;
    use crate::rt::{now, sleep, testing::on_shard};

    #[test]
    fn timers_fire_while_a_task_yields_through_the_ring() {
        on_shard(|| async {
            let is_over = Rc::new(Cell::new(false));
            let busy = {
                let is_over = is_over.clone();
                spawn(async move {
                    while !is_over.get() {
                        yield_io().await;
                    }
                })
            };
            let started = now();
            sleep(Duration::from_millis(5)).await;
            let late = started.elapsed();
            is_over.set(true);
            busy.await.unwrap();
            assert!(late < Duration::from_millis(150), "a 5 ms timer took {late:?}");
        });
    }

    #[test]
    fn a_panic_ends_its_task_and_not_the_shard() {
        on_shard(|| async {
            let task = spawn(async { panic!("on purpose") });
            assert_eq!(task.await, Err::<(), _>(Panicked));
            assert_eq!(spawn(async { 7 }).await, Ok(7));
        });
    }

    #[test]
    fn a_shard_runs_where_it_was_pinned_and_a_cpu_that_is_not_there_is_an_error() {
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        std::thread::spawn(move || {
            let options = Options { cpu: Some(cpu), entries: 256 };
            let seen = run(options, || async { sched_getaffinity(Pid::from_raw(0)).unwrap() }).unwrap();
            let set: Vec<_> = (0..CpuSet::count()).filter(|&i| seen.is_set(i).unwrap()).collect();
            assert_eq!(set, [cpu]);
            let again = run(options, || async {});
            assert!(matches!(again, Err(RunError::Nested)));
        })
        .join()
        .unwrap();
        let refused = run(Options { cpu: Some(1_000), entries: 256 }, || async {});
        assert!(matches!(refused, Err(RunError::Pin { cpu: 1_000, .. })));
    }
}

//! Time enters a shard here and nowhere else.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::{Either, or};

/// The time ran out first.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("time ran out")]
pub struct Elapsed;

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the shard's clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, nanoseconds since the epoch; 0 when it stands before 1970.
#[must_use]
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// CLOCK_MONOTONIC, nanoseconds since the boot: the clock that a job's init stamps its records with.
///
/// # Panics
/// If the kernel has no such clock, which no Linux lacks.
#[must_use]
pub fn mono_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    let (seconds, nanos) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
    seconds.unwrap_or(0) * 1_000_000_000 + nanos.unwrap_or(0)
}

/// Ends when `duration` has passed, rounded up to the next whole millisecond and one more: no way to yield.
pub fn sleep(duration: Duration) -> impl Future<Output = ()> {
    monoio::time::sleep(duration)
}

/// Ends at `deadline`, rounded up as [`sleep`].
pub fn sleep_until(deadline: Instant) -> impl Future<Output = ()> {
    monoio::time::sleep_until(monoio::time::Instant::from_std(deadline))
}

/// `future`, but no longer than `duration`.
///
/// # Errors
/// [`Elapsed`]; `future` is then dropped, so it must not own an operation that carries bytes.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    match or(future, sleep(duration)).await {
        Either::Left(value) => Ok(value),
        Either::Right(()) => Err(Elapsed),
    }
}

//! Time enters a shard here and nowhere else.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

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

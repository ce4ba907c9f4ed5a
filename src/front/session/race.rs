//! Waiting for one thing, with an end to it.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use crate::rt;

/// What `future` gives, or `None` when it takes longer than `limit`. A future that is ready at once costs no
/// timer.
///
/// # Cancel
/// Drops `future`, as does the limit.
pub(super) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(rt::sleep_until(rt::now() + limit)));
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// What `future` gives, or what `end` gives if that is ready first.
///
/// # Cancel
/// Drops both, as the one does that is ready first with the other.
pub(super) async fn unless<T, E>(
    end: impl Future<Output = E>,
    future: impl Future<Output = T>,
) -> Result<T, E> {
    let (mut end, mut future) = (pin!(end), pin!(future));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => end.as_mut().poll(cx).map(Err),
    })
    .await
}

/// What `future` gives if it is ready now, after one poll that also arranges for a wake.
pub(super) async fn now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut future = std::pin::Pin::new(future);
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::rt::testing::on_shard;

    #[test]
    fn a_limit_ends_what_never_comes_and_costs_nothing_else() {
        on_shard(|| async {
            assert_eq!(
                within(Duration::from_millis(5), pending::<()>()).await,
                None
            );
            assert_eq!(within(Duration::from_secs(3_600), ready(7)).await, Some(7));
        });
    }

    #[test]
    fn the_first_that_is_ready_wins_and_the_wanted_one_on_a_tie() {
        on_shard(|| async {
            assert_eq!(unless(pending::<()>(), ready(1)).await, Ok(1));
            assert_eq!(unless(ready(2), pending::<()>()).await, Err(2));
            assert_eq!(unless(ready(2), ready(1)).await, Ok(1));
            assert_eq!(now(&mut ready(3)).await, Some(3));
            assert_eq!(now(&mut pending::<()>()).await, None);
        });
    }
}

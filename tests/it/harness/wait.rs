//! Waiting for a condition, with a deadline and words for what was last seen.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Deadline for what takes milliseconds on a quiet machine.
pub(crate) const SHORT: Duration = Duration::from_secs(30);
/// Deadline for what moves hundreds of megabytes or hundreds of jobs.
pub(crate) const LONG: Duration = Duration::from_secs(240);

/// A deadline as it is on this machine: `JOBLET_TEST_PATIENCE` says how many times slower than an ordinary
/// one it is, an emulated processor for example. [`wait_until`] and the client's runs apply it themselves.
///
/// # Panics
/// If the variable is no whole number.
pub(crate) fn patient(deadline: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| match std::env::var("JOBLET_TEST_PATIENCE") {
        Ok(text) => text
            .parse()
            .expect("JOBLET_TEST_PATIENCE is a whole number"),
        Err(_) => 1,
    });
    deadline * *times
}

/// The clock of tests.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What a condition says when it is looked at.
#[derive(Debug)]
pub(crate) enum Waiting<T> {
    /// It holds.
    Done(T),
    /// Not yet; this is what was seen.
    Seen(String),
    /// It can no longer come true; this is why.
    Never(String),
}

/// Looks at `condition` until it holds. Sleeps only between two looks, and never longer than 20 ms, so a
/// test takes as long as the thing it waits for and not as long as somebody guessed.
///
/// # Panics
/// At the deadline, with what was seen last, and at once when the condition can no longer come true.
#[track_caller]
pub(crate) fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Waiting<T>,
) -> T {
    let begin = now();
    let deadline = patient(deadline);
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = match condition() {
            Waiting::Done(value) => return value,
            Waiting::Seen(seen) => seen,
            Waiting::Never(why) => panic!("{what}: can no longer happen: {why}"),
        };
        assert!(
            begin.elapsed() < deadline,
            "{what}: not within {deadline:?}; last seen: {seen}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

impl Waiting<()> {
    /// Holds when `condition` does; `seen` is only built when it does not.
    pub(crate) fn when(condition: bool, seen: impl FnOnce() -> String) -> Self {
        if condition {
            Self::Done(())
        } else {
            Self::Seen(seen())
        }
    }
}

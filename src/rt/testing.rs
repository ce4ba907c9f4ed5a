//! Shards for tests.

use std::future::Future;

use super::{Options, run};

/// Runs a future on a fresh shard of its own thread and passes its panic on.
pub(crate) fn on_shard<F: Future>(main: impl FnOnce() -> F + Send) -> F::Output
where
    F::Output: Send,
{
    std::thread::scope(|scope| {
        let shard = scope.spawn(|| run(Options { cpu: None, entries: 256 }, main).unwrap());
        shard.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Numbers from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.roll() >> 16) % bound
    }

    /// Spins for a moment, now and then.
    pub(crate) fn pause(&mut self) {
        if self.below(64) == 0 {
            for _ in 0..self.below(3_000) {
                std::hint::spin_loop();
            }
        }
    }
}

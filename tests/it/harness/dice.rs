//! Random numbers that a seed repeats.

use std::time::SystemTime;

/// A generator (SplitMix64): small, and the same on every machine.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// With the seed in `JOBLET_TEST_SEED`, else with one of the clock; it is printed, so that a failure can be
    /// tried again.
    ///
    /// # Panics
    /// If the variable is no whole number.
    pub(crate) fn of_the_day(what: &str) -> Self {
        let seed = match std::env::var("JOBLET_TEST_SEED") {
            Ok(text) => text.parse().expect("JOBLET_TEST_SEED is a whole number"),
            Err(_) => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                u64::from(since.unwrap().subsec_nanos())
            }
        };
        eprintln!("{what}: JOBLET_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

//! Chance: one stream of numbers from one seed, the same on every machine.

/// A generator of numbers. Two made from one seed give the same ones.
///
/// # Source
/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014 (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included. The bias is far below what a test could notice.
    pub(super) const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// A place in a list of `count`.
    pub(super) fn place(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).expect("lists are short");
        usize::try_from(self.next() % count).expect("below a list's length")
    }

    /// True `times` in a thousand.
    pub(super) const fn per_mille(&mut self, times: u64) -> bool {
        self.next() % 1_000 < times
    }
}

//! Losses of power: a machine whose daemon is under load is killed at a random moment and started anew on the disk
//! that is left, again and again.
//!
//! ```text
//! boot ──► tests compare what is there with the book ──► load, lines for the book ──► SIGKILL ──► boot …
//! ```
//! A line for the book is on this host's side before the guest goes on, so what was acknowledged is known whatever
//! dies. What the guest has flushed is in the image. What it has written and not flushed may be: it is this host's
//! page cache that survives. What it has only in its own page cache is gone. The tests' half is
//! `tests/it/machine/power.rs`.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;

use crate::{
    disk::{self, Programs, Scratch},
    kernel::Kernel,
    machine::{Heard, Init, LIMIT, Machine},
    suite::{self, Verdict},
};

/// The tests' half.
const TEST: &str = "machine::power::";
/// What begins a line for the book, and the first word of one that says that everything was compared.
const KEEP: &str = "keep ";
/// Said by the guest when what it found is what the book says.
const COMPARED: &str = "compared";
/// The word in the book that says that nothing more is asked for: the last boot.
const LAST: &str = "last";
/// A round is cut after at most so many lines, and so many milliseconds more.
const LINES_MAX: u64 = 150;
const DELAY_MAX_MS: u64 = 700;

/// How often, and the seed of the moments.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    /// Losses of power.
    pub(crate) rounds: u64,
    /// What the moments come from.
    pub(crate) seed: u64,
}

impl Default for Cuts {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            rounds: 3,
            seed: since.map_or(0, |since| u64::from(since.subsec_nanos())),
        }
    }
}

/// Whether everything acknowledged was there each time, and a line about it.
pub(crate) fn run(
    cuts: &Cuts,
    kernel: &Kernel,
    programs: &mut Programs,
    cache: &Path,
) -> Result<(bool, String)> {
    eprintln!("vm: {} losses of power, --seed {}", cuts.rounds, cuts.seed);
    let begin = Instant::now();
    let mut dice = Dice(cuts.seed);
    let scratch = disk::fresh_scratch(&cache.join("power.img"))?;
    programs.runs = vec![[TEST, "--nocapture"].map(str::to_owned).into()];
    programs.book.clear();
    let mut verdict = Verdict::Exit(0);
    for round in 0..=cuts.rounds {
        let cut = (round < cuts.rounds).then(|| Cut::random(&mut dice));
        if cut.is_none() {
            programs.book.push(LAST.to_owned());
        }
        // For the disk a fault of the emulator's is a loss of power like the others.
        verdict = suite::tried(
            || boot(kernel, programs, cache, &scratch, cut),
            |verdict| *verdict == Verdict::Emulator,
        )?;
        if !verdict.is_pass() {
            break;
        }
    }
    let line = format!(
        "{} losses of power, {} lines in the book, {:6.1} s: {verdict}",
        cuts.rounds,
        programs.book.len(),
        begin.elapsed().as_secs_f64()
    );
    if verdict.is_pass() {
        if let Scratch::Kept(image) = &scratch {
            std::fs::remove_file(image)?;
        }
    } else {
        eprintln!(
            "vm: the disk is kept: {scratch:?}; its --seed is {}",
            cuts.seed
        );
    }
    Ok((verdict.is_pass(), line))
}

/// When the power is cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// After so many lines of this boot.
    lines: u64,
    /// And so much later.
    delay: Duration,
}

impl Cut {
    fn random(dice: &mut Dice) -> Self {
        Self {
            lines: 1 + dice.below(LINES_MAX),
            delay: Duration::from_millis(dice.below(DELAY_MAX_MS)),
        }
    }
}

/// One life of the machine: to its cut, or to its end.
fn boot(
    kernel: &Kernel,
    programs: &mut Programs,
    cache: &Path,
    scratch: &Scratch,
    cut: Option<Cut>,
) -> Result<Verdict> {
    let disks = disk::with_scratch(kernel, programs, cache, scratch.clone())?;
    let mut machine = Machine::boot(kernel, &disks, &programs.home, Init::Own)?;
    let known = programs.book.len();
    let mut limit = LIMIT;
    let mut is_compared = false;
    let mut last_word = None;
    let verdict = loop {
        match machine.next(limit) {
            Heard::Word(word) => {
                if let Some(line) = word.strip_prefix(KEEP) {
                    programs.book.push(line.to_owned());
                } else if word == COMPARED {
                    is_compared = true;
                } else if let Some(code) = word.strip_prefix("exit ") {
                    last_word = Some(Verdict::of(code));
                }
                if let Some(cut) = cut
                    && is_compared
                    && (programs.book.len() - known) as u64 >= cut.lines
                {
                    limit = limit.min(machine.age() + cut.delay);
                }
            }
            Heard::Late if limit < LIMIT => {
                machine.cut();
                last_word = Some(Verdict::Exit(0));
                limit = LIMIT;
            }
            Heard::Late => break Verdict::Late,
            Heard::Stopped => break last_word.unwrap_or_else(|| Verdict::of_stopped(&machine)),
        }
    };
    let lines = programs.book.len() - known;
    if let Some(cut) = cut {
        eprintln!("vm: off after {lines} lines, {cut:?}");
    }
    Ok(verdict)
}

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

//! Tests in one machine, from power on to their verdict.

use std::{fmt, path::Path, time::Duration};

use anyhow::Result;

use crate::{
    disk::Disks,
    kernel::Kernel,
    machine::{Heard, Init, LIMIT, Machine, TRIES},
};

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The tests' exit code.
    Exit(i32),
    /// The machine stopped without one.
    Died,
    /// The machine stopped because of a fault of QEMU's.
    Emulator,
    /// It was killed at the limit.
    Late,
}

impl Verdict {
    /// Of the last word of a guest's init.
    pub(crate) fn of(code: &str) -> Self {
        code.parse().map_or(Self::Died, Self::Exit)
    }

    /// Of a machine that has stopped without a last word.
    pub(crate) fn of_stopped(machine: &Machine) -> Self {
        if machine.has_lost_race() {
            Self::Emulator
        } else {
            Self::Died
        }
    }

    /// Whether every test passed.
    pub(crate) fn is_pass(self) -> bool {
        self == Self::Exit(0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(0) => write!(f, "passed"),
            Self::Exit(code) => write!(f, "FAILED, exit code {code}"),
            Self::Died => write!(f, "FAILED, the machine stopped without a result"),
            Self::Emulator => write!(f, "FAILED, QEMU lost a race {TRIES} times"),
            Self::Late => write!(f, "FAILED, no result after {} s", LIMIT.as_secs()),
        }
    }
}

/// What one machine did.
#[derive(Debug)]
pub(crate) struct Run {
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// From power on to the first program of ours.
    pub(crate) boot: Duration,
    /// From there to the end.
    pub(crate) tests: Duration,
}

/// Boots a kernel and passes its console on until it stops.
pub(crate) fn run(kernel: &Kernel, disks: &Disks, home: &Path, init: Init) -> Result<Run> {
    tried(
        || once(kernel, disks, home, init),
        |run: &Run| run.verdict == Verdict::Emulator,
    )
}

/// What a machine comes to, once more when that was the emulator's fault.
pub(crate) fn tried<T>(
    mut live: impl FnMut() -> Result<T>,
    is_emulators: impl Fn(&T) -> bool,
) -> Result<T> {
    for _ in 1..TRIES {
        let done = live()?;
        if !is_emulators(&done) {
            return Ok(done);
        }
        eprintln!("vm: an emulated processor has lost a race; once more");
    }
    live()
}

fn once(kernel: &Kernel, disks: &Disks, home: &Path, init: Init) -> Result<Run> {
    let machine = Machine::boot(kernel, disks, home, init)?;
    let boot = machine.age();
    let mut last_word = None;
    let verdict = loop {
        match machine.next(LIMIT) {
            Heard::Word(word) => {
                if let Some(code) = word.strip_prefix("exit ") {
                    last_word = Some(Verdict::of(code));
                }
            }
            Heard::Stopped => break last_word.unwrap_or_else(|| Verdict::of_stopped(&machine)),
            Heard::Late => break Verdict::Late,
        }
    };
    Ok(Run {
        verdict,
        boot,
        tests: machine.age().saturating_sub(boot),
    })
}

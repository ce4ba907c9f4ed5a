//! What happened in a run, line by line, with a hash over it: two runs of one seed must give the same.

use std::fmt::{self, Write as _};

use crate::{
    job::JobId,
    shard::effect::{Effect, Event},
};

/// The lines of one run.
#[derive(Debug)]
pub(super) struct Trace {
    text: String,
    hash: u64,
}

impl Trace {
    pub(super) const fn new() -> Self {
        Self {
            text: String::new(),
            // The offset basis of FNV-1a, 64 bits.
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Adds a line; `now` is virtual time, nanoseconds.
    pub(super) fn note(&mut self, now: u64, line: fmt::Arguments<'_>) {
        let from = self.text.len();
        writeln!(self.text, "{:>12} {line}", now / 1_000).expect("text takes everything");
        for byte in &self.text.as_bytes()[from..] {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// The last `most` lines.
    pub(super) fn tail(&self, most: usize) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(most)..].join("\n")
    }
}

/// The last digits of an id: its number in the order of submits, and who owns it.
pub(super) struct Short(pub(super) JobId);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_bytes();
        write!(
            f,
            "j{}.{:02x}",
            u16::from_be_bytes([bytes[0], bytes[1]]),
            bytes[15]
        )
    }
}

/// An event in a few words; instants are left out, as they differ from run to run.
pub(super) struct Said<'a>(pub(super) &'a Event);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, id) = match self.0 {
            Event::Submit(job) => ("submit", job.id),
            Event::Accept(id) => ("accept", *id),
            Event::Abandon(id) => ("abandon", *id),
            Event::Recorded(id, Ok(())) => ("recorded", *id),
            Event::Recorded(id, Err(_)) => ("not recorded", *id),
            Event::EndRecorded(id) => ("end recorded", *id),
            Event::Found(job) => {
                return write!(
                    f,
                    "found {} {:?} ending {:?}",
                    Short(job.view.id),
                    job.whereabouts,
                    job.view.ending
                );
            }
            Event::PrepareFailed(id, _) => ("prepare failed", *id),
            Event::Sent(id) => ("sent", *id),
            Event::StepFailed(id, _) => ("step failed", *id),
            Event::Unsent(id) => ("unsent", *id),
            Event::Born(id) => ("born", *id),
            Event::Started(id, result) => {
                return write!(f, "started {} {:?}", Short(*id), result);
            }
            Event::Exited(id, exit) => return write!(f, "exited {} {:?}", Short(*id), exit.status),
            Event::Reaped(id) => ("reaped", *id),
            Event::Gone(id) => ("gone", *id),
            Event::Orphaned(id) => ("orphaned", *id),
            Event::Drained(id, _, _) => ("drained", *id),
            Event::OutOfMemory(id) => ("out of memory", *id),
            Event::LogLimit(id) => ("log limit", *id),
            Event::Stop { id, .. } => ("stop", *id),
            Event::Begun(id) => ("begun", *id),
            Event::Granted(id) => ("granted", *id),
            Event::Waits(id, _) => ("waits", *id),
            Event::Due(id) => ("due", *id),
            Event::Cancel(id) => ("cancel", *id),
            Event::Timer(id, timer) => return write!(f, "{timer:?} of {}", Short(*id)),
            Event::Close => return f.write_str("close"),
            Event::Shutdown => return f.write_str("shutdown"),
        };
        write!(f, "{name} {}", Short(id))
    }
}

/// An effect in a few words.
pub(super) struct Done<'a>(pub(super) &'a Effect);

impl fmt::Display for Done<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, id) = match self.0 {
            Effect::Prepare(id) => ("prepare", *id),
            Effect::Go(id) => ("go", *id),
            Effect::Signal(id, signal) => return write!(f, "signal {signal} {}", Short(*id)),
            Effect::Kill(id) => ("kill", *id),
            Effect::SetTimer(id, timer, _) => return write!(f, "set {timer:?} {}", Short(*id)),
            Effect::Drain(id) => ("drain", *id),
            Effect::RecordAccepted(id) => ("record accepted", *id),
            Effect::Answer(id, Ok(())) => ("answer yes", *id),
            Effect::Answer(id, Err(_)) => ("answer no", *id),
            Effect::RecordProgress(id) => ("record progress", *id),
            Effect::RecordBegun(id) => ("record begun", *id),
            Effect::SetAlarm(id, _) => ("set alarm", *id),
            Effect::Ask(id) => ("ask", *id),
            Effect::Claim(id) => ("claim", *id),
            Effect::GiveBack(id) => ("give back", *id),
            Effect::Repeat(id, _) => ("repeat", *id),
            Effect::RecordEnded(id) => ("record ended", *id),
            Effect::Release(id) => ("release", *id),
            Effect::Forget(id) => ("forget", *id),
            Effect::DeleteOutput(id) => ("delete output", *id),
            Effect::AllEnded => return f.write_str("all ended"),
        };
        write!(f, "{name} {}", Short(id))
    }
}

//! What is asked of the daemon while it is being killed, and what must come of it.
//!
//! Every kind of job has one end that its command determines, and output that is known byte for byte. A job
//! prints `begun N` first: once in its log means that it ran once.

use std::fmt::Write;

use proto_rkyv::{After, Job, Kind, Reason, Request, State, Submit, Upload, encode, join};

use crate::harness::{Dice, Witness, Written, data};

/// One job that is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// Its number, which is also its name.
    pub(super) number: u64,
    /// What it does.
    pub(super) kind: Sort,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Ends at once with code 0.
    Short,
    /// Ends at once with another code.
    Failing,
    /// Has a command that does not exist.
    Unknown,
    /// Prints numbered lines on both streams for some seconds.
    Lines,
    /// Sleeps until it is stopped.
    Stopped,
    /// Sleeps until its timeout.
    Timeout,
    /// Prints a file that came with it.
    Upload,
    /// Leaves a daemon of its own, forked twice in a session of its own, and ends.
    Forked,
}

/// The file that every job of the random kills opens once.
pub(super) const WITNESSED: &str = "/usr/bin/pinky";

impl Order {
    /// Something, as the dice say.
    pub(super) fn random(number: u64, dice: &mut Dice) -> Self {
        let kind = match dice.below(20) {
            0..4 => Sort::Short,
            4..6 => Sort::Failing,
            6 => Sort::Unknown,
            7..12 => Sort::Lines,
            12..15 => Sort::Stopped,
            15 => Sort::Timeout,
            16..18 => Sort::Upload,
            _ => Sort::Forked,
        };
        Self { number, kind }
    }

    /// The name it is asked for with.
    pub(super) fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// The frames of its submit.
    pub(super) fn frames(&self) -> Vec<u8> {
        let upload = (self.kind == Sort::Upload).then(|| self.uploaded());
        let submit = Submit {
            name: Some(self.name()),
            timeout_ms: (self.kind == Sort::Timeout).then_some(4_000 + self.number % 2_000),
            uploads: upload.as_ref().map(|bytes| bytes.len() as u64),
            after: After::Detach,
            ..Submit::default()
        };
        let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
        frames.extend(data(Kind::Argv, &join(&self.argv())));
        if let Some(bytes) = upload {
            let file = Upload::File {
                path: b"given".to_vec(),
                mode: 0o644,
                bytes: bytes.len() as u64,
            };
            frames.extend_from_slice(&encode(&file).unwrap());
            frames.extend(data(Kind::File, &bytes));
            frames.extend_from_slice(&encode(&Upload::End).unwrap());
        }
        frames
    }

    /// What its output is in the end.
    pub(super) fn written(&self) -> Written {
        let mut written = Written::default();
        if self.kind == Sort::Unknown {
            return written;
        }
        written.stdout = format!("begun {}\n", self.number).into_bytes();
        match self.kind {
            Sort::Lines => {
                written.stdout.extend(numbered("out", self.lines()));
                written.stderr = numbered("err", self.lines());
            }
            Sort::Upload => written.stdout.extend(self.uploaded()),
            Sort::Forked => written.stdout.extend(b"forked\n"),
            Sort::Short | Sort::Failing | Sort::Unknown | Sort::Stopped | Sort::Timeout => {}
        }
        written
    }

    /// Whether `written` is what it has written so far, or all of it.
    pub(super) fn may_write(&self, written: &Written) -> bool {
        let all = self.written();
        all.stdout.starts_with(&written.stdout) && all.stderr.starts_with(&written.stderr)
    }

    /// Compares the end of its job, and all its output, with what its command determines.
    pub(super) fn check(&self, job: &Job, written: &Written) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {self:?} {job:?}"));
        let Some(outcome) = &job.outcome else {
            return wrong("no outcome");
        };
        let is_right = match (self.kind, &outcome.reason) {
            (
                Sort::Short | Sort::Lines | Sort::Failing | Sort::Upload | Sort::Forked,
                Reason::Exited,
            ) => {
                let state = match self.code() {
                    0 => State::Completed,
                    _ => State::Failed,
                };
                outcome.exit_code == Some(self.code()) && job.state == state
            }
            (Sort::Unknown, Reason::CommandNotFound) => job.state == State::Failed,
            (Sort::Stopped, Reason::Stopped { .. }) => job.state == State::Stopped,
            (Sort::Timeout, Reason::Timeout) => job.state == State::Timeout,
            _ => false,
        };
        if !is_right {
            return wrong("another end than its command's");
        }
        let ends = job.transitions.iter().filter(|t| is_end(t.state)).count();
        if ends != 1 || job.transitions.last().map(|t| t.state) != Some(job.state) {
            return wrong("not one end");
        }
        let all = self.written();
        if *written != all {
            return Err(format!(
                "other output than its command's: {self:?}\nexpected {}\nfound {}",
                shown(&all),
                shown(written)
            ));
        }
        let lengths = (all.stdout.len() as u64, all.stderr.len() as u64, 0);
        let log = &job.log;
        if (log.stdout_bytes, log.stderr_bytes, log.dropped_bytes) != lengths {
            return wrong("other totals than its output");
        }
        Ok(())
    }

    fn argv(&self) -> Vec<String> {
        let n = self.number;
        let begun = format!("echo begun {n}; {}", Witness::script(WITNESSED));
        let script = match self.kind {
            Sort::Unknown => return vec!["no-such-command".to_owned()],
            Sort::Short => begun,
            Sort::Failing => format!("{begun}; exit {}", self.code()),
            Sort::Lines => format!(
                "{begun}; i=0; while [ $i -lt {} ]; do i=$((i+1)); echo out $i; echo err $i >&2; \
                 [ $((i % 40)) -ne 0 ] || sleep 0.{}; done; exit {}",
                self.lines(),
                n % 9 + 1,
                self.code()
            ),
            Sort::Stopped | Sort::Timeout => format!("{begun}; exec sleep 600"),
            Sort::Upload => format!("{begun}; cat given"),
            Sort::Forked => format!(
                "{begun}; (setsid sh -c 'sleep 600 & sleep 600 &' &); echo forked; exit {}",
                self.code()
            ),
        };
        vec!["sh".to_owned(), "-c".to_owned(), script]
    }

    fn code(&self) -> i32 {
        let code = match self.kind {
            Sort::Short | Sort::Upload => 0,
            Sort::Failing => self.number % 100 + 1,
            Sort::Lines | Sort::Forked => self.number % 3,
            Sort::Unknown | Sort::Stopped | Sort::Timeout => 255,
        };
        i32::try_from(code).expect("an exit code")
    }

    const fn lines(&self) -> u64 {
        100 + (self.number % 16) * 40
    }

    fn uploaded(&self) -> Vec<u8> {
        numbered("given", self.number % 300)
    }
}

/// Whether a job in this state has ended.
pub(super) const fn is_end(state: State) -> bool {
    match state {
        State::Scheduled
        | State::Queued
        | State::Initializing
        | State::Running
        | State::Stopping => false,
        State::Completed | State::Failed | State::Stopped | State::Timeout | State::Canceled => {
            true
        }
    }
}

/// Lines `word 1` to `word count`.
fn numbered(word: &str, count: u64) -> Vec<u8> {
    let mut lines = String::new();
    for n in 1..=count {
        writeln!(lines, "{word} {n}").expect("a text takes all");
    }
    lines.into_bytes()
}

/// Both streams, shortened for people.
pub(super) fn shown(written: &Written) -> String {
    let shown = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let start: String = text.chars().take(200).collect();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        format!("{} bytes {start:?}… last lines {lines:?}", bytes.len())
    };
    format!(
        "stdout: {}; stderr: {}",
        shown(&written.stdout),
        shown(&written.stderr)
    )
}

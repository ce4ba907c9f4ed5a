//! Captures whose process is killed and followed by another on the same pipes, which a third process holds.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use nix::{
    fcntl::OFlag,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt},
    unistd::pipe2,
};

use super::{
    DiskGuard, JobFiles, Limits, Pipes, Policy, Recorder, Recovered,
    record::{RECORD_BYTES, Record},
    recover,
};
use crate::{
    job::{JobId, Stream, Streams},
    rt::{
        self,
        testing::{Dice, on_shard},
    },
    sys::scm,
};

/// What this test binary has to be given to run `the_captor_of_these_tests` and nothing else.
const AS_CAPTOR: [&str; 5] = [
    "--exact",
    "log::succession::the_captor_of_these_tests",
    "--nocapture",
    "--test-threads=1",
    "--quiet",
];
const LINE_BYTES: usize = 16;

/// A job's pipes, held by us as a keeper does.
struct Held {
    base: tempfile::TempDir,
    id: JobId,
    stdout: OwnedFd,
    stderr: OwnedFd,
    limit_bytes: u64,
}

impl Held {
    /// With the write ends of stdout and stderr.
    fn new(limit_bytes: u64) -> (Self, [File; 2]) {
        let pipe = || pipe2(OFlag::O_CLOEXEC).unwrap();
        let ((stdout, stdout_w), (stderr, stderr_w)) = (pipe(), pipe());
        let held = Self {
            base: tempfile::tempdir().unwrap(),
            id: JobId::random(),
            stdout,
            stderr,
            limit_bytes,
        };
        (held, [stdout_w.into(), stderr_w.into()])
    }

    fn files(&self) -> JobFiles {
        JobFiles::new(self.base.path(), self.id)
    }

    fn stored(&self) -> u64 {
        let size = |stream| fs::metadata(self.files().stream(stream)).map_or(0, |meta| meta.len());
        size(Stream::Stdout) + size(Stream::Stderr)
    }

    /// A process that captures until it is killed.
    fn captor(&self) -> Captor {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        #[expect(clippy::disallowed_methods, reason = "a process to be killed")]
        let child = Command::new("/proc/self/exe")
            .args(AS_CAPTOR)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut message = self.id.to_bytes().to_vec();
        message.extend(self.limit_bytes.to_le_bytes());
        message.extend(self.base.path().as_os_str().as_bytes());
        let fds = [self.stdout.as_fd(), self.stderr.as_fd()];
        scm::send(ours.as_fd(), &message, &fds).unwrap();
        Captor(child)
    }

    /// Captures here until both pipes have ended, and returns what `recover` had found.
    fn finish(&self) -> Recovered {
        let pipes = Pipes {
            stdout: self.stdout.try_clone().unwrap(),
            stderr: self.stderr.try_clone().unwrap(),
        };
        let (base, id, limit_bytes) = (self.base.path(), self.id, self.limit_bytes);
        on_shard(|| async move {
            let (capture, from) = capture(base, id, pipes, limit_bytes);
            // Each stream ends with its pipe; draining before that would leave what is written later.
            while !capture.shared().has_ended() {
                rt::yield_io().await;
            }
            capture.drain().await;
            from
        })
    }

    /// Checks that streams and index are whole, and returns the bytes of both streams.
    fn check(&self) -> [u64; 2] {
        let found = recover(self.files().dir(), 1).unwrap();
        assert_eq!((found.added_records, found.lost_bytes), (0, 0));
        let index = fs::read(self.files().index()).unwrap();
        let mut end = 0;
        for raw in index[RECORD_BYTES..].chunks(RECORD_BYTES) {
            let record = Record::decode(raw).unwrap();
            assert_eq!(record.at, end);
            end = record.end(Streams::All);
        }
        let sizes = [Stream::Stdout, Stream::Stderr].map(|stream| {
            let bytes = fs::read(self.files().stream(stream)).unwrap_or_default();
            for (number, got) in bytes.chunks(LINE_BYTES).enumerate() {
                assert_eq!(
                    got,
                    &line(number as u64)[..got.len()],
                    "{stream:?} line {number}"
                );
            }
            bytes.len() as u64
        });
        assert_eq!(end, sizes[0] + sizes[1]);
        sizes
    }
}

struct Captor(Child);

impl Captor {
    /// Kills it once `when` holds.
    fn kill_when(mut self, when: impl Fn() -> bool) {
        for _ in 0..30_000 {
            if when() {
                self.0.kill().unwrap();
                self.0.wait().unwrap();
                return;
            }
            assert!(self.0.try_wait().unwrap().is_none(), "it ended by itself");
            nix::poll::poll(&mut [], 1_u16).unwrap();
        }
        panic!("it captures nothing");
    }
}

impl Drop for Captor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn line(number: u64) -> Vec<u8> {
    format!("{number:015}\n").into_bytes()
}

/// As a daemon does at its start. On a shard.
fn capture(base: &Path, id: JobId, pipes: Pipes, limit_bytes: u64) -> (super::Capture, Recovered) {
    let from = recover(JobFiles::new(base, id).dir(), rt::wall_ns()).unwrap();
    let recorder = Recorder::new(base, DiskGuard::new(base, 0).unwrap()).unwrap();
    let limits = Limits {
        bytes: limit_bytes,
        policy: Policy::Drop,
    };
    let capture = recorder.capture(id, pipes, limits, &from, Rc::default());
    (capture.unwrap(), from)
}

/// When this binary is executed by [`Held::captor`], this is where it captures until it is killed.
#[test]
fn the_captor_of_these_tests() {
    let is_executed =
        getsockopt(&io::stdin(), sockopt::SockType).is_ok_and(|kind| kind == SockType::SeqPacket);
    if !is_executed {
        return;
    }
    let (mut message, mut fds) = ([0; 4_096], Vec::new());
    let length = scm::recv(io::stdin().as_fd(), &mut message, &mut fds).unwrap();
    let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).unwrap();
    let id = JobId::from_bytes(message[..16].try_into().unwrap());
    let limit_bytes = u64::from_le_bytes(message[16..24].try_into().unwrap());
    let base = PathBuf::from(std::ffi::OsString::from_vec(message[24..length].to_vec()));
    on_shard(|| async move {
        let (capture, _) = capture(&base, id, Pipes { stdout, stderr }, limit_bytes);
        loop {
            capture
                .progress()
                .changed(capture.progress().version())
                .await;
        }
    });
}

/// Writes numbered lines in pieces of any size until told to stop, then to the end of a line. Counts bytes.
fn write_lines(mut to: File, seed: u64, is_over: &AtomicBool, produced: &AtomicU64) {
    let mut dice = Dice::new(seed);
    let (mut number, mut ready) = (0, Vec::new());
    while !is_over.load(Ordering::Relaxed) || !ready.is_empty() {
        if ready.is_empty() {
            for _ in 0..1 + dice.below(200) {
                ready.extend(line(number));
                number += 1;
            }
        }
        let most = 1 + dice.below(5_000);
        let piece = ready.len().min(usize::try_from(most).unwrap());
        to.write_all(&ready[..piece]).unwrap();
        produced.fetch_add(piece as u64, Ordering::Relaxed);
        ready.drain(..piece);
        dice.pause();
    }
}

/// Kills `rounds` captors while both streams are written, then captures the rest; returns what was produced of
/// each stream.
fn succession(held: &Held, writers: [File; 2], rounds: u64) -> [u64; 2] {
    let is_over = AtomicBool::new(false);
    let produced = [AtomicU64::new(0), AtomicU64::new(0)];
    let total = || {
        produced
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    let mut dice = Dice::new(7);
    std::thread::scope(|scope| {
        for (seed, (writer, produced)) in writers.into_iter().zip(&produced).enumerate() {
            let is_over = &is_over;
            scope.spawn(move || write_lines(writer, seed as u64 + 1, is_over, produced));
        }
        for _ in 0..rounds {
            let enough = total() + 150_000 + dice.below(400_000);
            held.captor().kill_when(|| total() >= enough);
            // What was stored is what was taken out of the pipes: nobody writes any more.
            let before = held.stored();
            recover(held.files().dir(), 1).unwrap();
            assert_eq!(held.stored(), before);
        }
        is_over.store(true, Ordering::Relaxed);
        held.finish();
    });
    produced.map(AtomicU64::into_inner)
}

#[test]
fn captors_that_are_killed_lose_and_double_no_byte() {
    let (held, writers) = Held::new(u64::MAX);
    let produced = succession(&held, writers, 12);
    assert_eq!(held.check(), produced);
}

#[test]
fn a_captor_goes_on_at_the_limit_and_what_it_counts_as_dropped_is_never_too_much() {
    const LIMIT: u64 = 1 << 20;
    let (held, writers) = Held::new(LIMIT);
    let produced: u64 = succession(&held, writers, 6).iter().sum();
    let stored: u64 = held.check().iter().sum();
    let found = recover(held.files().dir(), 1).unwrap();
    assert_eq!(stored, LIMIT);
    assert!(found.totals.dropped_bytes > 0 && stored + found.totals.dropped_bytes <= produced);
}

#[test]
fn a_silent_job_is_handed_over_without_files() {
    let (held, writers) = Held::new(u64::MAX);
    let started = std::cell::Cell::new(0);
    held.captor().kill_when(|| {
        started.set(started.get() + 1);
        started.get() > 50
    });
    drop(writers);
    assert_eq!(held.finish(), Recovered::default());
    assert!(!held.files().dir().exists());
}

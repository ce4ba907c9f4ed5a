//! Capture and following together, on real pipes and files.

mod moved;

use std::{
    cell::{Cell, RefCell},
    fs::{self, File},
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::pipe2,
};
use tempfile::TempDir;

use super::{
    Capture, DiskGuard, Follower, JobFiles, Limits, Pipes, Place, Policy, Progress, Recorder,
    Recovered,
    record::{Header, Record},
    recover, stream,
};
use crate::{
    job::{JobId, LogQuery, LogTotals, Stream, Streams},
    limits,
    rt::{self, testing::Dice, testing::on_shard},
};

const ALL: LogQuery = LogQuery {
    streams: Streams::All,
    follow: true,
    offset: 0,
    tail_lines: None,
    since_ns: None,
};
const HISTORY: LogQuery = LogQuery {
    follow: false,
    ..ALL
};
const UNLIMITED: Limits = Limits {
    bytes: u64::MAX,
    policy: Policy::Drop,
};

/// A base directory and the recorder of the shard that the test runs on.
struct House {
    dir: TempDir,
    recorder: Rc<Recorder>,
}

/// The write ends of a job's pipes, and what captures the read ends.
struct Job {
    id: JobId,
    stdout: File,
    stderr: File,
    capture: Capture,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskGuard::new(dir.path(), 0).unwrap();
        Self {
            recorder: Recorder::new(dir.path(), disk).unwrap(),
            dir,
        }
    }

    fn job(&self, limits: Limits) -> Job {
        let id = JobId::random();
        let (stdout, stdout_w) = pipe();
        let (stderr, stderr_w) = pipe();
        let pipes = Pipes { stdout, stderr };
        let capture = self
            .recorder
            .capture(id, pipes, limits, &Recovered::default(), Rc::default())
            .unwrap();
        Job {
            id,
            stdout: stdout_w.into(),
            stderr: stderr_w.into(),
            capture,
        }
    }

    fn files(&self, id: JobId) -> JobFiles {
        JobFiles::new(self.dir.path(), id)
    }
}

impl Job {
    fn place(&self) -> Place {
        Place::only_in(self.capture.files().dir())
    }

    async fn follower(&self, query: LogQuery) -> Follower {
        Follower::open(&self.place(), query, self.capture.progress())
            .await
            .unwrap()
    }

    /// Waits until readers may see so many bytes.
    async fn readable(&self, bytes: u64) {
        let progress = self.capture.progress();
        while progress.snapshot().bytes < bytes {
            progress.changed(progress.version()).await;
        }
    }

    async fn produced(&self, bytes: u64) {
        loop {
            let totals = self.capture.totals();
            if totals.stdout_bytes + totals.stderr_bytes + totals.dropped_bytes >= bytes {
                return;
            }
            rt::yield_io().await;
        }
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe2(OFlag::O_CLOEXEC).unwrap()
}

fn random(seed: u64, bytes: usize) -> Arc<[u8]> {
    let mut dice = Dice::new(seed);
    (0..bytes.div_ceil(8))
        .flat_map(|_| dice.roll().to_le_bytes())
        .take(bytes)
        .collect()
}

/// Writes everything in pieces of random sizes, then closes.
fn write_in_pieces(mut to: File, bytes: Arc<[u8]>, seed: u64) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut dice = Dice::new(seed);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let most = if dice.below(4) == 0 { 200_000 } else { 5_000 };
            let len = usize::try_from(1 + dice.below(most))
                .unwrap()
                .min(rest.len());
            to.write_all(&rest[..len]).unwrap();
            rest = &rest[len..];
        }
    })
}

/// Reads to the end; checks that offsets have no gap. Returns what came of either stream.
async fn read_all(mut follower: Follower, mut offsets: [u64; 2]) -> [Vec<u8>; 2] {
    let mut out = [Vec::new(), Vec::new()];
    while let Some(chunk) = follower.next().await.unwrap() {
        let which = usize::from(chunk.stream == Stream::Stderr);
        assert_eq!(chunk.offset, offsets[which]);
        assert!(!chunk.bytes.is_empty() && chunk.bytes.len() as u64 <= limits::FOLLOW_READ_BYTES);
        offsets[which] += chunk.bytes.len() as u64;
        out[which].extend_from_slice(&chunk.bytes);
    }
    out
}

#[test]
fn sixty_four_mebibytes_reach_files_and_followers_byte_for_byte() {
    const EACH: usize = 32 << 20;
    on_shard(|| async {
        let house = House::new();
        let job = house.job(UNLIMITED);
        let (out, err) = (random(1, EACH), random(2, EACH));
        let all = rt::spawn(read_all(job.follower(ALL).await, [0, 0]));
        let skip = LogQuery {
            streams: Streams::Stderr,
            offset: 1_234_567,
            ..ALL
        };
        let part = rt::spawn(read_all(job.follower(skip).await, [0, 1_234_567]));
        let mut slow = job.follower(ALL).await;
        let slow = rt::spawn(async move {
            let mut bytes = 0;
            while let Some(chunk) = slow.next().await.unwrap() {
                bytes += chunk.bytes.len();
                rt::sleep(Duration::from_millis(1)).await; // This is the slowness.
            }
            bytes
        });
        let Job {
            id,
            stdout,
            stderr,
            capture,
        } = job;
        let writers = [
            write_in_pieces(stdout, out.clone(), 3),
            write_in_pieces(stderr, err.clone(), 4),
        ];
        let progress = capture.progress();
        while progress.snapshot().bytes < 2 * EACH as u64 {
            progress.changed(progress.version()).await;
        }
        let totals = capture.drain().await;
        let each = EACH as u64;
        assert_eq!(
            totals,
            LogTotals {
                stdout_bytes: each,
                stderr_bytes: each,
                dropped_bytes: 0
            }
        );
        progress.end();
        let [all_out, all_err] = all.await.unwrap();
        assert!(
            all_out == out[..] && all_err == err[..],
            "a follower of both streams"
        );
        assert!(
            part.await.unwrap()[1] == err[1_234_567..],
            "a follower of one stream from an offset"
        );
        assert_eq!(slow.await.unwrap(), 2 * EACH);
        let files = house.files(id);
        assert!(fs::read(files.stream(Stream::Stdout)).unwrap() == out[..]);
        assert!(fs::read(files.stream(Stream::Stderr)).unwrap() == err[..]);
        for writer in writers {
            writer.join().unwrap();
        }
        // After a restart there are only files.
        let place = Place::only_in(files.dir());
        let ended = Progress::ended(&place).await.unwrap();
        let follower = Follower::open(&place, ALL, ended).await.unwrap();
        assert!(read_all(follower, [0, 0]).await == [out.to_vec(), err.to_vec()]);
        files.remove().await.unwrap();
        assert!(!files.dir().exists());
        files.remove().await.unwrap();
    });
}

#[test]
fn output_keeps_the_order_in_which_it_was_captured() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(UNLIMITED);
        let mut follower = job.follower(ALL).await;
        let mut written = 0;
        for round in 0..100_u8 {
            let stream = if round % 3 == 0 {
                Stream::Stderr
            } else {
                Stream::Stdout
            };
            let to = if stream == Stream::Stderr {
                &mut job.stderr
            } else {
                &mut job.stdout
            };
            to.write_all(&[round, b'\n']).unwrap();
            written += 2;
            job.readable(written).await;
            let chunk = follower.next().await.unwrap().unwrap();
            assert_eq!(
                (chunk.stream, &chunk.bytes[..]),
                (stream, &[round, b'\n'][..])
            );
        }
        job.capture.drain().await;
        job.capture.progress().end();
        assert_eq!(follower.next().await.unwrap(), None);
        let mut history = job.follower(HISTORY).await;
        let mut seen = Vec::new();
        while let Some(chunk) = history.next().await.unwrap() {
            seen.extend(
                chunk
                    .bytes
                    .iter()
                    .copied()
                    .filter(|byte| *byte != b'\n' || chunk.bytes.len() == 1),
            );
        }
        seen.retain(|byte| *byte != b'\n');
        assert_eq!(
            seen,
            (0..100).filter(|byte| *byte != b'\n').collect::<Vec<_>>()
        );
    });
}

#[test]
fn produced_is_stored_plus_dropped_on_both_sides_of_the_limit() {
    on_shard(|| async {
        let house = House::new();
        let check = async |limit: u64, out: usize, err: usize| {
            let job = house.job(Limits {
                bytes: limit,
                policy: Policy::Drop,
            });
            let Job {
                stdout,
                stderr,
                capture,
                id,
            } = job;
            let writers = [
                write_in_pieces(stdout, random(5, out), 6),
                write_in_pieces(stderr, random(7, err), 8),
            ];
            let produced = (out + err) as u64;
            loop {
                let t = capture.totals();
                if t.stdout_bytes + t.stderr_bytes + t.dropped_bytes == produced {
                    break;
                }
                rt::yield_io().await;
            }
            let totals = capture.drain().await;
            let stored = totals.stdout_bytes + totals.stderr_bytes;
            assert_eq!(
                (stored, totals.dropped_bytes),
                (limit.min(produced), produced - limit.min(produced))
            );
            for writer in writers {
                writer.join().unwrap();
            }
            let found = recover(house.files(id).dir(), 1).unwrap();
            assert_eq!(
                (found.totals, found.added_records, found.lost_bytes),
                (totals, 0, 0)
            );
        };
        for (limit, out, err) in [
            (10, 9, 0),
            (10, 10, 0),
            (10, 11, 0),
            (10, 5, 5),
            (10, 6, 6),
            (0, 0, 7),
            (65_536, 65_537, 0),
            (1_000_000, 700_000, 900_000),
            (1_000_000, 100_000, 3_000_000),
        ] {
            check(limit, out, err).await;
        }
    });
}

#[test]
fn the_limit_is_told_once_it_is_exceeded_and_not_when_it_is_reached() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(Limits {
            bytes: 4,
            policy: Policy::Stop,
        });
        job.stdout.write_all(b"1234").unwrap();
        job.produced(4).await;
        let quiet = rt::timeout(Duration::from_millis(20), job.capture.limit_hit()).await;
        assert_eq!(quiet, Err(rt::Elapsed));
        job.stdout.write_all(b"5").unwrap();
        job.capture.limit_hit().await;
        job.capture.limit_hit().await;
        let totals = job.capture.drain().await;
        assert_eq!(
            totals,
            LogTotals {
                stdout_bytes: 4,
                stderr_bytes: 0,
                dropped_bytes: 1
            }
        );
    });
}

/// A tmpfs of a mebibyte that only the calling thread sees and that ends with it.
fn tiny_disk(at: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    let options = Some("size=1m,mode=0700");
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        options,
    )
    .unwrap();
}

async fn fill_tiny_disk(base: &Path, disk: Arc<DiskGuard>) -> (LogTotals, PathBuf) {
    let recorder = Recorder::new(base, disk).unwrap();
    let id = JobId::random();
    let (stdout, stdout_w) = pipe();
    let (stderr, _stderr_w) = pipe();
    let capture = recorder
        .capture(
            id,
            Pipes { stdout, stderr },
            UNLIMITED,
            &Recovered::default(),
            Rc::default(),
        )
        .unwrap();
    let writer = write_in_pieces(stdout_w.into(), random(9, 3 << 20), 10);
    while capture.totals().stdout_bytes + capture.totals().dropped_bytes < 3 << 20 {
        rt::yield_io().await;
    }
    writer.join().unwrap();
    let totals = capture.drain().await;
    assert_eq!(totals.stdout_bytes + totals.dropped_bytes, 3 << 20);
    let files = JobFiles::new(base, id);
    assert_eq!(
        files.stream(Stream::Stdout).metadata().unwrap().len(),
        totals.stdout_bytes
    );
    (totals, files.dir().to_path_buf())
}

#[test]
fn a_full_disk_drops_output_counts_it_and_keeps_what_is_stored_readable() {
    let base = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    on_shard(|| async {
        tiny_disk(base.path());
        // Guarding another disk, so that this one really fills up.
        let guard = DiskGuard::new(elsewhere.path(), 0).unwrap();
        let (totals, dir) = fill_tiny_disk(base.path(), guard).await;
        assert!(
            totals.stdout_bytes > 512 << 10 && totals.dropped_bytes > 0,
            "{totals:?}"
        );
        let place = Place::only_in(&dir);
        let progress = Progress::ended(&place).await.unwrap();
        let follower = Follower::open(&place, ALL, progress).await.unwrap();
        let mut seen = 0;
        let mut follower = follower;
        while let Some(chunk) = follower.next().await.unwrap() {
            seen += chunk.bytes.len() as u64;
        }
        // What the index could not describe on a full disk is described at recovery.
        let found = recover(&dir, 1).map(|found| found.totals.stdout_bytes);
        assert!(
            seen == totals.stdout_bytes || found.is_ok_and(|bytes| bytes == totals.stdout_bytes)
        );
    });
}

#[test]
fn the_reserve_of_a_disk_is_not_touched() {
    let base = tempfile::tempdir().unwrap();
    on_shard(|| async {
        tiny_disk(base.path());
        let guard = DiskGuard::new(base.path(), 512 << 10).unwrap();
        let (totals, _) = fill_tiny_disk(base.path(), guard).await;
        let seen = nix::sys::statvfs::statvfs(base.path()).unwrap();
        let free = seen.blocks_available() * seen.fragment_size();
        assert!(free >= 512 << 10, "{free} bytes are free");
        assert!(
            totals.stdout_bytes > 128 << 10 && totals.dropped_bytes > 0,
            "{totals:?}"
        );
    });
}

#[test]
fn draining_waits_neither_for_who_holds_a_pipe_nor_for_who_goes_on_writing() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(UNLIMITED);
        let held = job.stdout.try_clone().unwrap();
        job.stdout.write_all(b"last words").unwrap();
        let totals = job.capture.drain().await;
        assert_eq!(totals.stdout_bytes, 10);
        drop(held);

        let job = house.job(UNLIMITED);
        let mut stdout = job.stdout.try_clone().unwrap();
        let foreign = thread::spawn(move || while stdout.write_all(&[b'y'; 4096]).is_ok() {});
        job.produced(1 << 20).await;
        let totals = job.capture.drain().await;
        assert!(totals.stdout_bytes >= 1 << 20);
        drop(job); // The last read end is closed: the writer gets EPIPE.
        while !foreign.is_finished() {
            rt::yield_io().await;
        }
        foreign.join().unwrap();
    });
}

#[test]
fn a_job_that_writes_nothing_gets_no_files() {
    on_shard(|| async {
        let house = House::new();
        let job = house.job(UNLIMITED);
        let Job {
            id,
            stdout,
            stderr,
            capture,
        } = job;
        drop(stdout);
        rt::sleep(Duration::from_millis(2)).await; // Lets one stream see its end before the other.
        drop(stderr);
        assert_eq!(capture.drain().await, LogTotals::default());
        assert!(!house.files(id).dir().exists());
        let place = Place::only_in(house.files(id).dir());
        let ended = Progress::ended(&place).await.unwrap();
        assert!(ended.snapshot().is_ended);
        let mut follower = Follower::open(&place, ALL, ended).await.unwrap();
        assert_eq!(follower.next().await.unwrap(), None);
    });
}

#[test]
fn a_silent_job_holds_no_file_open() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(UNLIMITED);
        let dir = house.files(job.id).dir().to_path_buf();
        let open = || {
            let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
            fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&dir)))
                .count()
        };
        job.stdout.write_all(b"one").unwrap();
        job.readable(3).await;
        assert_eq!(open(), 2);
        let deadline = rt::now() + limits::LOG_IDLE_CLOSE * 2;
        while open() > 0 {
            assert!(rt::now() < deadline, "still open");
            rt::sleep(Duration::from_millis(50)).await;
        }
        job.stdout.write_all(b"two").unwrap();
        job.readable(6).await;
        assert_eq!(job.capture.drain().await.stdout_bytes, 6);
        assert_eq!(fs::read(dir.join("stdout")).unwrap(), b"onetwo");
    });
}

#[test]
fn a_capture_goes_on_where_the_last_one_was_abandoned() {
    on_shard(|| async {
        let house = House::new();
        let id = JobId::random();
        let (stdout, stdout_w) = pipe();
        let (stderr, stderr_w) = pipe();
        let out = random(11, 4 << 20);
        let writer = write_in_pieces(stdout_w.into(), out.clone(), 12);
        drop(stderr_w);
        let mut from = Recovered::default();
        for stop_at in [1 << 20, 2 << 20, 3 << 20, 4 << 20] {
            let pipes = Pipes {
                stdout: stdout.try_clone().unwrap(),
                stderr: stderr.try_clone().unwrap(),
            };
            let capture = house
                .recorder
                .capture(id, pipes, UNLIMITED, &from, Rc::default())
                .unwrap();
            while capture.totals().stdout_bytes < stop_at {
                rt::yield_io().await;
            }
            drop(capture);
            // As the death of a daemon would: no operation in flight is left.
            while rt::blocking("stat", || ()).await.is_err()
                || format!("{:?}", rt::ring()) != IDLE_RING
            {
                rt::yield_io().await;
            }
            rt::sleep(Duration::from_millis(5)).await;
            from = recover(house.files(id).dir(), rt::wall_ns()).unwrap();
        }
        writer.join().unwrap();
        assert_eq!(from.totals.stdout_bytes, 4 << 20);
        assert!(fs::read(house.files(id).stream(Stream::Stdout)).unwrap() == out[..]);
    });
}

const IDLE_RING: &str = "SideRing { in_flight: 0, .. }";

#[test]
fn followers_at_the_tail_share_one_read() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(UNLIMITED);
        let seen = Rc::new(RefCell::new(0));
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let (mut follower, seen) = (job.follower(ALL).await, seen.clone());
            tasks.push(rt::spawn(async move {
                while let Some(chunk) = follower.next().await.unwrap() {
                    *seen.borrow_mut() += chunk.bytes.len();
                }
            }));
        }
        let reader = job.capture.progress().reader(&job.place());
        for round in 1..=20 {
            job.stdout.write_all(&[b'x'; 1000]).unwrap();
            while *seen.borrow() < round * 50 * 1000 {
                rt::yield_io().await;
            }
        }
        assert!(
            reader.reads.get() <= 25,
            "{} reads for 20 pieces and 50 followers",
            reader.reads.get()
        );
        job.capture.drain().await;
        job.capture.progress().end();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(!job.capture.progress().is_watched());
    });
}

#[test]
fn a_follower_on_another_shard_moves_with_the_snapshots_it_is_sent() {
    on_shard(|| async {
        let house = House::new();
        let mut job = house.job(UNLIMITED);
        let copy = Progress::new(super::Snapshot::default());
        let dir = job.capture.files().dir().to_path_buf();
        let mut follower = Follower::open(&Place::only_in(&dir), ALL, copy.clone())
            .await
            .unwrap();
        assert!(copy.is_watched());
        job.stdout.write_all(b"far").unwrap();
        job.readable(3).await;
        let early = rt::timeout(Duration::from_millis(2), follower.next()).await;
        assert!(early.is_err(), "nothing was sent yet");
        copy.update(job.capture.progress().snapshot());
        assert_eq!(&follower.next().await.unwrap().unwrap().bytes[..], b"far");
        copy.end();
        assert_eq!(follower.next().await.unwrap(), None);
    });
}

#[test]
fn an_idle_job_costs_less_than_three_kibibytes() {
    on_shard(|| async {
        let house = House::new();
        let job = house.job(UNLIMITED);
        let (stdout, _w) = pipe();
        let task = stream::StreamTask {
            job: job.capture.shared(),
            pipe: Rc::new(rt::Ready::new(stdout).unwrap()),
            stream: Stream::Stdout,
        };
        task.job.begin_stream();
        let future = stream::capture(task);
        let (future, shared) = (size_of_val(&future), size_of_val(&*job.capture.shared()));
        println!("future of an idle stream {future}, shared by both {shared} bytes");
        // Two tasks with their headers, two descriptors' records, two operations and two places in line.
        let overhead = 2 * (128 + 96 + 64 + 24);
        assert!(
            2 * future + shared + overhead < 3 << 10,
            "{future} {shared}"
        );
    });
}

// ---- where to begin, against a naive model -----------------------------------------------------------

type Pieces = Vec<(Stream, u64, Vec<u8>)>;

/// Lays out the files of an ended job.
#[expect(clippy::disallowed_methods, reason = "a test lays out files")]
fn lay_out(dir: &Path, pieces: &Pieces) {
    let mut index = Header::default().encode().to_vec();
    let mut streams = [Vec::new(), Vec::new()];
    for (stream, time_ns, bytes) in pieces {
        let at = (streams[0].len() + streams[1].len()) as u64;
        let file = &mut streams[usize::from(*stream == Stream::Stderr)];
        let (offset, len) = (file.len() as u64, u32::try_from(bytes.len()).unwrap());
        let record = Record {
            at,
            offset,
            time_ns: *time_ns,
            len,
            stream: *stream,
            is_recovered: false,
        };
        index.extend(record.encode());
        file.extend_from_slice(bytes);
    }
    fs::write(dir.join("stdout"), &streams[0]).unwrap();
    fs::write(dir.join("stderr"), &streams[1]).unwrap();
    fs::write(dir.join("index"), index).unwrap();
}

/// What `query` must give, in the order of capture.
fn model(pieces: &Pieces, query: &LogQuery) -> Vec<(Stream, u8)> {
    let since = query.since_ns.map_or(0, |ns| u64::try_from(ns).unwrap());
    let selected: Vec<(Stream, u64, u8)> = pieces
        .iter()
        .filter(|(stream, ..)| query.streams.includes(*stream))
        .flat_map(|(stream, time, bytes)| bytes.iter().map(|byte| (*stream, *time, *byte)))
        .collect();
    let mut start = usize::try_from(query.offset).unwrap();
    if let Some(lines) = query.tail_lines {
        let mut wanted = lines;
        let mut begin = if lines == 0 { selected.len() } else { 0 };
        for (index, (.., byte)) in selected.iter().enumerate().rev() {
            if *byte == b'\n' && index + 1 < selected.len() && wanted > 0 {
                wanted -= 1;
                if wanted == 0 {
                    begin = index + 1;
                }
            }
        }
        start = start.max(begin);
    }
    let rest = selected.into_iter().skip(start);
    rest.filter(|(_, time, _)| *time >= since)
        .map(|(stream, _, byte)| (stream, byte))
        .collect()
}

async fn check(dir: &Path, pieces: &Pieces, query: LogQuery) {
    let place = Place::only_in(dir);
    let progress = Progress::ended(&place).await.unwrap();
    let mut follower = Follower::open(&place, query, progress).await.unwrap();
    let mut seen = Vec::new();
    while let Some(chunk) = follower.next().await.unwrap() {
        seen.extend(chunk.bytes.iter().map(|byte| (chunk.stream, *byte)));
    }
    let expected = model(pieces, &query);
    assert!(
        seen == expected,
        "{query:?}: {} bytes instead of {}",
        seen.len(),
        expected.len()
    );
}

#[test]
fn the_last_lines_are_those_that_tail_would_show() {
    let table: &[(&[&str], u64, &str)] = &[
        (&["a\nb\nc\n"], 1, "c\n"),
        (&["a\nb\nc\n"], 2, "b\nc\n"),
        (&["a\nb\nc\n"], 3, "a\nb\nc\n"),
        (&["a\nb\nc\n"], 9, "a\nb\nc\n"),
        (&["a\nb\nc\n"], 0, ""),
        (&["a\nb\nc"], 1, "c"),
        (&["a\nb\nc"], 2, "b\nc"),
        (&["a", "\n", "b"], 1, "b"),
        (&["a\n", "b", "\n"], 1, "b\n"),
        (&["\n", "\n", "\n"], 2, "\n\n"),
        (&["no newline at all"], 1, "no newline at all"),
        (&[], 5, ""),
    ];
    on_shard(|| async {
        for (pieces, lines, expected) in table {
            let dir = tempfile::tempdir().unwrap();
            let pieces: Pieces = pieces
                .iter()
                .map(|text| (Stream::Stdout, 1, text.as_bytes().to_vec()))
                .collect();
            lay_out(dir.path(), &pieces);
            let query = LogQuery {
                tail_lines: Some(*lines),
                ..HISTORY
            };
            let seen: Vec<u8> = model(&pieces, &query)
                .into_iter()
                .map(|(_, byte)| byte)
                .collect();
            assert_eq!(seen, expected.as_bytes(), "the model itself");
            check(dir.path(), &pieces, query).await;
        }
    });
}

#[test]
fn random_queries_of_random_histories_give_what_a_naive_model_gives() {
    on_shard(|| async {
        for seed in 0..60 {
            let mut dice = Dice::new(seed + 100);
            let dir = tempfile::tempdir().unwrap();
            let mut time = 1_000;
            let count = if seed % 10 == 0 {
                3_000
            } else {
                dice.below(60)
            };
            let mut total = 0;
            let mut pieces: Pieces = Vec::new();
            for _ in 0..count {
                let most = if seed % 4 == 1 && dice.below(12) == 0 {
                    700_000
                } else {
                    40
                };
                let len = 1 + dice.below(most);
                let density = 2 + dice.below(if most > 40 { 100_000 } else { 12 });
                let bytes = (0..len)
                    .map(|_| {
                        if dice.below(density) == 0 {
                            b'\n'
                        } else {
                            b'a'
                        }
                    })
                    .collect();
                let stream = if dice.below(3) == 0 {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                };
                time += dice.below(3) * 40_000_000;
                total += len;
                pieces.push((stream, time, bytes));
            }
            lay_out(dir.path(), &pieces);
            for _ in 0..12 {
                let streams = [Streams::All, Streams::Stdout, Streams::Stderr];
                let query = LogQuery {
                    streams: streams[usize::try_from(dice.below(3)).unwrap()],
                    follow: dice.below(2) == 0,
                    offset: if dice.below(2) == 0 {
                        dice.below(total + 3)
                    } else {
                        0
                    },
                    tail_lines: (dice.below(2) == 0).then(|| dice.below(30)),
                    since_ns: (dice.below(4) == 0)
                        .then(|| i64::try_from(dice.below(time + 2)).unwrap()),
                };
                check(dir.path(), &pieces, query).await;
            }
        }
    });
}

#[test]
fn an_index_that_lies_is_an_error_and_no_panic() {
    on_shard(|| async {
        let dir = tempfile::tempdir().unwrap();
        lay_out(dir.path(), &vec![(Stream::Stdout, 1, b"hello".to_vec())]);
        fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join("stdout"))
            .unwrap()
            .set_len(3)
            .unwrap();
        let place = Place::only_in(dir.path());
        let progress = Progress::ended(&place).await.unwrap();
        let mut follower = Follower::open(&place, ALL, progress).await.unwrap();
        assert!(matches!(
            follower.next().await,
            Err(super::LogError::Read { .. })
        ));
    });
}

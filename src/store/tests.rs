//! What the tests of this room share, and the room as a whole: what it keeps, what it never writes, and how fast.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use nix::time::{ClockId, clock_gettime};
use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use tempfile::TempDir;

use super::{record::tests::*, *};
use crate::job::{
    EnvEntry, JobId, JobView, State, Transition, VolumeKind, VolumeName, VolumeSize, VolumeSpec,
};

/// A store in a directory of its own.
pub(super) struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    pub(super) fn open(&self) -> (Writer, Store) {
        Store::open(options(&self.path())).unwrap()
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::open(&self.path(), &key()).unwrap()
    }
}

pub(super) fn key() -> SealKey {
    SealKey::from_bytes(&[7; 32])
}

pub(super) fn options(path: &Path) -> Options {
    Options {
        path: path.to_owned(),
        key: key(),
        durability: Durability::Process,
    }
}

/// Submits a change and waits for what comes of it.
pub(super) fn ask(writer: &Writer, change: Change) -> Result<Done, StoreError> {
    let (answer, answered) = mpsc::channel();
    let done = Box::new(move |result| answer.send(result).unwrap());
    writer.submit(change, done).unwrap();
    answered.recv().unwrap()
}

/// A job that runs since `created_ns`.
pub(super) fn live_job(created_ns: i64) -> JobView {
    let mut job = template();
    job.id = JobId::random();
    job.owner = "ann".into();
    job.state = State::Running;
    job.outcome = None;
    job.transitions = [State::Initializing, State::Running]
        .map(|state| Transition {
            state,
            wall_ns: created_ns,
            mono_ns: 1,
        })
        .into();
    job
}

/// The same job, ended.
pub(super) fn end(mut job: JobView, ended_ns: i64) -> JobView {
    job.state = State::Completed;
    job.outcome = template().outcome;
    job.transitions.push(Transition {
        state: State::Completed,
        wall_ns: ended_ns,
        mono_ns: 2,
    });
    job
}

/// A job with `value` as a secret.
pub(super) fn with_secret(mut job: JobView, value: &[u8]) -> JobView {
    Arc::make_mut(&mut job.spec).env.push(EnvEntry {
        name: "TOKEN".into(),
        value: value.into(),
        is_secret: true,
    });
    job
}

pub(super) fn accept(job: &JobView) -> Change {
    Change::Accept {
        job: Box::new(job.clone()),
        key: None,
    }
}

pub(super) fn end_of(job: &JobView) -> Change {
    Change::End {
        job: Box::new(job.clone()),
        output: None,
    }
}

/// A volume of ordinary size that is being made.
pub(super) fn stored_volume(name: &str) -> StoredVolume {
    StoredVolume {
        spec: VolumeSpec {
            name: VolumeName::parse(name).unwrap(),
            size: VolumeSize::parse("1.5GB").unwrap(),
            kind: VolumeKind::Filesystem,
        },
        created_ns: 7,
        state: VolumeState::Creating,
    }
}

/// An ended job of ordinary size, without secrets.
fn template() -> JobView {
    let mut job = vec(ended_job(), 1)
        .new_tree(&mut TestRunner::deterministic())
        .unwrap()
        .current()
        .remove(0);
    let spec = Arc::make_mut(&mut job.spec);
    spec.env.clear();
    spec.argv = [&b"sh"[..], b"-c", b"echo hello; sleep 1"]
        .map(<[u8]>::to_vec)
        .into();
    spec.labels = vec![("team".into(), "a".into())];
    spec.workdir = b"/work".to_vec();
    job.caveats.clear();
    job.log = crate::job::LogTotals {
        stdout_bytes: 6,
        stderr_bytes: 4,
        dropped_bytes: 0,
    };
    job
}

/// Any ended job that there can be: no log has more bytes than a file.
fn possible_job() -> impl Strategy<Value = JobView> {
    ended_job().prop_map(|mut job| {
        for bytes in [
            &mut job.log.stdout_bytes,
            &mut job.log.stderr_bytes,
            &mut job.log.dropped_bytes,
        ] {
            *bytes >>= 1;
        }
        job
    })
}

/// The bytes of the database and of its log.
pub(super) fn raw(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    bytes.extend(fs::read(schema::wal_of(path)).unwrap_or_default());
    bytes
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

#[test]
fn any_job_reads_back_as_it_was_accepted_and_as_it_ended() {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    let reader = scratch.reader();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 100,
        ..ProptestConfig::default()
    });
    let jobs = (possible_job(), possible_job());
    let case = |(job, other): (JobView, JobView)| {
        let mut accepted = job.clone();
        accepted.outcome = None;
        prop_assert_eq!(ask(&writer, accept(&accepted)).unwrap(), Done::Accepted);
        prop_assert_eq!(
            reader.get(job.id).unwrap(),
            Some(without_secrets(accepted.clone()))
        );
        let live = reader.live().unwrap();
        prop_assert!(live.broken.is_empty(), "{:?}", live.broken);
        prop_assert_eq!(live.jobs, std::slice::from_ref(&accepted));

        // What may change is that of another job; what was asked stays.
        let mut later = JobView {
            id: job.id,
            owner: job.owner.clone(),
            spec: Arc::clone(&job.spec),
            schedule_id: job.schedule_id,
            outcome: None,
            ..other
        };
        let update = Change::Update {
            job: Box::new(later.clone()),
        };
        prop_assert_eq!(ask(&writer, update).unwrap(), Done::Updated);
        prop_assert_eq!(reader.live().unwrap().jobs, std::slice::from_ref(&later));

        later.outcome = job.outcome.clone();
        later.transitions = job.transitions.clone();
        let has_output = false;
        prop_assert_eq!(
            ask(&writer, end_of(&later)).unwrap(),
            Done::Ended { has_output }
        );
        prop_assert_eq!(reader.get(job.id).unwrap(), Some(without_secrets(later)));
        prop_assert_eq!(reader.live().unwrap().jobs, []);

        // The end alone is as good.
        let id = JobId::random();
        let unknown = JobView { id, ..job };
        prop_assert_eq!(
            ask(&writer, end_of(&unknown)).unwrap(),
            Done::Ended { has_output }
        );
        prop_assert_eq!(reader.get(id).unwrap(), Some(without_secrets(unknown)));
        Ok(())
    };
    runner.run(&jobs, case).unwrap();
    drop(writer);
    store.close();
}

#[test]
fn secrets_are_sealed_while_a_job_lives_and_gone_when_it_has_ended() {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    let job = with_secret(live_job(1), b"hunter2-hunter2");
    ask(&writer, accept(&job)).unwrap();
    let is_clear = |when| {
        assert!(
            !contains(&raw(&scratch.path()), b"hunter2"),
            "{when}: in clear text"
        );
    };
    is_clear("accepted");
    let reader = scratch.reader();
    assert_eq!(reader.live().unwrap().jobs, std::slice::from_ref(&job));
    let shown = reader.get(job.id).unwrap().unwrap();
    assert_eq!(shown.spec.env[0].value, b"***");

    // A store that was opened with another key says which job cannot go on, and does not hide it.
    let stranger = Reader::open(&scratch.path(), &SealKey::from_bytes(&[8; 32])).unwrap();
    let live = stranger.live().unwrap();
    assert!(live.jobs.is_empty());
    assert!(
        matches!(&live.broken[..], [(id, StoreError::Unseal { .. })] if *id == job.id),
        "{:?}",
        live.broken
    );

    let update = Change::Update {
        job: Box::new(job.clone()),
    };
    ask(&writer, update).unwrap();
    assert_eq!(reader.live().unwrap().jobs, std::slice::from_ref(&job));
    ask(&writer, end_of(&end(job.clone(), 2))).unwrap();
    is_clear("ended");
    let sealed = |path: &Path| {
        rusqlite::Connection::open(path)
            .unwrap()
            .query_row("SELECT count(secrets) FROM jobs", [], |row| {
                row.get::<_, i64>(0)
            })
            .unwrap()
    };
    assert_eq!(sealed(&scratch.path()), 0);
    drop(writer);
    store.close();
    is_clear("closed");
}

#[test]
fn small_output_comes_back_and_larger_stays_in_files() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let reader = scratch.reader();
    let finish = |output: SmallOutput| {
        let job = end(live_job(1), 2);
        let change = Change::End {
            job: Box::new(job.clone()),
            output: Some(output),
        };
        (job.id, ask(&writer, change))
    };
    let most = SmallOutput {
        stdout: vec![b'a'; crate::limits::SMALL_OUTPUT_BYTES - 1],
        stderr: vec![0xff],
        index: vec![1; crate::limits::SMALL_OUTPUT_INDEX_BYTES],
    };
    for output in [SmallOutput::default(), most.clone()] {
        let (id, done) = finish(output.clone());
        assert_eq!(done.unwrap(), Done::Ended { has_output: true });
        assert_eq!(reader.output(id).unwrap(), Some(output));
        assert_eq!(
            reader.with_output(&[JobId::random(), id]).unwrap(),
            [id],
            "its files may go"
        );
    }
    let mut more_output = most.clone();
    more_output.stderr.push(0);
    let mut more_index = most;
    more_index.index.push(0);
    for output in [more_output, more_index] {
        let (id, refused) = finish(output);
        assert!(
            matches!(refused, Err(StoreError::OutputTooLarge { id: of, .. }) if of == id),
            "{refused:?}"
        );
        assert_eq!(reader.get(id).unwrap(), None);
    }
    assert_eq!(reader.output(JobId::random()).unwrap(), None);
}

#[test]
fn the_first_end_of_a_job_says_where_its_output_is() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let reader = scratch.reader();
    let some = |text: &[u8]| SmallOutput {
        stdout: text.to_vec(),
        ..SmallOutput::default()
    };
    let check = |first: Option<SmallOutput>, second: Option<SmallOutput>| {
        let job = Box::new(end(live_job(1), 2));
        let id = job.id;
        let end = |output| Change::End {
            job: job.clone(),
            output,
        };
        let has_output = first.is_some();
        for output in [first.clone(), second] {
            assert_eq!(
                ask(&writer, end(output)).unwrap(),
                Done::Ended { has_output }
            );
        }
        assert_eq!(reader.output(id).unwrap(), first);
        assert_eq!(
            reader.with_output(&[id]).unwrap().len(),
            usize::from(has_output)
        );
        // It goes with its job.
        ask(&writer, Change::Delete { ids: vec![id] }).unwrap();
        assert_eq!(reader.output(id).unwrap(), None);
    };
    check(None, Some(some(b"late")));
    check(Some(some(b"first")), Some(some(b"second")));
    check(Some(some(b"first")), None);
}

#[test]
fn stored_output_counts_among_the_bytes_that_stay_and_goes_with_its_job() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let reader = scratch.reader();
    let ended = [2, 4, 6].map(|at| {
        let mut job = end(live_job(at - 1), at);
        (job.log.stdout_bytes, job.log.stderr_bytes) = (6, 4);
        let output = SmallOutput {
            stdout: b"output".to_vec(),
            stderr: b"more".to_vec(),
            ..SmallOutput::default()
        };
        let change = Change::End {
            job: Box::new(job.clone()),
            output: Some(output),
        };
        ask(&writer, change).unwrap();
        job.id
    });
    let prune = |keep_bytes| Change::Prune {
        keep_jobs: 10,
        ended_before_ns: None,
        keep_bytes: Some(keep_bytes),
    };
    for (keep_bytes, gone) in [(30, &ended[..0]), (29, &ended[..1]), (10, &ended[1..2])] {
        let ids = gone.to_vec();
        assert_eq!(
            ask(&writer, prune(keep_bytes)).unwrap(),
            Done::Pruned { ids }
        );
    }
    assert_eq!(reader.with_output(&ended).unwrap(), ended[2..]);
    assert_eq!(reader.output(ended[0]).unwrap(), None);
}

/// How many ended jobs the measurement has: `JOBLET_STORE_JOBS`, or enough to see that it works.
fn measured_jobs() -> usize {
    std::env::var("JOBLET_STORE_JOBS").map_or(5_000, |count| count.parse().unwrap())
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).unwrap()
}

/// Keeps `in_flight` changes waiting until `count` are answered; the latencies, sorted, in microseconds.
fn latencies(
    writer: &Writer,
    count: usize,
    in_flight: usize,
    mut change: impl FnMut(usize) -> Change,
) -> Vec<u64> {
    let (answer, answered) = mpsc::channel();
    let mut found = Vec::with_capacity(count);
    for index in 0..count + in_flight {
        if index >= in_flight {
            found.push(answered.recv().unwrap());
        }
        if index < count {
            let change = change(index);
            let answer = answer.clone();
            let begun = now_ns();
            let done = Box::new(move |result: Result<Done, StoreError>| {
                result.unwrap();
                answer.send((now_ns() - begun) / 1_000).unwrap();
            });
            writer.submit(change, done).unwrap();
        }
    }
    found.sort_unstable();
    found
}

/// Prints what `JOBLET_STORE_JOBS=100000 cargo test --release -p joblet --lib store::tests::a_long -- --nocapture`
/// measures, and asserts what must hold on any machine: no question scans all jobs, and the file stays in order.
#[test]
fn a_long_history_opens_and_answers_as_fast_as_a_short_one() {
    let scratch = Scratch::new();
    let jobs = measured_jobs();
    let (writer, store) = scratch.open();
    let mut created_ns = 0;
    let mut next = || {
        created_ns += 1;
        live_job(created_ns)
    };
    let accepted: Vec<_> = (0..jobs.min(2_000)).map(|_| next()).collect();
    let print = |what: &str, begun: u64, latencies: &[u64]| {
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
        let seconds = (now_ns() - begun) as f64 / 1e9;
        println!(
            "{what}: p50 {} p99 {} max {} us, {:.0}/s",
            at(50),
            at(99),
            at(100),
            latencies.len() as f64 / seconds
        );
    };
    let begun = now_ns();
    let alone = latencies(&writer, accepted.len(), 1, |index| accept(&accepted[index]));
    print("accept, 1 in flight", begun, &alone);
    let history: Vec<_> = (accepted.len()..jobs).map(|_| next()).collect();
    let begun = now_ns();
    let many = latencies(&writer, history.len(), 64, |index| accept(&history[index]));
    print("accept, 64 in flight", begun, &many);
    let all: Vec<_> = accepted.into_iter().chain(history).collect();
    let ended: Vec<_> = all
        .iter()
        .map(|job| end(job.clone(), job.transitions[0].wall_ns))
        .collect();
    let begun = now_ns();
    let ends = latencies(&writer, ended.len(), 64, |index| end_of(&ended[index]));
    print("end, 64 in flight", begun, &ends);
    let wal = fs::metadata(schema::wal_of(&scratch.path())).unwrap().len();
    println!("log {} KiB", wal >> 10);
    assert!(wal < 2 * crate::limits::STORE_WAL_BYTES);
    drop(writer);
    store.close();
    let bytes = fs::metadata(scratch.path()).unwrap().len();
    println!("{} bytes a job", bytes / jobs as u64);

    let begun = now_ns();
    let (writer, _store) = scratch.open();
    println!("open: {} us", (now_ns() - begun) / 1_000);
    let reader = scratch.reader();
    let begun = now_ns();
    assert_eq!(reader.live().unwrap().jobs, []);
    println!("live: {} us", (now_ns() - begun) / 1_000);
    let query = ListQuery {
        state: None,
        owner: None,
        limit: 100,
        before: None,
    };
    let begun = now_ns();
    let (listed, more) = reader.list(&query).unwrap();
    println!("list of 100: {} us", (now_ns() - begun) / 1_000);
    let newest: Vec<_> = all.iter().rev().take(100).map(|job| job.id).collect();
    assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), newest);
    assert!(more.is_some());
    let begun = now_ns();
    assert!(reader.get(all[7].id).unwrap().is_some());
    println!("get: {} us", (now_ns() - begun) / 1_000);
    let begun = now_ns();
    let prune = Change::Prune {
        keep_jobs: jobs - 10,
        ended_before_ns: None,
        keep_bytes: Some(u64::MAX),
    };
    let oldest: Vec<_> = all[..10].iter().map(|job| job.id).collect();
    assert_eq!(ask(&writer, prune).unwrap(), Done::Pruned { ids: oldest });
    println!("prune 10: {} us", (now_ns() - begun) / 1_000);
}

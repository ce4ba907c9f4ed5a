//! Batches: who fails with whom, what a kill leaves, what a full disk does, and what goes when history is bounded.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::mpsc::{Sender, channel},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{
    super::{Key, Remembered, tests::*},
    *,
};
use crate::job::{JobId, JobView};

const DAY_NS: i64 = 24 * 3_600 * 1_000_000_000;

fn key_for(name: &str, fingerprint: u8, created_ns: i64) -> Key {
    Key {
        owner: "ann".into(),
        key: name.into(),
        fingerprint: [fingerprint; 32],
        expires_ns: created_ns + DAY_NS,
    }
}

fn accept_with(job: &JobView, key: Key) -> Change {
    Change::Accept {
        job: Box::new(job.clone()),
        key: Some(key),
    }
}

/// Keeps the store's thread waiting until the sender is used or dropped.
fn hold(writer: &Writer) -> Sender<()> {
    let (release, released) = channel();
    let (begun, has_begun) = channel();
    let done = Box::new(move |_| {
        begun.send(()).unwrap();
        let _ = released.recv();
    });
    writer
        .submit(Change::ForgetKeys { now_ns: 0 }, done)
        .unwrap();
    has_begun.recv().unwrap();
    release
}

/// Submits all of `changes` so that they are one batch; what came of each.
fn ask_together(writer: &Writer, changes: Vec<Change>) -> Vec<Result<Done, StoreError>> {
    let release = hold(writer);
    let (answer, answered) = channel();
    let count = changes.len();
    for change in changes {
        let answer = answer.clone();
        let done = Box::new(move |result| answer.send(result).unwrap());
        writer.submit(change, done).unwrap();
    }
    drop(release);
    answered.iter().take(count).collect()
}

#[test]
fn what_is_refused_in_a_batch_fails_alone() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let jobs: Vec<_> = (0..4).map(live_job).collect();
    let [first, second, third, stranger] = &jobs[..] else {
        panic!("four jobs")
    };
    let key = key_for("nightly", 1, 0);
    let ended = end(first.clone(), 9);
    let found = ask_together(
        &writer,
        vec![
            accept_with(first, key.clone()),
            accept(first),
            accept_with(second, key.clone()),
            accept_with(second, key_for("nightly", 2, 0)),
            accept(second),
            Change::Update {
                job: Box::new(stranger.clone()),
            },
            end_of(second),
            end_of(&ended),
            Change::Update {
                job: Box::new(first.clone()),
            },
            Change::Delete {
                ids: vec![stranger.id; limits::STORE_DELETE_JOBS + 1],
            },
            accept(third),
        ],
    );
    let text: Vec<_> = found
        .iter()
        .map(|result| match result {
            Ok(done) => format!("{done:?}"),
            Err(error) => error.to_string(),
        })
        .collect();
    let [id, two, none] = [first.id, second.id, stranger.id];
    assert_eq!(
        text,
        [
            "Accepted".to_owned(),
            format!("job {id} is in the store already"),
            format!("Duplicate {{ id: {id} }}"),
            format!("idempotency key \"nightly\" was used for another request, job {id}"),
            "Accepted".into(),
            format!("job {none} is not in the store"),
            format!("job {two} has no outcome"),
            "Ended { has_output: false }".into(),
            format!("job {id} has ended"),
            "513 jobs are more than one change deletes, 512".into(),
            "Accepted".into(),
        ]
    );
    let reader = scratch.reader();
    assert_eq!(reader.live().unwrap().jobs, [second.clone(), third.clone()]);
    assert_eq!(reader.get(first.id).unwrap(), Some(ended.clone()));
    assert_eq!(reader.count().unwrap(), 3);

    // The first end stays.
    let mut other_end = ended.clone();
    other_end.transitions.clear();
    let has_output = false;
    assert_eq!(
        ask(&writer, end_of(&other_end)).unwrap(),
        Done::Ended { has_output }
    );
    assert_eq!(reader.get(first.id).unwrap(), Some(ended));
}

#[test]
fn fifty_submits_with_one_key_at_once_are_one_job() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let threads: Vec<_> = (0..50)
        .map(|_| {
            let writer = writer.clone();
            thread::spawn(move || {
                let job = live_job(5);
                let done = ask(&writer, accept_with(&job, key_for("k", 1, 5))).unwrap();
                (job.id, done)
            })
        })
        .collect();
    let found: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let accepted: Vec<_> = found
        .iter()
        .filter(|(_, done)| *done == Done::Accepted)
        .map(|(id, _)| *id)
        .collect();
    let [id] = accepted[..] else {
        panic!("{accepted:?} were accepted")
    };
    let duplicates = found
        .iter()
        .filter(|(_, done)| *done == Done::Duplicate { id });
    assert_eq!(duplicates.count(), 49);
    assert_eq!(scratch.reader().count().unwrap(), 1);
}

#[test]
fn keys_belong_to_their_owner_expire_and_go_with_their_job() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let submit = |key: Key, at_ns| {
        let job = live_job(at_ns);
        (job.id, ask(&writer, accept_with(&job, key)))
    };
    let accepted = |key: Key, at_ns| {
        let (id, done) = submit(key, at_ns);
        assert_eq!(done.unwrap(), Done::Accepted);
        id
    };
    let first = accepted(key_for("k", 1, 0), 0);
    let mut bobs = key_for("k", 2, 0);
    bobs.owner = "bob".into();
    accepted(bobs, 0);
    // Both sides of the moment at which it expires.
    let (_, done) = submit(key_for("k", 1, DAY_NS - 1), DAY_NS - 1);
    assert_eq!(done.unwrap(), Done::Duplicate { id: first });
    let reader = scratch.reader();
    let look = |key: &Key, now_ns| reader.remembered(key, now_ns).unwrap();
    let key = key_for("k", 1, 0);
    assert_eq!(look(&key, DAY_NS - 1), Remembered::Job(first));
    assert_eq!(look(&key, DAY_NS), Remembered::Nothing);
    assert_eq!(look(&key_for("k", 2, 0), 0), Remembered::Other(first));
    assert_eq!(look(&key_for("j", 1, 0), 0), Remembered::Nothing);
    let second = accepted(key_for("k", 2, DAY_NS), DAY_NS);
    let (_, done) = submit(key_for("k", 1, DAY_NS), DAY_NS);
    assert!(
        matches!(done, Err(StoreError::KeyConflict { id, .. }) if id == second),
        "{done:?}"
    );

    let forget = |now_ns| ask(&writer, Change::ForgetKeys { now_ns }).unwrap();
    assert_eq!(forget(DAY_NS - 1), Done::Forgotten { count: 0 });
    assert_eq!(forget(DAY_NS), Done::Forgotten { count: 1 }, "bob's");

    let delete = Change::Delete {
        ids: vec![second, second, JobId::random()],
    };
    assert_eq!(ask(&writer, delete).unwrap(), Done::Deleted { count: 1 });
    assert_eq!(scratch.reader().get(second).unwrap(), None);
    accepted(key_for("k", 3, DAY_NS), DAY_NS);
}

#[test]
fn a_full_queue_gives_the_change_back_and_so_does_a_store_that_has_ended() {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    let release = hold(&writer);
    let (answer, answered) = channel();
    let mut taken = 0;
    let refused = loop {
        let answer = answer.clone();
        let done = Box::new(move |result: Result<Done, StoreError>| {
            answer.send(result.is_ok()).unwrap();
        });
        match writer.submit(Change::ForgetKeys { now_ns: 0 }, done) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert!(
        matches!(refused, Rejected::Full(Change::ForgetKeys { now_ns: 0 })),
        "{refused:?}"
    );
    assert_eq!(taken, limits::STORE_QUEUE_CHANGES);
    drop(release);
    assert!(answered.iter().take(taken).all(|is_done| is_done));

    store.close();
    let job = live_job(1);
    let refused = writer.submit(accept(&job), Box::new(|_| panic!("nobody is there")));
    assert!(
        matches!(refused, Err(Rejected::Closed(Change::Accept { .. }))),
        "{refused:?}"
    );
}

#[test]
fn the_store_does_what_waits_and_empties_its_log_when_nobody_can_ask_any_more() {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    let release = hold(&writer);
    let jobs: Vec<_> = (0..1_000).map(live_job).collect();
    for job in &jobs {
        writer.submit(accept(job), Box::new(|_| {})).unwrap();
    }
    drop(writer);
    drop(release);
    store.close();
    let wal = fs::metadata(schema::wal_of(&scratch.path()));
    assert!(wal.is_err() || wal.unwrap().len() == 0);
    let (_writer, _store) = scratch.open();
    assert_eq!(scratch.reader().live().unwrap().jobs, jobs);
}

/// What this test binary has to be given to run the test below and nothing else, and where it finds the database.
const AS_WRITER: [&str; 5] = [
    "--exact",
    "store::writer::tests::the_writer_of_these_tests",
    "--nocapture",
    "--test-threads=1",
    "--quiet",
];
const PLACE: &str = "JOBLET_TEST_STORE";

/// When this binary is executed with [`PLACE`], this is where it writes until it is killed: 16 threads, each accepts
/// a job, ends it and says so, a line for each answer.
#[test]
fn the_writer_of_these_tests() {
    let Some(path) = env::var_os(PLACE) else {
        return;
    };
    let (writer, _store) = Store::open(options(path.as_ref())).unwrap();
    let say = |line: String| {
        // A write this short to a pipe is whole or not there.
        let mut out = fs::OpenOptions::new()
            .write(true)
            .open("/proc/self/fd/1")
            .unwrap();
        out.write_all(line.as_bytes()).unwrap();
    };
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let job = live_job(1);
                    ask(&writer, accept(&job)).unwrap();
                    say(format!("live {}\n", job.id));
                    ask(&writer, end_of(&end(job.clone(), 2))).unwrap();
                    say(format!("ended {}\n", job.id));
                }
            });
        }
    });
}

/// Lets a process write to the database until it has said `lines` lines, kills it; what it said.
#[expect(
    clippy::disallowed_methods,
    reason = "a process of this test, to be killed"
)]
fn kill_a_writer(path: &std::path::Path, lines: usize) -> Vec<(bool, JobId)> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(AS_WRITER)
        .env(PLACE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let parse = |line: String| {
        let (word, id) = line.split_once(' ')?;
        Some((word == "ended", JobId::parse(id)?))
    };
    let mut said = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .filter_map(|line| parse(line.unwrap()));
    let mut found: Vec<_> = said.by_ref().take(lines).collect();
    child.kill().unwrap();
    found.extend(said);
    child.wait().unwrap();
    assert!(found.len() >= lines, "it ended by itself");
    found
}

#[test]
fn a_writer_killed_at_any_moment_has_lost_nothing_that_it_answered() {
    let scratch = Scratch::new();
    // The first one is killed while the database is young, later ones while the log is moved.
    for lines in [1, 2, 10, 100, 400, 1_000, 3_000] {
        let said = kill_a_writer(&scratch.path(), lines);
        let (writer, store) = scratch.open();
        let reader = scratch.reader();
        let mut ended = 0;
        for (has_ended, id) in &said {
            let job = reader.get(*id).unwrap();
            let job = job.unwrap_or_else(|| panic!("{id} was answered and is lost"));
            if *has_ended {
                assert!(job.outcome.is_some(), "the end of {id} is lost");
                ended += 1;
            }
        }
        println!(
            "{lines}: {} answers, {ended} of them ends, all there",
            said.len()
        );
        drop(writer);
        store.close();
    }
}

/// Mounts, or makes larger, a tmpfs that only the calling thread and those it starts see.
fn disk_of(at: &std::path::Path, bytes: usize, flags: MsFlags) {
    let size = format!("size={bytes},mode=0700");
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(size.as_str()),
    )
    .unwrap();
}

#[test]
fn a_full_disk_is_said_loses_nothing_and_is_over_when_there_is_space() {
    let scratch = Scratch::new();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    let path = scratch.path();
    let disk = path.parent().unwrap();
    disk_of(disk, 2 << 20, MsFlags::empty());

    let (writer, store) = scratch.open();
    let reader = scratch.reader();
    let mut kept = Vec::new();
    let refused = loop {
        let job = live_job(kept.len().try_into().unwrap());
        match ask(&writer, accept(&job)) {
            Ok(_) => kept.push(job),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, StoreError::Full), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "the store has no space left on its disk"
    );
    assert!(kept.len() > 50, "{} jobs were accepted before", kept.len());
    // It stays so, for every one of a batch.
    let more = (0..3).map(|_| accept(&live_job(0))).collect();
    for refused in ask_together(&writer, more) {
        assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
    }
    assert_eq!(reader.live().unwrap().jobs, kept);

    disk_of(disk, 8 << 20, MsFlags::MS_REMOUNT);
    for _ in 0..20 {
        let job = live_job(kept.len().try_into().unwrap());
        assert_eq!(ask(&writer, accept(&job)).unwrap(), Done::Accepted);
        kept.push(job);
    }
    assert_eq!(reader.live().unwrap().jobs, kept);
    drop((writer, reader));
    store.close();
    let (writer, store) = scratch.open();
    assert_eq!(scratch.reader().live().unwrap().jobs, kept);
    drop(writer);
    store.close();
}

/// `count` ended jobs: the one at index i was accepted and ended at i, and has ten bytes of output.
fn history(writer: &Writer, count: i64) -> Vec<JobId> {
    (0..count)
        .map(|at_ns| {
            let job = end(live_job(at_ns), at_ns);
            ask(writer, end_of(&job)).unwrap();
            job.id
        })
        .collect()
}

#[test]
fn what_ended_first_goes_by_count_age_and_bytes_and_what_lives_stays() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let living = live_job(-1);
    ask(&writer, accept(&living)).unwrap();
    let ids = history(&writer, 20);
    let prune = |keep_jobs, ended_before_ns, keep_bytes| {
        let change = Change::Prune {
            keep_jobs,
            ended_before_ns,
            keep_bytes,
        };
        let Done::Pruned { ids } = ask(&writer, change).unwrap() else {
            panic!("another answer")
        };
        ids
    };
    assert_eq!(prune(20, None, None), []);
    assert_eq!(prune(20, Some(0), Some(200)), []);
    assert_eq!(prune(18, None, None), ids[..2]);
    assert_eq!(prune(18, Some(5), None), ids[2..5]);
    assert_eq!(prune(18, None, Some(149)), ids[5..6]);
    // The strictest rule decides.
    assert_eq!(prune(12, Some(7), Some(105)), ids[6..10]);
    assert_eq!(prune(0, None, None), ids[10..]);
    assert_eq!(prune(0, Some(i64::MAX), Some(0)), []);
    assert_eq!(scratch.reader().live().unwrap().jobs, [living]);
    assert_eq!(scratch.reader().count().unwrap(), 1);
}

#[test]
fn a_prune_is_bounded_and_its_space_is_used_again_or_given_back() {
    let scratch = Scratch::new();
    let (writer, store) = scratch.open();
    let most = limits::STORE_DELETE_JOBS;
    let fat = |at_ns| {
        let mut job = end(live_job(at_ns), at_ns);
        Arc::make_mut(&mut job.spec).argv[2] = vec![b'x'; 60_000];
        job
    };
    let jobs = i64::try_from(most).unwrap() + 10;
    for at_ns in 0..jobs {
        ask(&writer, end_of(&fat(at_ns))).unwrap();
    }
    let prune = || {
        let change = Change::Prune {
            keep_jobs: 0,
            ended_before_ns: None,
            keep_bytes: None,
        };
        let Done::Pruned { ids } = ask(&writer, change).unwrap() else {
            panic!("another answer")
        };
        ids.len()
    };
    assert_eq!(prune(), most);
    let pages = || {
        let other = Connection::open(scratch.path()).unwrap();
        let count = other.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0));
        count.unwrap()
    };
    let full = pages();
    assert_eq!(prune(), 10);
    assert_eq!(prune(), 0);
    for _ in 0..3 {
        ask(&writer, end_of(&fat(0))).unwrap();
        prune();
    }
    let now = pages();
    assert!(
        now + 2 * limits::STORE_VACUUM_PAGES <= full,
        "{now} pages, before {full}"
    );
    drop(writer);
    store.close();
}

#[test]
fn a_lock_held_by_another_program_is_waited_for_and_then_refuses_that_batch_only() {
    let scratch = Scratch::new();
    let (writer, _store) = scratch.open();
    let other = Connection::open(scratch.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let job = live_job(1);
    let refused = ask(&writer, accept(&job));
    assert!(
        matches!(refused, Err(StoreError::Sqlite { .. })),
        "{refused:?}"
    );
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(ask(&writer, accept(&job)).unwrap(), Done::Accepted);
}

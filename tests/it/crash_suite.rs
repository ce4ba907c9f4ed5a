//! A daemon that is killed again and again: at random moments under load, and at each system call of a start.
//!
//! The client remembers what was acknowledged and what must come of it. Nothing of that may be lost, run twice, or
//! have a byte too few or too many in its log; and in the end nothing may be left over. Numbers are printed.
//!
//! `JOBLET_TEST_ROUNDS` is how often the daemon is killed at random moments, `JOBLET_TEST_SEED` repeats the
//! choices of a run, and with `JOBLET_TEST_EVERY_CALL=1` no system call is left out.

/// What was asked for and what has come of it.
mod book;
/// Killed at the n-th system call.
mod calls;
/// Jobs whose end and output are known beforehand.
mod order;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proto_rkyv::{Id, Reply};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::harness::{
    Client, Daemon, Dice, Host, Identity, SHORT, Waiting, Wire, Witness, ask, block_on, now,
    patient, wait_until,
};
use book::{Book, Next};
use order::{Order, Sort, WITNESSED, is_end, shown};

/// Kills in a run that names no other number.
const ROUNDS: u64 = 110;
/// Requests at a time.
const WORKERS: usize = 8;
/// Clients that follow the output of a running job.
const FOLLOWERS: usize = 2;
/// A round that hears so many answers and none of what it waits for is over.
const ANSWERS_MAX: u64 = 1_500;
/// Jobs that are still to end when nothing new is asked for have so long.
const LAST_JOBS: Duration = Duration::from_secs(60);

/// One of these tests at a time: each keeps two cores busy.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    // One that has failed says nothing about the next.
    TURN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_daemon_killed_at_random_moments_loses_nothing_and_does_nothing_twice() {
    if !Host::Any.is_here() {
        return;
    }
    let _turn = turn();
    let rounds = std::env::var("JOBLET_TEST_ROUNDS").map_or(ROUNDS, |n| n.parse().unwrap());
    let mut witness = Witness::over(WITNESSED);
    let daemon = Daemon::start();
    let mut book = Book::new(Dice::of_the_day("kills at random moments"));
    let begin = now();
    let mut moments = BTreeMap::<&str, u64>::new();
    for round in 0..rounds {
        let moment = Moment::random(&mut book);
        *moments.entry(moment.name()).or_default() += 1;
        if round % 10 == 0 {
            daemon.remember();
        }
        book = play(&daemon, book, Some(moment));
        if let Moment::Starting(bytes) = moment {
            daemon.serve_and_kill(bytes);
        }
        daemon.serve();
        witness.opened();
        assert!(
            book.wrong.is_empty(),
            "round {round}, {moment:?}: {:#?}",
            book.wrong
        );
    }
    book.close();
    book = play(&daemon, book, None);
    daemon.remember();
    let (ran, opened) = (book.ran(), witness.opened());
    eprintln!(
        "{rounds} kills in {:?} {moments:?}; {:?}; {ran} jobs ran, a witness saw {opened}",
        begin.elapsed(),
        book.counts
    );
    assert!(book.wrong.is_empty(), "{:#?}", book.wrong);
    assert!(
        book.all_ended(),
        "{} jobs have not ended: {book:?}",
        book.open()
    );
    assert!(opened <= ran, "{opened} runs and {ran} jobs that ran");
    small_output_has_left_its_files(&daemon);
    // Dropping the daemon proves that nothing of any of them is left.
}

/// Of ended jobs only those have files whose output or index is too large for the store.
#[track_caller]
fn small_output_has_left_its_files(daemon: &Daemon) {
    let size = |path: PathBuf| path.metadata().map_or(0, |file| file.len());
    let is_small = |dir: &PathBuf| {
        let bytes = size(dir.join("stdout")) + size(dir.join("stderr"));
        bytes <= 4_096 && size(dir.join("index")) <= 4_096
    };
    wait_until(SHORT, "small output has left its files", || {
        let dirs = fs::read_dir(daemon.base.join("jobs")).unwrap().flatten();
        let small: Vec<PathBuf> = dirs.map(|dir| dir.path()).filter(is_small).collect();
        Waiting::when(small.is_empty(), || format!("{small:?}"))
    });
}

/// When a daemon is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After so many acknowledgements.
    Acknowledged(u64),
    /// After followers were sent so many bytes.
    Followed(u64),
    /// After so many answers of any kind.
    Answered(u64),
    /// After so many answers, and its successor once more when it has written so much of its log.
    Starting(usize),
}

impl Moment {
    fn random(book: &mut Book) -> Self {
        match book.below(4) {
            0 => Self::Acknowledged(1 + book.below(60)),
            1 => Self::Followed(1 + book.below(6_000)),
            2 => Self::Answered(1 + book.below(500)),
            _ => Self::Starting(usize::try_from(book.below(1_500)).unwrap()),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Acknowledged(_) => "acknowledged",
            Self::Followed(_) => "followed",
            Self::Answered(_) => "answered",
            Self::Starting(_) => "starting",
        }
    }
}

/// What is heard in a round, and whether its moment has come.
#[derive(Debug)]
struct Meter {
    moment: Option<Moment>,
    acknowledged: AtomicU64,
    followed: AtomicU64,
    answered: AtomicU64,
    is_now: Notify,
}

impl Meter {
    fn new(moment: Option<Moment>) -> Self {
        Self {
            moment,
            acknowledged: AtomicU64::new(0),
            followed: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_now: Notify::new(),
        }
    }

    fn count(&self, what: &AtomicU64, more: u64) {
        what.fetch_add(more, Ordering::Relaxed);
        let Some(moment) = self.moment else { return };
        let answered = self.answered.load(Ordering::Relaxed);
        let has_come = match moment {
            Moment::Acknowledged(count) => self.acknowledged.load(Ordering::Relaxed) >= count,
            Moment::Followed(bytes) => self.followed.load(Ordering::Relaxed) >= bytes,
            Moment::Answered(count) => answered >= count,
            Moment::Starting(_) => answered >= 100,
        };
        if has_come || answered >= ANSWERS_MAX {
            self.is_now.notify_one();
        }
    }
}

/// One life of the daemon: everything recorded is compared, jobs are asked for and looked at until the moment
/// comes, and it is killed in the midst of it. Without a moment it lives until nothing is left to do.
fn play(daemon: &Daemon, book: Book, moment: Option<Moment>) -> Book {
    let book = Arc::new(Mutex::new(book));
    block_on(async {
        let wire = Client::of(&Identity::read(&daemon.config))
            .connect(daemon.address)
            .await
            .unwrap();
        let compare = async {
            let records = ask::list(&wire).await.expect("nobody has killed it yet");
            book.lock().unwrap().compare(&records);
        };
        compare.await;
        let meter = Arc::new(Meter::new(moment));
        let mut tasks = JoinSet::new();
        for _ in 0..WORKERS {
            tasks.spawn(work(wire.clone(), Arc::clone(&book), Arc::clone(&meter)));
        }
        for _ in 0..FOLLOWERS {
            tasks.spawn(follow(wire.clone(), Arc::clone(&book), Arc::clone(&meter)));
        }
        if moment.is_some() {
            tokio::select! {
                () = meter.is_now.notified() => {}
                Some(ended) = tasks.join_next() => {
                    ended.unwrap();
                    book.lock().unwrap().wrong("the connection ended, and nobody has killed the daemon".to_owned());
                }
            }
            daemon.kill_now();
            tasks.shutdown().await;
        } else {
            let last = async { while tasks.join_next().await.is_some() {} };
            if tokio::time::timeout(patient(LAST_JOBS), last)
                .await
                .is_err()
            {
                book.lock().unwrap().wrong("jobs do not end".to_owned());
            }
            let records = ask::list(&wire).await.expect("nobody has killed it");
            book.lock().unwrap().compare(&records);
        }
        wire.connection.close(0_u32.into(), b"");
    });
    let mut book = Arc::try_unwrap(book).unwrap().into_inner().unwrap();
    book.forget_pending();
    book
}

/// Asks for jobs and looks at them, until the connection is lost or nothing is left.
async fn work(wire: Wire, book: Arc<Mutex<Book>>, meter: Arc<Meter>) {
    loop {
        let next = book.lock().unwrap().next();
        let done = match next {
            Next::Submit(order) => submit(&wire, &book, &meter, order).await,
            Next::Look(id, order) => look(&wire, &book, id, order).await,
            Next::Nothing if meter.moment.is_none() && book.lock().unwrap().open() == 0 => return,
            Next::Nothing => {
                // Others have the last ones in their hands.
                tokio::task::yield_now().await;
                status_of_nobody(&wire).await
            }
        };
        if done.is_none() {
            return;
        }
        meter.count(&meter.answered, 1);
    }
}

/// Something to wait for that takes as long as an answer takes.
async fn status_of_nobody(wire: &Wire) -> Option<()> {
    ask::status(wire, [0; 16]).await.map(drop)
}

async fn submit(wire: &Wire, book: &Mutex<Book>, meter: &Meter, order: Order) -> Option<()> {
    let mut stream = wire.ask_frames(&order.frames()).await?;
    let reply = stream.reply().await?;
    if let Reply::Accepted { id, .. } = reply {
        book.lock().unwrap().acknowledged(id, order);
        meter.count(&meter.acknowledged, 1);
    } else {
        let what = format!("{order:?} was answered {reply:?}");
        book.lock().unwrap().wrong(what);
    }
    Some(())
}

/// Looks at a job: one that has ended is compared with what it must be, one that waits to be stopped is stopped.
async fn look(wire: &Wire, book: &Mutex<Book>, id: Id, order: Order) -> Option<()> {
    // It is looked at again whatever happens: this may be the last thing this daemon is asked.
    book.lock().unwrap().look_again(id);
    let job = match ask::status(wire, id).await? {
        Ok(job) => job,
        Err(other) => {
            let lost = format!("{} {order:?} is lost: {other:?}", ask::name_of(id));
            book.lock().unwrap().wrong(lost);
            return Some(());
        }
    };
    if is_end(job.state) {
        let (written, answer) = ask::log(wire, id, false, |_| {}).await;
        let bytes = written.stdout.len() + written.stderr.len();
        let answer = answer?;
        let right = if matches!(answer, Reply::LogEnd { dropped: 0 }) {
            order.check(&job, &written)
        } else {
            Err(format!("the log of {job:?} was answered {answer:?}"))
        };
        let mut book = book.lock().unwrap();
        if let Err(what) = right {
            book.wrong(what);
        }
        book.ended(&job, bytes);
    } else if order.kind == Sort::Stopped
        && job.log.stdout_bytes == order.written().stdout.len() as u64
        && book.lock().unwrap().may_stop(id)
    {
        let answer = ask::stop(wire, id).await?;
        let mut book = book.lock().unwrap();
        match answer {
            Ok(()) => book.stopped(id),
            Err(other) => book.wrong(format!("stop of {job:?} was answered {other:?}")),
        }
    }
    Some(())
}

/// Follows jobs that print, one after the other, until the connection is lost or none is left.
async fn follow(wire: Wire, book: Arc<Mutex<Book>>, meter: Arc<Meter>) {
    loop {
        let next = book.lock().unwrap().follow();
        let Some((id, order)) = next else {
            if meter.moment.is_none() || status_of_nobody(&wire).await.is_none() {
                return;
            }
            continue;
        };
        let heard = |bytes: usize| meter.count(&meter.followed, bytes as u64);
        let (written, answer) = ask::log(&wire, id, true, heard).await;
        let mut book = book.lock().unwrap();
        book.counts.followed += (written.stdout.len() + written.stderr.len()) as u64;
        let is_right = match answer {
            None => order.may_write(&written),
            Some(Reply::LogEnd { dropped: 0 }) => written == order.written(),
            Some(_) => false,
        };
        if !is_right {
            book.wrong(format!(
                "a follower of {order:?} {} was sent {}, then {answer:?}",
                ask::name_of(id),
                shown(&written)
            ));
        }
        if answer.is_none() {
            return;
        }
    }
}

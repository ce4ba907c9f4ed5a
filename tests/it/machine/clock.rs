//! The clock of the machine is set, forward and back, by hours.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use serde_json::Value;

use crate::harness::{Daemon, LONG, Waiting, now, wait_until};

const HOUR: Duration = Duration::from_secs(3_600);

/// There is one clock.
static TURN: Mutex<()> = Mutex::new(());

/// The machine's clock, which is right again when this is dropped.
struct Clock {
    right: SystemTime,
    since: Instant,
    /// What the time is for a test that begins now: three minutes past the hour, so that no time of a cron expression
    /// comes by itself.
    begin: SystemTime,
    _turn: MutexGuard<'static, ()>,
}

impl Clock {
    fn take() -> Self {
        super::own_machine();
        // One that has failed has set it right.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let right = SystemTime::now();
        let since_epoch = right.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let hours = since_epoch.as_secs() / HOUR.as_secs() + 1;
        let clock = Self {
            right,
            since: now(),
            begin: SystemTime::UNIX_EPOCH + Duration::from_secs(hours * HOUR.as_secs() + 180),
            _turn: turn,
        };
        clock.is_ahead_by(Duration::ZERO);
        clock
    }

    /// Sets it to this much after what it is without being set. Never before that: certificates are not older.
    fn is_ahead_by(&self, ahead: Duration) {
        set(self.begin + self.since.elapsed() + ahead);
    }
}

fn set(time: SystemTime) {
    let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)).unwrap();
}

impl Drop for Clock {
    fn drop(&mut self) {
        set(self.right + self.since.elapsed());
    }
}

/// Runs of a schedule that have ended, as lists show them.
fn runs(daemon: &Daemon, schedule: &str) -> Vec<Value> {
    let list = daemon.rnx(["job", "list", "--json"]).json();
    let is_its = |job: &&Value| job["schedule_id"] == schedule;
    list.as_array()
        .unwrap()
        .iter()
        .filter(is_its)
        .cloned()
        .collect()
}

/// Waits until a schedule has run `count` times, and fails when it has run more often.
#[track_caller]
fn ran(daemon: &Daemon, schedule: &str, count: usize) {
    wait_until(LONG, "the schedule has run so often", || {
        let runs = runs(daemon, schedule);
        if runs.len() > count {
            return Waiting::Never(format!("{count} expected: {runs:?}"));
        }
        let ended = runs.iter().filter(|job| job["status"] == "COMPLETED");
        Waiting::when(ended.count() == count, || {
            format!("{count} expected: {runs:?}")
        })
    });
}

/// Lets a second of the wall clock pass, as a job that waits for it: whatever was due before it has begun by then.
#[track_caller]
fn a_second_passes(daemon: &Daemon) {
    // A shard each, at least: whoever is due on any of them is looked at before.
    let ids: Vec<String> = (0..4)
        .map(|_| daemon.submit(&["--schedule", "1s"], &["true"]))
        .collect();
    for id in ids {
        assert_eq!(daemon.ended(&id)["status"], "COMPLETED");
    }
}

#[test]
fn what_was_missed_runs_once_and_nothing_repeats_when_the_clock_is_set_back() {
    let clock = Clock::take();
    let daemon = Daemon::start();
    let once = daemon.submit(&["--schedule", "2h"], &["echo", "ran"]);
    let far = daemon.submit(&["--schedule", "20h"], &["echo", "ran"]);
    let every = daemon.submit(&["--schedule", "every 1h"], &["true"]);
    let cron = daemon.submit(&["--schedule", "*/10 * * * *"], &["true"]);
    assert_eq!(daemon.state(&once), "SCHEDULED");

    // Five times of one and thirty of the other were missed: each runs once.
    clock.is_ahead_by(5 * HOUR);
    assert_eq!(daemon.ended(&once)["status"], "COMPLETED");
    ran(&daemon, &every, 1);
    ran(&daemon, &cron, 1);
    a_second_passes(&daemon);
    ran(&daemon, &every, 1);

    // Set back: those hours were had already, whoever asks.
    clock.is_ahead_by(HOUR);
    a_second_passes(&daemon);
    daemon.kill();
    daemon.serve();
    a_second_passes(&daemon);
    ran(&daemon, &every, 1);
    ran(&daemon, &cron, 1);
    assert_eq!(daemon.rnx(["job", "log", &once]).text(), "ran\n");
    assert_eq!(daemon.state(&far), "SCHEDULED");

    // Set forward while nobody serves: the same, found at the start.
    daemon.kill();
    clock.is_ahead_by(10 * HOUR);
    daemon.serve();
    ran(&daemon, &every, 2);
    ran(&daemon, &cron, 2);
    a_second_passes(&daemon);
    ran(&daemon, &every, 2);
    ran(&daemon, &cron, 2);
    assert_eq!(daemon.state(&far), "SCHEDULED");

    clock.is_ahead_by(21 * HOUR);
    assert_eq!(daemon.ended(&far)["status"], "COMPLETED");
    for schedule in [&every, &cron] {
        ran(&daemon, schedule, 3);
        daemon.rnx(["schedule", "remove", schedule]).assert_code(0);
    }
}

#[test]
fn a_timeout_counts_real_time_whatever_the_clock_says() {
    let clock = Clock::take();
    let daemon = Daemon::start();
    let begin = now();
    let short = daemon.submit(&["--timeout", "12s", "--grace", "1s"], &["sleep", "600"]);
    let long = daemon.submit(&["--timeout", "2h"], &["sleep", "600"]);
    daemon.wait_state(&short, "RUNNING");
    daemon.wait_state(&long, "RUNNING");
    clock.is_ahead_by(5 * HOUR);
    a_second_passes(&daemon);
    // A successor knows how long they have run already, and not only from the clock.
    daemon.kill();
    daemon.serve();
    clock.is_ahead_by(HOUR);
    a_second_passes(&daemon);
    let status = daemon.ended(&short);
    let took = begin.elapsed();
    assert_eq!(status["status"], "TIMEOUT", "{status}");
    let wall = status["outcome"]["wall_seconds"].as_f64().unwrap();
    assert!(wall >= 12.0, "before its time: {status}");
    assert!(wall <= took.as_secs_f64() + 1.0, "{took:?}: {status}");
    assert_eq!(daemon.state(&long), "RUNNING");
    daemon.rnx(["job", "stop", &long]).assert_code(0);
    let status = daemon.ended(&long);
    let wall = status["outcome"]["wall_seconds"].as_f64().unwrap();
    assert!(wall <= begin.elapsed().as_secs_f64() + 1.0, "{status}");
}

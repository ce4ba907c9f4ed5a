//! What runs later, what waits, and what is deleted: the program's words and objects.

use std::sync::Arc;

use proto_rkyv::{
    After, Cursor, Job, List, Reason, RefusalCode, Reply, Request, Schedule, State, Submit,
};
use rnx::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    command::Setting,
    server::{Asked, ID, ID_TEXT, Server, asked, job, refused, reply, say},
};

const NEXT_NS: i64 = 1_900_000_000_000_000_000;

/// A job that has not begun.
fn waiting(state: State, schedule: Option<Schedule>) -> Box<Job> {
    let mut job = job(Reason::Exited, Some(0), None);
    job.state = state;
    job.transitions.truncate(1);
    job.transitions[0].state = state;
    job.outcome = None;
    job.schedule = schedule;
    job
}

fn weekly() -> Box<Job> {
    let mut job = waiting(
        State::Scheduled,
        Some(Schedule::Cron {
            expression: "0 9 * * 1".into(),
            zone: "Europe/Berlin".into(),
        }),
    );
    job.next_runs_ns = vec![NEXT_NS, NEXT_NS + 604_800_000_000_000];
    job.last_run_ns = Some(1_700_000_000_000_000_000);
    job.priority = -5;
    job
}

/// A server for one job in each state before its start, and what it was asked.
fn before_the_start() -> (Setting, mpsc::UnboundedReceiver<Asked>) {
    Setting::told(|asked| vec![answer(asked)])
}

/// The next submit that the server was asked for.
fn submit(told: &mut mpsc::UnboundedReceiver<Asked>) -> Option<Submit> {
    std::iter::from_fn(|| told.try_recv().ok()).find_map(|asked| match asked.request {
        Request::Submit(submit) => Some(*submit),
        _ => None,
    })
}

fn answer(asked: &Asked) -> bytes::Bytes {
    let canceled = || {
        let mut job = job(Reason::Canceled, None, None);
        job.state = State::Canceled;
        job
    };
    reply(&match &asked.request {
        Request::Submit(_) => Reply::Accepted {
            id: ID,
            existing: false,
        },
        Request::Status(id) if id == "queued" => {
            let mut job = waiting(State::Queued, None);
            job.schedule_id = Some(ID);
            job.waits_for = Some("memory: 512 MB\u{1b} of 256 MB".into());
            Reply::Status(job)
        }
        Request::Status(_) => Reply::Status(weekly()),
        Request::Cancel(id) if id == "begun" => {
            return refused(RefusalCode::Conflict, "job begun has begun");
        }
        Request::Cancel(_) => Reply::Done(canceled()),
        Request::Delete(id) if id == "alive" => {
            return refused(RefusalCode::Conflict, "job alive has not ended");
        }
        Request::Delete(_) => Reply::Deleted {
            deleted: 1,
            skipped: 0,
        },
        Request::DeleteAll => Reply::Deleted {
            deleted: 12,
            skipped: 3,
        },
        Request::List(list) => {
            assert!(list.schedules);
            if list.limit == Some(1) {
                return bytes::Bytes::new();
            }
            Reply::Jobs(vec![*weekly()])
        }
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_scheduled_job_is_not_waited_for_and_says_when_it_runs() {
    let (rnx, mut told) = before_the_start();
    let lines = format!("ID: {ID_TEXT}\nCommand: sh\nStatus: SCHEDULED\n");
    let mut check = |words: &[&str], schedule: Schedule, after, hint: &str| {
        let words = [&["job", "run"], words, &["sh"]].concat();
        let (stdout, stderr) = rnx.check(&words, 0);
        assert_eq!(stdout, lines);
        assert_eq!(stderr, format!("hint: {hint}\n"));
        let submit = submit(&mut told).unwrap();
        assert_eq!((submit.schedule, submit.after), (Some(schedule), after));
    };
    check(
        &["--schedule=168h"],
        Schedule::After { ms: 604_800_000 },
        After::Detach,
        "it runs once, at 2030-03-17 17:46:40; to repeat it: --schedule 'every 168h'",
    );
    check(
        &["--schedule", "2030-03-17T17:46:40Z", "-d"],
        Schedule::At { ns: NEXT_NS },
        After::Detach,
        "it runs once, at 2030-03-17 17:46:40; to repeat it: --schedule 'every 24h', or a cron expression",
    );
    check(
        &["--schedule", "every 168h"],
        Schedule::Every { ms: 604_800_000 },
        After::Detach,
        &format!(
            "it runs next at 2030-03-17 17:46:40, and again until `rnx schedule remove {ID_TEXT}`"
        ),
    );
    check(
        &["--schedule=0 9 * * 1"],
        Schedule::Cron {
            expression: "0 9 * * 1".into(),
            zone: "UTC".into(),
        },
        After::Detach,
        &format!(
            "it runs next at 2030-03-17 17:46:40, and again until `rnx schedule remove {ID_TEXT}`"
        ),
    );
    let words = [
        "job",
        "run",
        "--json",
        "--schedule=1h",
        "--priority=-7",
        "sh",
    ];
    let object: Value = serde_json::from_str(&rnx.check(&words, 0).0).unwrap();
    assert_eq!(object["next_run_time"], "2030-03-17T17:46:40.000000000Z");
    assert_eq!(submit(&mut told).unwrap().priority, Some(-7));
    for bad in ["--schedule=2001-01-01", "--schedule=soon", "--priority=101"] {
        rnx.check(&["job", "run", bad, "sh"], 2);
    }
    assert!(
        submit(&mut told).is_none(),
        "what makes no sense is not sent"
    );
}

#[test]
fn a_status_shows_schedule_next_runs_and_what_is_waited_for() {
    let (rnx, _told) = before_the_start();
    let (stdout, _) = rnx.check(&["job", "status", "1f3a"], 0);
    for part in [
        "  Status:       SCHEDULED\n",
        "  Priority:     -5\n",
        "Schedule:\n  Runs:         0 9 * * 1 (Europe/Berlin)\n  Next run:     2030-03-17 17:46:40\n  Then:         2030-03-24 17:46:40\n  Last run:     2023-11-14 22:13:20\n",
    ] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    let (stdout, _) = rnx.check(&["job", "status", "queued"], 0);
    let waits = "  Waits for:    memory: 512 MB\\u{1b} of 256 MB\n";
    let repeats = format!("  Repeats:      {ID_TEXT}\n");
    assert!(
        stdout.contains(waits) && stdout.contains(&repeats),
        "{stdout}"
    );

    let object = |id: &str| -> Value {
        serde_json::from_str(&rnx.check(&["job", "status", id, "--json"], 0).0).unwrap()
    };
    let scheduled = object("1f3a");
    let expected = json!({"kind": "cron", "expression": "0 9 * * 1", "zone": "Europe/Berlin"});
    assert_eq!(scheduled["schedule"], expected);
    let next = "2030-03-17T17:46:40.000000000Z";
    assert_eq!(scheduled["next_run_time"], next);
    assert_eq!(
        scheduled["next_run_times"],
        json!([next, "2030-03-24T17:46:40.000000000Z"])
    );
    assert_eq!(scheduled["last_run_time"], "2023-11-14T22:13:20.000000000Z");
    assert_eq!(
        (
            &scheduled["priority"],
            &scheduled["schedule_id"],
            &scheduled["waits_for"]
        ),
        (&json!(-5), &Value::Null, &Value::Null)
    );
    let queued = object("queued");
    assert_eq!(
        (
            &queued["schedule"],
            &queued["schedule_id"],
            &queued["next_run_time"]
        ),
        (&Value::Null, &json!(ID_TEXT), &Value::Null)
    );
    assert_eq!(queued["waits_for"], "memory: 512 MB\u{1b} of 256 MB");
}

#[test]
fn schedules_are_listed_and_removed() {
    let (rnx, _told) = before_the_start();
    let (stdout, _) = rnx.check(&["schedule", "list"], 0);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{stdout}");
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "ID NAME STATUS SCHEDULE NEXT RUN LAST RUN COMMAND"
    );
    for part in [
        ID_TEXT,
        "0 9 * * 1 (Europe/Berlin)",
        "2030-03-17 17:46:40",
        "2023-11-14 22:13:20",
    ] {
        assert!(lines[1].contains(part), "{stdout}");
    }
    let list: Value =
        serde_json::from_str(&rnx.check(&["schedule", "list", "--json"], 0).0).unwrap();
    assert_eq!(list[0]["schedule"]["kind"], "cron");
    assert_eq!(
        rnx.check(&["schedule", "list", "--limit=1"], 0).0,
        "No schedules found\n"
    );
    assert_eq!(
        rnx.check(&["schedule", "remove", "1f3a"], 0).0,
        format!("{ID_TEXT} CANCELED\n")
    );
}

#[test]
fn jobs_are_canceled_each_by_itself() {
    let (rnx, _told) = before_the_start();
    let (stdout, stderr) = rnx.check(&["job", "cancel", "begun", "1f3a"], 5);
    assert_eq!(stdout, format!("{ID_TEXT} CANCELED\n"));
    assert_eq!(stderr, "error: job begun has begun\nhint: a hint\n");
    let (stdout, _) = rnx.check(&["job", "cancel", "--json", "1f3a"], 0);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (&list[0]["status"], &list[0]["outcome"]["reason"]),
        (&json!("CANCELED"), &json!("canceled"))
    );
}

#[test]
fn deletions_are_counted() {
    let (rnx, _told) = before_the_start();
    let (stdout, stderr) = rnx.check(&["job", "delete", "1f3a", "alive"], 5);
    assert_eq!(stdout, "1f3a deleted\n");
    assert_eq!(stderr, "error: job alive has not ended\nhint: a hint\n");
    let (stdout, _) = rnx.check(&["job", "delete", "--json", "alive", "1f3a"], 5);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    let expected = json!({"deleted_count": 1, "skipped_count": 1, "deleted": ["1f3a"]});
    assert_eq!(object, expected);
    assert_eq!(
        rnx.check(&["job", "delete-all"], 0).0,
        "12 deleted, 3 skipped\n"
    );
    let (stdout, _) = rnx.check(&["--json", "job", "delete-all"], 0);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(object, json!({"deleted_count": 12, "skipped_count": 3}));
}

/// A server that has `jobs` jobs and sends at most `at_once` of them.
fn many(jobs: u32, at_once: u32) -> (Server, mpsc::UnboundedReceiver<List>) {
    let (tell, told) = mpsc::unbounded_channel();
    let one = Arc::new(weekly());
    let server = Server::start(move |mut send, mut recv| {
        let (tell, one) = (tell.clone(), one.clone());
        async move {
            let Some(asked) = asked(&mut recv).await else {
                return;
            };
            let Request::List(list) = asked.request else {
                panic!("{:?}", asked.request)
            };
            // The place in the list stands where a real server has a time.
            let from = list
                .before
                .map_or(0, |before| u32::try_from(before.created_ns).unwrap());
            let count = list.limit.unwrap_or(u32::MAX).min(at_once).min(jobs - from);
            let _ = tell.send(list);
            let page = vec![(**one).clone(); count as usize];
            let mut frames = vec![reply(&Reply::Jobs(page))];
            if from + count < jobs {
                let next = Cursor {
                    created_ns: i64::from(from + count),
                    id: ID,
                };
                frames.push(reply(&Reply::More(next)));
            }
            say(&mut send, frames).await;
        }
    });
    (server, told)
}

#[test]
fn a_list_goes_on_until_it_has_what_was_asked_for() {
    let check = |limit: Option<u32>, expected: usize, limits: &[Option<u32>]| {
        let (server, mut told) = many(10, 4);
        let list = List {
            limit,
            ..List::default()
        };
        let jobs = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let client = Client::connect(&server.node).await.unwrap();
                client.list_all(list).await.unwrap()
            });
        assert_eq!(jobs.len(), expected, "{limit:?}");
        let asked: Vec<_> = std::iter::from_fn(|| told.try_recv().ok())
            .map(|list| list.limit)
            .collect();
        assert_eq!(asked, limits, "{limit:?}");
    };
    check(None, 4, &[None]);
    check(Some(3), 3, &[Some(3)]);
    check(Some(4), 4, &[Some(4)]);
    check(Some(9), 9, &[Some(9), Some(5), Some(1)]);
    check(Some(10), 10, &[Some(10), Some(6), Some(2)]);
    check(Some(99), 10, &[Some(99), Some(95), Some(91)]);
    let (server, _told) = many(10, 4);
    let rnx = Setting::new(server);
    let (stdout, _) = rnx.check(&["job", "list", "--limit=9", "--json"], 0);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 9);
}

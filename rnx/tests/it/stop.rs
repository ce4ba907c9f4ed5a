//! `rnx job stop`: every job is asked, and its end asked for, before anything is made of the first.

use proto_rkyv::{Reason, RefusalCode, Reply, Request, State};
use tokio::sync::mpsc;

use crate::{
    command::Setting,
    server::{Asked, ID_TEXT, job, refused, reply},
};

/// Jobs that are being stopped until they are waited for; `ended` is over already and `none` is not there.
fn stopping() -> (Setting, mpsc::UnboundedReceiver<Asked>) {
    Setting::told(|asked| {
        let mut ended = job(Reason::Stopped { by: "alice".into() }, None, Some(15));
        ended.state = State::Stopped;
        let mut stopping = ended.clone();
        stopping.state = State::Stopping;
        let answer = match &asked.request {
            Request::Stop(stop) if stop.job == "none" => {
                return vec![refused(RefusalCode::NotFound, "job none not found")];
            }
            Request::Stop(stop) if stop.job == "ended" => Reply::Done(ended),
            Request::Stop(_) => Reply::Done(stopping),
            Request::Wait(_) => Reply::Ended(ended),
            other => panic!("{other:?}"),
        };
        vec![reply(&answer)]
    })
}

fn asked(told: &mut mpsc::UnboundedReceiver<Asked>) -> Vec<String> {
    let mut asked: Vec<_> = std::iter::from_fn(|| told.try_recv().ok())
        .map(|asked| match asked.request {
            Request::Stop(stop) => format!("stop {}", stop.job),
            Request::Wait(job) => format!("wait {job}"),
            other => format!("{other:?}"),
        })
        .collect();
    asked.sort_unstable(); // each on a stream of its own
    asked
}

#[test]
fn it_returns_when_the_jobs_have_ended() {
    let (rnx, mut told) = stopping();
    let (stdout, _) = rnx.check(&["job", "stop", "1f3a", "2b4c", "ended"], 0);
    assert_eq!(stdout, format!("{ID_TEXT} STOPPED\n").repeat(3));
    assert_eq!(
        asked(&mut told),
        [
            "stop 1f3a",
            "stop 2b4c",
            "stop ended",
            "wait 1f3a",
            "wait 2b4c",
            "wait ended"
        ]
    );
}

#[test]
fn more_jobs_than_a_connection_has_requests_for_are_all_stopped_and_waited_for() {
    let (rnx, mut told) = stopping();
    let ids: Vec<_> = (0..700).map(|number| format!("{:08x}", number)).collect();
    let words = ["job", "stop"]
        .into_iter()
        .chain(ids.iter().map(String::as_str));
    let (stdout, _) = rnx.check(&words.collect::<Vec<_>>(), 0);
    assert_eq!(stdout, format!("{ID_TEXT} STOPPED\n").repeat(ids.len()));
    let asked = asked(&mut told);
    let count = |what| asked.iter().filter(|asked| asked.starts_with(what)).count();
    assert_eq!((count("stop "), count("wait ")), (ids.len(), ids.len()));
}

#[test]
fn without_waiting_it_says_what_they_are_then() {
    let (rnx, mut told) = stopping();
    let (stdout, _) = rnx.check(&["job", "stop", "--no-wait", "1f3a"], 0);
    assert_eq!(stdout, format!("{ID_TEXT} STOPPING\n"));
    assert_eq!(asked(&mut told), ["stop 1f3a"]);
}

#[test]
fn what_cannot_be_stopped_decides_the_code_and_stops_no_other() {
    let (rnx, _told) = stopping();
    let (stdout, stderr) = rnx.check(&["job", "stop", "none", "1f3a"], 3);
    assert_eq!(stdout, format!("{ID_TEXT} STOPPED\n"));
    assert!(stderr.contains("job none not found"), "{stderr}");
}

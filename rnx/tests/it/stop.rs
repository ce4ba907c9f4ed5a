//! `rnx job stop`: every job is asked before the end of the first is waited for.

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
    std::iter::from_fn(|| told.try_recv().ok())
        .map(|asked| match asked.request {
            Request::Stop(stop) => format!("stop {}", stop.job),
            Request::Wait(job) => format!("wait {job}"),
            other => format!("{other:?}"),
        })
        .collect()
}

#[test]
fn it_returns_when_the_jobs_have_ended() {
    let (rnx, mut told) = stopping();
    let (stdout, _) = rnx.check(&["job", "stop", "1f3a", "2b4c", "ended"], 0);
    assert_eq!(stdout, format!("{ID_TEXT} STOPPED\n").repeat(3));
    let wait = format!("wait {ID_TEXT}");
    assert_eq!(
        asked(&mut told),
        ["stop 1f3a", "stop 2b4c", "stop ended", &wait, &wait]
    );
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

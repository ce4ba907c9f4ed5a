//! `rnx job list`.

use rnx::proto::{Job, List, State};
use serde_json::Value;

use super::Session;
use crate::{
    exit::{Failure, code},
    flags::{ListFlags, StateName},
    json,
    text::{self, Times},
};

pub(crate) async fn list(flags: &ListFlags, session: &Session) -> Result<u8, Failure> {
    let asked = List {
        state: flags.status.map(state),
        limit: flags.limit,
        ..List::default()
    };
    let columns = ["ID", "NAME", "STATUS", "START TIME", "DURATION", "COMMAND"];
    show(session, asked, "No jobs found", &columns, |jobs| {
        let now = text::now_ns();
        jobs.iter().map(|job| row(job, now)).collect()
    })
    .await
}

/// What was asked for as JSON, as a table of `columns` with the `rows` of the jobs, or as the word for `nothing`.
pub(super) async fn show(
    session: &Session,
    asked: List,
    nothing: &str,
    columns: &[&str],
    rows: impl FnOnce(&[Job]) -> Vec<Vec<String>>,
) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let jobs = client.list_all(asked).await;
    client.close().await;
    let jobs = jobs?;
    if session.out.json {
        session
            .out
            .json(&Value::Array(jobs.iter().map(json::job).collect()))?;
    } else if jobs.is_empty() {
        session.out.line(nothing)?;
    } else {
        session.out.table(columns, rows(&jobs))?;
    }
    Ok(code::DONE)
}

fn row(job: &Job, now_ns: i64) -> Vec<String> {
    let times = Times::of(job);
    let absent = || "-".to_owned();
    vec![
        text::id(job.id),
        job.name.clone().unwrap_or_else(absent),
        text::state(job.state).to_owned(),
        times.started.map_or_else(absent, text::local_time),
        times.duration_ms(now_ns).map_or_else(absent, text::millis),
        job.command.clone(),
    ]
}

fn state(name: StateName) -> State {
    match name {
        StateName::Scheduled => State::Scheduled,
        StateName::Queued => State::Queued,
        StateName::Initializing => State::Initializing,
        StateName::Running => State::Running,
        StateName::Stopping => State::Stopping,
        StateName::Completed => State::Completed,
        StateName::Failed => State::Failed,
        StateName::Stopped => State::Stopped,
        StateName::Timeout => State::Timeout,
        StateName::Canceled => State::Canceled,
    }
}

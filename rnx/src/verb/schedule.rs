//! `rnx schedule list`.

use rnx::proto::{Job, List};
use serde_json::Value;

use super::Session;
use crate::{
    exit::{Failure, code},
    flags::ScheduleListFlags,
    json, schedule, text,
};

pub(crate) async fn list(flags: &ScheduleListFlags, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let asked = List {
        limit: flags.limit,
        schedules: true,
        ..List::default()
    };
    let jobs = client.list_all(asked).await;
    client.close().await;
    let jobs = jobs?;
    if session.out.json {
        session
            .out
            .json(&Value::Array(jobs.iter().map(json::job).collect()))?;
    } else if jobs.is_empty() {
        session.out.line("No schedules found")?;
    } else {
        session.out.table(
            &[
                "ID", "NAME", "STATUS", "SCHEDULE", "NEXT RUN", "LAST RUN", "COMMAND",
            ],
            jobs.iter().map(row).collect(),
        )?;
    }
    Ok(code::DONE)
}

fn row(job: &Job) -> Vec<String> {
    let absent = || "-".to_owned();
    let time = |ns: Option<i64>| ns.map_or_else(absent, text::local_time);
    vec![
        text::id(job.id),
        job.name.clone().unwrap_or_else(absent),
        text::state(job.state).to_owned(),
        job.schedule.as_ref().map_or_else(absent, schedule::phrase),
        time(job.next_runs_ns.first().copied()),
        time(job.last_run_ns),
        job.command.clone(),
    ]
}

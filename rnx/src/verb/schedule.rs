//! `rnx schedule list`.

use rnx::proto::{Job, List};

use super::{Session, list::show};
use crate::{exit::Failure, flags::ScheduleListFlags, schedule, text};

pub(crate) async fn list(flags: &ScheduleListFlags, session: &Session) -> Result<u8, Failure> {
    let asked = List {
        limit: flags.limit,
        schedules: true,
        ..List::default()
    };
    let columns = [
        "ID", "NAME", "STATUS", "SCHEDULE", "NEXT RUN", "LAST RUN", "COMMAND",
    ];
    show(session, asked, "No schedules found", &columns, |jobs| {
        jobs.iter().map(row).collect()
    })
    .await
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

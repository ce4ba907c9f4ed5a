//! `rnx job stop ID…`.

use rnx::{Client, proto::StopSignal};
use serde_json::Value;

use super::{FirstFailure, Session};
use crate::{exit::Failure, flags::StopFlags, json, text};

pub(crate) async fn stop(flags: &StopFlags, session: &Session) -> Result<u8, Failure> {
    if flags.grace.is_some() {
        return Err(Failure::usage(
            "--grace of `rnx job stop` is not supported by this version of rnx yet",
        )
        .hint("the job's own grace holds: `rnx job run --grace`"));
    }
    let client = session.connect().await?;
    let stopped = stop_all(&client, flags, session).await;
    client.close().await;
    stopped
}

/// Every job is asked, whatever becomes of the others; the first failure decides the exit code.
async fn stop_all(client: &Client, flags: &StopFlags, session: &Session) -> Result<u8, Failure> {
    let out = session.out;
    let (mut failed, mut shown) = (FirstFailure::none(), Vec::new());
    for id in &flags.jobs.ids {
        match client.stop(id, StopSignal::Term).await {
            Ok(job) if out.json => shown.push(json::job(&job)),
            Ok(job) => out.line(&format!("{} {}", text::id(job.id), text::state(job.state)))?,
            Err(error) => failed.note(error, out),
        }
    }
    if out.json {
        out.json(&Value::Array(shown))?;
    }
    Ok(failed.code())
}

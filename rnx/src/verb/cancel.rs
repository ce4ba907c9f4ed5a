//! `rnx job cancel ID…` and `rnx schedule remove ID…`, which is the same.

use rnx::Client;
use serde_json::Value;

use super::{FirstFailure, Session};
use crate::{exit::Failure, flags::JobIds, json, text};

pub(crate) async fn cancel(jobs: &JobIds, session: &Session) -> Result<u8, Failure> {
    let client = session.connect().await?;
    let canceled = cancel_all(&client, &jobs.ids, session).await;
    client.close().await;
    canceled
}

/// Every job is asked, whatever becomes of the others; the first failure decides the exit code.
async fn cancel_all(client: &Client, ids: &[String], session: &Session) -> Result<u8, Failure> {
    let out = session.out;
    let (mut failed, mut shown) = (FirstFailure::none(), Vec::new());
    for id in ids {
        match client.cancel(id).await {
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

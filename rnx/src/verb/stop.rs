//! `rnx job stop ID…`.

use rnx::{Line, RequestError, proto::Job, proto::StopSignal};
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
    let line = session.line().await?;
    let stopped = stop_all(&line, flags, session).await;
    line.close().await;
    stopped
}

/// Every job is asked before the first is waited for, whatever becomes of the others; the first failure decides
/// the exit code.
async fn stop_all(line: &Line, flags: &StopFlags, session: &Session) -> Result<u8, Failure> {
    let out = session.out;
    let (mut failed, mut asked, mut shown) = (FirstFailure::none(), Vec::new(), Vec::new());
    for id in &flags.jobs.ids {
        match line.stop(id, StopSignal::Term).await {
            Ok(job) => asked.push(job),
            Err(error) => failed.note(error, out),
        }
    }
    for job in asked {
        let ended = if flags.no_wait {
            Ok(job)
        } else {
            end_of(line, job).await
        };
        match ended {
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

async fn end_of(line: &Line, job: Box<Job>) -> Result<Box<Job>, RequestError> {
    if text::is_end(job.state) {
        return Ok(job);
    }
    line.wait(text::id(job.id)).await
}

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

/// So many jobs have their ends waited for while they are asked: each takes two of the requests that a connection
/// may have open.
const AT_ONCE: usize = 256;

/// Every job is asked before anything is made of the end of one, whatever becomes of the others; the first failure
/// decides the exit code.
async fn stop_all(line: &Line, flags: &StopFlags, session: &Session) -> Result<u8, Failure> {
    let out = session.out;
    let ids = &flags.jobs.ids;
    let at_once = if flags.no_wait { 0 } else { AT_ONCE };
    let (heard, asked) = ids.split_at(at_once.min(ids.len()));
    let heard: Vec<_> = heard
        .iter()
        .map(|id| tokio::spawn(stop_and_hear(line.clone(), id.clone())))
        .collect();
    let mut answers = Vec::with_capacity(asked.len());
    for id in asked {
        answers.push(line.stop(id, StopSignal::Term).await);
    }
    let (mut failed, mut shown) = (FirstFailure::none(), Vec::new());
    let mut show = |ended: Result<Box<Job>, RequestError>| {
        match ended {
            Ok(job) if out.json => shown.push(json::job(&job)),
            Ok(job) => out.line(&format!("{} {}", text::id(job.id), text::state(job.state)))?,
            Err(error) => failed.note(error, out),
        }
        Ok::<_, Failure>(())
    };
    for ending in heard {
        show(
            ending
                .await
                .map_err(|panic| Failure::new(format!("stop: {panic}")))?,
        )?;
    }
    for answer in answers {
        show(match answer {
            Ok(job) if !flags.no_wait => end_of(line, job).await,
            answer => answer,
        })?;
    }
    if out.json {
        out.json(&Value::Array(shown))?;
    }
    Ok(failed.code())
}

/// Asks for the end before it asks the job to stop: a daemon that drains ends with its last job, and then nobody is
/// left to ask.
async fn stop_and_hear(line: Line, id: String) -> Result<Box<Job>, RequestError> {
    let stopping = line.stop(&id, StopSignal::Term);
    let (ended, _) = tokio::try_join!(line.wait(&id), stopping)?;
    Ok(ended)
}

async fn end_of(line: &Line, job: Box<Job>) -> Result<Box<Job>, RequestError> {
    if text::is_end(job.state) {
        return Ok(job);
    }
    line.wait(text::id(job.id)).await
}

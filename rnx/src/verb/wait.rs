//! `rnx job wait ID…`.

use rnx::{Line, RequestError, proto::Job};
use serde_json::Value;
use tokio::task::JoinSet;

use super::Session;
use crate::{
    exit::{self, Failure, code},
    flags::JobIds,
    json, text,
};

pub(crate) async fn wait(jobs: &JobIds, session: &Session) -> Result<u8, Failure> {
    let line = session.line().await?;
    let waited = wait_all(&line, &jobs.ids, session).await;
    line.close().await;
    waited
}

/// Waits for all at once; each is told when it ends. Of several, the first that was named and did not end
/// well decides the exit code.
async fn wait_all(line: &Line, ids: &[String], session: &Session) -> Result<u8, Failure> {
    let mut waits = JoinSet::new();
    for (index, id) in ids.iter().cloned().enumerate() {
        let line = line.clone();
        waits.spawn(async move { (index, line.wait(id).await) });
    }
    let mut codes = vec![code::DONE; ids.len()];
    let mut shown = vec![Value::Null; ids.len()];
    while let Some(waited) = waits.join_next().await {
        let (index, job) = waited.map_err(|error| Failure::new(format!("wait: {error}")))?;
        (codes[index], shown[index]) = tell(job, session)?;
    }
    if session.out.json {
        session.out.json(&Value::Array(shown))?;
    }
    Ok(codes
        .into_iter()
        .find(|exit| *exit != code::DONE)
        .unwrap_or(code::DONE))
}

fn tell(job: Result<Box<Job>, RequestError>, session: &Session) -> Result<(u8, Value), Failure> {
    let out = session.out;
    let job = match job {
        Ok(job) => job,
        Err(error) => {
            let failure = Failure::from(error);
            out.failure(&failure);
            return Ok((failure.code, Value::Null));
        }
    };
    if let Some(message) = exit::outcome_message(&job, false) {
        out.note(&message);
    }
    if !out.json {
        out.line(&format!("{} {}", text::id(job.id), text::state(job.state)))?;
    }
    let exit = job
        .outcome
        .as_ref()
        .map_or(code::FAILED, exit::outcome_code);
    Ok((exit, json::job(&job)))
}

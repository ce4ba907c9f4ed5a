//! `rnx job run`: submit, then whatever was asked for: nothing, the end, or output and the end.
//!
//! In an attached run the first Ctrl-C (or SIGTERM) asks the job to stop and the second one leaves it alone.
//! Codes below 125 belong to the job there, so every failure of ours is 125 ([`Failure::attached`]).

mod interrupt;
mod spec;

use std::pin::pin;

use rnx::{
    Client, Follow, FollowEvent, Line, Run, Spec,
    proto::{After, Job, StopSignal},
};
use serde_json::json;
use tokio::task::JoinSet;

use self::interrupt::Interrupts;
use super::{Session, status};
use crate::{
    exit::{self, Failure, code},
    flags::RunFlags,
    json,
    out::{
        Out, Progress,
        sink::{Shape, Sink},
    },
    schedule, text,
};

pub(crate) async fn run(flags: &RunFlags, session: &Session) -> Result<u8, Failure> {
    if let Some(flag) = flags.later.given() {
        return Err(Failure::usage(format!(
            "{flag} is not supported by this version of rnx yet"
        )));
    }
    // What runs later is not waited for, unless that is asked for.
    let is_detached = flags.detach || !flags.wait && flags.schedule.is_some();
    let after = match (is_detached, session.out.json, flags.wait) {
        (true, _, _) | (false, true, false) => After::Detach,
        (false, true, true) => After::Wait,
        (false, false, _) => After::Follow,
    };
    let done = async {
        let spec = spec::spec(flags, after, session.out)?;
        let line = session.line().await?;
        let done = submit(&line, &spec, flags, session.out).await;
        line.close().await;
        done
    };
    let done = done.await;
    if after == After::Detach {
        done
    } else {
        done.map_err(Failure::attached)
    }
}

async fn submit(line: &Line, spec: &Spec, flags: &RunFlags, out: Out) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::new()?;
    let run = tokio::select! {
        biased;
        run = submit_with_progress(line, spec, out) => run?,
        _ = interrupts.next() => {
            return Err(Failure { code: code::INTERRUPTED, ..Failure::new("interrupted before the job was accepted") });
        }
    };
    if interrupt::stdin_has_data() {
        out.warn("standard input is ignored: a job reads from /dev/null");
    }
    if run.is_existing() && flags.idempotency_key.is_some() {
        out.note(&format!(
            "job {} was submitted before with this key",
            text::id(run.id())
        ));
    }
    match spec.submit.after {
        After::Detach => announce(&line.client(), spec, &run, out).await,
        After::Wait => watch(line, run, None, interrupts, out).await,
        After::Follow => {
            let sink = Sink::new(
                out,
                Shape {
                    raw: flags.raw,
                    ..Shape::default()
                },
            );
            watch(line, run, Some(sink), interrupts, out).await
        }
    }
}

async fn submit_with_progress(line: &Line, spec: &Spec, out: Out) -> Result<Run, Failure> {
    let total = spec.uploads.as_ref().map_or(0, rnx::Tree::bytes);
    let bar = out.progress(Progress::Send(Some(total)));
    Ok(line.submit(spec, |sent| bar.set(sent)).await?)
}

/// Says which job it is. Its state is asked for, not guessed; when that fails the job is there all the same.
async fn announce(client: &Client, spec: &Spec, run: &Run, out: Out) -> Result<u8, Failure> {
    let id = text::id(run.id());
    let found = client.status(id.as_str()).await.map_err(Failure::from);
    if let Err(failure) = &found {
        out.warn(&format!(
            "the job was accepted; its status: {}",
            failure.message.as_deref().unwrap_or("unknown")
        ));
    }
    if out.json {
        let bare = || json!({"id": id, "uuid": id, "job_uuid": id, "status": null});
        out.json(&found.as_ref().map_or_else(|_| bare(), json::status))?;
    } else {
        let state = found
            .as_ref()
            .map_or("UNKNOWN", |found| text::state(found.job.state));
        let command = text::plain(&status::command(&spec.argv));
        out.line(&format!("ID: {id}\nCommand: {command}\nStatus: {state}"))?;
    }
    if let Some(schedule) = &spec.submit.schedule {
        let next_ns = found
            .ok()
            .and_then(|found| found.job.next_runs_ns.first().copied());
        out.hint(&schedule::remark(schedule, &id, next_ns));
    }
    Ok(code::DONE)
}

/// Passes output on until the job has ended, or until we are told to leave it alone.
async fn watch(
    line: &Line,
    run: Run,
    sink: Option<Sink>,
    mut interrupts: Interrupts,
    out: Out,
) -> Result<u8, Failure> {
    let id = run.id();
    let goes_on = |why: &str| {
        let id = text::id(id);
        out.note(&format!(
            "{why}; job {id} goes on: `rnx job log {id}`, `rnx job stop {id}`"
        ));
    };
    let mut ended = pin!(pass_on(line.attach(run), sink));
    let (mut stops, mut asked) = (JoinSet::new(), false);
    loop {
        tokio::select! {
            biased;
            signal = interrupts.next() => {
                if asked {
                    goes_on("detached");
                    return Ok(code::INTERRUPTED);
                }
                asked = true;
                out.note("stopping the job; once more to leave it alone");
                stops.spawn(stop(line.clone(), text::id(id), signal));
            }
            Some(stopped) = stops.join_next() => {
                if let Ok(Err(failure)) = stopped {
                    out.failure(&failure);
                }
            }
            job = &mut ended => match job {
                Ok(job) => return tell(&job, asked, out),
                Err(failure) if failure.is_closed_pipe() => {
                    goes_on("nobody reads the output any more");
                    return Err(failure);
                }
                Err(failure) if failure.code == code::UNREACHABLE => {
                    // Not one of the job's codes, and not one of a job that never was.
                    out.failure(&failure);
                    goes_on("the server does not answer any more");
                    return Ok(failure.code);
                }
                Err(failure) => return Err(failure),
            },
        }
    }
}

async fn stop(line: Line, id: String, signal: StopSignal) -> Result<(), Failure> {
    line.stop(id, signal).await.map(drop).map_err(Failure::from)
}

/// Writes output as it comes; everything is written when this returns the job as it ended.
async fn pass_on(mut run: Follow, mut sink: Option<Sink>) -> Result<Box<Job>, Failure> {
    loop {
        let event = match (run.ready()?, &mut sink) {
            (Some(event), _) => Some(event),
            (None, Some(sink)) => {
                sink.flush().await?;
                run.next().await?
            }
            (None, None) => run.next().await?,
        };
        match (event, &mut sink) {
            (Some(FollowEvent::Output(output)), Some(sink)) => sink.push(&output).await?,
            (Some(FollowEvent::Output(_)), None) => {}
            (Some(FollowEvent::Ended(job)), _) => {
                if let Some(sink) = sink {
                    sink.finish().await?;
                }
                return Ok(job);
            }
            (Some(FollowEvent::LogEnd { .. }) | None, _) => {
                return Err(Failure::new("the server ended the run without its outcome"));
            }
        }
    }
}

/// The end of a job: its outcome as JSON when asked for, a reason when it is not plain, and its code.
fn tell(job: &Job, asked: bool, out: Out) -> Result<u8, Failure> {
    if out.json {
        out.json(&json::job(job))?;
    }
    let exit = job
        .outcome
        .as_ref()
        .map_or(code::NOT_STARTED, exit::outcome_code);
    if let Some(message) = exit::outcome_message(job, asked) {
        out.failure(&Failure {
            code: exit,
            message: Some(message),
            hint: None,
        });
    }
    if job.log.dropped_bytes > 0 {
        out.warn(&format!(
            "{} bytes of output were not stored because of a limit",
            job.log.dropped_bytes
        ));
    }
    Ok(exit)
}

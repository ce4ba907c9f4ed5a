//! Questions to a daemon that may die before it answers: `None` is a lost connection, never an answer.

use proto_rkyv::{Id, Job, List, Log, Reply, Request, Stop, StopSignal, Streams};
use uuid::Uuid;

use super::{Heard, Wire, Written};

/// A job by its id, as requests name it.
pub(crate) fn name_of(id: Id) -> String {
    Uuid::from_bytes(id).to_string()
}

/// One job; an error when the daemon says something else than what it is.
pub(crate) async fn status(wire: &Wire, id: Id) -> Option<Result<Job, Reply>> {
    let mut stream = wire.ask(&Request::Status(name_of(id))).await?;
    let reply = stream.reply().await?;
    let Reply::Status(job) = reply else {
        return Some(Err(reply));
    };
    Some(Ok(*job))
}

/// One job when it has ended.
pub(crate) async fn wait(wire: &Wire, id: Id) -> Option<Result<Job, Reply>> {
    let mut stream = wire.ask(&Request::Wait(name_of(id))).await?;
    let reply = stream.reply().await?;
    let Reply::Ended(job) = reply else {
        return Some(Err(reply));
    };
    Some(Ok(*job))
}

/// Asks a job to stop.
pub(crate) async fn stop(wire: &Wire, id: Id) -> Option<Result<(), Reply>> {
    let request = Request::Stop(Stop {
        job: name_of(id),
        signal: StopSignal::Term,
    });
    let mut stream = wire.ask(&request).await?;
    let reply = stream.reply().await?;
    let Reply::Done(_) = reply else {
        return Some(Err(reply));
    };
    Some(Ok(()))
}

/// Every job that there is a record of.
pub(crate) async fn list(wire: &Wire) -> Option<Vec<Job>> {
    let mut jobs = Vec::new();
    let mut before = None;
    loop {
        let request = Request::List(List {
            limit: Some(10_000),
            before: before.take(),
            ..List::default()
        });
        let mut stream = wire.ask(&request).await?;
        while let Some(reply) = stream.reply().await {
            if let Reply::Jobs(some) = reply {
                jobs.extend(some);
            } else if let Reply::More(cursor) = reply {
                before = Some(cursor);
            } else {
                panic!("a list answered {reply:?}");
            }
        }
        // The end of the list and the end of the connection look the same.
        if wire.connection.close_reason().is_some() {
            return None;
        }
        if before.is_none() {
            return Some(jobs);
        }
    }
}

/// The output of a job up to now, or to its end when `follow`; `on_bytes` hears how many bytes came. `None` with what
/// came until then when the connection was lost.
pub(crate) async fn log(
    wire: &Wire,
    id: Id,
    follow: bool,
    mut on_bytes: impl FnMut(usize),
) -> (Written, Option<Reply>) {
    let mut written = Written::default();
    let request = Request::Log(Log {
        job: name_of(id),
        streams: Streams::All,
        follow,
        offset: 0,
        tail_lines: None,
        since_ns: None,
    });
    let Some(mut stream) = wire.ask(&request).await else {
        return (written, None);
    };
    loop {
        match stream.heard().await {
            Some(Heard::Reply(reply)) => return (written, Some(reply)),
            Some(Heard::Data(kind, bytes)) => {
                written.add(kind, &bytes);
                on_bytes(bytes.len());
            }
            None => return (written, None),
        }
    }
}

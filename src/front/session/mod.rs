//! One request stream: read the request, decide whether it may, serve it, answer.
//!
//! ```text
//! first frame ─► Request ─► authorise ─► serve ─► replies ─► finish
//!      │            │           │          │
//!      └────────────┴───────────┴──────────┴─► one Refused, finish, the rest of the stream stopped
//! ```
//! A session owns nothing but its stream and what it asked its shard for. When its peer goes away the session
//! ends and all of that is dropped: a half-made submission is discarded, a follower is forgotten, the job
//! itself goes on. Nothing a peer sends can end anything but its own session.

mod budget;
mod copy;
mod frames;
mod metrics;
mod output;
mod race;
mod submit;
#[cfg(test)]
mod tests;
mod volume;

use std::{rc::Rc, time::Instant};

use proto_rkyv::{Reply, Request, code};
use thiserror::Error;

pub(super) use self::budget::Budget;
use self::frames::{Incoming, Outgoing};
use super::{
    authorise::{Operation, OwnerRelation, authorise},
    convert,
    quic::{RequestStream, StreamError},
};
use crate::{
    doctor,
    job::{Deleted, JobId, JobView, LogQuery, Peer, Refusal, Streams},
    limits,
    shard::Handle,
};

/// Why a session ends before it has served its request.
#[derive(Debug, Error, PartialEq, Eq)]
enum Broken {
    /// The peer is told why.
    #[error("{0}")]
    Refused(Refusal),
    /// What came is not what the protocol allows; the peer is told why.
    #[error("{0}")]
    Malformed(Refusal),
    /// The peer owes bytes and does not send them.
    #[error("the stream stalled")]
    Stalled,
    /// The stream is of no use any more.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<Refusal> for Broken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<proto_rkyv::FrameError> for Broken {
    fn from(error: proto_rkyv::FrameError) -> Self {
        Self::Malformed(convert::invalid(format!("malformed request: {error}")))
    }
}

/// Serves the request of one stream to its end. What it holds meanwhile counts against `budget`.
pub(super) async fn serve(stream: RequestStream, handle: Handle, budget: Budget) {
    let RequestStream {
        peer,
        send,
        recv,
        arrived,
    } = stream;
    let mut incoming = Incoming::new(recv);
    let request = incoming.request().await;
    let mut session = Session {
        peer,
        handle,
        budget,
        arrived,
        incoming,
        outgoing: Outgoing::new(send),
    };
    let served = match request {
        Ok(request) => session.run(request).await,
        Err(broken) => Err(broken),
    };
    if let Err(broken) = served {
        tracing::debug!(peer = %session.peer.name, %broken, "request not served");
        end(&mut session.incoming, &mut session.outgoing, broken).await;
    }
}

/// Turns a stream away without looking at it, because there are too many.
pub(super) async fn turn_away(stream: RequestStream) {
    let (mut incoming, mut outgoing) = (Incoming::new(stream.recv), Outgoing::new(stream.send));
    end(
        &mut incoming,
        &mut outgoing,
        Broken::Refused(budget::busy()),
    )
    .await;
}

/// Tells the peer why its request is not served, when it can still be told.
async fn end(incoming: &mut Incoming, outgoing: &mut Outgoing, broken: Broken) {
    let (refusal, code) = match broken {
        Broken::Refused(refusal) => (refusal, code::STREAM_REFUSED),
        Broken::Malformed(refusal) => (refusal, code::STREAM_MALFORMED),
        Broken::Stalled => {
            incoming.stop(code::STREAM_STALLED);
            outgoing.reset(code::STREAM_STALLED);
            return;
        }
        Broken::Stream(_) => return,
    };
    incoming.stop(code);
    // A peer that does not even take the refusal has ended the session itself.
    if outgoing.reply(&convert::refusal(refusal)).await.is_ok() {
        outgoing.finish();
    }
}

struct Session {
    peer: Rc<Peer>,
    handle: Handle,
    budget: Budget,
    arrived: Instant,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl Session {
    async fn run(&mut self, request: Request) -> Result<(), Broken> {
        match request {
            // The largest of the futures, in a box so that thousands of waiting sessions stay small.
            Request::Submit(submit) => Box::pin(self.submit(*submit)).await?,
            Request::List(list) => self.list(list).await?,
            Request::Status(job) => self.status(&job).await?,
            Request::Log(log) => Box::pin(self.log(log)).await?,
            Request::Stop(stop) => self.stop(stop).await?,
            Request::Cancel(job) => self.cancel(&job).await?,
            Request::Delete(job) => self.delete(&job).await?,
            Request::DeleteAll => self.delete_all().await?,
            Request::Wait(job) => self.wait(&job).await?,
            Request::Copy(copy) => Box::pin(self.copy(copy)).await?,
            Request::Node => self.node().await?,
            Request::Metrics(metrics) => Box::pin(self.metrics(metrics)).await?,
            Request::Doctor => self.doctor().await?,
            Request::VolumeCreate(create) => self.create_volume(create).await?,
            Request::Volumes => self.volumes().await?,
            Request::Volume(name) => self.volume(&name).await?,
            Request::VolumeRemove(name) => self.remove_volume(&name).await?,
            Request::VolumeRead(read) => Box::pin(self.read_volume(read)).await?,
            Request::VolumeWrite(write) => Box::pin(self.write_volume(write)).await?,
        }
        self.outgoing.finish();
        Ok(())
    }

    /// The job that `reference` means, if the peer may do `operation` to it.
    async fn job(&self, operation: Operation, reference: &str) -> Result<JobView, Refusal> {
        // A peer that may not even do this to its own jobs learns nothing about others'.
        authorise(self.peer.role, operation, OwnerRelation::Own)?;
        let id = self.handle.resolve(convert::job_ref(reference)?).await?;
        let view = self.handle.view(id).await?;
        authorise(
            self.peer.role,
            operation,
            OwnerRelation::of(&self.peer.name, &view.owner),
        )?;
        Ok(view)
    }

    async fn list(&mut self, list: proto_rkyv::List) -> Result<(), Broken> {
        authorise(self.peer.role, Operation::List, OwnerRelation::Own)?;
        let (jobs, next) = self.handle.list(convert::list_query(&list)).await?;
        let mut held = self.budget.reserve();
        held.grow(jobs.len() * limits::LISTED_JOB_BYTES)?;
        let jobs: Vec<_> = jobs.iter().map(convert::job).collect();
        self.outgoing.jobs(&jobs).await?;
        match next {
            Some(next) => self.outgoing.reply(&convert::more(next)).await,
            None => Ok(()),
        }
    }

    async fn status(&mut self, reference: &str) -> Result<(), Broken> {
        let view = self.job(Operation::Status, reference).await?;
        let mut held = self.budget.reserve();
        held.grow(convert::spec_bytes(&view.spec))?;
        self.outgoing
            .reply(&Reply::Status(Box::new(convert::job_in_full(&view))))
            .await?;
        self.outgoing
            .bulk(proto_rkyv::Kind::Argv, &view.spec.argv)
            .await?;
        self.outgoing
            .bulk(proto_rkyv::Kind::Env, &convert::environment(&view.spec))
            .await
    }

    async fn log(&mut self, log: proto_rkyv::Log) -> Result<(), Broken> {
        let id = self.job(Operation::Log, &log.job).await?.id;
        self.follow(id, convert::log_query(&log)).await?;
        let dropped = self.handle.view(id).await?.log.dropped_bytes;
        self.outgoing.reply(&Reply::LogEnd { dropped }).await
    }

    async fn stop(&mut self, stop: proto_rkyv::Stop) -> Result<(), Broken> {
        let id = self.job(Operation::Stop, &stop.job).await?.id;
        let view = self
            .handle
            .stop(id, &self.peer.name, convert::stop_signal(stop.signal))
            .await?;
        self.outgoing
            .reply(&Reply::Done(Box::new(convert::job(&view))))
            .await
    }

    async fn cancel(&mut self, reference: &str) -> Result<(), Broken> {
        let id = self.job(Operation::Cancel, reference).await?.id;
        let view = self.handle.cancel(id, &self.peer.name).await?;
        self.outgoing
            .reply(&Reply::Done(Box::new(convert::job(&view))))
            .await
    }

    async fn delete(&mut self, reference: &str) -> Result<(), Broken> {
        let id = self.job(Operation::Delete, reference).await?.id;
        self.handle.delete(id).await?;
        let deleted = Deleted {
            deleted: 1,
            skipped: 0,
        };
        self.outgoing.reply(&convert::deleted(deleted)).await
    }

    async fn delete_all(&mut self) -> Result<(), Broken> {
        authorise(self.peer.role, Operation::Delete, OwnerRelation::Own)?;
        let (role, name) = (self.peer.role, self.peer.name.clone());
        let allowed = move |owner: &str| {
            authorise(role, Operation::Delete, OwnerRelation::of(&name, owner)).is_ok()
        };
        let deleted = self.handle.delete_all(allowed).await?;
        self.outgoing.reply(&convert::deleted(deleted)).await
    }

    async fn wait(&mut self, reference: &str) -> Result<(), Broken> {
        let id = self.job(Operation::Wait, reference).await?.id;
        self.ended(id).await
    }

    async fn node(&mut self) -> Result<(), Broken> {
        authorise(self.peer.role, Operation::Node, OwnerRelation::Own)?;
        let view = self.handle.node().await;
        let node = convert::node(view, &self.peer, self.handle.settings());
        self.outgoing.reply(&Reply::Node(Box::new(node))).await
    }

    async fn doctor(&mut self) -> Result<(), Broken> {
        authorise(self.peer.role, Operation::Doctor, OwnerRelation::Own)?;
        let findings = self
            .outgoing
            .unless_gone(doctor::examine(&self.handle, &self.peer))
            .await??;
        for reply in convert::findings(findings) {
            self.outgoing.reply(&reply).await?;
        }
        Ok(())
    }

    /// Waits for a job's end and says how it was.
    async fn ended(&mut self, id: JobId) -> Result<(), Broken> {
        let view = self.outgoing.unless_gone(self.handle.ended(id)).await??;
        self.outgoing
            .reply(&Reply::Ended(Box::new(convert::job(&view))))
            .await
    }

    /// Sends a job's output as the query asks.
    async fn follow(&mut self, id: JobId, query: LogQuery) -> Result<(), Broken> {
        let output = self
            .outgoing
            .unless_gone(self.handle.follow(id, query))
            .await??;
        output::send(id, output, &mut self.outgoing).await
    }

    /// All output of a job as it comes, for the one who started it.
    async fn follow_live(&mut self, id: JobId) -> Result<(), Broken> {
        let query = LogQuery {
            streams: Streams::All,
            follow: true,
            offset: 0,
            tail_lines: None,
            since_ns: None,
        };
        self.follow(id, query).await
    }
}

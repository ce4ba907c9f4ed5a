//! Output and end of a job, each byte once and in order, over as many connections as it takes.
//!
//! ```text
//! submit ─► Run ───────────── output … end ────────────────────────► Ended
//!            └─ lost ─► Log from the next byte ── output … end ─► Wait ─► Ended
//! log ─► Log ─┴─ lost ─► Log from the next byte ──────────────────────► LogEnd
//! ```

use proto_rkyv::{After, Job, JobRef, Log, Streams};
use uuid::Uuid;

use crate::{
    client::Client,
    error::RequestError,
    line::{Line, Retry, is_busy, is_lost},
    place::Place,
    stream::{LogEvent, Logs, Output, Run, RunEvent},
};

/// What a [`Follow`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowEvent {
    /// Output.
    Output(Output),
    /// All output that was asked for has been told; nothing follows. Only of a log.
    LogEnd {
        /// Bytes the job wrote that were not stored because of a limit.
        dropped: u64,
    },
    /// The job has ended and all its output was told before; nothing follows. Only of a run.
    Ended(Box<Job>),
}

/// A job that is followed.
#[derive(Debug)]
pub struct Follow {
    line: Line,
    /// The connection that `source` came over.
    client: Client,
    job: JobRef,
    is_run: bool,
    place: Place,
    source: Source,
    retry: Retry,
    /// What [`Follow::ready`] met, for [`Follow::next`] to deal with.
    met: Option<RequestError>,
    /// Whether the server has granted the request before.
    is_granted: bool,
}

/// Where events come from.
#[derive(Debug)]
enum Source {
    /// The stream of the submit.
    Run(Run),
    /// The stream of a log.
    Logs(Logs),
    /// Output is to be asked for.
    AskLog,
    /// The end is to be waited for.
    AskEnd,
    /// Nothing follows.
    Done,
}

impl Follow {
    pub(crate) fn log(line: &Line, log: Log) -> Self {
        Self {
            client: line.client(),
            job: log.job.clone(),
            is_run: false,
            place: Place::new(log),
            source: Source::AskLog,
            retry: Retry::new(line),
            met: None,
            is_granted: false,
            line: line.clone(),
        }
    }

    pub(crate) fn run(line: &Line, run: Run) -> Self {
        let job = Uuid::from_bytes(run.id()).to_string();
        let log = Log {
            job: job.clone(),
            streams: Streams::All,
            follow: true,
            offset: 0,
            tail_lines: None,
            since_ns: None,
        };
        Self {
            client: line.client(),
            job,
            is_run: true,
            place: Place::new(log),
            source: Source::Run(run),
            retry: Retry::new(line),
            met: None,
            is_granted: true,
            line: line.clone(),
        }
    }

    /// The next event, or `None` after the last one.
    ///
    /// # Errors
    /// [`RequestError`]; the job itself goes on. One about the connection comes only when no other could be made
    /// for half a minute.
    ///
    /// # Cancel
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<FollowEvent>, RequestError> {
        loop {
            let error = match self.met.take() {
                Some(error) => error,
                None => match self.step().await {
                    Ok(Step::Event(event)) => return Ok(Some(event)),
                    Ok(Step::On) => continue,
                    Ok(Step::Done) => return Ok(None),
                    Err(error) => error,
                },
            };
            self.lose(error).await?;
        }
    }

    /// The next event if it is here already.
    ///
    /// # Errors
    /// As [`Follow::next`].
    pub fn ready(&mut self) -> Result<Option<FollowEvent>, RequestError> {
        while self.met.is_none() {
            let told = match &mut self.source {
                Source::Run(run) => run.ready().map(|event| event.map(Told::Run)),
                Source::Logs(logs) => logs.ready().map(|event| event.map(Told::Log)),
                Source::AskLog | Source::AskEnd | Source::Done => return Ok(None),
            };
            match told {
                Ok(None) => return Ok(None),
                Ok(Some(told)) => {
                    if let Step::Event(event) = self.told(told) {
                        return Ok(Some(event));
                    }
                }
                Err(error) if self.is_mendable(&error) => self.met = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn step(&mut self) -> Result<Step, RequestError> {
        match &mut self.source {
            Source::Run(run) => match run.next().await? {
                Some(event) => Ok(self.told(Told::Run(event))),
                None => Ok(self.end()),
            },
            Source::Logs(logs) => match logs.next().await? {
                Some(event) => Ok(self.told(Told::Log(event))),
                None => Ok(self.end()),
            },
            Source::AskLog => {
                self.client = self.line.client();
                let log = self.place.resume();
                self.source = Source::Logs(self.client.log(log).await?);
                Ok(Step::On)
            }
            Source::AskEnd => {
                self.client = self.line.client();
                let job = self.client.wait(self.job.clone()).await?;
                Ok(self.told(Told::Run(RunEvent::Ended(job))))
            }
            Source::Done => Ok(Step::Done),
        }
    }

    fn end(&mut self) -> Step {
        self.source = Source::Done;
        Step::Done
    }

    fn told(&mut self, told: Told) -> Step {
        self.retry.answered();
        self.is_granted = true;
        match told {
            Told::Run(RunEvent::Output(output)) | Told::Log(LogEvent::Output(output)) => {
                match self.place.take(output) {
                    Some(output) => Step::Event(FollowEvent::Output(output)),
                    None => Step::On,
                }
            }
            Told::Run(RunEvent::Ended(job)) => {
                self.source = Source::Done;
                Step::Event(FollowEvent::Ended(job))
            }
            Told::Log(LogEvent::End { .. }) if self.is_run => {
                self.source = Source::AskEnd;
                Step::On
            }
            Told::Log(LogEvent::End { dropped }) => {
                self.source = Source::Done;
                Step::Event(FollowEvent::LogEnd { dropped })
            }
        }
    }

    fn is_mendable(&self, error: &RequestError) -> bool {
        is_lost(error) || self.is_granted && is_busy(error)
    }

    /// Makes ready to go on after `error`, if that is possible.
    async fn lose(&mut self, error: RequestError) -> Result<(), RequestError> {
        if !self.is_mendable(&error) {
            return Err(error);
        }
        self.source = match std::mem::replace(&mut self.source, Source::Done) {
            Source::Run(run) if run.after() == After::Wait => Source::AskEnd,
            Source::AskEnd => Source::AskEnd,
            Source::Logs(logs) => {
                if let Some(id) = logs.job().filter(|_| !self.is_run) {
                    self.place.of_job(Uuid::from_bytes(id).to_string());
                }
                Source::AskLog
            }
            Source::Run(_) | Source::AskLog => Source::AskLog,
            Source::Done => Source::Done,
        };
        self.retry.again(&self.client, error).await
    }
}

enum Told {
    Run(RunEvent),
    Log(LogEvent),
}

enum Step {
    Event(FollowEvent),
    /// Nothing to tell yet.
    On,
    Done,
}

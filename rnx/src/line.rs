//! A connection that is made anew when it is lost: a daemon that is restarted, upgraded or killed, a network that
//! was away.
//!
//! ```text
//! request ──► lost ──► pause 50 ms … 1 s ──► connect ──► the same request again
//!               └────────── 30 s without an answer ──► the error
//! ```
//! Only requests that may be made twice go through it: those that ask, those where asking twice is no error, and a
//! submit, which carries a key that makes the second one the first.

use std::{sync::Arc, time::Duration};

use proto_rkyv::{Job, JobRef, Log, RefusalCode, StopSignal, code};
use tokio::{
    sync::{Mutex, watch},
    time::{self, Instant},
};
use uuid::Uuid;

use crate::{
    client::{Client, Spec},
    config::Node,
    connect::ConnectError,
    error::RequestError,
    follow::Follow,
    stream::Run,
};

/// A handshake that takes longer is begun anew: the server may have come up after our first packets were lost. It
/// is at least this long, and longer where the way is.
const HANDSHAKE_MIN: Duration = Duration::from_secs(1);
const HANDSHAKE_ROUND_TRIPS: u32 = 8;

/// How a lost connection is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Pause before the first attempt, 50 ms by default. Between the starts of later ones it is twice as long each
    /// time.
    pub pause_first: Duration,
    /// Longest pause, 1 s by default.
    pub pause_max: Duration,
    /// How long it is tried without an answer, 30 s by default.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause_first: Duration::from_millis(50),
            pause_max: Duration::from_secs(1),
            patience: Duration::from_secs(30),
        }
    }
}

/// A connection to a server that outlives the server. Clones share it.
#[derive(Debug, Clone)]
pub struct Line {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: Node,
    pace: Pace,
    current: watch::Sender<Client>,
    /// Held by the one who makes the next connection; the others wait for it and use the same.
    making: Mutex<()>,
}

impl Line {
    /// Connects to `node`; nothing is tried twice for that.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(node: &Node) -> Result<Self, ConnectError> {
        Ok(Self::new(node.clone(), Client::connect(node).await?))
    }

    /// Goes on with `client`, which is connected to `node`.
    #[must_use]
    pub fn new(node: Node, client: Client) -> Self {
        Self::with_pace(node, client, Pace::default())
    }

    /// As [`Line::new`], at another pace.
    #[must_use]
    pub fn with_pace(node: Node, client: Client, pace: Pace) -> Self {
        Self {
            shared: Arc::new(Shared {
                node,
                pace,
                current: watch::Sender::new(client),
                making: Mutex::new(()),
            }),
        }
    }

    /// The connection as it is now; it may be lost already.
    #[must_use]
    pub fn client(&self) -> Client {
        self.shared.current.borrow().clone()
    }

    /// Closes the connection for every clone, as [`Client::close`].
    pub async fn close(self) {
        self.client().close().await;
    }

    /// Submits a job, as [`Client::submit_with`]. When the answer is lost and nothing is uploaded, it is submitted
    /// again with the same idempotency key (the caller's, or a random one), so that it never runs twice.
    ///
    /// # Errors
    /// [`RequestError`]. One about the connection leaves it open whether the job exists.
    pub async fn submit(
        &self,
        spec: &Spec,
        mut progress: impl FnMut(u64),
    ) -> Result<Run, RequestError> {
        if spec.uploads.is_some() {
            return self.client().submit_with(spec, progress).await;
        }
        let mut spec = spec.clone();
        let key = &mut spec.submit.idempotency_key;
        key.get_or_insert_with(|| Uuid::new_v4().to_string());
        let mut retry = Retry::new(self);
        loop {
            let client = self.client();
            match client.submit_with(&spec, &mut progress).await {
                Err(error) if is_lost(&error) => retry.again(&client, error).await?,
                decided => return decided,
            }
        }
    }

    /// Waits until one job has ended.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn wait(&self, job: impl Into<JobRef>) -> Result<Box<Job>, RequestError> {
        let (job, mut retry) = (job.into(), Retry::new(self));
        loop {
            let client = self.client();
            match client.wait(job.clone()).await {
                Err(error) if is_lost(&error) || is_busy(&error) => {
                    retry.again(&client, error).await?;
                }
                decided => return decided,
            }
        }
    }

    /// Asks one job to stop, as [`Client::stop`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn stop(
        &self,
        job: impl Into<JobRef>,
        signal: StopSignal,
    ) -> Result<Box<Job>, RequestError> {
        let (job, mut retry) = (job.into(), Retry::new(self));
        loop {
            let client = self.client();
            match client.stop(job.clone(), signal).await {
                Err(error) if is_lost(&error) => retry.again(&client, error).await?,
                decided => return decided,
            }
        }
    }

    /// Output of one job, every byte once, over as many connections as it takes. Asks nothing yet.
    #[must_use]
    pub fn log(&self, log: Log) -> Follow {
        Follow::log(self, log)
    }

    /// The end of a job that was submitted here, and its output before that when it was submitted to be followed,
    /// over as many connections as it takes. Nothing may have been taken out of `run`.
    #[must_use]
    pub fn attach(&self, run: Run) -> Follow {
        Follow::run(self, run)
    }

    /// Makes sure that the connection is another one than `lost`, if that is lost.
    async fn renew(&self, lost: &Client) -> Result<(), ConnectError> {
        if lost.link.connection.close_reason().is_none() {
            return Ok(());
        }
        let _making = self.shared.making.lock().await;
        let lost_id = lost.link.connection.stable_id();
        if self.client().link.connection.stable_id() != lost_id {
            return Ok(());
        }
        let round_trips = lost.link.connection.rtt() * HANDSHAKE_ROUND_TRIPS;
        let connecting = Client::connect(&self.shared.node);
        match time::timeout(round_trips.max(HANDSHAKE_MIN), connecting).await {
            Ok(client) => {
                self.shared.current.send_replace(client?);
                Ok(())
            }
            Err(_) => Err(ConnectError::silent(&self.shared.node.address)),
        }
    }
}

/// Tries of one request, until it is answered.
#[derive(Debug)]
pub(crate) struct Retry {
    line: Line,
    /// When nothing was heard for the first time.
    since: Option<Instant>,
    pause: Duration,
    last: Option<Instant>,
}

impl Retry {
    pub(crate) fn new(line: &Line) -> Self {
        Self {
            line: line.clone(),
            since: None,
            pause: line.shared.pace.pause_first,
            last: None,
        }
    }

    /// Something was heard.
    pub(crate) fn answered(&mut self) {
        self.since = None;
        self.pause = self.line.shared.pace.pause_first;
        self.last = None;
    }

    /// Returns when the request may be made again, after `error` met it on `client`.
    ///
    /// # Errors
    /// The last error, when patience is over or it is one that no new connection mends.
    pub(crate) async fn again(
        &mut self,
        client: &Client,
        error: RequestError,
    ) -> Result<(), RequestError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let mut error = error;
        loop {
            if since.elapsed() >= self.line.shared.pace.patience {
                return Err(error);
            }
            // An attempt that took long has been a pause itself.
            let from = self.last.unwrap_or_else(Instant::now);
            time::sleep_until(from + self.pause).await;
            self.pause = (self.pause * 2).min(self.line.shared.pace.pause_max);
            self.last = Some(Instant::now());
            match self.line.renew(client).await {
                Ok(()) => return Ok(()),
                Err(failed) => {
                    error = failed.into();
                    if !is_lost(&error) {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Whether another connection may bring what this one did not.
pub(crate) fn is_lost(error: &RequestError) -> bool {
    match error {
        RequestError::Connection(error) => match error {
            ConnectError::Unreachable { .. } | ConnectError::Lost { .. } => true,
            ConnectError::Closed { code, .. } => *code == u64::from(code::CONNECTION_SHUTDOWN),
            // A name that cannot be looked up just now; it was, before.
            ConnectError::Address { .. } => true,
            ConnectError::Credentials { .. }
            | ConnectError::Untrusted { .. }
            | ConnectError::OtherProtocol { .. } => false,
        },
        // What a server that ends leaves of a stream.
        RequestError::Aborted { .. } | RequestError::Truncated => true,
        RequestError::Refused(_)
        | RequestError::Frame(_)
        | RequestError::Bulk(_)
        | RequestError::Unexpected { .. }
        | RequestError::SpecTooLarge { .. }
        | RequestError::RequestTooLarge(_)
        | RequestError::Upload(_)
        | RequestError::Archive(_) => false,
    }
}

/// Whether the server has no room for the request now, or ends.
pub(crate) fn is_busy(error: &RequestError) -> bool {
    matches!(error, RequestError::Refused(refusal) if refusal.code == RefusalCode::Busy)
}

//! What can be asked of a server.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, pin::pin};

use bytes::Bytes;
use proto_rkyv::{
    After, Copy, Cursor, Finding, Job, JobRef, Kind, List, Log, Metrics, Node as ServerNode, Piece,
    Reply, Request, SUBMIT_BYTES_MAX, Stop, StopSignal, Submit, join, split,
};

use crate::{
    blob::{Blob, Blobs, Tally},
    config::Node,
    connect::{self, ConnectError, Link},
    conversation::{self, Incoming, Outgoing, Sent, ask, push_frames},
    error::RequestError,
    stream::{Accepted, Arrivals, Logs, Run, Samples},
    upload::{self, Tree},
};

/// What is asked of a new job: everything that travels with a submit.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Name, labels, limits and what the stream carries afterwards. `uploads` is filled in from the tree.
    pub submit: Submit,
    /// The command and its arguments, any bytes but NUL.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` entries.
    pub env: Vec<Vec<u8>>,
    /// `NAME=value` entries whose values are never shown to anybody.
    pub secret_env: Vec<Vec<u8>>,
    /// Files that are in `/work` before the command starts.
    pub uploads: Option<Tree>,
}

impl Spec {
    /// A job that runs `argv` and nobody waits for.
    pub fn detached<A: AsRef<OsStr>>(argv: impl IntoIterator<Item = A>) -> Self {
        let argv = argv
            .into_iter()
            .map(|word| word.as_ref().as_bytes().to_vec())
            .collect();
        Self {
            argv,
            ..Self::default()
        }
    }

    /// A job that runs `argv` and whose output and end are told by [`Run::next`].
    pub fn attached<A: AsRef<OsStr>>(argv: impl IntoIterator<Item = A>) -> Self {
        let mut spec = Self::detached(argv);
        spec.submit.after = After::Follow;
        spec
    }

    /// The request and its bulk payload as one buffer.
    fn frames(&self) -> Result<Bytes, RequestError> {
        let bulk = [
            (Kind::Argv, &self.argv),
            (Kind::Env, &self.env),
            (Kind::SecretEnv, &self.secret_env),
        ];
        let bulk = bulk.map(|(kind, entries)| (kind, join(entries)));
        let bytes = bulk.iter().map(|(_, payload)| payload.len()).sum();
        if bytes > SUBMIT_BYTES_MAX as usize {
            return Err(RequestError::SpecTooLarge {
                bytes,
                max: SUBMIT_BYTES_MAX,
            });
        }
        let mut submit = self.submit.clone();
        submit.uploads = self.uploads.as_ref().map(Tree::bytes);
        let control = proto_rkyv::encode(&Request::Submit(Box::new(submit)))
            .map_err(RequestError::RequestTooLarge)?;
        let mut frames =
            Vec::with_capacity(control.len() + bytes + bulk.len() * 2 * proto_rkyv::HEADER_BYTES);
        frames.extend_from_slice(&control);
        for (kind, payload) in &bulk {
            push_frames(&mut frames, *kind, payload);
        }
        Ok(frames.into())
    }
}

/// One job in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Everything but the following.
    pub job: Box<Job>,
    /// The command and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` entries; values of secrets are `***`.
    pub env: Vec<Vec<u8>>,
}

/// Some jobs of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The jobs, newest first.
    pub jobs: Vec<Job>,
    /// What to ask for next, as [`List::before`], when there are more.
    pub next: Option<Cursor>,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// So many jobs are gone.
    pub deleted: u64,
    /// So many are still there: they have not ended, or we may not delete them.
    pub skipped: u64,
}

/// An open connection to a server. Clones share it; it closes when the last one is gone.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) link: Link,
}

impl Client {
    /// Connects to `node`. The server judges our certificate after that, so a refusal of it can also be the
    /// error of the first request.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(node: &Node) -> Result<Self, ConnectError> {
        connect::connect(node).await.map(|link| Self { link })
    }

    /// Submits a job, uploads included, and returns once it was accepted.
    ///
    /// # Errors
    /// [`RequestError`].
    ///
    /// # Cancel
    /// The job may or may not exist when the future is dropped; one whose upload was cut short does not.
    pub async fn submit(&self, spec: &Spec) -> Result<Run, RequestError> {
        self.submit_with(spec, |_| {}).await
    }

    /// As [`Client::submit`]; `progress` is told how many bytes of file contents were sent so far.
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub async fn submit_with(
        &self,
        spec: &Spec,
        mut progress: impl FnMut(u64),
    ) -> Result<Run, RequestError> {
        let (outgoing, mut incoming) = conversation::open(&self.link, spec.frames()?).await?;
        let accepted = match &spec.uploads {
            None => {
                outgoing.finish();
                accepted(&mut incoming).await?
            }
            Some(tree) => {
                let mut contents = 0;
                let sent = |tally: Tally| {
                    contents += tally.contents;
                    progress(contents);
                };
                send_until(outgoing, upload::read(tree), sent, accepted(&mut incoming)).await?
            }
        };
        Ok(Run::new(accepted, incoming, spec.submit.after))
    }

    /// Jobs, newest first: as many as are asked for, or as the server sends at once.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn list(&self, list: List) -> Result<Page, RequestError> {
        let expected = "jobs";
        let mut incoming = ask(&self.link, &Request::List(list)).await?;
        let mut page = Page::default();
        while let Some(reply) = incoming.reply_or_end(expected).await? {
            if page.next.is_some() {
                return Err(RequestError::Unexpected { expected });
            }
            if let Reply::More(next) = reply {
                page.next = Some(next);
            } else if let Reply::Jobs(more) = reply {
                page.jobs.extend(more);
            } else {
                return Err(RequestError::Unexpected { expected });
            }
        }
        Ok(page)
    }

    /// Jobs as [`Client::list`] gives them, over as many requests as it takes to have `list.limit` of them. Without
    /// a limit it is one request.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn list_all(&self, list: List) -> Result<Vec<Job>, RequestError> {
        let limit = list
            .limit
            .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let mut page = self.list(list.clone()).await?;
        let mut jobs = page.jobs;
        while let (Some(before), Some(limit)) = (page.next, limit) {
            // A server that promises more and sends nothing would keep us for ever.
            let Some(left) = limit.checked_sub(jobs.len()).filter(|left| *left > 0) else {
                break;
            };
            page = self
                .list(List {
                    limit: u32::try_from(left).ok(),
                    before: Some(before),
                    ..list.clone()
                })
                .await?;
            if page.jobs.is_empty() {
                break;
            }
            jobs.append(&mut page.jobs);
        }
        Ok(jobs)
    }

    /// One job in full. `job` is its id or a unique prefix of at least four characters.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn status(&self, job: impl Into<JobRef>) -> Result<Status, RequestError> {
        let expected = "the status of a job";
        let mut incoming = ask(&self.link, &Request::Status(job.into())).await?;
        let Reply::Status(job) = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        let (mut argv, mut env, mut at) = (Vec::new(), Vec::new(), Kind::Argv);
        while let Some(piece) = incoming.piece().await? {
            match piece {
                Piece::Begin(header) => at = header.kind,
                Piece::Data { bytes, .. } => match at {
                    Kind::Argv => argv.extend_from_slice(&bytes),
                    Kind::Env | Kind::SecretEnv => env.extend_from_slice(&bytes),
                    Kind::Control | Kind::Stdout | Kind::Stderr | Kind::File => {
                        return Err(RequestError::Unexpected { expected });
                    }
                },
                Piece::Control(_) => return Err(RequestError::Unexpected { expected }),
            }
        }
        let owned = |list: &[u8]| {
            split(list).map(|entries| entries.into_iter().map(<[u8]>::to_vec).collect())
        };
        Ok(Status {
            job,
            argv: owned(&argv)?,
            env: owned(&env)?,
        })
    }

    /// Output of one job.
    ///
    /// # Errors
    /// [`RequestError`]; a refusal comes out of the first [`Logs::next`].
    pub async fn log(&self, log: Log) -> Result<Logs, RequestError> {
        ask(&self.link, &Request::Log(log)).await.map(Logs::new)
    }

    /// Asks one job to stop and returns it as it is then; it need not have ended. Asking twice is no error.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn stop(
        &self,
        job: impl Into<JobRef>,
        signal: StopSignal,
    ) -> Result<Box<Job>, RequestError> {
        let expected = "a stopped job";
        let mut incoming = ask(
            &self.link,
            &Request::Stop(Stop {
                job: job.into(),
                signal,
            }),
        )
        .await?;
        let Reply::Done(job) = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        Ok(job)
    }

    /// Cancels one job that has not begun, or a schedule, and returns it as it is then.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn cancel(&self, job: impl Into<JobRef>) -> Result<Box<Job>, RequestError> {
        let expected = "a canceled job";
        let mut incoming = ask(&self.link, &Request::Cancel(job.into())).await?;
        let Reply::Done(job) = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        Ok(job)
    }

    /// Deletes one job that has ended, its output included.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn delete(&self, job: impl Into<JobRef>) -> Result<Deleted, RequestError> {
        self.deleted(&Request::Delete(job.into())).await
    }

    /// Deletes every job that has ended and that we may delete.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn delete_all(&self) -> Result<Deleted, RequestError> {
        self.deleted(&Request::DeleteAll).await
    }

    async fn deleted(&self, request: &Request) -> Result<Deleted, RequestError> {
        let expected = "a deletion";
        let mut incoming = ask(&self.link, request).await?;
        let Reply::Deleted { deleted, skipped } = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        Ok(Deleted { deleted, skipped })
    }

    /// Waits until one job has ended.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn wait(&self, job: impl Into<JobRef>) -> Result<Box<Job>, RequestError> {
        let expected = "the end of a job";
        let mut incoming = ask(&self.link, &Request::Wait(job.into())).await?;
        let Reply::Ended(job) = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        Ok(job)
    }

    /// Reads a file or directory below a job's `/work`; `path` is relative to it, empty for all of it.
    ///
    /// # Errors
    /// [`RequestError`]; a refusal comes out of the first [`Arrivals::next`].
    pub async fn copy(
        &self,
        job: impl Into<JobRef>,
        path: impl Into<Vec<u8>>,
    ) -> Result<Arrivals, RequestError> {
        let copy = Copy {
            job: job.into(),
            path: path.into(),
        };
        ask(&self.link, &Request::Copy(copy))
            .await
            .map(Arrivals::new)
    }

    /// What a job uses, once or until it has ended.
    ///
    /// # Errors
    /// [`RequestError`]; a refusal comes out of the first [`Samples::next`].
    pub async fn metrics(&self, metrics: Metrics) -> Result<Samples, RequestError> {
        ask(&self.link, &Request::Metrics(metrics))
            .await
            .map(Samples::new)
    }

    /// What the server's machine keeps of the promises. The server tries it out, which takes seconds.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, RequestError> {
        let expected = "findings";
        let mut incoming = ask(&self.link, &Request::Doctor).await?;
        let mut findings = Vec::new();
        while let Some(reply) = incoming.reply_or_end(expected).await? {
            let Reply::Findings(some) = reply else {
                return Err(RequestError::Unexpected { expected });
            };
            findings.extend(some);
        }
        Ok(findings)
    }

    /// What the server is and who it takes us for.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn node(&self) -> Result<Box<ServerNode>, RequestError> {
        let expected = "a node";
        let mut incoming = ask(&self.link, &Request::Node).await?;
        let Reply::Node(node) = incoming.reply(expected).await? else {
            return Err(RequestError::Unexpected { expected });
        };
        Ok(node)
    }

    /// Closes the connection for every clone and lets the server know, without waiting for its answer.
    pub async fn close(self) {
        self.link.connection.close(0u32.into(), b"");
        // The packet is sent by the connection's own task, which needs a turn or two; waiting until the
        // endpoint is idle would cost three round trips for nothing.
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        self.link.endpoint.close(0u32.into(), b"");
    }
}

async fn accepted(incoming: &mut Incoming) -> Result<Accepted, RequestError> {
    let expected = "the id of a job";
    let Reply::Accepted { id, existing } = incoming.reply(expected).await? else {
        return Err(RequestError::Unexpected { expected });
    };
    Ok(Accepted { id, existing })
}

/// Sends blobs while listening for the `answer`: a refusal ends the upload at once.
pub(crate) async fn send_until<T>(
    outgoing: Outgoing,
    blobs: Blobs,
    sent: impl FnMut(Tally),
    answer: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let mut sending = pin!(send(outgoing, blobs, sent));
    let mut answer = pin!(answer);
    let early = tokio::select! {
        sent = &mut sending => {
            sent?;
            None
        }
        answer = &mut answer => Some(answer?),
    };
    match early {
        None => answer.await,
        Some(answer) => sending.await.map(|()| answer),
    }
}

async fn send(
    mut outgoing: Outgoing,
    mut blobs: Blobs,
    mut sent: impl FnMut(Tally),
) -> Result<(), RequestError> {
    while let Some(blob) = blobs.next().await {
        let Blob { frames, tally } = blob?;
        if outgoing.send(frames).await? == Sent::Unwanted {
            // The reply says why; the stream must not look complete meanwhile.
            return Ok(());
        }
        sent(tally);
    }
    outgoing.finish();
    Ok(())
}

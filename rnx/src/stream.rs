//! Answers that come in pieces: a followed run, a log, a copied tree.
//!
//! Each has `next()`, which waits and is cancel-safe (a future that is dropped loses nothing), and `ready()`,
//! which does not wait, so that a reader can collect what is there before it writes. Payload is passed on as
//! the very slices that came in.

use bytes::Bytes;
use proto_rkyv::{After, Header, Id, Job, Kind, Piece, Reply, Sample, Upload};

use crate::{
    conversation::{self, Incoming},
    error::RequestError,
};

/// Which of a job's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Some output of a job, in the order in which it was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which stream.
    pub stream: Stream,
    /// Position of the first byte in that stream.
    pub offset: u64,
    /// When it was captured, nanoseconds since the epoch.
    pub time_ns: u64,
    /// The bytes, never empty.
    pub bytes: Bytes,
    /// How many bytes of the same record are still to come.
    pub left: u32,
}

/// What a followed run tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// Output.
    Output(Output),
    /// The job has ended and all its output was told before; nothing follows.
    Ended(Box<Job>),
}

/// What a log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// Output.
    Output(Output),
    /// All that was asked for has been told; nothing follows.
    End {
        /// Bytes the job wrote that were not stored because of a limit.
        dropped: u64,
    },
}

/// Frames in, output and replies out.
#[derive(Debug)]
struct Outputs {
    incoming: Incoming,
    at: Option<(Stream, Header)>,
}

enum Told {
    Output(Output),
    Reply(Reply),
}

impl Outputs {
    fn ready(&mut self) -> Result<Option<Told>, RequestError> {
        while let Some(piece) = self.incoming.ready()? {
            if let Some(told) = self.take(piece)? {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Told, RequestError> {
        loop {
            let piece = self
                .incoming
                .piece()
                .await?
                .ok_or(RequestError::Truncated)?;
            if let Some(told) = self.take(piece)? {
                return Ok(told);
            }
        }
    }

    fn take(&mut self, piece: Piece) -> Result<Option<Told>, RequestError> {
        match piece {
            Piece::Control(archive) => {
                conversation::reply(&archive).map(|reply| Some(Told::Reply(reply)))
            }
            Piece::Begin(header) => {
                let stream = match header.kind {
                    Kind::Stdout => Stream::Stdout,
                    Kind::Stderr => Stream::Stderr,
                    Kind::Control | Kind::Argv | Kind::Env | Kind::SecretEnv | Kind::File => {
                        return Err(RequestError::Unexpected { expected: "output" });
                    }
                };
                self.at = Some((stream, header));
                Ok(None)
            }
            Piece::Data { bytes, left } => {
                let Some((stream, header)) = self.at else {
                    return Err(RequestError::Unexpected { expected: "output" });
                };
                let before = u64::from(header.len - left) - bytes.len() as u64;
                let (offset, time_ns) = (header.offset.wrapping_add(before), header.time_ns);
                Ok(Some(Told::Output(Output {
                    stream,
                    offset,
                    time_ns,
                    bytes,
                    left,
                })))
            }
        }
    }
}

/// What is known of a job when it was accepted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepted {
    pub(crate) id: Id,
    pub(crate) existing: bool,
}

/// A job that was accepted, and what the server tells about it.
#[derive(Debug)]
pub struct Run {
    accepted: Accepted,
    outputs: Outputs,
    after: After,
    ended: bool,
}

impl Run {
    pub(crate) fn new(accepted: Accepted, incoming: Incoming, after: After) -> Self {
        Self {
            accepted,
            outputs: Outputs { incoming, at: None },
            after,
            ended: after == After::Detach,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> Id {
        self.accepted.id
    }

    pub(crate) fn after(&self) -> After {
        self.after
    }

    /// Whether an earlier submit with the same idempotency key made the job.
    #[must_use]
    pub fn is_existing(&self) -> bool {
        self.accepted.existing
    }

    /// The next event, or `None` after [`RunEvent::Ended`] or for a job that was submitted detached.
    ///
    /// # Errors
    /// [`RequestError`]; the job itself goes on.
    ///
    /// # Cancel
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, RequestError> {
        if self.ended {
            return Ok(None);
        }
        let told = self.outputs.next().await?;
        self.event(told).map(Some)
    }

    /// The next event if it is here already.
    ///
    /// # Errors
    /// As [`Run::next`].
    pub fn ready(&mut self) -> Result<Option<RunEvent>, RequestError> {
        if self.ended {
            return Ok(None);
        }
        let told = self.outputs.ready()?;
        told.map(|told| self.event(told)).transpose()
    }

    /// Waits for the end and throws output away.
    ///
    /// # Errors
    /// As [`Run::next`]; [`RequestError::Unexpected`] for a job that was submitted detached.
    pub async fn ended(&mut self) -> Result<Box<Job>, RequestError> {
        while let Some(event) = self.next().await? {
            if let RunEvent::Ended(job) = event {
                return Ok(job);
            }
        }
        Err(RequestError::Unexpected {
            expected: "the end of a detached job",
        })
    }

    fn event(&mut self, told: Told) -> Result<RunEvent, RequestError> {
        match told {
            Told::Output(output) => Ok(RunEvent::Output(output)),
            Told::Reply(Reply::Ended(job)) => {
                self.ended = true;
                Ok(RunEvent::Ended(job))
            }
            Told::Reply(_) => Err(RequestError::Unexpected {
                expected: "the end of a job",
            }),
        }
    }
}

/// Output of one job, history and live as one.
#[derive(Debug)]
pub struct Logs {
    outputs: Outputs,
    ended: bool,
}

impl Logs {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self {
            outputs: Outputs { incoming, at: None },
            ended: false,
        }
    }

    /// The next event, or `None` after [`LogEvent::End`].
    ///
    /// # Errors
    /// [`RequestError`].
    ///
    /// # Cancel
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<LogEvent>, RequestError> {
        if self.ended {
            return Ok(None);
        }
        let told = self.outputs.next().await?;
        self.event(told).map(Some)
    }

    /// The next event if it is here already.
    ///
    /// # Errors
    /// As [`Logs::next`].
    pub fn ready(&mut self) -> Result<Option<LogEvent>, RequestError> {
        if self.ended {
            return Ok(None);
        }
        let told = self.outputs.ready()?;
        told.map(|told| self.event(told)).transpose()
    }

    /// Which job it is of, once some output has come.
    pub(crate) fn job(&self) -> Option<Id> {
        self.outputs.at.map(|(_, header)| header.job)
    }

    fn event(&mut self, told: Told) -> Result<LogEvent, RequestError> {
        match told {
            Told::Output(output) => Ok(LogEvent::Output(output)),
            Told::Reply(Reply::LogEnd { dropped }) => {
                self.ended = true;
                Ok(LogEvent::End { dropped })
            }
            Told::Reply(_) => Err(RequestError::Unexpected {
                expected: "the end of a log",
            }),
        }
    }
}

/// Looks at one job, oldest first.
#[derive(Debug)]
pub struct Samples {
    incoming: Incoming,
}

impl Samples {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self { incoming }
    }

    /// The next look, or `None` after the last one.
    ///
    /// # Errors
    /// [`RequestError`].
    ///
    /// # Cancel
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Sample>, RequestError> {
        let expected = "a sample";
        match self.incoming.reply_or_end(expected).await? {
            None => Ok(None),
            Some(Reply::Sample(sample)) => Ok(Some(*sample)),
            Some(_) => Err(RequestError::Unexpected { expected }),
        }
    }
}

/// A piece of a copied tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// An entry or a remark; never [`Upload::End`]. Its path comes from the server: see
    /// [`crate::Landing`] before writing it anywhere.
    Entry(Upload),
    /// Contents of the file that came last.
    Data(Bytes),
}

/// A tree that is being copied out of a job.
#[derive(Debug)]
pub struct Arrivals {
    incoming: Incoming,
    ended: bool,
}

impl Arrivals {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self {
            incoming,
            ended: false,
        }
    }

    /// The next piece, or `None` when the tree is complete.
    ///
    /// # Errors
    /// [`RequestError`]; what came so far is incomplete.
    ///
    /// # Cancel
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Arrival>, RequestError> {
        while !self.ended {
            match self
                .incoming
                .piece()
                .await?
                .ok_or(RequestError::Truncated)?
            {
                Piece::Control(archive) => match entry(&archive)? {
                    Upload::End => self.ended = true,
                    entry @ (Upload::Dir { .. }
                    | Upload::File { .. }
                    | Upload::Symlink { .. }
                    | Upload::Fifo { .. }
                    | Upload::Link { .. }
                    | Upload::Remark { .. }) => {
                        return Ok(Some(Arrival::Entry(entry)));
                    }
                },
                Piece::Begin(Header {
                    kind: Kind::File, ..
                }) => {}
                Piece::Begin(_) => return Err(RequestError::Unexpected { expected: "files" }),
                Piece::Data { bytes, .. } => return Ok(Some(Arrival::Data(bytes))),
            }
        }
        Ok(None)
    }
}

/// Reads an entry, or the refusal that comes in its place. The entry is tried first: a refusal ends in text,
/// which is no entry's tag, whereas the zeros of a short entry might be read as a refusal.
fn entry(archive: &[u8]) -> Result<Upload, RequestError> {
    Upload::decode(archive).map_err(|error| match Reply::decode(archive) {
        Ok(Reply::Refused(refusal)) => RequestError::Refused(refusal),
        Ok(_) | Err(_) => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_rkyv::{HEADER_BYTES, Refusal, RefusalCode, Remark, encode};

    #[test]
    fn refusals_and_entries_of_a_copy_are_never_taken_for_each_other() {
        let check_entry = |upload: Upload| {
            let frame = encode(&upload).unwrap();
            assert_eq!(entry(&frame[HEADER_BYTES..]).unwrap(), upload);
        };
        check_entry(Upload::End);
        for len in 0..40 {
            let path = vec![b'a'; len];
            check_entry(Upload::Dir {
                path: path.clone(),
                mode: 0,
            });
            check_entry(Upload::Dir {
                path: path.clone(),
                mode: 0o777,
            });
            check_entry(Upload::File {
                path: path.clone(),
                mode: 0o644,
                bytes: 0,
            });
            check_entry(Upload::File {
                path: path.clone(),
                mode: 0,
                bytes: u64::MAX,
            });
            check_entry(Upload::Symlink {
                path: path.clone(),
                target: vec![0; len],
            });
            check_entry(Upload::Symlink {
                path: path.clone(),
                target: Vec::new(),
            });
            check_entry(Upload::Fifo {
                path: path.clone(),
                mode: 0,
            });
            check_entry(Upload::Link {
                path: path.clone(),
                target: vec![0; len],
            });
            for remark in [Remark::Socket, Remark::Device, Remark::Doubled] {
                let path = path.clone();
                check_entry(Upload::Remark { path, remark });
            }
        }
        for len in 0..40 {
            for hint in [None, Some("look elsewhere".to_owned()), Some("x".into())] {
                for code in [
                    RefusalCode::NotFound,
                    RefusalCode::Invalid,
                    RefusalCode::Failed,
                ] {
                    let refusal = Refusal {
                        code,
                        message: "m".repeat(len),
                        hint: hint.clone(),
                    };
                    let frame = encode(&Reply::Refused(refusal.clone())).unwrap();
                    match entry(&frame[HEADER_BYTES..]) {
                        Err(RequestError::Refused(found)) => assert_eq!(found, refusal),
                        other => panic!("{refusal:?} was read as {other:?}"),
                    }
                }
            }
        }
    }
}

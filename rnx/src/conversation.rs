//! One request: a QUIC stream, the frames we send on it and the frames that come back.
//!
//! Sending and receiving are two values so that an upload and the refusal of that upload can be under way
//! at once. Frames of a request are joined into one buffer first: a small request is one packet.

use std::collections::VecDeque;

use bytes::Bytes;
use proto_rkyv::{DATA_BYTES_MAX, Header, Kind, Piece, Reader, Reply, Request, header_bytes};
use quinn::{ReadError, VarInt, WriteError};

use crate::{connect::Link, error::RequestError};

/// Chunks taken from the connection at once; a chunk is at most a packet's payload.
const CHUNKS_AT_ONCE: usize = 64;
/// Code of a stream that we give up.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// The sending half. Dropped before [`Outgoing::finish`] it tells the server that the rest will not come.
#[derive(Debug)]
pub(crate) struct Outgoing {
    send: quinn::SendStream,
    finished: bool,
    link: Link,
}

/// The receiving half. Dropped early it tells the server to stop sending.
#[derive(Debug)]
pub(crate) struct Incoming {
    recv: quinn::RecvStream,
    reader: Reader,
    ready: VecDeque<Bytes>,
    link: Link,
}

/// What became of bytes that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They are on their way.
    Yes,
    /// The server wants no more of this stream; its reply says why.
    Unwanted,
}

/// Opens a stream and sends `frames` on it.
pub(crate) async fn open(link: &Link, frames: Bytes) -> Result<(Outgoing, Incoming), RequestError> {
    let (send, recv) = link
        .connection
        .open_bi()
        .await
        .map_err(|error| link.lost(error))?;
    let mut outgoing = Outgoing {
        send,
        finished: false,
        link: link.clone(),
    };
    let incoming = Incoming {
        recv,
        reader: Reader::default(),
        ready: VecDeque::new(),
        link: link.clone(),
    };
    outgoing.send(frames).await?;
    Ok((outgoing, incoming))
}

/// Sends one request that is complete with its control frame.
pub(crate) async fn ask(link: &Link, request: &Request) -> Result<Incoming, RequestError> {
    let frame = proto_rkyv::encode(request).map_err(RequestError::RequestTooLarge)?;
    let (outgoing, incoming) = open(link, frame).await?;
    outgoing.finish();
    Ok(incoming)
}

/// Appends `payload` as frames of `kind`, each at most [`DATA_BYTES_MAX`].
pub(crate) fn push_frames(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    for part in payload.chunks(DATA_BYTES_MAX as usize) {
        let len =
            u32::try_from(part.len()).expect("chunks() keeps parts within the limit of a frame");
        out.extend_from_slice(&header_bytes(&Header::new(kind, len)));
        out.extend_from_slice(part);
    }
}

impl Outgoing {
    /// Sends bytes, waiting for the server to take them.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> Result<Sent, RequestError> {
        match self.send.write_chunk(bytes).await {
            Ok(()) => Ok(Sent::Yes),
            Err(
                WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected,
            ) => Ok(Sent::Unwanted),
            Err(WriteError::ConnectionLost(error)) => Err(self.link.lost(error).into()),
        }
    }

    /// Says that this was all.
    pub(crate) fn finish(mut self) {
        self.finished = true;
        // Fails only on a stream that the server stopped, and then its reply says why.
        let _ = self.send.finish();
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            // quinn would end the stream as if it were complete.
            let _ = self.send.reset(GIVEN_UP);
        }
    }
}

impl Incoming {
    /// The next piece, if it is here already.
    pub(crate) fn ready(&mut self) -> Result<Option<Piece>, RequestError> {
        loop {
            if let Some(piece) = self.reader.next()? {
                return Ok(Some(piece));
            }
            match self.ready.pop_front() {
                Some(chunk) => self.reader.feed(chunk),
                None => return Ok(None),
            }
        }
    }

    /// The next piece, or `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn piece(&mut self) -> Result<Option<Piece>, RequestError> {
        loop {
            if let Some(piece) = self.ready()? {
                return Ok(Some(piece));
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS_AT_ONCE];
            let read = self.recv.read_chunks(&mut chunks).await;
            match read.map_err(|error| read_error(&self.link, error))? {
                Some(count) => self.ready.extend(chunks.into_iter().take(count)),
                None if self.reader.is_between_frames() => return Ok(None),
                None => return Err(RequestError::Truncated),
            }
        }
    }

    /// The next control frame as a reply; a refusal becomes the error.
    pub(crate) async fn reply(&mut self, expected: &'static str) -> Result<Reply, RequestError> {
        self.reply_or_end(expected)
            .await?
            .ok_or(RequestError::Truncated)
    }

    /// As [`Incoming::reply`], or `None` at the end of the stream. Cancel-safe.
    pub(crate) async fn reply_or_end(
        &mut self,
        expected: &'static str,
    ) -> Result<Option<Reply>, RequestError> {
        match self.piece().await? {
            Some(Piece::Control(archive)) => reply(&archive).map(Some),
            Some(Piece::Begin(_) | Piece::Data { .. }) => {
                Err(RequestError::Unexpected { expected })
            }
            None => Ok(None),
        }
    }
}

/// Reads a reply; a refusal becomes the error.
pub(crate) fn reply(archive: &[u8]) -> Result<Reply, RequestError> {
    let reply = Reply::decode(archive)?;
    if let Reply::Refused(refusal) = reply {
        return Err(RequestError::Refused(refusal));
    }
    Ok(reply)
}

fn read_error(link: &Link, error: ReadError) -> RequestError {
    match error {
        ReadError::Reset(code) => RequestError::Aborted {
            code: code.into_inner(),
        },
        ReadError::ConnectionLost(error) => link.lost(error).into(),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            RequestError::Truncated
        }
    }
}

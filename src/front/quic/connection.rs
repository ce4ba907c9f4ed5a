//! One connection as its request tasks and the endpoint share it.
//!
//! The endpoint feeds datagrams and timeouts in and takes transmits out; tasks read and write streams. Both
//! run on one thread, so the connection is in a `RefCell` that is borrowed for single statements, never across
//! an await. Every change that may have something to send marks the connection dirty.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    fmt,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, Dir, Event, ReadError, StreamEvent, StreamId,
    VarInt, WriteError,
};

use super::{stream::StreamError, work::Work};
use crate::limits;

/// A connection, shared on its thread.
pub(super) struct Link {
    handle: ConnectionHandle,
    connection: RefCell<Connection>,
    streams: RefCell<HashMap<StreamId, Waiters>>,
    lost: RefCell<Option<ConnectionError>>,
    is_dirty: Cell<bool>,
    work: Rc<Work>,
}

/// Who waits for what on one stream that is in use.
#[derive(Debug, Default)]
struct Waiters {
    read: Option<Waker>,
    write: Option<Waker>,
    gone: Option<Waker>,
    is_half_dropped: bool,
}

/// What the endpoint must act upon.
#[derive(Debug)]
pub(super) enum Notice {
    /// The handshake is complete and the peer's certificate verified.
    Connected,
    /// It is over; nothing more comes.
    Lost(ConnectionError),
    /// The peer opened streams: [`Link::accept`] until none is left.
    Opened,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(
        handle: ConnectionHandle,
        connection: Connection,
        work: Rc<Work>,
    ) -> Rc<Self> {
        Rc::new(Self {
            handle,
            connection: RefCell::new(connection),
            streams: RefCell::default(),
            lost: RefCell::default(),
            is_dirty: Cell::new(false),
            work,
        })
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle
    }

    /// The protocol state, for one statement.
    pub(super) fn connection(&self) -> RefMut<'_, Connection> {
        self.connection.borrow_mut()
    }

    /// Has the endpoint look at this connection in this turn.
    pub(super) fn mark_dirty(self: &Rc<Self>) {
        if !self.is_dirty.replace(true) {
            self.work.push(Rc::clone(self));
        }
    }

    /// To be called when the endpoint has taken it out of the queue.
    pub(super) fn mark_clean(&self) {
        self.is_dirty.set(false);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// Closes the connection from our side and ends all its tasks.
    pub(super) fn close(self: &Rc<Self>, now: Instant, code: u32, reason: &str) {
        self.connection().close(
            now,
            VarInt::from_u32(code),
            Bytes::copy_from_slice(reason.as_bytes()),
        );
        self.lose(ConnectionError::LocallyClosed);
        self.mark_dirty();
    }

    /// The next event that concerns the endpoint. Wakes tasks for the others on the way.
    pub(super) fn next_notice(&self) -> Option<Notice> {
        loop {
            let event = self.connection().poll()?;
            match event {
                Event::Connected => return Some(Notice::Connected),
                Event::ConnectionLost { reason } => {
                    self.lose(reason.clone());
                    return Some(Notice::Lost(reason));
                }
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => return Some(Notice::Opened),
                Event::Stream(StreamEvent::Readable { id }) => {
                    self.wake(id, |w| [w.read.take(), None])
                }
                Event::Stream(StreamEvent::Writable { id }) => {
                    self.wake(id, |w| [w.write.take(), None])
                }
                Event::Stream(StreamEvent::Stopped { id, error_code: _ }) => {
                    self.wake(id, |w| [w.write.take(), w.gone.take()]);
                }
                // We open no streams, allow no one-way streams and use no datagrams.
                Event::Stream(
                    StreamEvent::Opened { dir: Dir::Uni }
                    | StreamEvent::Finished { .. }
                    | StreamEvent::Available { .. },
                )
                | Event::HandshakeDataReady
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
    }

    /// The next stream that the peer has opened. One that shows that it opens many makes room for more.
    pub(super) fn accept(self: &Rc<Self>) -> Option<StreamId> {
        let mut connection = self.connection();
        let id = connection.streams().accept(Dir::Bi)?;
        if id.index() == u64::from(limits::STREAMS_AT_FIRST / 2) {
            let all = VarInt::from_u32(limits::STREAMS_PER_CONNECTION_MAX);
            connection.set_max_concurrent_streams(Dir::Bi, all);
            self.mark_dirty();
        }
        drop(connection);
        self.streams.borrow_mut().insert(id, Waiters::default());
        self.work.request_begins();
        Some(id)
    }

    /// One of the two halves of a stream is not used any more.
    pub(super) fn drop_half(&self, id: StreamId) {
        let mut streams = self.streams.borrow_mut();
        let Some(waiters) = streams.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut waiters.is_half_dropped, true) {
            streams.remove(&id);
            self.work.request_ends();
        }
    }

    /// The next bytes of a stream, `None` at its end. Must not be asked again after the end or an error.
    pub(super) fn poll_read(
        self: &Rc<Self>,
        id: StreamId,
        bytes_max: usize,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let (result, must_send) = {
            let mut connection = self.connection();
            let mut stream = connection.recv_stream(id);
            let Ok(mut chunks) = stream.read(true) else {
                return Poll::Ready(Err(self.closed()));
            };
            let result = chunks.next(bytes_max);
            (result, chunks.finalize().should_transmit())
        };
        if must_send {
            self.mark_dirty();
        }
        match result {
            Ok(chunk) => Poll::Ready(Ok(chunk.map(|chunk| chunk.bytes))),
            Err(ReadError::Reset(code)) => Poll::Ready(Err(StreamError::Reset(code.into_inner()))),
            Err(ReadError::Blocked) if self.is_lost() => Poll::Ready(Err(self.closed())),
            Err(ReadError::Blocked) => {
                self.park(id, |w| w.read = Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Writes as many of `chunks` as the windows allow; ready when all are written. What is written is taken
    /// out of them, so that a later call goes on where this one stopped.
    ///
    /// Goes on until quinn-proto says `Blocked`: only then does it report when there is room again.
    pub(super) fn poll_write(
        self: &Rc<Self>,
        id: StreamId,
        chunks: &mut [Bytes],
        cx: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        if self.is_lost() {
            return Poll::Ready(Err(self.closed()));
        }
        let mut at = 0;
        let mut has_written = false;
        let outcome = loop {
            at += chunks[at..]
                .iter()
                .take_while(|chunk| chunk.is_empty())
                .count();
            if at == chunks.len() {
                break Poll::Ready(Ok(()));
            }
            let written = self
                .connection()
                .send_stream(id)
                .write_chunks(&mut chunks[at..]);
            match written {
                Ok(written) => {
                    has_written = true;
                    chunks[at..at + written.chunks].fill(Bytes::new());
                }
                Err(WriteError::Blocked) => {
                    self.park(id, |w| w.write = Some(cx.waker().clone()));
                    break Poll::Pending;
                }
                Err(WriteError::Stopped(code)) => {
                    break Poll::Ready(Err(StreamError::Stopped(code.into_inner())));
                }
                Err(WriteError::ClosedStream) => break Poll::Ready(Err(self.closed())),
            }
        };
        // Blocking, too, may have left something to say to the peer.
        if has_written || outcome.is_pending() {
            self.mark_dirty();
        }
        outcome
    }

    /// Ready when nobody reads what we would write any more.
    pub(super) fn poll_gone(&self, id: StreamId, cx: &Context<'_>) -> Poll<StreamError> {
        if self.is_lost() {
            return Poll::Ready(self.closed());
        }
        let stopped = self.connection().send_stream(id).stopped();
        match stopped {
            Ok(Some(code)) => Poll::Ready(StreamError::Stopped(code.into_inner())),
            Err(_) => Poll::Ready(self.closed()),
            Ok(None) => {
                self.park(id, |w| w.gone = Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    /// Why a stream of this connection cannot be used.
    pub(super) fn closed(&self) -> StreamError {
        match &*self.lost.borrow() {
            Some(reason) => StreamError::Lost(reason.clone()),
            None => StreamError::Closed,
        }
    }

    fn park(&self, id: StreamId, set: impl FnOnce(&mut Waiters)) {
        if let Some(waiters) = self.streams.borrow_mut().get_mut(&id) {
            set(waiters);
        }
    }

    fn wake(&self, id: StreamId, take: impl FnOnce(&mut Waiters) -> [Option<Waker>; 2]) {
        let wakers = self.streams.borrow_mut().get_mut(&id).map(take);
        wakers.into_iter().flatten().flatten().for_each(Waker::wake);
    }

    /// Remembers why the connection is over and has every task of it find out.
    fn lose(&self, reason: ConnectionError) {
        self.lost.borrow_mut().get_or_insert(reason);
        let mut wakers = Vec::new();
        for waiters in self.streams.borrow_mut().values_mut() {
            wakers.extend([
                waiters.read.take(),
                waiters.write.take(),
                waiters.gone.take(),
            ]);
        }
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

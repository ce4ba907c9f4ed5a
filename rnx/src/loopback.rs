//! A socket for a server on this machine.
//!
//! quinn's own socket finds out which offloads the kernel has, with two more sockets and a kernel-wide
//! switch (0.4 ms of a start that should take three), because it needs them for small packets. Here a packet
//! may have 64 KiB, so plain sends and receives do. And this one is connected: when nobody listens, or no
//! longer, the kernel says so with the first packet instead of leaving us to a time-out.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{io::ReadBuf, net::UdpSocket, sync::Notify};

/// Largest payload of a datagram on Linux's loopback, which has an MTU of 65,536, over IPv4 and IPv6.
pub(crate) const PAYLOAD_MAX: u16 = 65_488;

/// The socket, and whether the kernel said that nobody listens.
#[derive(Debug)]
pub(crate) struct Loopback {
    socket: UdpSocket,
    peer: SocketAddr,
    refused: AtomicBool,
    tell: Notify,
}

impl Loopback {
    /// Takes a bound socket and connects it to `peer`.
    pub(crate) fn new(socket: std::net::UdpSocket, peer: SocketAddr) -> io::Result<Arc<Self>> {
        socket.connect(peer)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Arc::new(Self {
            socket,
            peer,
            refused: AtomicBool::new(false),
            tell: Notify::new(),
        }))
    }

    /// Waits until the kernel says that nobody listens.
    pub(crate) async fn refused(&self) {
        if !self.is_refused() {
            self.tell.notified().await;
        }
    }

    /// Whether the kernel has said that nobody listens.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Keeps that kind of error from the endpoint, which would end with it; every other one passes.
    fn heard(&self, error: io::Error) -> io::Result<()> {
        if error.kind() != io::ErrorKind::ConnectionRefused {
            return Err(error);
        }
        self.refused.store(true, Ordering::Relaxed);
        self.tell.notify_one();
        Ok(())
    }

    fn meta(&self, len: usize) -> RecvMeta {
        RecvMeta {
            addr: self.peer,
            len,
            stride: len,
            ecn: None,
            dst_ip: None,
        }
    }
}

impl AsyncUdpSocket for Loopback {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            loopback: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket
            .try_send(transmit.contents)
            .map(drop)
            .or_else(|error| self.heard(error))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some((first, rest)) = bufs.split_first_mut() else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let mut buf = ReadBuf::new(first);
            match ready!(self.socket.poll_recv(cx, &mut buf)) {
                Ok(()) => {
                    meta[0] = self.meta(buf.filled().len());
                    break;
                }
                Err(error) => self.heard(error)?,
            }
        }
        // What else is there already, so that one turn handles it all; an error comes again.
        let mut count = 1;
        for (buf, meta) in rest.iter_mut().zip(&mut meta[1..]) {
            let Ok(len) = self.socket.try_recv(buf) else {
                break;
            };
            *meta = self.meta(len);
            count += 1;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// Waits for room in the socket, for one task.
struct Writable {
    loopback: Arc<Loopback>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { loopback, waiting } = &mut *self;
        let future = waiting.get_or_insert_with(|| {
            let loopback = loopback.clone();
            Box::pin(async move { loopback.socket.writable().await })
        });
        let done = ready!(future.as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(done)
    }
}

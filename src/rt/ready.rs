//! Readiness of any descriptor that can be polled: pipes, pidfds, sockets, rings, eventfds.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use monoio::net::udp::UdpSocket;

/// Owns a descriptor and waits for it through the shard's ring; the caller then makes the system call.
///
/// monoio polls only its own types. Its UDP socket is a shell around POLL_ADD that looks at nothing else.
#[derive(Debug)]
pub struct Ready(UdpSocket);

impl Ready {
    /// Takes the descriptor over; it is closed when the last operation on it has ended.
    ///
    /// # Errors
    /// None today; monoio reserves the right.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        UdpSocket::from_std(std::net::UdpSocket::from(fd)).map(Self)
    }

    /// Waits until it is readable, at its end, or broken. Level, not edge: asks again each time.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable(false).await
    }

    /// Waits until it is writable or broken.
    ///
    /// # Errors
    /// As [`Ready::readable`].
    ///
    /// # Cancel
    /// Nothing is lost.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable(false).await
    }
}

impl AsRawFd for Ready {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

//! The runtime: the only room that names monoio.

use std::{future::Future, io, os::fd::OwnedFd, time::Instant};

/// Starts a task on this thread. It runs until it ends.
pub fn spawn<F: Future<Output = ()> + 'static>(future: F) {
    drop(monoio::spawn(future));
}

/// What time it is.
#[expect(clippy::disallowed_methods, reason = "this is the shard's clock")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns at `at`, up to two milliseconds late.
pub async fn sleep_until(at: Instant) {
    monoio::time::sleep_until(monoio::time::Instant::from_std(at)).await;
}

/// Readiness of any descriptor that can be polled.
pub struct Ready(monoio::net::udp::UdpSocket);

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}

impl Ready {
    /// Takes the descriptor, and closes it at the end.
    ///
    /// # Errors
    /// When the runtime does not accept it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        monoio::net::udp::UdpSocket::from_std(std::net::UdpSocket::from(fd)).map(Self)
    }

    /// Waits until reading would not block.
    ///
    /// # Errors
    /// Of the poll itself.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable(false).await
    }

    /// Waits until writing would not block.
    ///
    /// # Errors
    /// Of the poll itself.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable(false).await
    }
}

/// Runs a shard on this thread.
///
/// # Panics
/// When the kernel gives no ring.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut ring = io_uring06::IoUring::builder();
    ring.setup_single_issuer().setup_coop_taskrun();
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .uring_builder(ring)
        .with_entries(4096)
        .enable_timer()
        .build()
        .expect("a ring")
        .block_on(future)
}

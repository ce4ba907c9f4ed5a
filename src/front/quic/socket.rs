//! The UDP socket of one shard: batches in with GRO, batches out with GSO.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::UdpSocket,
};

use bytes::BytesMut;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSocketState};

use super::endpoint::Datagram;
use crate::limits;

/// Messages of one recvmmsg. GRO merges up to 64 KiB into each.
const MESSAGES: usize = 8;
const MESSAGE_BYTES: usize = 64 << 10;

/// A socket with its receive buffer and the one transmit that the kernel had no room for.
pub(super) struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    buffer: Vec<u8>,
    blocked: Option<(Transmit, Vec<u8>)>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("udp", &self.udp)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Turns on GRO, packet info, ECN and path MTU probing.
    pub(super) fn new(udp: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&udp).into())?;
        Ok(Self {
            udp,
            state,
            buffer: vec![0; MESSAGES * MESSAGE_BYTES],
            blocked: None,
        })
    }

    /// Whether datagrams larger than the path would be cut by IP, which forbids MTU discovery.
    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// How many segments of `mtu` bytes one send may have. Asked anew each time: quinn-udp turns offload off
    /// when a device fails it, and segments × MTU beyond what UDP carries is EMSGSIZE.
    pub(super) fn segments(&self, mtu: u16) -> usize {
        (limits::SEND_BATCH_BYTES_MAX / usize::from(mtu.max(1)))
            .min(limits::SEND_BATCH_SEGMENTS_MAX)
            .min(self.state.max_gso_segments())
            .max(1)
    }

    /// Receives one batch and hands out each datagram. False when the socket has nothing more.
    ///
    /// # Errors
    /// Of recvmmsg, but for those that report what became of an earlier send.
    pub(super) fn receive(&mut self, mut take: impl FnMut(Datagram)) -> io::Result<bool> {
        let mut meta = [RecvMeta::default(); MESSAGES];
        let count = {
            let mut slices = self.buffer.chunks_exact_mut(MESSAGE_BYTES);
            let mut slices: [IoSliceMut<'_>; MESSAGES] = std::array::from_fn(|_| {
                IoSliceMut::new(slices.next().expect("the buffer has MESSAGES parts"))
            });
            match self.state.recv((&self.udp).into(), &mut slices, &mut meta) {
                Ok(count) => count,
                Err(error) => return no_data(error),
            }
        };
        for (meta, message) in meta
            .iter()
            .zip(self.buffer.chunks_exact(MESSAGE_BYTES))
            .take(count)
        {
            let mut message = BytesMut::from(&message[..meta.len]);
            while !message.is_empty() {
                let bytes = message.split_to(meta.stride.clamp(1, message.len()));
                let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
                take(Datagram {
                    remote: meta.addr,
                    local_ip: meta.dst_ip,
                    ecn,
                    bytes,
                });
            }
        }
        // Fewer than asked for means that the socket was empty.
        Ok(count == MESSAGES)
    }

    /// Sends, or keeps the transmit until [`Socket::flush`]. Must not be called while blocked. What the
    /// kernel refuses for another reason is lost, as datagrams may be.
    pub(super) fn send(&mut self, transmit: Transmit, contents: &[u8]) {
        debug_assert!(
            !self.is_blocked(),
            "nothing is sent while the socket is full"
        );
        let contents = &contents[..transmit.size];
        if self.try_send(&transmit, contents).is_err() {
            self.blocked = Some((transmit, contents.to_vec()));
        }
    }

    /// Whether the kernel's buffer is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Sends what was kept, if the kernel has room now.
    pub(super) fn flush(&mut self) {
        if let Some((transmit, contents)) = self.blocked.take()
            && self.try_send(&transmit, &contents).is_err()
        {
            self.blocked = Some((transmit, contents));
        }
    }

    fn try_send(&self, transmit: &Transmit, contents: &[u8]) -> io::Result<()> {
        self.state.send(
            (&self.udp).into(),
            &quinn_udp::Transmit {
                destination: transmit.destination,
                ecn: transmit
                    .ecn
                    .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
                contents,
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            },
        )
    }
}

/// An error that only says "nothing there" or "an earlier datagram did not arrive".
fn no_data(error: io::Error) -> io::Result<bool> {
    use io::ErrorKind as Kind;
    const EARLIER: [Kind; 5] = [
        Kind::Interrupted,
        Kind::ConnectionReset,
        Kind::ConnectionRefused,
        Kind::HostUnreachable,
        Kind::NetworkUnreachable,
    ];
    if EARLIER.contains(&error.kind()) {
        return Ok(true);
    }
    if error.kind() == Kind::WouldBlock {
        Ok(false)
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_times_mtu_never_exceeds_what_udp_carries() {
        let socket = Socket::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        for mtu in 1_200..=65_527u16 {
            let segments = socket.segments(mtu);
            assert!((1..=limits::SEND_BATCH_SEGMENTS_MAX).contains(&segments));
            assert!(
                segments == 1 || segments * usize::from(mtu) <= limits::SEND_BATCH_BYTES_MAX,
                "mtu {mtu}"
            );
        }
        if socket.state.max_gso_segments() > 1 {
            assert_eq!(socket.segments(1_452), 45);
            assert_eq!(socket.segments(65_507), 1);
        }
    }
}

//! One UDP port for all shards: which shard a datagram belongs to, decided in the kernel.
//!
//! The sockets of the group are bound in the order of the shards. A classic BPF program reads the first byte
//! of the destination connection id and returns it modulo the number of shards; [`ShardCids`] issues ids
//! whose first byte says the shard. A client's first id is random, so its handshake lands on any shard, which
//! then issues ids of its own: from there on the connection stays there, whatever the client's address.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::AttachReusePortCbpf};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use ring::rand::{SecureRandom, SystemRandom};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::{job::ShardIndex, limits};

/// Most shards that one byte of a connection id can tell apart fairly.
pub const SHARDS_MAX: usize = 128;
/// Length of the connection ids that we issue.
pub(super) const CID_BYTES: usize = 8;
/// Where the destination id begins in a packet with a long header, and in one with a short header.
const LONG_CID_AT: usize = 6;
const SHORT_CID_AT: usize = 1;
const LONG_HEADER: u8 = 0x80;
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Why the listening sockets could not be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process listens there, or the address is none of ours.
    #[error("listen on udp {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an option or the steering program.
    #[error("set up the udp socket of {address}")]
    Option {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds one socket a shard to `address`, in the order of the shards, and attaches the steering program.
/// A port of 0 is chosen by the kernel, once for all. Blocks up to a second while the port is still taken.
///
/// The first bind is exclusive and only then opens the group: a port that any other process holds, another
/// daemon with a group of its own included, is an error and never silently shared.
///
/// # Errors
/// [`BindError`].
///
/// # Panics
/// If there are no shards or more than [`SHARDS_MAX`].
pub fn bind(address: SocketAddr, shards: usize) -> Result<Vec<UdpSocket>, BindError> {
    assert!((1..=SHARDS_MAX).contains(&shards), "{shards} shards");
    let failed = |source| BindError::Option { address, source };
    let first = bind_first(address)?;
    first.set_reuse_port(true).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    let mut group = vec![first];
    for _ in 1..shards {
        let socket = open(address).map_err(failed)?;
        socket.set_reuse_port(true).map_err(failed)?;
        socket
            .bind(&bound)
            .map_err(|source| BindError::Bind { address, source })?;
        group.push(socket);
    }
    if shards > 1 {
        steer(&group[0], shards).map_err(failed)?;
    }
    Ok(group.into_iter().map(UdpSocket::from).collect())
}

#[expect(
    clippy::disallowed_methods,
    reason = "binding happens on the main thread, before any shard runs"
)]
fn bind_first(address: SocketAddr) -> Result<Socket, BindError> {
    let mut waited = Duration::ZERO;
    loop {
        let socket = open(address).map_err(|source| BindError::Option { address, source })?;
        match socket.bind(&address.into()) {
            Ok(()) => return Ok(socket),
            Err(source)
                if source.kind() == io::ErrorKind::AddrInUse && waited < limits::BIND_RETRY =>
            {
                std::thread::sleep(BIND_PAUSE);
                waited += BIND_PAUSE;
            }
            Err(source) => return Err(BindError::Bind { address, source }),
        }
    }
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // `[::]` serves both families; any other IPv6 address serves one anyway.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_recv_buffer_size(limits::UDP_BUFFER_BYTES)?;
    socket.set_send_buffer_size(limits::UDP_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Attaches the program to the group that `socket` is in. Needs no privilege.
///
/// # Source
/// socket(7), "SO_ATTACH_REUSEPORT_CBPF".
fn steer(socket: &Socket, shards: usize) -> io::Result<()> {
    let mut program = program(shards);
    let len = u16::try_from(program.len()).expect("seven instructions");
    // The kernel copies the program before the call returns.
    let filter = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(&socket.as_fd(), AttachReusePortCbpf, &filter)?)
}

/// `id = payload[0] & 0x80 ? payload[6] : payload[1]; return id % shards`
fn program(shards: usize) -> [libc::sock_filter; 7] {
    let shards = u32::try_from(shards).expect("at most SHARDS_MAX");
    let [long, short] =
        [LONG_CID_AT, SHORT_CID_AT].map(|at| u32::try_from(at).expect("a small offset"));
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const JUMP: u16 = 0x05;
    const MODULO: u16 = 0x94;
    const RETURN: u16 = 0x16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        instruction(LOAD_BYTE, 0, 0, 0),
        instruction(JUMP_IF_SET, 0, 2, u32::from(LONG_HEADER)),
        instruction(LOAD_BYTE, 0, 0, long),
        instruction(JUMP, 0, 0, 1),
        instruction(LOAD_BYTE, 0, 0, short),
        instruction(MODULO, 0, 0, shards),
        instruction(RETURN, 0, 0, 0),
    ]
}

/// The shard that a datagram belongs to; none when it is too short to say. Agrees with the kernel's choice,
/// except that a datagram which the network stack merged with another connection's goes where the other goes.
pub(super) fn shard_of(datagram: &[u8], shards: usize) -> Option<ShardIndex> {
    let at = if datagram.first()? & LONG_HEADER == 0 {
        SHORT_CID_AT
    } else {
        LONG_CID_AT
    };
    datagram.get(at).map(|first| usize::from(*first) % shards)
}

/// Issues connection ids of one shard: 8 random bytes, the first congruent to the shard.
#[derive(Debug)]
pub(super) struct ShardCids {
    shard: u8,
    shards: u8,
    random: SystemRandom,
}

impl ShardCids {
    /// # Panics
    /// If `shard` is not below `shards` or there are more than [`SHARDS_MAX`].
    pub(super) fn new(shard: ShardIndex, shards: usize) -> Self {
        assert!(
            shard < shards && shards <= SHARDS_MAX,
            "shard {shard} of {shards}"
        );
        let byte = |n: usize| u8::try_from(n).expect("at most SHARDS_MAX");
        Self {
            shard: byte(shard),
            shards: byte(shards),
            random: SystemRandom::new(),
        }
    }
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        self.random
            .fill(&mut id)
            .expect("the kernel has random bytes once it has booted");
        // The largest multiple of `shards` that fits keeps every value below 256.
        let groups = 256 / u16::from(self.shards);
        let first = (u16::from(id[0]) % groups) * u16::from(self.shards) + u16::from(self.shard);
        id[0] = u8::try_from(first).expect("below groups * shards, which is at most 256");
        ConnectionId::new(&id)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match cid.first() {
            Some(first) if first % self.shards == self.shard => Ok(()),
            Some(_) | None => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn issued_ids_name_their_shard_and_use_the_whole_byte() {
        for shards in [1, 2, 3, 7, 64, 128] {
            for shard in 0..shards {
                let mut cids = ShardCids::new(shard, shards);
                let mut seen = [false; 256];
                for _ in 0..64 {
                    let id = cids.generate_cid();
                    assert_eq!(id.len(), CID_BYTES);
                    assert_eq!(usize::from(id[0]) % shards, shard);
                    assert!(cids.validate(&id).is_ok());
                    seen[usize::from(id[0])] = true;
                }
                let distinct = seen.iter().filter(|seen| **seen).count();
                assert!(
                    distinct > 1 || shards == 128,
                    "{shards} shards use {distinct} values"
                );
            }
        }
    }

    #[test]
    fn the_kernel_delivers_where_shard_of_says() {
        let shards = 3;
        let group = bind(loopback(), shards).unwrap();
        let address = group[0].local_addr().unwrap();
        let sender = UdpSocket::bind(loopback()).unwrap();
        for first in [0x40u8, 0xc0] {
            for id in 0..=255u8 {
                let mut datagram = [0u8; 20];
                datagram[0] = first;
                datagram[if first & 0x80 == 0 { 1 } else { 6 }] = id;
                sender.send_to(&datagram, address).unwrap();
                let shard = shard_of(&datagram, shards).unwrap();
                assert_eq!(shard, usize::from(id) % shards);
                // Loopback delivers within the call.
                let mut buffer = [0; 64];
                assert_eq!(group[shard].recv(&mut buffer).unwrap(), datagram.len());
                assert_eq!(buffer[..20], datagram);
            }
        }
        assert_eq!(shard_of(&[], 2), None);
        assert_eq!(shard_of(&[0xc0, 1, 2], 2), None);
    }

    #[test]
    fn a_port_that_another_group_holds_is_refused() {
        let group = bind(loopback(), 2).unwrap();
        let address = group[0].local_addr().unwrap();
        assert!(
            group
                .iter()
                .all(|socket| socket.local_addr().unwrap() == address)
        );
        let error = bind(address, 2).unwrap_err();
        assert!(
            matches!(&error, BindError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
            "{error:?}"
        );
        drop(group);
        bind(address, 2).unwrap();
    }

    #[test]
    fn an_unspecified_ipv6_address_serves_both_families() {
        let group = bind("[::]:0".parse().unwrap(), 2).unwrap();
        let port = group[0].local_addr().unwrap().port();
        let sender = UdpSocket::bind(loopback()).unwrap();
        sender
            .send_to(&[0x40, 1, 0, 0], ("127.0.0.1", port))
            .unwrap();
        let mut buffer = [0; 8];
        assert_eq!(group[1].recv(&mut buffer).unwrap(), 4);
    }
}

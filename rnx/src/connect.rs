//! From a node to a connection, and what can stand in the way.
//!
//! The errors tell apart what a person does something different about: nobody listens, one side does not
//! trust the other (and why), the other side speaks something else, or it closed the door with a reason.
//! A server judges our certificate after our side of the handshake is done, so the same errors also come
//! out of the first request.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, TransportConfig,
    TransportErrorCode, VarInt, congestion::CubicConfig,
};
use thiserror::Error;
use tokio::time;

use crate::{
    config::Node,
    loopback::{self, Loopback},
    tls,
};

/// How long a server may take to answer a handshake.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A handshake on one machine takes a millisecond; after this long it is worth asking whether anybody
/// listens there at all.
const PROBE_AFTER: Duration = Duration::from_millis(40);
/// Kept alive each second, a server that has been silent for so long is gone.
const IDLE_MAX_MS: u32 = 15_000;
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Unread output of all requests together, bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Unread output of one request: one that is not read cannot take the whole connection.
const STREAM_WINDOW: u32 = 2 << 20;
/// Payload that crosses every path we expect.
const MTU: u16 = 1_452;
/// Largest UDP payload: loopback has no smaller limit.
const MTU_LOOPBACK: u16 = 65_527;
/// Between hearing that a server on this machine is gone and giving it up.
const LAST_WORDS: Duration = Duration::from_millis(2);
/// Packets of [`loopback::PAYLOAD_MAX`] that may be under way before the first is acknowledged.
const PACKETS_AT_FIRST: u64 = 4;
/// Receive buffer of the socket.
const SOCKET_BYTES: usize = 4 << 20;
/// Guess of the round trip on one machine before the first is measured. Generous: a busy host may take
/// milliseconds to answer, and a retransmission would only add to its load.
const RTT_LOOPBACK: Duration = Duration::from_millis(20);

/// Which certificate was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The server's, by us.
    Server,
    /// Ours, by the server.
    Client,
}

/// Why a certificate was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Distrust {
    /// Signed by another authority.
    #[error("signed by another authority")]
    UnknownIssuer,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time has not come.
    #[error("not valid yet")]
    NotYetValid,
    /// It is somebody else's.
    #[error("not issued for the name joblet")]
    WrongName,
    /// It was revoked.
    #[error("revoked")]
    Revoked,
    /// There is none.
    #[error("missing")]
    Missing,
    /// Any other reason, as the number of a TLS alert.
    #[error("not acceptable (TLS alert {0})")]
    Other(u8),
}

/// Why nobody answered.
#[derive(Debug, Error)]
pub enum Unreachable {
    /// The machine says that nothing listens on that port.
    #[error("connection refused")]
    Refused,
    /// No answer in time.
    #[error("no answer")]
    Silent,
    /// This machine cannot send there.
    #[error(transparent)]
    Network(io::Error),
}

/// Why there is no connection, or no longer one.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The node's address is not `host:port` or does not resolve.
    #[error("look up server address {address}")]
    Address {
        /// As it stands in the client file.
        address: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// The node's credentials cannot be used.
    #[error("credentials for {address} are unusable")]
    Credentials {
        /// As it stands in the client file.
        address: String,
        /// Which and why.
        #[source]
        source: tls::CredentialError,
    },
    /// Nobody answers.
    #[error("cannot reach {address}")]
    Unreachable {
        /// As it stands in the client file.
        address: String,
        /// Why.
        #[source]
        why: Unreachable,
    },
    /// A certificate was not accepted.
    #[error("{} {address}", match .side {
        Side::Server => "cannot trust the certificate of",
        Side::Client => "our certificate is not accepted by",
    })]
    Untrusted {
        /// As it stands in the client file.
        address: String,
        /// Whose.
        side: Side,
        /// Why.
        #[source]
        why: Distrust,
    },
    /// The other side speaks another protocol or version.
    #[error(
        "{address} does not speak {}",
        String::from_utf8_lossy(proto_rkyv::ALPN)
    )]
    OtherProtocol {
        /// As it stands in the client file.
        address: String,
    },
    /// The server closed the connection and said why.
    #[error("{address} closed the connection: {}", if .reason.is_empty() { "no reason given" } else { .reason })]
    Closed {
        /// As it stands in the client file.
        address: String,
        /// The server's code.
        code: u64,
        /// The server's words.
        reason: String,
    },
    /// The connection is gone: the server died, restarted or became unreachable.
    #[error("lost the connection to {address}")]
    Lost {
        /// As it stands in the client file.
        address: String,
        /// How that was noticed.
        #[source]
        source: ConnectionError,
    },
}

/// An open connection and the socket it lives on.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: quinn::Connection,
    pub(crate) endpoint: Endpoint,
    pub(crate) address: Arc<str>,
    /// The socket, when the server is on this machine.
    loopback: Option<Arc<Loopback>>,
}

impl Link {
    pub(crate) fn lost(&self, error: ConnectionError) -> ConnectError {
        let closed_by_us = matches!(error, ConnectionError::LocallyClosed);
        if closed_by_us
            && self
                .loopback
                .as_ref()
                .is_some_and(|loopback| loopback.is_refused())
        {
            let address = self.address.to_string();
            return ConnectError::Unreachable {
                address,
                why: Unreachable::Refused,
            };
        }
        ConnectError::from_quinn(&self.address, error, false)
    }
}

/// Connects to the first of the node's addresses that answers.
pub(crate) async fn connect(node: &Node) -> Result<Link, ConnectError> {
    let address = &node.address;
    let tls = tls::client(node).map_err(|source| ConnectError::Credentials {
        address: address.clone(),
        source,
    })?;
    let mut last = None;
    for peer in resolve(address).await? {
        match connect_to(address, peer, &tls).await {
            Err(error @ ConnectError::Unreachable { .. }) => last = Some(error),
            decided => return decided,
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Address {
        address: address.clone(),
        source: io::ErrorKind::AddrNotAvailable.into(),
    }))
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(peer) = address.parse() {
        return Ok(vec![peer]);
    }
    let found = tokio::net::lookup_host(address).await;
    found
        .map(Iterator::collect)
        .map_err(|source| ConnectError::Address {
            address: address.into(),
            source,
        })
}

async fn connect_to(
    address: &str,
    peer: SocketAddr,
    tls: &Arc<quinn::crypto::rustls::QuicClientConfig>,
) -> Result<Link, ConnectError> {
    let unreachable = |why| ConnectError::Unreachable {
        address: address.into(),
        why,
    };
    let (mut endpoint, loopback) =
        open(peer).map_err(|error| unreachable(Unreachable::Network(error)))?;
    let mut config = quinn::ClientConfig::new(tls.clone());
    config.transport_config(Arc::new(transport(peer)));
    endpoint.set_default_client_config(config);
    let connecting = endpoint
        .connect(peer, tls::SERVER_NAME)
        .map_err(|error| unreachable(Unreachable::Network(io::Error::other(error))))?;
    let connection = tokio::select! {
        biased;
        done = connecting => done.map_err(|error| ConnectError::from_quinn(address, error, true))?,
        why = nobody_there(peer, loopback.as_deref()) => return Err(unreachable(why)),
    };
    if let Some(loopback) = loopback.clone() {
        tokio::spawn(close_when_refused(connection.clone(), loopback));
    }
    Ok(Link {
        connection,
        endpoint,
        address: address.into(),
        loopback,
    })
}

/// Closes the connection when the server is gone, rather than wait for its silence to last.
async fn close_when_refused(connection: quinn::Connection, loopback: Arc<Loopback>) {
    let refused = async {
        loopback.refused().await;
        // The kernel tells errors before packets; the server's last words may be among those.
        time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = refused => connection.close(0u32.into(), b""),
        _ = connection.closed() => {}
    }
}

/// Ends when it is clear that nobody will answer. A connected socket hears it from the kernel; quinn's own
/// is not connected, so one datagram of a byte, which no server answers, is sent on one that is.
async fn nobody_there(peer: SocketAddr, loopback: Option<&Loopback>) -> Unreachable {
    let refused = async {
        match loopback {
            Some(loopback) => {
                loopback.refused().await;
                io::ErrorKind::ConnectionRefused.into()
            }
            None => {
                time::sleep(PROBE_AFTER).await;
                probe(peer).await
            }
        }
    };
    match time::timeout(CONNECT_MAX, refused).await {
        Ok(error) if error.kind() == io::ErrorKind::ConnectionRefused => Unreachable::Refused,
        Ok(error) => Unreachable::Network(error),
        Err(_) => Unreachable::Silent,
    }
}

/// Ends with what the kernel says about packets to `peer`.
async fn probe(peer: SocketAddr) -> io::Error {
    let sending = async {
        let socket = tokio::net::UdpSocket::bind(any_port(peer)).await?;
        socket.connect(peer).await?;
        loop {
            socket.send(&[0]).await?;
            let _ = time::timeout(Duration::from_secs(1), socket.recv(&mut [0; 64]))
                .await
                .unwrap_or(Ok(0))?;
        }
    };
    let Err::<Infallible, _>(error) = sending.await;
    error
}

fn any_port(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn open(peer: SocketAddr) -> io::Result<(Endpoint, Option<Arc<Loopback>>)> {
    let socket = UdpSocket::bind(any_port(peer))?;
    enlarge(&socket);
    let mut config = EndpointConfig::default();
    if is_loopback(peer) {
        config
            .max_udp_payload_size(MTU_LOOPBACK)
            .expect("the largest payload is within QUIC's range");
    }
    let runtime = Arc::new(quinn::TokioRuntime);
    if !has_large_packets(peer) {
        return Ok((Endpoint::new(config, None, socket, runtime)?, None));
    }
    let loopback = Loopback::new(socket, peer)?;
    let endpoint = Endpoint::new_with_abstract_socket(config, None, loopback.clone(), runtime)?;
    Ok((endpoint, Some(loopback)))
}

/// Room for bursts: by default a socket takes three packets of loopback size. As far as this machine lets us.
fn enlarge(socket: &UdpSocket) {
    #[cfg(target_os = "linux")]
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BYTES).is_ok() {
        return;
    }
    let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BYTES);
}

fn is_loopback(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Whether packets of [`loopback::PAYLOAD_MAX`] can be counted on from the start.
fn has_large_packets(peer: SocketAddr) -> bool {
    cfg!(target_os = "linux") && is_loopback(peer)
}

fn transport(peer: SocketAddr) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(if is_loopback(peer) { MTU_LOOPBACK } else { MTU });
    if has_large_packets(peer) {
        // Nothing to discover: probes of 64 KiB would only be in the way of a short request.
        discovery.upper_bound(loopback::PAYLOAD_MAX);
        transport.initial_mtu(loopback::PAYLOAD_MAX);
        // The usual initial window is smaller than one such packet, and nothing would ever be sent.
        let mut congestion = CubicConfig::default();
        congestion.initial_window(PACKETS_AT_FIRST * u64::from(loopback::PAYLOAD_MAX));
        transport.congestion_controller_factory(Arc::new(congestion));
    }
    if is_loopback(peer) {
        transport.initial_rtt(RTT_LOOPBACK);
    }
    transport
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MAX_MS).into()))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        // The server opens no stream; nor does it send datagrams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

impl ConnectError {
    /// Nobody at `address` answered in time.
    pub(crate) fn silent(address: &str) -> Self {
        Self::Unreachable {
            address: address.to_owned(),
            why: Unreachable::Silent,
        }
    }

    /// Reads what quinn says. `connecting` tells silence before the first answer from silence after it.
    fn from_quinn(address: &str, error: ConnectionError, connecting: bool) -> Self {
        let address = address.to_owned();
        match error {
            ConnectionError::VersionMismatch => Self::OtherProtocol { address },
            ConnectionError::TransportError(ref ours) => match alert(ours.code) {
                Some(alert) => Self::from_alert(address, Side::Server, alert, &ours.reason),
                None => Self::Lost {
                    address,
                    source: error,
                },
            },
            ConnectionError::ConnectionClosed(ref theirs) => {
                let reason = String::from_utf8_lossy(&theirs.reason).into_owned();
                match alert(theirs.error_code) {
                    Some(alert) => Self::from_alert(address, Side::Client, alert, &reason),
                    // A server that takes no more connections, because it is full or ends.
                    None if theirs.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                        Self::Unreachable {
                            address,
                            why: Unreachable::Refused,
                        }
                    }
                    None => Self::Closed {
                        address,
                        code: theirs.error_code.into(),
                        reason,
                    },
                }
            }
            ConnectionError::ApplicationClosed(theirs) => Self::Closed {
                address,
                code: theirs.error_code.into_inner(),
                reason: String::from_utf8_lossy(&theirs.reason).into_owned(),
            },
            ConnectionError::TimedOut if connecting => Self::Unreachable {
                address,
                why: Unreachable::Silent,
            },
            ConnectionError::Reset
            | ConnectionError::TimedOut
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Lost {
                address,
                source: error,
            },
        }
    }

    /// Reads a TLS alert (RFC 8446, section 6.2) and the words beside it: one alert covers both ends of a
    /// validity period, and one covers a wrong name and much else.
    fn from_alert(address: String, side: Side, alert: u8, words: &str) -> Self {
        let says = |what: &str| words.to_ascii_lowercase().replace(' ', "").contains(what);
        let why = match alert {
            120 | 70 => return Self::OtherProtocol { address },
            _ if says("notvalidyet") => Distrust::NotYetValid,
            _ if says("notvalidforname") => Distrust::WrongName,
            44 => Distrust::Revoked,
            45 => Distrust::Expired,
            // 51 when the other authority has the name of the right one, and only the signature tells.
            48 | 51 => Distrust::UnknownIssuer,
            116 => Distrust::Missing,
            other => Distrust::Other(other),
        };
        Self::Untrusted { address, side, why }
    }
}

/// The TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    u64::from(code)
        .checked_sub(0x100)
        .and_then(|alert| u8::try_from(alert).ok())
}

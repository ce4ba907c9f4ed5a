//! How QUIC is set up: windows, timeouts, datagram sizes, keys.

use std::{net::IpAddr, sync::Arc};

use quinn_proto::{
    EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{NoInitialCipherSuite, QuicServerConfig},
};
use ring::{hkdf, hmac};

use super::steering::ShardCids;
use crate::{job::ShardIndex, limits};

/// Secrets that must be the same on every shard and across restarts: a client of a killed daemon then
/// recognises the next one's resets at once, and a retry token is good on whatever shard it comes back to.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    /// Of stateless resets.
    pub reset: &'a [u8; 32],
    /// Of address validation tokens.
    pub token: &'a [u8; 32],
}

/// The configurations of one shard's endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    pub(super) endpoint: Arc<EndpointConfig>,
    pub(super) network: Arc<ServerConfig>,
    pub(super) loopback: Arc<ServerConfig>,
}

impl Transport {
    /// # Errors
    /// When `tls` lacks the cipher suite that QUIC's first packets need.
    pub(crate) fn new(
        tls: Arc<rustls::ServerConfig>,
        keys: Keys<'_>,
        shard: ShardIndex,
        shards: usize,
    ) -> Result<Self, NoInitialCipherSuite> {
        let crypto = Arc::new(QuicServerConfig::try_from(tls)?);
        let token_key =
            Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, b"joblet retry token").extract(keys.token));
        let server = |mtu, path| {
            let mut server = ServerConfig::new(crypto.clone(), token_key.clone());
            server.transport_config(Arc::new(transport(mtu, path)));
            Arc::new(server)
        };
        let mut endpoint =
            EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, keys.reset)));
        endpoint
            .cid_generator(move || Box::new(ShardCids::new(shard, shards)))
            .min_reset_interval(limits::RESET_INTERVAL)
            .max_udp_payload_size(limits::MTU_LOOPBACK_BYTES)
            .expect("between 1,200 and 65,527");
        Ok(Self {
            endpoint: Arc::new(endpoint),
            network: server(limits::MTU_NETWORK_BYTES, Path::Network),
            loopback: server(limits::MTU_LOOPBACK_DATA_BYTES, loopback_path()),
        })
    }

    /// The configuration for a peer at `remote`.
    pub(super) fn for_peer(&self, remote: IpAddr) -> Arc<ServerConfig> {
        if remote.to_canonical().is_loopback() {
            self.loopback.clone()
        } else {
            self.network.clone()
        }
    }
}

/// How the size of packets is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// By probing, from the least that QUIC allows.
    Network,
    /// Known from the start: a probe of 64 KiB of padding costs both sides more than a whole request.
    Loopback,
}

/// What the loopback interface carries; one whose MTU somebody has lowered is probed like any other.
fn loopback_path() -> Path {
    let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").ok();
    let mtu = mtu.and_then(|text| text.trim().parse::<u32>().ok());
    if mtu >= Some(limits::LOOPBACK_INTERFACE_MTU) {
        Path::Loopback
    } else {
        Path::Network
    }
}

fn transport(mtu: u16, path: Path) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut transport = TransportConfig::default();
    if path == Path::Loopback {
        // The default window is smaller than one such packet, and then nothing would ever be sent.
        let mut congestion = CubicConfig::default();
        congestion.initial_window(limits::LOOPBACK_PACKETS_AT_FIRST * u64::from(mtu));
        transport
            .initial_mtu(mtu)
            .congestion_controller_factory(Arc::new(congestion));
    }
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::STREAMS_AT_FIRST))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(limits::STREAM_RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_RECEIVE_WINDOW_BYTES))
        .send_window(limits::CONNECTION_SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(
            limits::CONNECTION_IDLE_MAX
                .try_into()
                .expect("seconds fit a VarInt of milliseconds"),
        ))
        .mtu_discovery_config(Some(discovery));
    transport
}

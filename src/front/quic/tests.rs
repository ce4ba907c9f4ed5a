//! The endpoint over loopback, talking to quinn's own client.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use proto_rkyv::code;
use quinn::VarInt;

use super::{RequestStream, StreamError, steering};
use crate::{
    front::{
        FrontControl,
        testing::{
            CLIENT_WINDOW, Identity, Pki, Server, Validity, client, client_transport, connect,
            endpoint,
        },
    },
    limits,
};

const MIB: usize = 1 << 20;
const BULK_BYTES: usize = 64 * MIB;
const PIECE_BYTES: usize = 64 << 10;

/// A little protocol: the first byte of a stream says what the server does with it.
const ECHO: u8 = b'e';
/// Reads everything, answers how much that was.
const SINK: u8 = b's';
/// Sends `BULK_BYTES` and counts in `sent` what QUIC has taken.
const SOURCE: u8 = b'b';
/// Reads nothing and writes nothing until the peer goes away.
const STALL: u8 = b'z';
/// Answers name and role of the peer.
const WHO: u8 = b'w';
/// Answers how many requests there are.
const COUNT: u8 = b'c';

async fn serve(stream: RequestStream, control: FrontControl, sent: Arc<AtomicU64>) {
    let _ended = serve_inner(stream, control, sent).await;
}

async fn serve_inner(
    stream: RequestStream,
    control: FrontControl,
    sent: Arc<AtomicU64>,
) -> Result<(), StreamError> {
    let RequestStream {
        peer,
        mut send,
        mut recv,
        ..
    } = stream;
    let Some(mut first) = recv.read_chunk().await? else {
        return Ok(());
    };
    let mode = first.split_to(1)[0];
    match mode {
        ECHO => {
            send.write_chunks(&mut [first]).await?;
            while let Some(chunk) = recv.read_chunk().await? {
                send.write_chunks(&mut [chunk]).await?;
            }
        }
        SINK => {
            let mut total = first.len() as u64;
            while let Some(chunk) = recv.read_chunk().await? {
                total += chunk.len() as u64;
            }
            send.write_chunks(&mut [Bytes::copy_from_slice(&total.to_le_bytes())])
                .await?;
        }
        SOURCE => {
            let piece = Bytes::from(vec![7; PIECE_BYTES]);
            for _ in 0..BULK_BYTES / PIECE_BYTES {
                send.write_chunks(&mut [piece.clone()]).await?;
                sent.fetch_add(PIECE_BYTES as u64, Ordering::SeqCst);
            }
        }
        STALL => return Err(send.gone().await),
        WHO => {
            let text = format!("{} {}", peer.name, peer.role);
            send.write_chunks(&mut [text.into()]).await?;
        }
        COUNT => {
            let text = control.requests().to_string();
            send.write_chunks(&mut [text.into()]).await?;
        }
        other => panic!("no mode {other}"),
    }
    send.finish();
    Ok(())
}

fn server(pki: &Pki, shards: usize) -> Server {
    Server::on_loopback(pki, shards, |stream, control| {
        serve(stream, control, Arc::default())
    })
}

/// Sends `mode` and `payload` and finishes, reads the whole answer meanwhile.
async fn ask(connection: &quinn::Connection, mode: u8, payload: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|error| error.to_string())?;
    let writing = async {
        send.write_all(&[mode])
            .await
            .map_err(|error| error.to_string())?;
        send.write_all(payload)
            .await
            .map_err(|error| error.to_string())?;
        send.finish().map_err(|error| error.to_string())
    };
    let reading = async {
        recv.read_to_end(BULK_BYTES + 1)
            .await
            .map_err(|error| error.to_string())
    };
    tokio::try_join!(writing, reading).map(|((), answer)| answer)
}

#[test]
fn a_peer_with_a_certificate_is_known_and_its_bytes_come_back() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        assert_eq!(ask(&connection, WHO, b"").await.unwrap(), b"alice admin");
        let payload: Vec<u8> = (0..=250u8).cycle().take(3 * MIB).collect();
        let (echoed, again) = tokio::join!(
            ask(&connection, ECHO, &payload),
            ask(&connection, ECHO, b"")
        );
        assert!(echoed.unwrap() == payload);
        assert_eq!(again.unwrap(), b"");
    });
    server.close();
}

#[test]
fn bulk_flows_both_ways_and_a_slow_reader_bounds_what_is_held() {
    let pki = Pki::new();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let server = Server::on_loopback(&pki, 1, move |stream, control| {
        serve(stream, control, Arc::clone(&counter))
    });
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let total = ask(&connection, SINK, &vec![1; BULK_BYTES]).await.unwrap();
        assert_eq!(total, (BULK_BYTES as u64).to_le_bytes());

        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[SOURCE]).await.unwrap();
        send.finish().unwrap();
        let mut received = 0;
        while let Some(chunk) = recv.read_chunk(PIECE_BYTES, true).await.unwrap() {
            received += chunk.bytes.len() as u64;
            assert!(chunk.bytes.iter().all(|byte| *byte == 7));
            let held = sent.load(Ordering::SeqCst).saturating_sub(received);
            let bound = limits::CONNECTION_SEND_WINDOW_BYTES
                + u64::from(CLIENT_WINDOW)
                + PIECE_BYTES as u64;
            assert!(
                held <= bound,
                "{held} bytes are on the way, at most {bound} may be"
            );
        }
        assert_eq!(received, BULK_BYTES as u64);
        let packets = connection.stats().udp_rx;
        let mean = packets.bytes / packets.datagrams;
        assert!(
            mean > 4 * u64::from(limits::MTU_NETWORK_BYTES),
            "datagrams over loopback have {mean} bytes"
        );
    });
    server.close();
}

#[test]
fn connections_survive_every_change_of_address() {
    let pki = Pki::new();
    let server = server(&pki, 2);
    client(async {
        let identity = pki.admin();
        for _ in 0..4 {
            let (endpoint, connection) = connect(&pki, &identity, server.address).await;
            for round in 0..4u8 {
                endpoint
                    .rebind(UdpSocket::bind("127.0.0.1:0").unwrap())
                    .unwrap();
                assert_eq!(ask(&connection, ECHO, &[round]).await.unwrap(), [round]);
            }
        }
    });
    server.close();
}

#[test]
fn datagrams_that_land_on_the_wrong_shard_are_carried_to_theirs() {
    let pki = Pki::new();
    // A group without the steering program: the kernel picks a socket by address alone.
    let group: Vec<UdpSocket> = {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut bound = any;
        (0..3)
            .map(|_| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
                        .unwrap();
                socket.set_reuse_port(true).unwrap();
                socket.bind(&bound.into()).unwrap();
                bound = socket.local_addr().unwrap().as_socket().unwrap();
                socket.into()
            })
            .collect()
    };
    let server = Server::start(pki.config(), group, |stream, control| {
        serve(stream, control, Arc::default())
    });
    client(async {
        let identity = pki.admin();
        for _ in 0..8 {
            let (endpoint, connection) = connect(&pki, &identity, server.address).await;
            for _ in 0..2 {
                endpoint
                    .rebind(UdpSocket::bind("127.0.0.1:0").unwrap())
                    .unwrap();
                assert_eq!(
                    ask(&connection, ECHO, b"still here").await.unwrap(),
                    b"still here"
                );
            }
        }
    });
    server.close();
}

#[test]
fn stalled_streams_do_not_hold_up_another() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            let mut payload = vec![0; 2 * limits::STREAM_RECEIVE_WINDOW_BYTES as usize];
            payload[0] = STALL;
            let writing = tokio::spawn(async move { send.write_all(&payload).await });
            stalled.push((recv, writing));
        }
        let payload = vec![9; 4 * MIB];
        assert!(ask(&connection, ECHO, &payload).await.unwrap() == payload);
        assert!(
            stalled.iter().all(|(_, writing)| !writing.is_finished()),
            "the server reads nothing of them"
        );
        // Giving up the reading side ends the server's tasks, which stops ours.
        for (mut recv, writing) in stalled {
            recv.stop(VarInt::from_u32(code::STREAM_CANCELED)).unwrap();
            assert!(matches!(
                writing.await.unwrap(),
                Err(quinn::WriteError::Stopped(_))
            ));
        }
        assert_eq!(ask(&connection, COUNT, b"").await.unwrap(), b"1");
    });
    server.close();
}

#[test]
fn a_connection_that_asks_much_has_room_for_all_that_is_allowed() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let mut stalled = Vec::new();
        for _ in 1..limits::STREAMS_PER_CONNECTION_MAX {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&[STALL]).await.unwrap();
            stalled.push((send, recv));
        }
        let all = limits::STREAMS_PER_CONNECTION_MAX.to_string();
        assert_eq!(ask(&connection, COUNT, b"").await.unwrap(), all.as_bytes());
    });
    server.close();
}

#[test]
fn a_peer_that_vanishes_ends_its_requests() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let identity = pki.admin();
        let (_watching, watcher) = connect(&pki, &identity, server.address).await;
        let (_endpoint, connection) = connect(&pki, &identity, server.address).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&[STALL]).await.unwrap();
            streams.push((send, recv));
        }
        while ask(&watcher, COUNT, b"").await.unwrap() != b"101" {}
        connection.close(VarInt::from_u32(0), b"");
        while ask(&watcher, COUNT, b"").await.unwrap() != b"1" {}
    });
    server.close();
}

#[test]
fn a_client_learns_at_once_that_its_server_was_killed() {
    let pki = Pki::new();
    let first = server(&pki, 2);
    let address = first.address;
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), address).await;
        assert_eq!(ask(&connection, ECHO, b"x").await.unwrap(), b"x");
        first.vanish();
        // The next one on the same port has the same keys and other certificates.
        let group = steering::bind(address, 2).unwrap();
        let second = Server::start(pki.config(), group, |stream, control| {
            serve(stream, control, Arc::default())
        });
        ask(&connection, ECHO, b"x").await.unwrap_err();
        assert_eq!(connection.closed().await, quinn::ConnectionError::Reset);
        second.close();
    });
}

#[test]
fn closing_tells_every_peer_why() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[STALL]).await.unwrap();
        assert_eq!(ask(&connection, ECHO, b"x").await.unwrap(), b"x");
        server.close();
        let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
            panic!("not told")
        };
        assert_eq!(
            close.error_code,
            VarInt::from_u32(code::CONNECTION_SHUTDOWN)
        );
        assert_eq!(&close.reason[..], b"the server is shutting down");
        assert!(recv.read_to_end(1).await.is_err());
    });
}

#[test]
fn whoever_is_not_let_in_is_told_why() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    let check = |identity: Option<&Identity>, alpn: &[u8], expected: &str| {
        client(async {
            let endpoint = endpoint(pki.client_config(identity, alpn));
            // In TLS 1.3 the client is done before the server has seen its certificate.
            let error = match endpoint.connect(server.address, "joblet").unwrap().await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            };
            assert!(
                error.to_string().contains(expected),
                "{error} does not say {expected:?}"
            );
        });
    };
    let alpn = proto_rkyv::ALPN;
    check(None, alpn, "peer sent no certificates");
    check(
        Some(&Pki::new().admin()),
        alpn,
        "invalid peer certificate: ",
    );
    let with = |unit, validity| pki.client("alice", unit, validity);
    check(
        Some(&with(Some("admin"), Validity::Past)),
        alpn,
        "certificate expired",
    );
    check(
        Some(&with(Some("admin"), Validity::Future)),
        alpn,
        "certificate not valid yet",
    );
    check(
        Some(&pki.admin()),
        b"joblet/2",
        "peer doesn't support any known protocol",
    );
    check(
        Some(&with(None, Validity::Now)),
        alpn,
        "has no organisational unit (OU)",
    );
    check(
        Some(&with(Some("root"), Validity::Now)),
        alpn,
        "\"root\" is no role; roles are reader",
    );
    check(
        Some(&pki.client("", Some("admin"), Validity::Now)),
        alpn,
        "common name (CN)",
    );
    // And the server still serves.
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        assert_eq!(ask(&connection, WHO, b"").await.unwrap(), b"alice admin");
    });
    server.close();
}

#[test]
fn one_way_streams_are_not_offered() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let opening = connection.open_uni();
        tokio::pin!(opening);
        tokio::select! {
            biased;
            opened = &mut opening => panic!("{opened:?}"),
            answer = ask(&connection, ECHO, b"x") => assert_eq!(answer.unwrap(), b"x"),
        }
    });
    server.close();
}

#[test]
fn many_half_open_handshakes_make_new_peers_prove_their_address() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    // First packets of handshakes that nobody goes on with.
    let config = pki.client_config(Some(&pki.admin()), proto_rkyv::ALPN);
    let mut flood = quinn_proto::Endpoint::new(Arc::default_config(), None, true, None);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(crate::front::testing::PATIENCE))
        .unwrap();
    let mut packet = Vec::new();
    let mut answer = [0; 65_536];
    for attempt in 0..=limits::HANDSHAKES_BEFORE_RETRY {
        let (_, mut connection) = flood
            .connect(crate::rt::now(), config.clone(), server.address, "joblet")
            .unwrap();
        packet.clear();
        let transmit = connection
            .poll_transmit(crate::rt::now(), 1, &mut packet)
            .unwrap();
        socket
            .send_to(&packet[..transmit.size], server.address)
            .unwrap();
        // The first answer to this attempt carries its own source id as destination.
        let is_retry = loop {
            let len = socket.recv(&mut answer).unwrap();
            let own = usize::from(packet[5]) + 6;
            let own = &packet[own + 1..=own + usize::from(packet[own])];
            if answer[..len].get(6..6 + own.len()) == Some(own) {
                break answer[0] & 0xf0 == 0xf0;
            }
        };
        assert_eq!(
            is_retry,
            attempt == limits::HANDSHAKES_BEFORE_RETRY,
            "attempt {attempt}"
        );
    }
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        assert_eq!(ask(&connection, ECHO, b"x").await.unwrap(), b"x");
    });
    server.close();
}

/// quinn-proto's defaults, spelt for `Arc`.
trait DefaultConfig {
    fn default_config() -> Self;
}

impl DefaultConfig for Arc<quinn_proto::EndpointConfig> {
    fn default_config() -> Self {
        Arc::new(quinn_proto::EndpointConfig::default())
    }
}

#[test]
fn rubbish_on_the_port_changes_nothing() {
    let pki = Pki::new();
    let server = server(&pki, 2);
    client(async {
        let (_endpoint, connection) = connect(&pki, &pki.admin(), server.address).await;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut seed = 1u64;
        for len in 0..2_000usize {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    seed.to_be_bytes()[0]
                })
                .collect();
            socket.send_to(&bytes, server.address).unwrap();
        }
        assert_eq!(ask(&connection, ECHO, b"x").await.unwrap(), b"x");
    });
    server.close();
}

#[test]
fn a_client_with_the_defaults_of_quinn_gets_ethernet_sized_packets() {
    let pki = Pki::new();
    let server = server(&pki, 1);
    client(async {
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut config = pki.client_config(Some(&pki.admin()), proto_rkyv::ALPN);
        config.transport_config(Arc::new(client_transport()));
        endpoint.set_default_client_config(config);
        let connection = endpoint
            .connect(server.address, "joblet")
            .unwrap()
            .await
            .unwrap();
        let received = ask(&connection, SOURCE, b"").await.unwrap();
        assert_eq!(received.len(), BULK_BYTES);
        assert!(connection.stats().udp_rx.datagrams > (BULK_BYTES / 1_500) as u64);
    });
    server.close();
}

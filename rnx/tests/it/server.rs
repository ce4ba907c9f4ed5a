//! A server that speaks the wire on a thread of its own, and the certificates of both sides.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use proto_rkyv::{
    Caveat, HEADER_BYTES, Header, Id, Job, Kind, LimitKind, Limits, LogTotals, Outcome, Piece,
    Reader, Reason, Refusal, RefusalCode, Reply, Request, State, Transition, Upload, Usage, Work,
    encode, header_bytes, split,
};
use quinn::{
    Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, RecvStream,
    SendStream, crypto::rustls::QuicServerConfig,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rnx::{Config, Node};
use rustls::{RootCertStore, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use tokio::sync::oneshot;

/// An authority and what it signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
}

pub(crate) struct Pair {
    pub(crate) cert: rcgen::Certificate,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("test authority")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn issue(&self, name: &str, validity: Validity) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2000, 1, 1), date_time_ymd(4000, 1, 1)),
            Validity::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::Future => (date_time_ymd(3999, 1, 1), date_time_ymd(4000, 1, 1)),
        };
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair { cert, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A client file's node for `pair`.
pub(crate) fn node(address: SocketAddr, ca: &Authority, pair: &Pair) -> Node {
    Node {
        address: address.to_string(),
        node_id: None,
        is_default: true,
        cert: pair.cert.pem(),
        key: pair.key.serialize_pem(),
        ca: ca.pem(),
    }
}

type Answer = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = Arc<dyn Fn(Connection, SendStream, RecvStream) -> Answer + Send + Sync>;

/// A running server; it ends with the value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) node: Node,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every stream by `answer`, with certificates that both sides trust.
    pub(crate) fn start<F, A>(answer: F) -> Self
    where
        F: Fn(SendStream, RecvStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let ca = Authority::new();
        let pair = ca.issue("joblet", Validity::Now);
        let mut server = Self::with(&ca, &pair, proto_rkyv::ALPN, answer);
        server.node = node(server.address, &ca, &ca.issue("alice", Validity::Now));
        server
    }

    /// The same with certificates of the caller's choice; `node` is unusable then.
    pub(crate) fn with<F, A>(ca: &Authority, pair: &Pair, alpn: &[u8], answer: F) -> Self
    where
        F: Fn(SendStream, RecvStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |_, send, recv| Box::pin(answer(send, recv)));
        let mut server = Self::open((Ipv4Addr::LOCALHOST, 0).into(), ca, pair, alpn, handler);
        server.node = node(server.address, ca, pair);
        server
    }

    /// As [`Server::start`], at `address`, for an `answer` that may also do something to the connection.
    pub(crate) fn at<F, A>(address: SocketAddr, authority: &Authority, answer: F) -> Self
    where
        F: Fn(Connection, SendStream, RecvStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let pair = authority.issue("joblet", Validity::Now);
        let handler: Handler =
            Arc::new(move |connection, send, recv| Box::pin(answer(connection, send, recv)));
        Self::open(address, authority, &pair, proto_rkyv::ALPN, handler)
    }

    fn open(
        address: SocketAddr,
        ca: &Authority,
        pair: &Pair,
        alpn: &[u8],
        handler: Handler,
    ) -> Self {
        let config = server_config(ca, pair, alpn);
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let resets = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[7; 32]);
                let mut own = EndpointConfig::new(Arc::new(resets));
                own.cid_generator(|| Box::new(Counted));
                let endpoint = Endpoint::new(
                    own,
                    Some(config),
                    UdpSocket::bind(address).unwrap(),
                    Arc::new(quinn::TokioRuntime),
                )
                .unwrap();
                tell.send(endpoint.local_addr().unwrap()).unwrap();
                let died = tokio::select! {
                    () = accept(&endpoint, handler) => false,
                    died = stopped => died.is_ok(),
                };
                if died {
                    return;
                }
                endpoint.close(0u32.into(), b"test is over");
                endpoint.wait_idle().await;
            });
        });
        let address = told.recv().unwrap();
        let node = node(address, ca, &ca.issue("alice", Validity::Now));
        Self {
            address,
            node,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Ends it like a killed process: the socket is gone and nobody was told.
    pub(crate) fn die(mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Writes a client file for this server.
    pub(crate) fn client_file(&self, dir: &Path) -> PathBuf {
        let path = dir.join("rnx-config.yml");
        Config::new(
            path.clone(),
            BTreeMap::from([("default".to_owned(), self.node.clone())]),
        )
        .save()
        .unwrap();
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || thread::panicking(),
                "the server of the test panicked"
            );
        }
    }
}

/// Connection ids that no two servers of this process have. quinn's own are known by their endpoint alone: another
/// one at the same address would drop packets for them, where the daemon answers that the connection is gone.
#[derive(Debug)]
struct Counted;

impl ConnectionIdGenerator for Counted {
    fn generate_cid(&mut self) -> ConnectionId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ConnectionId::new(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        size_of::<u64>()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

async fn accept(endpoint: &Endpoint, handler: Handler) {
    while let Some(incoming) = endpoint.accept().await {
        let handler = handler.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(handler(connection.clone(), send, recv));
            }
        });
    }
}

fn server_config(ca: &Authority, pair: &Pair, alpn: &[u8]) -> quinn::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.0.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![pair.cert.der().clone()],
            PrivateKeyDer::Pkcs8(pair.key.serialize_der().into()),
        )
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(8_192u32.into());
    // Closing lasts three round trips, and without one that was measured it is this guess.
    transport.initial_rtt(Duration::from_millis(5));
    config.transport_config(Arc::new(transport));
    config
}

/// A request with everything that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) env: Vec<Vec<u8>>,
    pub(crate) secret_env: Vec<Vec<u8>>,
    pub(crate) uploads: Vec<(Upload, Vec<u8>)>,
}

/// Reads a request to the end of its stream; `None` when the client gave it up.
pub(crate) async fn asked(recv: &mut RecvStream) -> Option<Asked> {
    let (mut reader, mut request, mut uploads) =
        (Reader::default(), None, Vec::<(Upload, Vec<u8>)>::new());
    let (mut bulk, mut at) = (BTreeMap::<u8, Vec<u8>>::new(), Kind::Control);
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.ok()? {
        reader.feed(chunk.bytes);
        while let Some(piece) = reader.next().unwrap() {
            match piece {
                Piece::Control(archive) if request.is_none() => {
                    request = Some(Request::decode(&archive).unwrap())
                }
                Piece::Control(archive) => {
                    uploads.push((Upload::decode(&archive).unwrap(), Vec::new()))
                }
                Piece::Begin(header) => at = header.kind,
                Piece::Data { bytes, .. } if at == Kind::File => {
                    uploads.last_mut().unwrap().1.extend_from_slice(&bytes)
                }
                Piece::Data { bytes, .. } => {
                    bulk.entry(at as u8).or_default().extend_from_slice(&bytes)
                }
            }
        }
    }
    assert!(reader.is_between_frames());
    let mut list = |kind: Kind| {
        let payload = bulk.remove(&(kind as u8)).unwrap_or_default();
        split(&payload)
            .unwrap()
            .into_iter()
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let (argv, env, secret_env) = (list(Kind::Argv), list(Kind::Env), list(Kind::SecretEnv));
    assert!(bulk.is_empty());
    Some(Asked {
        request: request?,
        argv,
        env,
        secret_env,
        uploads,
    })
}

pub(crate) const ID: Id = [
    0x1f, 0x3a, 0x5c, 0x7e, 0x90, 0xab, 0x4c, 0xde, 0x8f, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd,
];
pub(crate) const ID_TEXT: &str = "1f3a5c7e-90ab-4cde-8f01-23456789abcd";

/// A job that ended for `reason`.
pub(crate) fn job(reason: Reason, exit_code: Option<i32>, signal: Option<i32>) -> Box<Job> {
    let at = |state, seconds: i64| Transition {
        state,
        wall_ns: 1_700_000_000_000_000_000 + seconds * 1_000_000_000,
        mono_ns: 7 + u64::try_from(seconds).unwrap() * 1_000_000_000,
    };
    let end = if exit_code == Some(0) {
        State::Completed
    } else {
        State::Failed
    };
    Box::new(Job {
        id: ID,
        name: Some("n\u{1b}[2J".into()),
        owner: "alice".into(),
        state: end,
        command: "sh -c".into(),
        labels: vec![("team".into(), "a".into())],
        workdir: "/work".into(),
        user: (1000, 1000),
        work_bytes: 64 << 20,
        work: Work::Memory,
        volumes: Vec::new(),
        timeout_ms: None,
        grace_ms: 10_000,
        limits: Limits {
            cpu_percent: Some(150),
            memory_bytes: Some(64 << 20),
            io_bytes_per_second: Some(1 << 20),
            pids: None,
            cores: Some(vec![(0, 1), (4, 4)]),
        },
        caveats: vec![Caveat {
            limit: LimitKind::Io,
            is_partly: true,
            note: "direct and synced I/O only".into(),
        }],
        transitions: vec![
            at(State::Initializing, 0),
            at(State::Running, 1),
            at(end, 3),
        ],
        outcome: Some(Outcome {
            reason,
            exit_code,
            signal,
            usage: Usage {
                cpu_user_us: 1_500_000,
                cpu_system_us: 0,
                throttled_us: Some(250_000),
                memory_bytes: Some(0),
                memory_peak_bytes: Some(48 << 20),
                oom_kills: Some(0),
                io_read_bytes: Some(4_096),
                io_write_bytes: None,
                pids: Some(0),
                pids_peak: Some(3),
                pids_refused: Some(1),
            },
            wall_ms: 2_000,
            queued_ms: 40,
            start_micros: Some(700),
        }),
        log: LogTotals {
            stdout_bytes: 4,
            stderr_bytes: 4,
            dropped_bytes: 0,
        },
        schedule: None,
        schedule_id: None,
        next_runs_ns: Vec::new(),
        last_run_ns: None,
        priority: 0,
        waits_for: None,
    })
}

/// A reply as a frame.
pub(crate) fn reply(reply: &Reply) -> Bytes {
    encode(reply).unwrap()
}

/// The refusal that a server would send.
pub(crate) fn refused(code: RefusalCode, message: &str) -> Bytes {
    reply(&Reply::Refused(Refusal {
        code,
        message: message.into(),
        hint: Some("a hint".into()),
    }))
}

/// A data frame.
pub(crate) fn data(kind: Kind, offset: u64, payload: &[u8]) -> Bytes {
    let header = Header {
        kind,
        len: payload.len() as u32,
        job: ID,
        offset,
        time_ns: 1_700_000_000_000_000_000,
    };
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header_bytes(&header));
    frame.extend_from_slice(payload);
    frame.into()
}

/// Sends frames and ends the stream. A client that has gone is none of our business.
pub(crate) async fn say(send: &mut SendStream, frames: impl IntoIterator<Item = Bytes>) {
    for frame in frames {
        if send.write_chunk(frame).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
    let _ = send.stopped().await;
}

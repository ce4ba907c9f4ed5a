//! For tests of this room: certificates, a front on a thread of its own, and quinn's client to talk to it.

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    Datagram, Front, FrontConfig, FrontControl,
    quic::{RequestStream, Work},
    steering,
};
use crate::rt;

/// How long a test waits for something that must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A CA.
pub(super) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(super) struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub(super) enum Validity {
    Now,
    Past,
    Future,
}

impl Pki {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test ca");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self {
            ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    fn issue(
        &self,
        name: &str,
        unit: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["joblet".into()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(unit) = unit {
            params
                .distinguished_name
                .push(DnType::OrganizationalUnitName, unit);
        }
        params.extended_key_usages = vec![usage];
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1)),
            Validity::Past => (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1)),
            Validity::Future => (date_time_ymd(2100, 1, 1), date_time_ymd(2101, 1, 1)),
        };
        let cert = params.signed_by(&key, &self.ca).unwrap();
        Identity {
            certificate: cert.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    pub(super) fn client(&self, name: &str, unit: Option<&str>, validity: Validity) -> Identity {
        self.issue(name, unit, ExtendedKeyUsagePurpose::ClientAuth, validity)
    }

    pub(super) fn admin(&self) -> Identity {
        self.client("alice", Some("admin"), Validity::Now)
    }

    pub(super) fn config(&self) -> FrontConfig {
        let server = self.issue(
            "joblet",
            None,
            ExtendedKeyUsagePurpose::ServerAuth,
            Validity::Now,
        );
        FrontConfig {
            authority: self.ca.der().clone(),
            server_chain: vec![server.certificate],
            server_key: server.key,
            reset_key: [1; 32],
            token_key: [2; 32],
        }
    }

    /// quinn's configuration of a client that trusts this CA and shows `identity`.
    pub(super) fn client_config(
        &self,
        identity: Option<&Identity>,
        alpn: &[u8],
    ) -> quinn::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
        let mut tls = match identity {
            Some(identity) => {
                let chain = vec![identity.certificate.clone()];
                let key = identity.key.clone_key();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(client_transport()));
        config
    }
}

/// Small windows, so that back-pressure begins early.
pub(super) fn client_transport() -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(CLIENT_WINDOW.into())
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_idle_timeout(Some(PATIENCE.try_into().unwrap()));
    transport
}

/// What a client may have unread on a stream.
pub(super) const CLIENT_WINDOW: u32 = 256 << 10;

/// How a server thread ends.
#[derive(Clone, Copy)]
enum Ending {
    /// Every peer is told.
    Close = 1,
    /// As if it was killed.
    Vanish = 2,
}

/// All shards of a server, as tasks of one thread.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    order: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves each stream by `serve`, on as many shards as there are sockets in `group`.
    pub(super) fn start<S, F>(config: FrontConfig, group: Vec<UdpSocket>, serve: S) -> Self
    where
        S: Fn(RequestStream, FrontControl) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let address = group[0].local_addr().unwrap();
        let (order, orders) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            rt::run(rt::Options::default(), || run(config, group, serve, orders)).unwrap();
        });
        Self {
            address,
            order,
            thread: Some(thread),
        }
    }

    /// The same on loopback.
    pub(super) fn on_loopback<S, F>(pki: &Pki, shards: usize, serve: S) -> Self
    where
        S: Fn(RequestStream, FrontControl) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        Self::start(
            pki.config(),
            steering::bind("127.0.0.1:0".parse().unwrap(), shards).unwrap(),
            serve,
        )
    }

    pub(super) fn close(self) {
        self.end(Ending::Close);
    }

    pub(super) fn vanish(self) {
        self.end(Ending::Vanish);
    }

    fn end(mut self, ending: Ending) {
        self.order.write_all(&[ending as u8]).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.order.write_all(&[Ending::Vanish as u8]);
            let _ = thread.join();
        }
    }
}

async fn run<S, F>(config: FrontConfig, group: Vec<UdpSocket>, serve: S, orders: UnixStream)
where
    S: Fn(RequestStream, FrontControl) -> F + Clone + 'static,
    F: Future<Output = ()> + 'static,
{
    let shards = group.len();
    let controls: Rc<std::cell::RefCell<Vec<FrontControl>>> = Rc::default();
    let mut running: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for (shard, socket) in group.into_iter().enumerate() {
        let others = Rc::clone(&controls);
        let forward = Rc::new(move |owner: usize, datagram: Datagram| {
            others.borrow()[owner].deliver(datagram)
        });
        let (mine, serve) = (Rc::clone(&controls), serve.clone());
        let accept = Box::new(move |stream| {
            let control = mine.borrow()[shard].clone();
            drop(rt::spawn(serve(stream, control)));
        });
        let front = Front::with_accept(
            socket,
            (shard, shards),
            &config,
            forward,
            Work::new(),
            accept,
        )
        .unwrap();
        controls.borrow_mut().push(front.control());
        running.push(Box::pin(async move { front.serve().await.unwrap() }));
    }
    let ready = rt::Ready::new(orders.try_clone().unwrap().into()).unwrap();
    let mut order = Box::pin(async { ready.readable().await.unwrap() });
    let mut is_ordered = false;
    std::future::poll_fn(|cx| {
        running.retain_mut(|front| front.as_mut().poll(cx).is_pending());
        if !is_ordered && order.as_mut().poll(cx).is_ready() {
            is_ordered = true;
            let mut byte = [0];
            std::io::Read::read_exact(&mut &orders, &mut byte).unwrap();
            if byte[0] == Ending::Vanish as u8 {
                return std::task::Poll::Ready(());
            }
            controls.borrow().iter().for_each(FrontControl::close);
            running.retain_mut(|front| front.as_mut().poll(cx).is_pending());
        }
        if running.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    // The runtime is never torn down, so polls that are still in the kernel would keep the port: cancelled by
    // the drop, they are over after a trip through the ring.
    drop(running);
    rt::yield_io().await;
    rt::yield_io().await;
}

/// Runs a client on tokio, and fails when it takes too long.
pub(super) fn client<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            tokio::time::timeout(PATIENCE, future)
                .await
                .expect("the client is done in time")
        })
}

/// A quinn endpoint on any loopback port. Must be called inside [`client`].
pub(super) fn endpoint(config: quinn::ClientConfig) -> quinn::Endpoint {
    let mut quic = quinn::EndpointConfig::default();
    quic.max_udp_payload_size(65_507).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut endpoint =
        quinn::Endpoint::new(quic, None, socket, Arc::new(quinn::TokioRuntime)).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

/// A connection with `identity`.
pub(super) async fn connect(
    pki: &Pki,
    identity: &Identity,
    server: SocketAddr,
) -> (quinn::Endpoint, quinn::Connection) {
    let endpoint = endpoint(pki.client_config(Some(identity), proto_rkyv::ALPN));
    let connection = endpoint.connect(server, "joblet").unwrap().await.unwrap();
    (endpoint, connection)
}

//! The wire, spoken by hand: for peers that lie, and for thousands of requests on one connection.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto_rkyv::{
    After, Header, Job, Kind, Piece, Reader, Reply, Request, Submit, encode, header_bytes, join,
};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a client shows and trusts, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Its certificate.
    pub(crate) cert: String,
    /// Its key.
    pub(crate) key: String,
    /// The CA it trusts.
    pub(crate) ca: String,
}

impl Identity {
    /// From the first node of a client configuration file.
    pub(crate) fn read(config: &Path) -> Self {
        let text = fs::read_to_string(config).unwrap();
        let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let node = value["nodes"].as_object().unwrap().values().next().unwrap();
        let field = |name: &str| node[name].as_str().unwrap().to_owned();
        Self {
            cert: field("cert"),
            key: field("key"),
            ca: field("ca"),
        }
    }

    /// A client configuration file with this identity.
    pub(crate) fn write(&self, config: &Path, address: SocketAddr) {
        let block = |pem: &str| {
            pem.lines()
                .map(|line| format!("      {line}\n"))
                .collect::<String>()
        };
        let text = format!(
            "version: \"3.0\"\nnodes:\n  default:\n    address: \"{address}\"\n    cert: |\n{}    key: |\n{}    ca: |\n{}",
            block(&self.cert),
            block(&self.key),
            block(&self.ca)
        );
        fs::write(config, text).unwrap();
        fs::set_permissions(config, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
}

/// How a hand-made client behaves.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Who it says it is; without one it shows no certificate.
    pub(crate) identity: Option<Identity>,
    /// Whom it trusts.
    pub(crate) ca: String,
    /// The protocols it offers.
    pub(crate) alpn: Vec<Vec<u8>>,
}

impl Client {
    /// A proper one.
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            identity: Some(identity.clone()),
            ca: identity.ca.clone(),
            alpn: vec![proto_rkyv::ALPN.to_vec()],
        }
    }

    /// Connects.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
    ) -> Result<Wire, quinn::ConnectionError> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes())
                    .map(Result::unwrap)
                    .collect();
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        tls.alpn_protocols.clone_from(&self.alpn);
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(1)));
        transport.max_idle_timeout(Some(Duration::from_secs(30).try_into().unwrap()));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint
            .connect_with(config, address, "joblet")
            .unwrap()
            .await?;
        Ok(Wire {
            connection,
            _endpoint: endpoint,
        })
    }
}

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    /// As quinn has it.
    pub(crate) connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

/// One request on its stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Towards the daemon.
    pub(crate) send: quinn::SendStream,
    recv: quinn::RecvStream,
    reader: Reader,
    kind: Option<Kind>,
}

/// What a stream brings.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A control message.
    Reply(Reply),
    /// Some bytes of a data frame.
    Data(Kind, Bytes),
}

/// Output of a job, as far as it was sent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
}

impl Written {
    /// Adds the bytes of a data frame; those that are no output are passed over.
    pub(crate) fn add(&mut self, kind: Kind, bytes: &[u8]) {
        match kind {
            Kind::Stdout => self.stdout.extend_from_slice(bytes),
            Kind::Stderr => self.stderr.extend_from_slice(bytes),
            Kind::Control | Kind::Argv | Kind::Env | Kind::SecretEnv | Kind::File => {}
        }
    }
}

impl Wire {
    /// A new stream with nothing sent.
    pub(crate) async fn open(&self) -> Stream {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Stream, quinn::ConnectionError> {
        let (send, recv) = self.connection.open_bi().await?;
        Ok(Stream {
            send,
            recv,
            reader: Reader::default(),
            kind: None,
        })
    }

    /// Sends a request that is `frames` and nothing after them; `None` when the connection is lost.
    pub(crate) async fn ask_frames(&self, frames: &[u8]) -> Option<Stream> {
        let mut stream = self.try_open().await.ok()?;
        stream.send.write_all(frames).await.ok()?;
        stream.send.finish().ok()?;
        Some(stream)
    }

    /// Sends a request that nothing follows; `None` when the connection is lost.
    pub(crate) async fn ask(&self, request: &Request) -> Option<Stream> {
        self.ask_frames(&encode(request).unwrap()).await
    }

    /// Submits `argv` with `submit` and no upload; the stream as it is after the last frame.
    pub(crate) async fn submit(&self, submit: Submit, argv: &[&str]) -> Stream {
        let mut stream = self.open().await;
        let mut frames = encode(&Request::Submit(Box::new(submit))).unwrap().to_vec();
        frames.extend(data(Kind::Argv, &join(argv)));
        stream.send.write_all(&frames).await.unwrap();
        stream
    }

    /// Runs `argv` to its end; the job as it is then.
    pub(crate) async fn run(&self, argv: &[&str]) -> Result<Job, Reply> {
        self.run_as(Submit::default(), argv).await
    }

    /// Runs what `submit` asks for to its end; the job as it is then.
    pub(crate) async fn run_as(&self, submit: Submit, argv: &[&str]) -> Result<Job, Reply> {
        let after = After::Wait;
        let mut stream = self.submit(Submit { after, ..submit }, argv).await;
        stream.send.finish().unwrap();
        loop {
            match stream.reply().await {
                Some(Reply::Accepted { .. }) => {}
                Some(Reply::Ended(job)) => return Ok(*job),
                Some(other) => return Err(other),
                None => panic!("the stream ended without an answer"),
            }
        }
    }
}

impl Stream {
    /// The next control message; output is passed over. `None` when the daemon closed the stream.
    pub(crate) async fn reply(&mut self) -> Option<Reply> {
        loop {
            match self.heard().await? {
                Heard::Reply(reply) => return Some(reply),
                Heard::Data(..) => {}
            }
        }
    }

    /// The next control message or piece of data. `None` when the daemon closed the stream.
    pub(crate) async fn heard(&mut self) -> Option<Heard> {
        loop {
            while let Some(piece) = self.reader.next().unwrap() {
                match piece {
                    Piece::Control(archive) => {
                        return Some(Heard::Reply(Reply::decode(&archive).unwrap()));
                    }
                    Piece::Begin(header) => self.kind = Some(header.kind),
                    Piece::Data { bytes, .. } => {
                        let kind = self.kind.expect("data follows its header");
                        return Some(Heard::Data(kind, bytes));
                    }
                }
            }
            let chunk: Option<Bytes> = match self.recv.read_chunk(usize::MAX, true).await {
                Ok(chunk) => chunk.map(|chunk| chunk.bytes),
                Err(_) => None,
            };
            self.reader.feed(chunk?);
        }
    }
}

/// A data frame.
pub(crate) fn data(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut frame =
        header_bytes(&Header::new(kind, u32::try_from(payload.len()).unwrap())).to_vec();
    frame.extend_from_slice(payload);
    frame
}

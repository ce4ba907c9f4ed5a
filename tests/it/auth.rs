//! Who may do what: certificates, roles, owners.

use std::fs;
use std::path::PathBuf;

use proto_rkyv::{Reply, Request, encode};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    date_time_ymd,
};

use crate::harness::{Client, Daemon, Host, Identity, Output, Rnx, Shared, block_on};

static DAEMON: Shared = Shared::new();

#[test]
fn certificates_of_another_authority_are_not_trusted_by_either_side() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let (own, foreign) = (Identity::read(&daemon.config), ForeignAuthority::new());
    // The daemon does not trust the client.
    let stranger = Identity {
        ca: own.ca.clone(),
        ..foreign.issue("admin")
    };
    refused(&daemon, &stranger, 6);
    // The client does not trust the daemon.
    refused(
        &daemon,
        &Identity {
            ca: foreign.ca.clone(),
            ..own
        },
        6,
    );
}

#[test]
fn certificates_out_of_their_time_are_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for (from, until) in [(2001, 2002), (2199, 2200)] {
        let identity = issue(&daemon, |params| {
            params.not_before = date_time_ymd(from, 1, 1);
            params.not_after = date_time_ymd(until, 1, 1);
        });
        refused(&daemon, &identity, 6);
    }
    let proper = issue(&daemon, |_| {});
    run_as(&daemon, &proper, &["job", "list"]).assert_code(0);
}

#[test]
fn a_certificate_without_a_role_is_refused() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    for unit in [Some("wizard"), Some(""), None] {
        let identity = issue(&daemon, |params| {
            params.distinguished_name = name("somebody", unit);
        });
        let run = run_as(&daemon, &identity, &["job", "list"]);
        assert!(matches!(run.code, 4 | 6), "{unit:?}: {run:?}");
        assert!(
            run.stdout.is_empty() && run.stderr.contains("error:"),
            "{unit:?}: {run:?}"
        );
    }
    // Letters of either case are the same role, and viewer is reader.
    for unit in ["ADMIN", "Viewer", "developer", "Maintainer"] {
        let identity = issue(&daemon, |params| {
            params.distinguished_name = name("somebody", Some(unit));
        });
        run_as(&daemon, &identity, &["job", "list"]).assert_code(0);
    }
}

#[test]
fn a_client_without_a_certificate_or_with_another_protocol_gets_nowhere() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let identity = Identity::read(&daemon.config);
    let proper = Client::of(&identity);
    let bare = Client {
        identity: None,
        ..proper.clone()
    };
    let other = Client {
        alpn: vec![b"joblet/2".to_vec(), b"h3".to_vec()],
        ..proper.clone()
    };
    let none = Client {
        alpn: Vec::new(),
        ..proper.clone()
    };
    block_on(async {
        for client in [bare, other, none] {
            assert!(!answers(&client, &daemon).await, "{:?}", client.alpn);
        }
        assert!(
            answers(&proper, &daemon).await,
            "the proper client is served"
        );
    });
}

/// Whether the daemon answers a request of this client. In TLS 1.3 a client without a certificate believes
/// itself connected until the first answer fails to come.
async fn answers(client: &Client, daemon: &Daemon) -> bool {
    let Ok(wire) = client.connect(daemon.address).await else {
        return false;
    };
    let Ok((mut send, mut recv)) = wire.connection.open_bi().await else {
        return false;
    };
    if send
        .write_all(&encode(&Request::Node).unwrap())
        .await
        .is_err()
        || send.finish().is_err()
    {
        return false;
    }
    let Ok(answer) = recv.read_to_end(1 << 16).await else {
        return false;
    };
    matches!(
        Reply::decode(answer.get(proto_rkyv::HEADER_BYTES..).unwrap_or_default()),
        Ok(Reply::Node(_))
    )
}

#[test]
fn a_reader_looks_and_does_not_touch() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let reader = role_config(&daemon, "reader", "rita");
    let id = daemon.submit(&[], &["sh", "-c", "echo seen; exec sleep 600"]);
    daemon.wait_output(&id, "seen");
    let as_reader = |args: &[&str]| Rnx::new(&reader).args(args).run();
    as_reader(&["job", "list"]).assert_code(0);
    as_reader(&["job", "status", &id]).assert_code(0);
    as_reader(&["job", "log", "--no-follow", &id]).assert_code(0);
    as_reader(&["job", "metrics", &id]).assert_code(0);
    as_reader(&["doctor"]).assert_refused(4, "may not try out");
    as_reader(&["job", "run", "true"]).assert_refused(125, "");
    as_reader(&["job", "run", "-d", "true"]).assert_refused(4, "");
    as_reader(&["job", "stop", &id]).assert_refused(4, "");
    assert_eq!(daemon.state(&id), "RUNNING");
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    daemon.ended(&id);
}

#[test]
fn a_developer_stops_own_jobs_and_no_others() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let (dora, david) = (
        role_config(&daemon, "developer", "dora"),
        role_config(&daemon, "developer", "david"),
    );
    let run = Rnx::new(&dora)
        .args(["job", "run", "--json", "sleep", "600"])
        .run();
    run.assert_code(0);
    let id = run.json()["id"].as_str().unwrap().to_owned();
    daemon.wait_state(&id, "RUNNING");
    assert_eq!(daemon.status(&id)["owner"], "dora");
    Rnx::new(&david)
        .args(["job", "status", &id])
        .run()
        .assert_code(0);
    Rnx::new(&david)
        .args(["job", "stop", &id])
        .run()
        .assert_refused(4, "");
    assert_eq!(daemon.state(&id), "RUNNING");
    Rnx::new(&dora)
        .args(["job", "stop", &id])
        .run()
        .assert_code(0);
    let status = daemon.ended(&id);
    assert_eq!(status["outcome"]["by"], "dora", "{status}");

    let run = Rnx::new(&david)
        .args(["job", "run", "--json", "sleep", "600"])
        .run();
    let id = run.json()["id"].as_str().unwrap().to_owned();
    daemon.rnx(["job", "stop", &id]).assert_code(0);
    assert_eq!(daemon.ended(&id)["status"], "STOPPED");
}

#[test]
fn nobody_at_the_address_is_6() {
    let Some(daemon) = DAEMON.get(Host::Any) else {
        return;
    };
    let config = scratch(&daemon, "nobody");
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    Identity::read(&daemon.config).write(&config, closed.local_addr().unwrap());
    drop(closed);
    Rnx::new(&config)
        .args(["job", "list"])
        .run()
        .assert_refused(6, "");
    Rnx::new(&config)
        .args(["job", "run", "true"])
        .run()
        .assert_refused(125, "");
}

/// Fails unless every use of this identity ends in `code`.
#[track_caller]
fn refused(daemon: &Daemon, identity: &Identity, code: i32) {
    run_as(daemon, identity, &["job", "list"]).assert_refused(code, "");
    run_as(daemon, identity, &["job", "run", "true"]).assert_refused(125, "");
}

fn run_as(daemon: &Daemon, identity: &Identity, args: &[&str]) -> Output {
    let config = scratch(daemon, "identity");
    identity.write(&config, daemon.address);
    Rnx::new(&config).args(args).run()
}

/// A client configuration from `joblet cert issue`.
fn role_config(daemon: &Daemon, role: &str, name: &str) -> PathBuf {
    let path = scratch(daemon, name);
    let out = path.to_str().unwrap();
    daemon
        .joblet(&[
            "cert", "issue", "--role", role, "--name", name, "--out", out,
        ])
        .assert_code(0);
    path
}

/// A file name that no other test uses, taken away with the daemon's directory.
fn scratch(daemon: &Daemon, word: &str) -> PathBuf {
    let file = tempfile::Builder::new()
        .prefix(word)
        .suffix(".yml")
        .tempfile_in(&daemon.base)
        .unwrap();
    let path = file.into_temp_path();
    let kept = path.to_path_buf();
    // Closing removes it: `joblet cert issue` must not find a file there.
    path.close().unwrap();
    kept
}

fn name(common: &str, unit: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(unit) = unit {
        name.push(DnType::OrganizationalUnitName, unit);
    }
    name
}

/// A client certificate of the daemon's own authority, changed by `edit`.
fn issue(daemon: &Daemon, edit: impl FnOnce(&mut CertificateParams)) -> Identity {
    let ca = Identity::read(&daemon.config).ca;
    let key =
        KeyPair::from_pem(&fs::read_to_string(daemon.base.join("pki/ca.key")).unwrap()).unwrap();
    let issuer = Issuer::new(issuer_params(&ca), key);
    sign(&issuer, ca, edit)
}

fn sign(
    issuer: &Issuer<'_, KeyPair>,
    ca: String,
    edit: impl FnOnce(&mut CertificateParams),
) -> Identity {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("somebody", Some("admin"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    edit(&mut params);
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    Identity {
        cert: cert.pem(),
        key: key.serialize_pem(),
        ca,
    }
}

/// Parameters whose subject is that of an existing authority, which is all that signing takes from them.
fn issuer_params(ca_pem: &str) -> CertificateParams {
    let (_, pem) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes()).unwrap();
    let cert = pem.parse_x509().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().unwrap().collect();
        let kind = match oid[..] {
            [2, 5, 4, 3] => DnType::CommonName,
            [2, 5, 4, 10] => DnType::OrganizationName,
            [2, 5, 4, 11] => DnType::OrganizationalUnitName,
            _ => DnType::CustomDnType(oid),
        };
        params
            .distinguished_name
            .push(kind, attribute.as_str().unwrap());
    }
    params
}

/// An authority that nobody asked for.
struct ForeignAuthority {
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl ForeignAuthority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("joblet CA", None);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        Self {
            ca,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, unit: &str) -> Identity {
        sign(&self.issuer, self.ca.clone(), |params| {
            params.distinguished_name = name("stranger", Some(unit))
        })
    }
}

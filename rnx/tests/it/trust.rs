//! What prevents a connection, told apart.

use std::net::UdpSocket;

use quinn::{RecvStream, SendStream};
use rnx::{Client, ConnectError, CredentialError, Distrust, Node, RequestError, Side, Unreachable};

use crate::server::{Authority, Server, Validity, node};

async fn nothing(_send: SendStream, _recv: RecvStream) {}

/// What the first request meets: the server judges our certificate after the handshake is done for us.
fn first_error(node: &Node) -> ConnectError {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match Client::connect(node).await {
            Err(error) => error,
            Ok(client) => match client.node().await {
                Err(RequestError::Connection(error)) => error,
                other => panic!("{other:?}"),
            },
        }
    })
}

fn untrusted(error: ConnectError) -> (Side, Distrust) {
    match error {
        ConnectError::Untrusted { side, why, .. } => (side, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_certificate_is_judged_by_us() {
    // Authorities of several servers may well have one name.
    let (ca, other, namesake) = (
        Authority::new(),
        Authority::named("other"),
        Authority::new(),
    );
    let check = |signer: &Authority, name: &str, validity: Validity, expected: Distrust| {
        let server = Server::with(
            &ca,
            &signer.issue(name, validity),
            proto_rkyv::ALPN,
            nothing,
        );
        let error = first_error(&node(
            server.address,
            &ca,
            &ca.issue("alice", Validity::Now),
        ));
        assert_eq!(untrusted(error), (Side::Server, expected));
    };
    check(&other, "joblet", Validity::Now, Distrust::UnknownIssuer);
    check(&namesake, "joblet", Validity::Now, Distrust::UnknownIssuer);
    check(&ca, "joblet", Validity::Past, Distrust::Expired);
    check(&ca, "joblet", Validity::Future, Distrust::NotYetValid);
    check(&ca, "localhost", Validity::Now, Distrust::WrongName);
}

#[test]
fn our_certificate_is_judged_by_the_server() {
    // Authorities of several servers may well have one name.
    let (ca, other, namesake) = (
        Authority::new(),
        Authority::named("other"),
        Authority::new(),
    );
    let server = Server::with(
        &ca,
        &ca.issue("joblet", Validity::Now),
        proto_rkyv::ALPN,
        nothing,
    );
    let check = |signer: &Authority, validity: Validity, expected: Distrust| {
        let error = first_error(&node(server.address, &ca, &signer.issue("alice", validity)));
        assert_eq!(untrusted(error), (Side::Client, expected));
    };
    check(&other, Validity::Now, Distrust::UnknownIssuer);
    check(&namesake, Validity::Now, Distrust::UnknownIssuer);
    check(&ca, Validity::Past, Distrust::Expired);
    check(&ca, Validity::Future, Distrust::NotYetValid);
}

#[test]
fn another_protocol_is_no_matter_of_trust() {
    let ca = Authority::new();
    let server = Server::with(&ca, &ca.issue("joblet", Validity::Now), b"h3", nothing);
    let error = first_error(&node(
        server.address,
        &ca,
        &ca.issue("alice", Validity::Now),
    ));
    assert!(
        matches!(error, ConnectError::OtherProtocol { .. }),
        "{error:?}"
    );
}

#[test]
fn a_closed_port_is_known_before_any_timeout() {
    let ca = Authority::new();
    let free = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = first_error(&node(free, &ca, &ca.issue("alice", Validity::Now)));
    assert!(
        matches!(
            error,
            ConnectError::Unreachable {
                why: Unreachable::Refused,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn addresses_and_credentials_that_are_none_are_named() {
    let ca = Authority::new();
    let good = node(
        "127.0.0.1:1".parse().unwrap(),
        &ca,
        &ca.issue("alice", Validity::Now),
    );
    let key = ca.issue("bob", Validity::Now).key.serialize_pem();
    let address = |address: &str| {
        first_error(&Node {
            address: address.into(),
            ..good.clone()
        })
    };
    assert!(matches!(address("no port"), ConnectError::Address { .. }));
    assert!(matches!(
        address("127.0.0.1:99999"),
        ConnectError::Address { .. }
    ));
    let credential = |node: Node| match first_error(&node) {
        ConnectError::Credentials { source, .. } => source,
        other => panic!("{other:?}"),
    };
    let pem = |error| matches!(error, CredentialError::Pem { .. });
    assert!(pem(credential(Node {
        cert: "x".into(),
        ..good.clone()
    })));
    assert!(pem(credential(Node {
        ca: good.key.clone(),
        ..good.clone()
    })));
    assert!(pem(credential(Node {
        key: good.cert.clone(),
        ..good.clone()
    })));
    assert!(matches!(
        credential(Node {
            key,
            ..good.clone()
        }),
        CredentialError::Pair(_)
    ));
}

#[test]
fn a_server_that_closes_says_why() {
    let ca = Authority::new();
    let pair = ca.issue("joblet", Validity::Now);
    let server = Server::with(&ca, &pair, proto_rkyv::ALPN, nothing);
    let node = node(server.address, &ca, &ca.issue("alice", Validity::Now));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::connect(&node).await.unwrap();
        // Answered so that the connection is known to be open on both sides.
        assert!(matches!(client.node().await, Err(RequestError::Truncated)));
        drop(server);
        match client.node().await {
            Err(RequestError::Connection(ConnectError::Closed {
                code: 0, reason, ..
            })) => assert_eq!(reason, "test is over"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_server_that_dies_without_a_word_is_noticed_at_once() {
    let ca = Authority::new();
    let pair = ca.issue("joblet", Validity::Now);
    let server = Server::with(&ca, &pair, proto_rkyv::ALPN, nothing);
    let node = node(server.address, &ca, &ca.issue("alice", Validity::Now));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::connect(&node).await.unwrap();
        assert!(matches!(client.node().await, Err(RequestError::Truncated)));
        server.die();
        match client.node().await {
            Err(RequestError::Connection(ConnectError::Unreachable {
                why: Unreachable::Refused,
                ..
            })) => {}
            other => panic!("{other:?}"),
        }
    });
}

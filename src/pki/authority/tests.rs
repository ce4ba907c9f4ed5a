//! What verifiers of TLS make of our certificates.

use std::sync::Arc;

use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName as TlsName, UnixTime},
    server::WebPkiClientVerifier,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::*;
use crate::pki::server_names;

const DAY: Duration = Duration::from_secs(24 * 3_600);

fn der(identity: &Identity) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    Arc::new(roots)
}

fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

fn as_client(
    authority: &Authority,
    leaf: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority), provider)
        .build()
        .unwrap();
    verifier.verify_client_cert(leaf, &[], unix(at)).map(drop)
}

fn as_server(
    authority: &Authority,
    leaf: &CertificateDer<'_>,
    name: &str,
    at: SystemTime,
) -> Result<(), Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(authority), provider)
        .build()
        .unwrap();
    let name = TlsName::try_from(name.to_owned()).unwrap();
    verifier
        .verify_server_cert(leaf, &[], &name, &[], unix(at))
        .map(drop)
}

#[test]
fn a_client_certificate_holds_for_its_life_and_its_authority_only() {
    let now = SystemTime::now();
    let authority = Authority::create("one", now).unwrap();
    let other = Authority::create("one", now).unwrap();
    let leaf = der(&authority
        .issue(Role::Developer, "ann", Validity::days(now, 30))
        .unwrap());

    as_client(&authority, &leaf, now).unwrap();
    as_client(
        &authority,
        &leaf,
        now - limits::CLOCK_SKEW + Duration::from_secs(2),
    )
    .unwrap();
    as_client(&authority, &leaf, now + 29 * DAY).unwrap();
    let error = |result: Result<(), Error>| {
        let Err(Error::InvalidCertificate(error)) = result else {
            panic!("{result:?}")
        };
        error
    };
    assert!(matches!(
        error(as_client(&authority, &leaf, now - 2 * limits::CLOCK_SKEW)),
        CertificateError::NotValidYetContext { .. }
    ));
    assert!(matches!(
        error(as_client(&authority, &leaf, now + 31 * DAY)),
        CertificateError::ExpiredContext { .. }
    ));
    assert!(as_client(&other, &leaf, now).is_err());
    assert!(
        as_server(&authority, &leaf, "joblet", now).is_err(),
        "a client may not pose as a server"
    );
}

#[test]
fn a_server_certificate_holds_for_its_names_and_is_no_client() {
    let now = SystemTime::now();
    let authority = Authority::create("one", now).unwrap();
    let names = server_names(["10.9.8.7".parse().unwrap()]);
    let leaf = der(&authority
        .issue_server(&names, Validity::days(now, 30))
        .unwrap());
    for name in ["joblet", "localhost", "127.0.0.1", "::1", "10.9.8.7"] {
        as_server(&authority, &leaf, name, now).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in ["joblet.example", "10.9.8.6"] {
        assert!(as_server(&authority, &leaf, name, now).is_err(), "{name}");
    }
    assert!(as_client(&authority, &leaf, now).is_err());
}

#[test]
fn name_and_role_stand_in_the_subject_and_usages_are_right() {
    let now = SystemTime::now();
    let authority = Authority::create("one", now).unwrap();
    let leaf = der(&authority
        .issue(Role::Admin, "ann & bob", Validity::days(now, 1))
        .unwrap());
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(leaf.subject().to_string(), "OU=admin, CN=ann & bob");
    assert_eq!(leaf.issuer().to_string(), "CN=joblet authority one");
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any);
    assert!(!leaf.is_ca());

    let (_, root) = X509Certificate::from_der(authority.certificate()).unwrap();
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(root.is_ca() && usage.key_cert_sign() && !usage.digital_signature());
    assert_eq!(
        root.basic_constraints()
            .unwrap()
            .unwrap()
            .value
            .path_len_constraint,
        Some(0)
    );
    assert_ne!(leaf.raw_serial(), root.raw_serial());
    assert_eq!(leaf.raw_serial().len(), 16);
}

#[test]
fn a_loaded_authority_issues_what_the_created_one_would() {
    let now = SystemTime::now();
    let created = Authority::create("one", now).unwrap();
    let loaded = Authority::load(created.certificate_pem(), &created.key_pem()).unwrap();
    for days in [1, 2 * limits::AUTHORITY_DAYS] {
        let leaf = der(&loaded
            .issue(Role::Reader, "ann", Validity::days(now, days))
            .unwrap());
        as_client(&created, &leaf, now).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        let (_, root) = X509Certificate::from_der(created.certificate()).unwrap();
        assert!(
            leaf.validity().not_after <= root.validity().not_after,
            "it outlives its authority"
        );
    }
    let other = Authority::create("two", now).unwrap();
    let refused =
        |certificate: &str, key: &str| Authority::load(certificate, key).unwrap_err().to_string();
    assert!(
        refused(created.certificate_pem(), &other.key_pem()).contains("does not belong to the key")
    );
    assert!(refused("", &created.key_pem()).contains("no certificate"));
    assert!(refused(created.certificate_pem(), "").contains("no private key"));
    let leaf = created
        .issue(Role::Admin, "ann", Validity::days(now, 1))
        .unwrap();
    assert!(refused(&leaf.certificate_pem, &leaf.key_pem).contains("not that of an authority"));
}

#[test]
fn tests_may_ask_for_units_that_are_no_roles() {
    let now = SystemTime::now();
    let authority = Authority::create("one", now).unwrap();
    for (unit, subject) in [(Some("king"), "OU=king, CN=x"), (None, "CN=x")] {
        let leaf = authority
            .issue_with(unit, "x", Usage::Client, Validity::days(now, 1))
            .unwrap();
        let leaf = der(&leaf);
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        assert_eq!(leaf.subject().to_string(), subject);
    }
    assert!(matches!(
        authority.issue(Role::Admin, "tab\there", Validity::days(now, 1)),
        Err(PkiError::Name { .. })
    ));
}

#[test]
fn private_keys_are_not_in_debug_output() {
    let authority = Authority::create("one", SystemTime::now()).unwrap();
    let identity = authority
        .issue(Role::Admin, "ann", Validity::days(SystemTime::now(), 1))
        .unwrap();
    for text in [format!("{authority:?}"), format!("{identity:?}")] {
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

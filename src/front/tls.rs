//! Who may connect: TLS 1.3 with certificates on both sides, and what a certificate says about its holder.
//!
//! rustls refuses a certificate that is expired, not yet valid or not from our CA, a client without one, and
//! one that does not speak our protocol; its reason travels to the client in the close frame. What a valid
//! certificate says is read once, when the handshake ends: CN is the owner's name, OU the role. A certificate
//! that does not say both clearly closes the connection before any request.

use std::{any::Any, error::Error as _, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring as provider,
    pki_types::CertificateDer,
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use thiserror::Error;
use x509_parser::x509::AttributeTypeAndValue;

use super::FrontConfig;
use crate::{
    job::{Peer, Role, RoleError},
    limits,
};

/// Why the server cannot be set up with the certificates given.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The CA certificate cannot vouch for anybody.
    #[error("use the CA certificate")]
    Authority(#[source] rustls::Error),
    /// The CA certificate cannot verify clients.
    #[error("verify clients with the CA certificate")]
    Verifier(#[source] VerifierBuilderError),
    /// Certificate and key do not belong together, or the key is of a kind we do not use.
    #[error("use the server certificate and its key")]
    Server(#[source] rustls::Error),
}

/// Why a verified certificate is nobody.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub(super) enum IdentityError {
    /// The peer showed none. The verifier does not let that happen.
    #[error("no client certificate")]
    Missing,
    /// Its DER is not understood.
    #[error("the client certificate cannot be read")]
    Unreadable,
    /// There must be exactly one.
    #[error(
        "the client certificate has {count} common names (CN), needed is one: the owner of its jobs"
    )]
    CommonNames {
        /// How many there are.
        count: usize,
    },
    /// Empty, too long, not text, or with control characters.
    #[error(
        "the common name (CN) of the client certificate is not a name of 1 to {} characters",
        limits::PEER_NAME_BYTES_MAX
    )]
    CommonName,
    /// Nothing says what the holder may do.
    #[error("the client certificate has no organisational unit (OU), which names its role")]
    NoRole,
    /// Not text.
    #[error("the organisational unit (OU) of the client certificate is not text")]
    RoleText,
    /// Not one of ours.
    #[error("the organisational unit (OU) of the client certificate")]
    UnknownRole(#[source] RoleError),
    /// Two organisational units name different roles.
    #[error("the client certificate names two roles, {first} and {second}")]
    Conflict {
        /// One.
        first: Role,
        /// The other.
        second: Role,
    },
}

/// The TLS side of the server: our certificate, clients of our CA only, TLS 1.3, no early data (a replayed
/// submit would run twice), one protocol.
///
/// # Errors
/// [`TlsError`] names the part that does not fit.
pub(super) fn server_config(front: &FrontConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(front.authority.clone())
        .map_err(TlsError::Authority)?;
    let crypto = Arc::new(provider::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto.clone())
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Server)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(front.server_chain.clone(), front.server_key.clone_key())
        .map_err(TlsError::Server)?;
    config.alpn_protocols = vec![proto_rkyv::ALPN.to_vec()];
    config.max_early_data_size = 0;
    // A resumed session would skip the certificate's dates, and the next connection may land on another shard.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Who the peer is, from what quinn-proto knows after the handshake.
pub(super) fn peer_of(identity: Option<Box<dyn Any>>) -> Result<Peer, IdentityError> {
    let chain =
        identity.and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain
        .and_then(|chain| chain.into_iter().next())
        .ok_or(IdentityError::Missing)?;
    peer_of_certificate(&leaf)
}

impl IdentityError {
    /// All of it on one line, for the peer.
    pub(super) fn reason(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// Who a verified certificate belongs to.
fn peer_of_certificate(der: &[u8]) -> Result<Peer, IdentityError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|_| IdentityError::Unreadable)?;
    let subject = certificate.subject();
    let names: Vec<_> = subject.iter_common_name().collect();
    let [name] = names[..] else {
        return Err(IdentityError::CommonNames { count: names.len() });
    };
    let name = text(name)
        .filter(|name| is_name(name))
        .ok_or(IdentityError::CommonName)?;
    let mut role = None;
    for unit in subject.iter_organizational_unit() {
        let unit = text(unit).ok_or(IdentityError::RoleText)?;
        let second: Role = unit.parse().map_err(IdentityError::UnknownRole)?;
        let first = *role.get_or_insert(second);
        if first != second {
            return Err(IdentityError::Conflict { first, second });
        }
    }
    Ok(Peer {
        name: name.to_owned(),
        role: role.ok_or(IdentityError::NoRole)?,
    })
}

fn text<'a>(attribute: &'a AttributeTypeAndValue<'a>) -> Option<&'a str> {
    attribute.attr_value().as_str().ok()
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::PEER_NAME_BYTES_MAX
        && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;
    use crate::front::testing::Pki;

    /// A certificate with these attributes. rcgen keeps one value an attribute type, so a second OU goes in
    /// under its own object identifier, spelt as a custom type.
    fn certificate(attributes: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in attributes {
            params.distinguished_name.push(kind.clone(), *value);
        }
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .clone()
    }

    fn second_unit() -> DnType {
        DnType::CustomDnType(vec![2, 5, 4, 11])
    }

    #[test]
    fn a_certificate_is_somebody_with_one_name_and_one_role() {
        use DnType::{CommonName, OrganizationalUnitName as Unit};
        let check = |attributes: &[(DnType, &str)],
                     expected: Result<(&str, Role), IdentityError>| {
            let expected = expected.map(|(name, role)| Peer {
                name: name.to_owned(),
                role,
            });
            assert_eq!(
                peer_of_certificate(&certificate(attributes)),
                expected,
                "{attributes:?}"
            );
        };
        check(
            &[(CommonName, "alice"), (Unit, "admin")],
            Ok(("alice", Role::Admin)),
        );
        check(
            &[(CommonName, "alice"), (Unit, "DeVeLoPeR")],
            Ok(("alice", Role::Developer)),
        );
        check(
            &[(CommonName, "alice"), (Unit, "viewer")],
            Ok(("alice", Role::Reader)),
        );
        check(
            &[
                (CommonName, "alice"),
                (Unit, "viewer"),
                (second_unit(), "READER"),
            ],
            Ok(("alice", Role::Reader)),
        );
        check(
            &[
                (CommonName, "alice"),
                (Unit, "reader"),
                (second_unit(), "admin"),
            ],
            Err(IdentityError::Conflict {
                first: Role::Reader,
                second: Role::Admin,
            }),
        );
        check(&[(CommonName, "alice")], Err(IdentityError::NoRole));
        check(
            &[(CommonName, "alice"), (Unit, "root")],
            Err(IdentityError::UnknownRole(RoleError("root".into()))),
        );
        check(
            &[(CommonName, "alice"), (Unit, "")],
            Err(IdentityError::UnknownRole(RoleError(String::new()))),
        );
        check(
            &[(Unit, "admin")],
            Err(IdentityError::CommonNames { count: 0 }),
        );
        check(
            &[
                (CommonName, "alice"),
                (DnType::CustomDnType(vec![2, 5, 4, 3]), "bob"),
                (Unit, "admin"),
            ],
            Err(IdentityError::CommonNames { count: 2 }),
        );
        check(
            &[(CommonName, "a\nb"), (Unit, "admin")],
            Err(IdentityError::CommonName),
        );
        check(
            &[(CommonName, ""), (Unit, "admin")],
            Err(IdentityError::CommonName),
        );
        let long = "x".repeat(limits::PEER_NAME_BYTES_MAX + 1);
        check(
            &[(CommonName, &long[1..]), (Unit, "admin")],
            Ok((&long[1..], Role::Admin)),
        );
        check(
            &[(CommonName, &long), (Unit, "admin")],
            Err(IdentityError::CommonName),
        );
        assert_eq!(
            peer_of_certificate(b"no der"),
            Err(IdentityError::Unreadable)
        );
        assert_eq!(peer_of(None), Err(IdentityError::Missing));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let config = || Pki::new().config();
        let what = |front: FrontConfig| server_config(&front).unwrap_err().to_string();
        let nonsense = || CertificateDer::from(b"no der".to_vec());
        assert!(server_config(&config()).is_ok());
        assert_eq!(
            what(FrontConfig {
                authority: nonsense(),
                ..config()
            }),
            "use the CA certificate"
        );
        for chain in [vec![], vec![nonsense()], config().server_chain] {
            assert_eq!(
                what(FrontConfig {
                    server_chain: chain,
                    ..config()
                }),
                "use the server certificate and its key"
            );
        }
    }
}

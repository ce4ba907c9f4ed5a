//! From the PEM blocks of a node to a TLS client that trusts exactly its authority.
//!
//! TLS 1.3 only, the `ring` provider by name (never a process-wide default), no session resumption to disk,
//! no early data. The system's trust store is not looked at.

use std::{fmt, sync::Arc};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    CipherSuite, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};
use thiserror::Error;

use crate::config::Node;

/// The name that every server certificate carries.
pub(crate) const SERVER_NAME: &str = "joblet";

/// Which block of a node is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// `ca`.
    Authority,
    /// `cert`.
    Certificate,
    /// `key`.
    Key,
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "ca",
            Self::Certificate => "cert",
            Self::Key => "key",
        })
    }
}

/// Why the credentials of a node cannot be used at all.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// A block is not PEM of the expected kind.
    #[error("{block} is not a PEM block of that kind")]
    Pem {
        /// Which.
        block: Credential,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The authority is no certificate.
    #[error("ca is not a certificate authority")]
    Authority(#[source] rustls::Error),
    /// Certificate and key do not belong together, or the key is of no usable kind.
    #[error("cert and key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// The TLS side of a connection to `node`.
pub(crate) fn client(node: &Node) -> Result<Arc<QuicClientConfig>, CredentialError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&node.ca, Credential::Authority)? {
        roots.add(authority).map_err(CredentialError::Authority)?;
    }
    let chain = certificates(&node.cert, Credential::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(node.key.as_bytes()).map_err(|source| {
        CredentialError::Pem {
            block: Credential::Key,
            source,
        }
    })?;
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CredentialError::Pair)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(CredentialError::Pair)?;
    tls.alpn_protocols = vec![proto_rkyv::ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    tls.enable_early_data = false;
    let quic = QuicClientConfig::try_from(tls)
        .expect("the ring provider has the cipher suite of QUIC's first packet");
    Ok(Arc::new(quic))
}

/// What `ring` offers, with the suite in front that QUIC's first packet uses anyway. Its hash is SHA-256, for which
/// processors have instructions; with SHA-384, the usual first choice, a tenth of what a short call computes is
/// hashing. Both are as strong as the certificates, which have 256-bit curves.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(
    text: &str,
    block: Credential,
) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let failed = |source| CredentialError::Pem { block, source };
    let found = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        Err(failed(pem::Error::NoItemsFound))
    } else {
        Ok(found)
    }
}

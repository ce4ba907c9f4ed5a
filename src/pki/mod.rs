//! Certificates: the authority of one daemon, its server certificate, and what its clients carry.
//!
//! A client is who its certificate says: the common name is the owner of its jobs, the organisational unit
//! its role. Everybody trusts one authority, which lives in `BASE/pki` and signs nothing but our own. The
//! private key of the authority is read when a certificate is issued and never by a daemon that serves.

mod authority;
mod client;
mod files;
mod names;

use std::{io, path::PathBuf};

use thiserror::Error;

pub use authority::{Authority, Identity, Usage, Validity};
pub use client::{ClientNode, check_address, check_node_name, names_authority};
pub use files::{EndpointKey, Made, PkiFiles, load_authority, make};
pub use names::{SERVER_NAME, ServerName, check_peer_name, server_names};

/// Why a certificate or key could not be made, written or read.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is there and the one that belongs to it is not.
    #[error("{} is missing beside {}; restore it, or remove both and issue every certificate again",
        .path.display(), .beside.display())]
    Half {
        /// The missing one.
        path: PathBuf,
        /// The one that is there.
        beside: PathBuf,
    },
    /// A file holds something else than its name says.
    #[error("{} holds no {expected}", .path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
    },
    /// A certificate that is no authority of ours, or whose key is another one's.
    #[error("the certificate of the authority {0}")]
    Authority(&'static str),
    /// A name that no certificate of ours carries.
    #[error("{name:?} is no name for a certificate: 1 to {max} printable ASCII characters, no space at its ends",
        max = crate::limits::PEER_NAME_BYTES_MAX)]
    Name {
        /// As it was given.
        name: String,
    },
    /// A name that no node of a client file has.
    #[error("{name:?} is no name for a node: 1 to {max} letters, digits, dots, dashes or underscores",
        max = crate::limits::NODE_NAME_BYTES_MAX)]
    NodeName {
        /// As it was given.
        name: String,
    },
    /// An address that no client can connect to.
    #[error("{address:?} is no address of a server; write HOST:PORT")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The library that makes certificates refused.
    #[error("{verb}")]
    Certificate {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// The kernel gave no random bytes.
    #[error("no random bytes from the kernel")]
    Random,
}

/// Random bytes of the kernel.
fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

//! What of the certificates is on disk, and in which order it gets there.
//!
//! ```text
//! BASE/pki/  ca.key  ca.pem  server.key  server.pem  endpoint.key      all 0600
//! ```
//! A key is written before its certificate, and the certificate is what counts: a crash between the two
//! leaves a key that nobody trusts yet, and the next `init` makes both again.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Authority, PkiError, Validity, random, server_names};
use crate::{limits, sys::durable};

/// Bytes from which a server derives the keys of its stateless resets and address tokens: the same for every
/// shard and every start, so that clients of a daemon that died learn it at once.
#[derive(Clone)]
pub struct EndpointKey(pub [u8; 64]);

impl fmt::Debug for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointKey(..)")
    }
}

/// What a daemon that serves needs.
#[derive(Debug)]
pub struct PkiFiles {
    /// The authority that clients are checked against.
    pub authority: CertificateDer<'static>,
    /// The server's certificate; the authority's is not part of it, because clients have it.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// The server's private key.
    pub server_key: PrivateKeyDer<'static>,
    /// Where reset and token keys come from.
    pub endpoint_key: EndpointKey,
}

/// What [`make`] made; the rest was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// A new authority: certificates issued before are worth nothing.
    pub authority: bool,
    /// A new server certificate.
    pub server: bool,
    /// A new endpoint key.
    pub endpoint_key: bool,
}

/// Makes what is missing in `dir`. `label` names the authority, `addresses` are further ones of the server.
///
/// # Errors
/// [`PkiError::Half`] when a private key is gone, others when something cannot be read or written.
pub fn make(
    dir: &Path,
    label: &str,
    addresses: impl IntoIterator<Item = IpAddr>,
    now: SystemTime,
) -> Result<Made, PkiError> {
    let paths = Paths::new(dir);
    let mut made = Made {
        authority: false,
        server: false,
        endpoint_key: false,
    };
    let authority = if paths.ca.exists() {
        require(&paths.ca_key, &paths.ca)?;
        None
    } else {
        // A server certificate of an authority that is gone would be kept and never be trusted.
        remove(&paths.server)?;
        let authority = Authority::create(label, now)?;
        write(&paths.ca_key, authority.key_pem().as_bytes())?;
        write(&paths.ca, authority.certificate_pem().as_bytes())?;
        made.authority = true;
        Some(authority)
    };
    if paths.server.exists() {
        require(&paths.server_key, &paths.server)?;
    } else {
        let authority = authority.map_or_else(|| load_authority(dir), Ok)?;
        let server = authority.issue_server(
            &server_names(addresses),
            Validity::days(now, limits::AUTHORITY_DAYS),
        )?;
        write(&paths.server_key, server.key_pem.as_bytes())?;
        write(&paths.server, server.certificate_pem.as_bytes())?;
        made.server = true;
    }
    if !paths.endpoint_key.exists() {
        write(&paths.endpoint_key, &random::<64>()?)?;
        made.endpoint_key = true;
    }
    Ok(made)
}

/// The authority in `dir` with its private key, to issue certificates.
///
/// # Errors
/// [`PkiError`] when its files are missing or hold something else.
pub fn load_authority(dir: &Path) -> Result<Authority, PkiError> {
    let paths = Paths::new(dir);
    let text = |path: &Path| {
        String::from_utf8(read(path)?).map_err(|_| PkiError::Content {
            path: path.to_owned(),
            expected: "PEM text",
        })
    };
    Authority::load(&text(&paths.ca)?, &text(&paths.ca_key)?)
}

impl PkiFiles {
    /// Reads what a daemon needs from `dir`.
    ///
    /// # Errors
    /// [`PkiError`] when a file is missing or holds something else.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let paths = Paths::new(dir);
        let endpoint_key =
            read(&paths.endpoint_key)?
                .try_into()
                .map_err(|_| PkiError::Content {
                    path: paths.endpoint_key.clone(),
                    expected: "64 bytes",
                })?;
        Ok(Self {
            authority: certificate(&paths.ca)?,
            server_chain: vec![certificate(&paths.server)?],
            server_key: PrivateKeyDer::from_pem_slice(&read(&paths.server_key)?).map_err(|_| {
                PkiError::Content {
                    path: paths.server_key.clone(),
                    expected: "private key",
                }
            })?,
            endpoint_key: EndpointKey(endpoint_key),
        })
    }
}

struct Paths {
    ca: PathBuf,
    ca_key: PathBuf,
    server: PathBuf,
    server_key: PathBuf,
    endpoint_key: PathBuf,
}

impl Paths {
    fn new(dir: &Path) -> Self {
        Self {
            ca: dir.join("ca.pem"),
            ca_key: dir.join("ca.key"),
            server: dir.join("server.pem"),
            server_key: dir.join("server.key"),
            endpoint_key: dir.join("endpoint.key"),
        }
    }
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|_| PkiError::Content {
        path: path.to_owned(),
        expected: "certificate",
    })
}

fn require(path: &Path, beside: &Path) -> Result<(), PkiError> {
    if path.exists() {
        return Ok(());
    }
    Err(PkiError::Half {
        path: path.to_owned(),
        beside: beside.to_owned(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    fs::read(path).map_err(|source| PkiError::Read {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, contents: &[u8]) -> Result<(), PkiError> {
    durable::replace(path, contents).map_err(|source| PkiError::Write {
        path: path.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PkiError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn what_exists_is_kept_and_what_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let remake = || make(dir.path(), "x", [], SystemTime::now()).unwrap();
        assert_eq!(
            remake(),
            Made {
                authority: true,
                server: true,
                endpoint_key: true
            }
        );
        let first = contents(dir.path());
        assert_eq!(first.len(), 5);
        for (path, _) in &first {
            assert_eq!(
                fs::metadata(path).unwrap().mode() & 0o7777,
                0o600,
                "{}",
                path.display()
            );
        }
        assert_eq!(
            remake(),
            Made {
                authority: false,
                server: false,
                endpoint_key: false
            }
        );
        assert_eq!(contents(dir.path()), first);

        fs::remove_file(dir.path().join("server.pem")).unwrap();
        fs::remove_file(dir.path().join("endpoint.key")).unwrap();
        assert_eq!(
            remake(),
            Made {
                authority: false,
                server: true,
                endpoint_key: true
            }
        );
        PkiFiles::load(dir.path()).unwrap();

        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert_eq!(
            remake(),
            Made {
                authority: true,
                server: true,
                endpoint_key: false
            }
        );
    }

    #[test]
    fn a_lost_private_key_is_not_silently_replaced() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), "x", [], SystemTime::now()).unwrap();
        for key in ["ca.key", "server.key"] {
            let path = dir.path().join(key);
            let kept = fs::read(&path).unwrap();
            fs::remove_file(&path).unwrap();
            let before = contents(dir.path());
            let error = make(dir.path(), "x", [], SystemTime::now()).unwrap_err();
            assert!(
                matches!(&error, PkiError::Half { path: missing, .. } if *missing == path),
                "{error}"
            );
            assert_eq!(contents(dir.path()), before);
            durable::replace(&path, &kept).unwrap();
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), "x", [], SystemTime::now()).unwrap();
        for file in ["ca.pem", "server.pem", "server.key", "endpoint.key"] {
            let path = dir.path().join(file);
            let kept = fs::read(&path).unwrap();
            durable::replace(&path, b"nonsense").unwrap();
            let error = PkiFiles::load(dir.path()).unwrap_err();
            assert!(
                matches!(&error, PkiError::Content { path: bad, .. } if *bad == path),
                "{error}"
            );
            fs::remove_file(&path).unwrap();
            assert!(matches!(
                PkiFiles::load(dir.path()),
                Err(PkiError::Read { .. })
            ));
            durable::replace(&path, &kept).unwrap();
        }
        PkiFiles::load(dir.path()).unwrap();
    }
}

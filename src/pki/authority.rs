//! The authority: a self-signed P-256 certificate and what it signs.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{PkiError, ServerName, check_peer_name, random};
use crate::{job::Role, limits};

/// The one that signs. Its private key is in memory while it lives.
pub struct Authority {
    certificate_pem: String,
    der: CertificateDer<'static>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, both as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS #8.
    pub key_pem: String,
}

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: SystemTime,
    /// Its last one. A certificate never outlives its authority.
    pub not_after: SystemTime,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To prove a server to a client.
    Server,
    /// To prove a client to a server.
    Client,
}

impl Validity {
    /// From a little before `now`, because clocks differ, for `days` days.
    #[must_use]
    pub fn days(now: SystemTime, days: u32) -> Self {
        Self {
            not_before: now - limits::CLOCK_SKEW,
            not_after: now + Duration::from_secs(u64::from(days) * 24 * 3_600),
        }
    }
}

impl Authority {
    /// Makes a new one. `label` tells it from others for people; the instance is a good one.
    ///
    /// # Errors
    /// [`PkiError::Random`], [`PkiError::Certificate`].
    pub fn create(label: &str, now: SystemTime) -> Result<Self, PkiError> {
        let key = new_key()?;
        let validity = Validity::days(now, limits::AUTHORITY_DAYS);
        let mut params = authority_params(&format!("joblet authority {label}"));
        set_life(&mut params, validity)?;
        let certificate = params
            .self_signed(&key)
            .map_err(|source| PkiError::Certificate {
                verb: "sign the authority",
                source,
            })?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            der: certificate.der().clone(),
            not_after: validity.not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// From what [`Authority::certificate_pem`] and [`Authority::key_pem`] gave.
    ///
    /// # Errors
    /// [`PkiError::Authority`] when they are no authority or do not belong together.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let refuse = PkiError::Authority;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| refuse("is no certificate in PEM form"))?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|_| refuse("has a key that is no private key in PEM form"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|_| refuse("is no certificate in PEM form"))?;
        if !parsed.is_ca() {
            return Err(refuse("is not that of an authority"));
        }
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(refuse("does not belong to the key beside it"));
        }
        let name = parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok());
        let name = name.ok_or(refuse("has no common name"))?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let issuer = Issuer::new(authority_params(name), key);
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            issuer,
            der: der.clone(),
        })
    }

    /// Its certificate: what everybody trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The same in binary form.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its private key. Whoever has it can be anybody.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a client certificate: `name` owns jobs, `role` says what it may do.
    ///
    /// # Errors
    /// [`PkiError::Name`] when `name` is not 1 to 64 printable ASCII characters; others when signing fails.
    pub fn issue(&self, role: Role, name: &str, validity: Validity) -> Result<Identity, PkiError> {
        check_peer_name(name)?;
        self.issue_with(Some(&role.to_string()), name, Usage::Client, validity)
    }

    /// Issues a certificate with any organisational unit, also one that is no role, or none.
    ///
    /// # Errors
    /// [`PkiError`] when signing fails.
    pub fn issue_with(
        &self,
        unit: Option<&str>,
        name: &str,
        usage: Usage,
        validity: Validity,
    ) -> Result<Identity, PkiError> {
        self.sign(leaf_params(unit, name, usage), validity)
    }

    /// Issues a server certificate for `names`.
    ///
    /// # Errors
    /// [`PkiError`] when signing fails.
    pub fn issue_server(
        &self,
        names: &[ServerName],
        validity: Validity,
    ) -> Result<Identity, PkiError> {
        let mut params = leaf_params(None, super::SERVER_NAME, Usage::Server);
        params.subject_alt_names = names.iter().map(ServerName::to_san).collect();
        self.sign(params, validity)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        validity: Validity,
    ) -> Result<Identity, PkiError> {
        let key = new_key()?;
        let not_after = validity.not_after.min(self.not_after);
        set_life(
            &mut params,
            Validity {
                not_after,
                ..validity
            },
        )?;
        let certificate =
            params
                .signed_by(&key, &self.issuer)
                .map_err(|source| PkiError::Certificate {
                    verb: "sign a certificate",
                    source,
                })?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// P-256: the curve that every TLS library has, and fast to sign with.
fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| PkiError::Certificate {
        verb: "make a private key",
        source,
    })
}

/// What an authority is, apart from its life. A loaded one must give the same name, byte for byte.
fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(None, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(unit: Option<&str>, name: &str, usage: Usage) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(unit, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    params
}

fn distinguished_name(unit: Option<&str>, name: &str) -> DistinguishedName {
    let mut found = DistinguishedName::new();
    if let Some(unit) = unit {
        found.push(DnType::OrganizationalUnitName, unit);
    }
    found.push(DnType::CommonName, name);
    found
}

/// Sets the life and a fresh serial number: 127 random bits, positive and never zero.
fn set_life(params: &mut CertificateParams, validity: Validity) -> Result<(), PkiError> {
    let mut serial = random::<16>()?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    Ok(())
}

#[cfg(test)]
mod tests;

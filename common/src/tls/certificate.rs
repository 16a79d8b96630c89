//! Certificates and keys as text, and what one reads out of them.

use std::{fmt, str::FromStr, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{field::FieldError, time::Timestamp, tls::TlsError};

/// A certificate and its private key, both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key; a secret.
    pub key_pem: String,
}

impl fmt::Debug for KeyedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("KeyedCertificate")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl KeyedCertificate {
    pub(super) fn key_der(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| TlsError::unusable("private key", error))
    }
}

/// A new key, made where it will be used, and the request for its certificate. Only the request is sent.
#[derive(Clone)]
pub struct CertificateRequest {
    /// What the authority gets.
    pub request_pem: String,
    /// The private key; a secret.
    pub key_pem: String,
}

impl CertificateRequest {
    /// Makes a new key.
    pub fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::make("key"))?;
        let mut wishes = CertificateParams::default();
        // The authority decides on the name; a request has none.
        wishes.distinguished_name = DistinguishedName::new();
        let request = wishes.serialize_request(&key).map_err(TlsError::make("certificate request"))?;
        let request_pem = request.pem().map_err(TlsError::make("certificate request"))?;
        Ok(Self { request_pem, key_pem: key.serialize_pem() })
    }

    /// Joins the key with the certificate that came back for it, if it is one for this key.
    pub fn complete(self, certificate_pem: String) -> Result<KeyedCertificate, TlsError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(TlsError::make("key"))?;
        check_key(&certificate_der(&certificate_pem)?, &key)?;
        Ok(KeyedCertificate { certificate_pem, key_pem: self.key_pem })
    }
}

/// Refuses a certificate of another key.
pub(super) fn check_key(certificate: &[u8], key: &KeyPair) -> Result<(), TlsError> {
    let ours = rcgen::PublicKeyData::subject_public_key_info(key);
    if parse(certificate)?.public_key().raw == ours {
        Ok(())
    } else {
        Err(TlsError::unusable("certificate", "it belongs to another private key"))
    }
}

/// The one certificate of a PEM text.
pub(super) fn certificate_der(pem: &str) -> Result<CertificateDer<'static>, TlsError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| TlsError::unusable("certificate", error))
}

/// Reads a certificate; nothing may follow it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(TlsError::unusable("certificate", "unexpected bytes follow it")),
        Err(error) => Err(TlsError::unusable("certificate", error)),
    }
}

/// From when to when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub not_before: Timestamp,
    /// Not after.
    pub not_after: Timestamp,
}

impl Validity {
    /// When to ask for a new one: after two thirds of its life, which leaves months for the asking.
    pub fn renew_after(&self) -> Timestamp {
        let life: Duration = self.not_after.since(self.not_before);
        self.not_before + life * 2 / 3
    }
}

/// Reads a certificate's validity.
pub fn validity(certificate_pem: &str) -> Result<Validity, TlsError> {
    let der = certificate_der(certificate_pem)?;
    let certificate = parse(&der)?;
    let milliseconds = |time: x509_parser::time::ASN1Time| {
        Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
    };
    let validity = certificate.validity();
    Ok(Validity {
        not_before: milliseconds(validity.not_before),
        not_after: milliseconds(validity.not_after),
    })
}

/// The SHA-256 of a certificate's public key, as DER `SubjectPublicKeyInfo`. Written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    const PREFIX: &'static str = "sha256:";

    /// The hash of the key in a certificate.
    pub fn of_certificate_pem(pem: &str) -> Result<Self, TlsError> {
        Self::of_certificate_der(&certificate_der(pem)?)
    }

    /// The hash of the key in a certificate.
    pub fn of_certificate_der(der: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Sha256::digest(parse(der)?.public_key().raw).into()))
    }

    /// Takes 32 raw bytes as a hash.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyHash {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let digits = text.strip_prefix(Self::PREFIX);
        let bytes = digits.and_then(|digits| data_encoding::HEXLOWER.decode(digits.as_bytes()).ok());
        let hash = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        hash.ok_or_else(|| {
            FieldError::new(
                "key_hash",
                format!("`{text}` is not sha256: and 64 lower-case hexadecimal digits"),
            )
        })
    }
}

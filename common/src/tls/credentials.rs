//! What a machine or a person keeps, to be known by the coordinator and to know it: one file.

use std::{fmt, path::Path, sync::Arc};

use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::{
    durable,
    tls::{Identity, KeyedCertificate, TlsError, check_address, client_config},
};

/// Name of the file.
pub const CREDENTIALS_FILE: &str = "credentials.toml";
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Who one is, whom one trusts, and where the coordinator listens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// Where the coordinator listens, `host:port`, the best first.
    pub addresses: Vec<String>,
    /// The authority's certificate.
    pub authority_pem: String,
    /// One's own certificate.
    pub certificate_pem: String,
    /// The private key; a secret.
    pub key_pem: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Credentials").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Joins the parts.
    pub fn new(addresses: Vec<String>, authority_pem: &str, certificate: KeyedCertificate) -> Self {
        let KeyedCertificate { certificate_pem, key_pem } = certificate;
        Self { addresses, authority_pem: authority_pem.to_owned(), certificate_pem, key_pem }
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> Result<Identity, TlsError> {
        Identity::of_certificate_pem(&self.certificate_pem)
    }

    /// The certificate with its key.
    pub fn certificate(&self) -> KeyedCertificate {
        KeyedCertificate { certificate_pem: self.certificate_pem.clone(), key_pem: self.key_pem.clone() }
    }

    /// What rustls needs to speak with the coordinator.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        client_config(&self.authority_pem, Some(&self.certificate()))
    }

    /// Writes the file into `folder`, for its owner alone.
    pub fn save(&self, folder: &Path) -> Result<(), TlsError> {
        let text = toml::to_string(self).map_err(|error| TlsError::unusable("credentials", error))?;
        Ok(durable::write_secret(&folder.join(CREDENTIALS_FILE), text.as_bytes())?)
    }

    /// Reads the file in `folder`, and checks that its parts can be used.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let path = folder.join(CREDENTIALS_FILE);
        let unusable = |problem: String| {
            TlsError::unusable("credentials file", format!("{}: {problem}", path.display()))
        };
        let bytes = durable::read_limited(&path, FILE_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| unusable(error.to_string()))?;
        let credentials: Self = toml::from_str(text).map_err(|error| unusable(error.message().to_owned()))?;
        for address in &credentials.addresses {
            check_address("addresses", address).map_err(|error| unusable(error.to_string()))?;
        }
        credentials.identity().map_err(|error| unusable(error.to_string()))?;
        credentials.client_config().map_err(|error| unusable(error.to_string()))?;
        Ok(credentials)
    }
}

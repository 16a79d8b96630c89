//! Trust in an authority of which only the hash of its key is known.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::tls::KeyHash;

/// The server does not belong to the authority that was meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server belongs to {}, not to the expected authority {expected}", found.map_or("an unknown authority".to_owned(), |hash| format!("the authority {hash}")))]
pub struct WrongAuthority {
    /// The hash that the join string names.
    pub expected: KeyHash,
    /// The hash of the authority that the server showed, if it showed one.
    pub found: Option<KeyHash>,
}

/// Accepts a server if its chain holds a certificate with the pinned key, and its own certificate is signed by that key,
/// holds the expected name, and is in its time.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    authority: KeyHash,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    pub(super) fn new(authority: KeyHash, provider: Arc<CryptoProvider>) -> Self {
        Self { authority, provider }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let hash = |der: &CertificateDer<'_>| KeyHash::of_certificate_der(der).ok();
        let Some(authority) = intermediates.iter().find(|der| hash(der) == Some(self.authority)) else {
            let found = intermediates.last().and_then(hash);
            let wrong = WrongAuthority { expected: self.authority, found };
            return Err(CertificateError::Other(OtherError(Arc::new(wrong))).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is offered, so no server comes here.
        Err(Error::General("TLS 1.2 is not supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

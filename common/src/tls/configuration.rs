//! What rustls is told.

use std::sync::{Arc, Once};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};

use crate::tls::{KeyHash, KeyedCertificate, TlsError, certificate::certificate_der, pinned::PinnedVerifier};

/// The name that the coordinator's certificate holds, and that clients ask for whatever address they dial.
pub const SERVER_NAME: &str = "coordinator.hatchery";
/// The one protocol above TLS: HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// Makes ring the process's cryptography. Call it first thing in `main`; again is fine.
pub fn install_provider() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error says only that the process has one already.
        let _ = ring::default_provider().install_default();
    });
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A server that shows `certificate`, and accepts clients with a certificate of the same authority or with none: those
/// without can do nothing but join. A certificate of anyone else ends the handshake.
pub fn server_config(
    certificate: &KeyedCertificate,
    authority_pem: &str,
) -> Result<Arc<ServerConfig>, TlsError> {
    let authority = certificate_der(authority_pem)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority_pem)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::unusable("authority", error))?;
    let leaf = certificate_der(&certificate.certificate_pem)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::rustls("protocol version"))?
        .with_client_cert_verifier(verifier)
        // The authority's certificate goes along, for those who know only the hash of its key.
        .with_single_cert(vec![leaf, authority], certificate.key_der()?)
        .map_err(TlsError::rustls("server certificate"))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection shows its certificate anew: an expired one does not live on in a session.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that trusts the authority, and shows its own certificate if it has one.
pub fn client_config(
    authority_pem: &str,
    certificate: Option<&KeyedCertificate>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::rustls("protocol version"))?
        .with_root_certificates(roots(authority_pem)?);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => {
            let chain = vec![certificate_der(&certificate.certificate_pem)?];
            let built = builder.with_client_auth_cert(chain, certificate.key_der()?);
            built.map_err(TlsError::rustls("client certificate"))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// A client that knows only the hash of the authority's key, out of a join string, and has no certificate yet.
pub fn client_config_pinned(authority: KeyHash) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::rustls("protocol version"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier::new(authority, provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn roots(authority_pem: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate_der(authority_pem)?).map_err(TlsError::rustls("authority's certificate"))?;
    Ok(Arc::new(roots))
}

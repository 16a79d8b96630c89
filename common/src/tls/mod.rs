//! Who is who: the fleet's own authority, the certificates that it gives out, and the TLS that checks them.
//!
//! Every coordinator has an [`Authority`]. Its certificates carry an [`Identity`]; a peer's identity is read from its
//! certificate and from nowhere else. A new machine gets a [`JoinString`], which holds the hash of the authority's key: so
//! it knows whom it talks to before it says anything, and its own private key never leaves it.
//!
//! All connections are TLS 1.3 with HTTP/2, on loopback too; nothing is ever spoken in the clear.

mod authority;
mod certificate;
mod configuration;
mod credentials;
mod error;
mod identity;
mod join;
mod pinned;

pub use authority::Authority;
pub use certificate::{CertificateRequest, KeyHash, KeyedCertificate, Validity, validity};
pub use configuration::{
    ALPN, SERVER_NAME, client_config, client_config_pinned, install_provider, server_config,
};
pub use credentials::{CREDENTIALS_FILE, Credentials};
pub use error::TlsError;
pub use identity::{Identity, Role, node_server_name};
pub use join::{JoinSecret, JoinString, JoinStringError, check_address};
pub use pinned::WrongAuthority;

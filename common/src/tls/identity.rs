//! Whom a certificate names.

use std::fmt;

use x509_parser::extensions::GeneralName;

use crate::{
    id::{CertificateId, Name, NodeId},
    tls::{TlsError, certificate},
};

/// What the holder of a certificate is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The agent of a node; may act only on its own attempts.
    Agent(NodeId),
    /// A person, or a program of theirs, who may change things.
    Operator(Name),
    /// A person, or a program of theirs, who may look.
    Viewer(Name),
    /// The coordinator itself.
    Coordinator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(node) => write!(f, "agent {node}"),
            Self::Operator(name) => write!(f, "operator {name}"),
            Self::Viewer(name) => write!(f, "viewer {name}"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// Whom a certificate names, and which of their certificates it is, so that a single one can be revoked.
///
/// It stands in the certificate as a URI among its alternative names: `hatchery://agent/<node>?certificate=<id>`,
/// `hatchery://operator/<name>?…`, `hatchery://viewer/<name>?…`, `hatchery://coordinator?…`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// What they are.
    pub role: Role,
    /// This certificate.
    pub certificate: CertificateId,
}

const SCHEME: &str = "hatchery://";
const CERTIFICATE: &str = "?certificate=";

impl Identity {
    /// A new certificate's identity.
    pub fn new(role: Role) -> Self {
        Self { role, certificate: CertificateId::random() }
    }

    /// The form in which it stands in a certificate.
    pub fn to_uri(&self) -> String {
        let who = match &self.role {
            Role::Agent(node) => format!("agent/{node}"),
            Role::Operator(name) => format!("operator/{name}"),
            Role::Viewer(name) => format!("viewer/{name}"),
            Role::Coordinator => "coordinator".to_owned(),
        };
        format!("{SCHEME}{who}{CERTIFICATE}{}", self.certificate)
    }

    /// Reads that form back; one identity has one form, and nothing else is taken.
    pub fn from_uri(uri: &str) -> Result<Self, TlsError> {
        let parts = || {
            let (who, certificate) = uri.strip_prefix(SCHEME)?.split_once(CERTIFICATE)?;
            let (kind, name) = who.split_once('/').unwrap_or((who, ""));
            let role = match kind {
                "agent" => Role::Agent(name.parse().ok()?),
                "operator" => Role::Operator(Name::new("name", name).ok()?),
                "viewer" => Role::Viewer(Name::new("name", name).ok()?),
                "coordinator" => Role::Coordinator,
                _ => return None,
            };
            let identity = Self { role, certificate: certificate.parse().ok()? };
            (identity.to_uri() == uri).then_some(identity)
        };
        parts()
            .ok_or_else(|| TlsError::unusable("certificate", format!("`{uri}` is not a Hatchery identity")))
    }

    /// Reads whom a peer's certificate names. Whether the certificate is genuine is for TLS to check, before.
    pub fn of_certificate_der(der: &[u8]) -> Result<Self, TlsError> {
        let certificate = certificate::parse(der)?;
        let unusable = |problem: &str| TlsError::unusable("certificate", problem);
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| TlsError::unusable("certificate", error))?
            .ok_or_else(|| unusable("it names no holder"))?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) if !certificate.is_ca() => Self::from_uri(uri),
            (Some(_), None) => Err(unusable("it is an authority's certificate and names no holder")),
            _ => Err(unusable("it does not name exactly one holder")),
        }
    }

    /// The same for PEM.
    pub fn of_certificate_pem(pem: &str) -> Result<Self, TlsError> {
        Self::of_certificate_der(&certificate::certificate_der(pem)?)
    }
}

/// The name under which a node's agent can be dialled by its peers: its certificate holds it.
pub fn node_server_name(node: NodeId) -> String {
    format!("{node}.node.hatchery")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_form() {
        let name = Name::new("name", "ada").unwrap();
        for role in [
            Role::Agent(NodeId::random()),
            Role::Operator(name.clone()),
            Role::Viewer(name),
            Role::Coordinator,
        ] {
            let identity = Identity::new(role);
            assert_eq!(Identity::from_uri(&identity.to_uri()).unwrap(), identity);
        }
        let certificate = CertificateId::from_bytes([10; 16]);
        for wrong in [
            "",
            "hatchery://",
            "hatchery://operator/ada",
            "hatchery://root/ada?certificate=ID",
            "hatchery://operator/?certificate=ID",
            "hatchery://operator/a/b?certificate=ID",
            "hatchery://agent/ada?certificate=ID",
            "hatchery://coordinator/x?certificate=ID",
            "hatchery://operator/ada?certificate=ID&more",
            "hatchery://operator/ada?certificate=UPPER",
            "https://operator/ada?certificate=ID",
        ] {
            let id = certificate.to_string();
            let uri = wrong.replace("ID", &id).replace("UPPER", &id.to_uppercase());
            assert!(Identity::from_uri(&uri).is_err(), "{uri}");
        }
    }
}

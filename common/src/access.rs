//! What the bearer of a join string, and then of a certificate, may do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    id::{CertificateId, Name, NodeId},
    time::Timestamp,
    words::words,
};

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Be a node.
    Agent,
    /// Do everything that people do.
    Operator,
    /// Look, and change nothing.
    Viewer,
}

words!(Scope, "scope": Agent = "agent", Operator = "operator", Viewer = "viewer");

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A certificate that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its identity, which stands in the certificate.
    pub id: CertificateId,
    /// What it allows.
    pub scope: Scope,
    /// The node's or the person's name.
    pub name: Name,
    /// The node, for an agent.
    pub node: Option<NodeId>,
    /// When it was given out.
    pub issued_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

//! Commands about join tokens and certificates.

use std::collections::BTreeSet;

use hatchery_common::{
    access::Scope,
    digest::Digest,
    field::FieldError,
    id::{CertificateId, Name, NodeId},
    recipe::Labels,
    time::Timestamp,
};

use super::{Command, Decision, check_labels, check_room};
use crate::{
    cluster::{Certificate, Cluster, JoinToken},
    event::{Event, What},
    limits::{NODES_MAX, TOKENS_MAX},
    observed::Now,
    rejected::Rejected,
};

/// Make a join token.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateToken {
    /// Digest of the secret.
    pub secret: Digest,
    /// What the certificate will allow.
    pub scope: Scope,
    /// The name wished for the node or the person.
    pub name: Option<Name>,
    /// Labels for the node.
    pub labels: Labels,
    pub by: Name,
    /// After this it is void.
    pub expires_at: Timestamp,
}

impl Command for CreateToken {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { secret, scope, name, labels, by: created_by, expires_at } = self;
        let at = now.wall;
        let token = JoinToken { scope, name, labels, created_by, created_at: at, expires_at, used_at: None };
        check_labels("labels", &token.labels)?;
        if cluster.tokens.contains_key(&secret) {
            return Err(FieldError::new("secret", "already exists; draw a new one").into());
        }
        if token.expires_at <= at {
            return Err(FieldError::new("expires_at", format!("{} is in the past", token.expires_at)).into());
        }
        let usable = cluster.tokens.values().filter(|token| is_usable(token, at)).count();
        check_room(usable, TOKENS_MAX, "join tokens")?;
        Ok(Decision::done([What::TokenCreated { secret, token }.at(at)]))
    }
}

fn is_usable(token: &JoinToken, now: Timestamp) -> bool {
    token.used_at.is_none() && now < token.expires_at
}

/// Use a token: get a certificate, and for an agent become a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    /// Digest of the secret given.
    pub secret: Digest,
    /// The certificate's new id.
    pub certificate: CertificateId,
    /// The node's new id, used for an agent.
    pub node: NodeId,
    /// The name wished by the joiner, where the token wishes none; made unique for a node.
    pub name: Name,
    /// Labels wished by the joiner, added to the token's.
    pub labels: Labels,
}

impl Command for Join {
    type Outcome = Certificate;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<Certificate>, Rejected> {
        let Self { secret, certificate, node, name, mut labels } = self;
        let at = now.wall;
        let token =
            cluster.tokens.get(&secret).filter(|token| is_usable(token, at)).ok_or(Rejected::BadToken)?;
        let name = token.name.clone().unwrap_or(name);
        let mut events = vec![What::TokenUsed { secret }.at(at)];
        let (name, node) = if token.scope == Scope::Agent {
            check_room(cluster.nodes.len(), NODES_MAX, "nodes")?;
            if cluster.nodes.contains_key(&node) {
                return Err(FieldError::new("node", format!("{node} already exists; draw a new id")).into());
            }
            labels.extend(token.labels.clone());
            check_labels("labels", &labels)?;
            let name = unique_name(cluster, name);
            events.push(What::NodeJoined { node, name: name.clone(), labels }.at(at));
            (name, Some(node))
        } else {
            (name, None)
        };
        let scope = token.scope;
        let certificate = Certificate { id: certificate, scope, node, name, issued_at: at, revoked_at: None };
        issue(cluster, events, certificate)
    }
}

/// Renew the certificate of a known bearer: same scope, same name, a new id.
#[derive(Clone, Debug, PartialEq)]
pub struct Renew {
    /// The certificate that asks.
    pub old: CertificateId,
    pub new: CertificateId,
}

impl Command for Renew {
    type Outcome = Certificate;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<Certificate>, Rejected> {
        let Self { old, new } = self;
        let at = now.wall;
        let old = cluster.certificates.get(&old).filter(|certificate| certificate.revoked_at.is_none());
        // The old one stays good until it runs out by itself: the answer with the new one may be lost.
        let certificate =
            Certificate { id: new, issued_at: at, ..old.ok_or(Rejected::BadCertificate)?.clone() };
        issue(cluster, Vec::new(), certificate)
    }
}

fn issue(
    cluster: &Cluster,
    mut events: Vec<Event>,
    certificate: Certificate,
) -> Result<Decision<Certificate>, Rejected> {
    if cluster.certificates.contains_key(&certificate.id) {
        let problem = format!("{} already exists; draw a new id", certificate.id);
        return Err(FieldError::new("certificate", problem).into());
    }
    events.push(What::CertificateIssued { certificate: certificate.clone() }.at(certificate.issued_at));
    Ok(Decision { events, outcome: certificate })
}

/// Revoke a certificate.
#[derive(Clone, Debug, PartialEq)]
pub struct RevokeCertificate {
    pub certificate: CertificateId,
}

impl Command for RevokeCertificate {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let id = self.certificate;
        let at = now.wall;
        let certificate = cluster
            .certificates
            .get(&id)
            .ok_or_else(|| Rejected::NotFound { what: "certificate", id: id.to_string() })?;
        let event = What::CertificateRevoked { certificate: id }.at(at);
        Ok(Decision::done(certificate.revoked_at.is_none().then_some(event)))
    }
}

/// `wished`, or the first free one of `wished-2`, `wished-3` and so on.
fn unique_name(cluster: &Cluster, wished: Name) -> Name {
    let taken: BTreeSet<&str> = cluster.nodes.values().map(|node| node.name.as_str()).collect();
    let numbered = (2..).map(|number: u32| {
        let suffix = format!("-{number}");
        let room = Name::LEN_MAX - suffix.len();
        let stem = &wished.as_str()[..wished.as_str().len().min(room)];
        Name::from_lossy(&format!("{stem}{suffix}"))
    });
    std::iter::once(wished.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name.as_str()))
        .expect("there are more numbers than nodes")
}

//! Who may come in: join tokens and certificates.

use std::collections::BTreeSet;

use hatchery_common::{
    access::Scope,
    digest::Digest,
    field::FieldError,
    id::{CertificateId, Name, NodeId},
    recipe::Labels,
    time::Timestamp,
};

use super::{Decision, Outcome, check_labels, check_room};
use crate::{
    cluster::{Certificate, Cluster, JoinToken},
    event::Change,
    limits::{NODES_MAX, TOKENS_MAX},
    request::Rejected,
};

pub(super) fn create_token(
    cluster: &Cluster,
    secret: Digest,
    token: JoinToken,
) -> Result<Decision, Rejected> {
    let now = token.created_at;
    check_labels("labels", &token.labels)?;
    if cluster.tokens.contains_key(&secret) {
        return Err(FieldError::new("secret", "already exists; draw a new one").into());
    }
    if token.expires_at <= now {
        return Err(FieldError::new("expires_at", format!("{} is in the past", token.expires_at)).into());
    }
    let usable = cluster.tokens.values().filter(|token| is_usable(token, now)).count();
    check_room(usable, TOKENS_MAX, "join tokens")?;
    Ok(Decision::done([Change::TokenCreated { secret, token }]))
}

fn is_usable(token: &JoinToken, now: Timestamp) -> bool {
    token.used_at.is_none() && now < token.expires_at
}

/// Somebody who holds a join string.
pub(super) struct Joiner {
    pub(super) secret: Digest,
    pub(super) certificate: CertificateId,
    pub(super) node: NodeId,
    pub(super) name: Name,
    pub(super) labels: Labels,
}

pub(super) fn join(cluster: &Cluster, joiner: Joiner, at: Timestamp) -> Result<Decision, Rejected> {
    let Joiner { secret, certificate, node, name, mut labels } = joiner;
    let token = cluster.tokens.get(&secret).filter(|token| is_usable(token, at)).ok_or(Rejected::BadToken)?;
    let name = token.name.clone().unwrap_or(name);
    let mut changes = vec![Change::TokenUsed { secret, at }];
    let (name, node) = if token.scope == Scope::Agent {
        check_room(cluster.nodes.len(), NODES_MAX, "nodes")?;
        if cluster.nodes.contains_key(&node) {
            return Err(FieldError::new("node", format!("{node} already exists; draw a new id")).into());
        }
        labels.extend(token.labels.clone());
        check_labels("labels", &labels)?;
        let name = unique_name(cluster, name);
        changes.push(Change::NodeJoined { node, name: name.clone(), labels, at });
        (name, Some(node))
    } else {
        (name, None)
    };
    let scope = token.scope;
    let certificate = Certificate { id: certificate, scope, node, name, issued_at: at, revoked_at: None };
    issue(cluster, changes, certificate)
}

pub(super) fn renew(
    cluster: &Cluster,
    old: CertificateId,
    new: CertificateId,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let old = cluster.certificates.get(&old).filter(|certificate| certificate.revoked_at.is_none());
    // The old one stays good until it runs out by itself: the answer with the new one may be lost.
    let certificate = Certificate { id: new, issued_at: at, ..old.ok_or(Rejected::BadCertificate)?.clone() };
    issue(cluster, Vec::new(), certificate)
}

fn issue(
    cluster: &Cluster,
    mut changes: Vec<Change>,
    certificate: Certificate,
) -> Result<Decision, Rejected> {
    if cluster.certificates.contains_key(&certificate.id) {
        let problem = format!("{} already exists; draw a new id", certificate.id);
        return Err(FieldError::new("certificate", problem).into());
    }
    changes.push(Change::CertificateIssued { certificate: certificate.clone() });
    Ok(Decision { changes, outcome: Outcome::Joined { certificate } })
}

pub(super) fn revoke(cluster: &Cluster, id: CertificateId, at: Timestamp) -> Result<Decision, Rejected> {
    let certificate = cluster
        .certificates
        .get(&id)
        .ok_or_else(|| Rejected::NotFound { what: "certificate", id: id.to_string() })?;
    let change = Change::CertificateRevoked { certificate: id, at };
    Ok(Decision::done(certificate.revoked_at.is_none().then_some(change)))
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

//! What the services share.

use std::{sync::Arc, time::Duration};

use hatchery_common::{
    access::Scope,
    blob::BlobStore,
    id::BlobId,
    time::Timestamp,
    tls::{Authority, Identity, Role, TlsError},
};
use hatchery_scheduler::Certificate;

use crate::{
    api::error::Refusal,
    core::{handle::Mailbox, store_thread::StoreCalls},
    sessions::{generations::Answers, logs::Logs, session::Sessions, tracking::Tracking},
};

/// What the services share.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) mailbox: Mailbox,
    pub(crate) store: StoreCalls,
    pub(crate) blobs: BlobStore,
    /// Most bytes of blobs, for people.
    pub(crate) blob_bytes_max: Option<u64>,
    pub(crate) logs: Logs,
    pub(crate) sessions: Sessions,
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) answers: Answers,
    pub(crate) authority: Authority,
    /// Where others reach this coordinator, for join strings.
    pub(crate) addresses: Vec<String>,
    pub(crate) report_every: Duration,
    pub(crate) started_at: Timestamp,
}

impl House {
    /// Checks that blobs are here, each with the size that is said of it.
    pub(crate) fn check_blobs(&self, named: impl Iterator<Item = (BlobId, u64)>) -> Result<(), Refusal> {
        let (mut count, mut missing, mut first) = (0, 0, None);
        for (blob, size_bytes) in named {
            count += 1;
            if self.blobs.size(blob) != Some(size_bytes) {
                missing += 1;
                first.get_or_insert(blob);
            }
        }
        match first {
            Some(first) => Err(Refusal::BlobsMissing { missing, count, first: first.to_string() }),
            None => Ok(()),
        }
    }
}

/// What a certificate says of its holder.
pub(crate) fn identity(certificate: &Certificate) -> Result<Identity, Refusal> {
    let role = match (&certificate.scope, certificate.node) {
        (Scope::Agent, Some(node)) => Role::Agent(node),
        (Scope::Operator, _) => Role::Operator(certificate.name.clone()),
        (Scope::Viewer, _) => Role::Viewer(certificate.name.clone()),
        (Scope::Agent, None) => return Err(Refusal::Internal("an agent without a node".to_owned())),
    };
    Ok(Identity { role, certificate: certificate.id })
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        Self::Internal(error.to_string())
    }
}

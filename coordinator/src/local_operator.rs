//! The person at this very machine: on the first start they get a certificate, so that no flag is ever needed here.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use hatchery_common::{
    access::Scope,
    durable::{self, FileError},
    id::{CertificateId, Name, NodeId},
    recipe::Labels,
    time::Timestamp,
    tls::{Authority, CREDENTIALS_FILE, Credentials, JoinSecret, KeyHash, TlsError, validity},
};
use hatchery_scheduler::{Cluster, CreateToken, Join};

use crate::{
    api::{authorization::identity, error::ApiError},
    core::handle::{CommandError, LoopHandle},
};

/// Where credentials of another fleet go when they are in the way.
const OTHER_FLEET_FILE: &str = "credentials.other-fleet.toml";
/// How long the token may take that is used up at once.
const TOKEN_VALID: Duration = Duration::from_mins(1);

/// Why the local operator has no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate cannot be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate cannot be entered into the fleet's records.
    #[error("cannot register a certificate for the local operator: {0}")]
    Enter(String),
}

/// Sees to it that `folder` holds credentials for the coordinator at `address`.
pub(crate) async fn provide(
    folder: &Path,
    address: SocketAddr,
    authority: &Authority,
    event_loop: &LoopHandle,
) -> Result<(), CredentialsError> {
    durable::create_folder(folder)?;
    let addresses = vec![address.to_string()];
    let snapshot = event_loop.snapshot();
    if let Some(mut credentials) = usable(folder, authority, &snapshot.cluster)? {
        if credentials.addresses != addresses {
            credentials.addresses = addresses;
            credentials.save(folder)?;
        }
        return Ok(());
    }
    drop(snapshot);
    let credentials = issue(addresses, authority, event_loop).await?;
    credentials.save(folder)?;
    tracing::info!(file = %folder.join(CREDENTIALS_FILE).display(), "issued credentials to the local operator");
    Ok(())
}

/// The credentials in `folder`, if they are good for this fleet and for a while yet. Those of another fleet are put aside.
fn usable(
    folder: &Path,
    authority: &Authority,
    cluster: &Cluster,
) -> Result<Option<Credentials>, CredentialsError> {
    let credentials = match Credentials::load(folder) {
        Ok(credentials) => credentials,
        Err(TlsError::File(error)) if error.is_missing() => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, "reissuing the local operator's credentials");
            return Ok(None);
        }
    };
    if KeyHash::of_certificate_pem(&credentials.authority_pem)? != authority.key_hash() {
        let (from, to) = (folder.join(CREDENTIALS_FILE), folder.join(OTHER_FLEET_FILE));
        fs::rename(&from, &to).map_err(|error| FileError::new("move", &from, error))?;
        tracing::warn!(file = %to.display(), "set aside credentials of another fleet");
        return Ok(None);
    }
    let known = cluster.certificates.get(&credentials.identity()?.certificate);
    let is_good = known.is_some_and(|known| known.revoked_at.is_none() && known.scope == Scope::Operator);
    let is_fresh = Timestamp::now() < validity(&credentials.certificate_pem)?.renew_after();
    Ok((is_good && is_fresh).then_some(credentials))
}

/// Joins as anybody would, by a token that is used up at once: so it stands in the records like any other.
async fn issue(
    addresses: Vec<String>,
    authority: &Authority,
    event_loop: &LoopHandle,
) -> Result<Credentials, CredentialsError> {
    let secret = JoinSecret::random().digest();
    let name = local_name();
    let enter = |error: CommandError| CredentialsError::Enter(error.to_string());
    let token = CreateToken {
        secret,
        scope: Scope::Operator,
        name: Some(name.clone()),
        labels: Labels::new(),
        by: name.clone(),
        expires_at: Timestamp::now() + TOKEN_VALID,
    };
    event_loop.command(token).await.map_err(enter)?;
    let (certificate, node) = (CertificateId::random(), NodeId::random());
    let join = Join { secret, certificate, node, name, labels: Labels::new() };
    let certificate = event_loop.command(join).await.map_err(enter)?;
    let identity =
        identity(&certificate).map_err(|error: ApiError| CredentialsError::Enter(error.to_string()))?;
    let certificate = authority.issue_client_with_key(&identity)?;
    Ok(Credentials::new(addresses, authority.certificate_pem(), certificate))
}

/// What the system calls the person who starts the coordinator.
fn local_name() -> Name {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    Name::from_lossy(user.as_deref().unwrap_or("operator"))
}

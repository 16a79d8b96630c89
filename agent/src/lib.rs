//! The agent: the process on a machine that brings it into the fleet. It says what the machine is and has, runs
//! trainers under a lease, holds replicas of checkpoints, and answers from them.
//!
//! ```text
//! coordinator <-- session --> agent (the loop) -- steps --> attempts   -> trainer processes, deliveries
//!                                 ^                     `-> replicas   -> fetches, self-tests
//!                                 `---- updates -----------'
//! ```
//!
//! | file | its reason to change |
//! |---|---|
//! | `start` | what an agent is made of, and in which order it starts |
//! | `agent`, `inbox` | the order in which things are looked at |
//! | `reconcile`, `lease` | what follows from wish, state and time; pure |
//! | `session/` | how the coordinator is reached |
//! | `attempts/` | the life of attempts and their checkpoints |
//! | `replicas/` | the checkpoints and datasets of this node, and how they come |
//! | `inference/` | answers, on the processor and on a GPU |
//! | `peers/` | what is fetched from other nodes, and served to them |
//! | `trainer/` | the trainer's processes |
//! | `machine/` | what the machine is, has and can do, and when it is its owner's |
//! | `platform`, `host` | what of the machine a simulation replaces, and the real one |

mod agent;
mod attempts;
mod files;
mod host;
mod inbox;
mod inference;
pub mod lease;
mod machine;
mod peers;
mod platform;
pub mod reconcile;
mod replicas;
mod session;
pub mod settings;
mod start;
pub mod trainer;

use std::{future::Future, pin::pin, sync::Arc};

use hatchery_common::{
    blob::BlobError,
    durable::{FileError, FolderLock, LockError, create_folder},
    field::FieldError,
    id::Name,
    node::Inventory,
    open_files,
    tls::{CREDENTIALS_FILE, Credentials, JoinString, TlsError},
};
use hatchery_proto::client::CallError;

use crate::{machine::survey::survey, replicas::store::CheckpointStoreError, start::Parts};
pub use host::Host;
pub use machine::availability::{AvailabilitySettings, Hours, HoursError, Judgement, Usage};
pub use peers::PeerSettings;
pub use platform::{Platform, Trainer};
pub use session::backoff;
pub use settings::AgentSettings;

/// Why an agent cannot start or join.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong.
    #[error("invalid agent setting: {0}")]
    Settings(#[from] FieldError),
    /// The state folder is in use, or cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The blobs kept here cannot be used.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Credentials are damaged, or of another kind.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot join: {0}")]
    Join(#[from] CallError),
}

impl From<CheckpointStoreError> for AgentError {
    fn from(error: CheckpointStoreError) -> Self {
        match error {
            CheckpointStoreError::Blob(error) => error.into(),
            CheckpointStoreError::File(error) => error.into(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Joined {
    /// The credentials, saved in the state folder too.
    pub credentials: Credentials,
    /// The node's name in the fleet.
    pub name: Name,
}

/// Makes this machine a node of the fleet that `join` belongs to, and saves the credentials in the state folder,
/// replacing any that are there. The string is used up.
pub async fn join(join: &JoinString, settings: &AgentSettings) -> Result<Joined, AgentError> {
    join_on(&this_machine(settings), join, settings).await
}

/// The same on another platform than this machine.
pub async fn join_on(
    platform: &dyn Platform,
    join: &JoinString,
    settings: &AgentSettings,
) -> Result<Joined, AgentError> {
    settings.check()?;
    create_folder(&settings.state)?;
    let _lock = FolderLock::acquire(&settings.state)?;
    let (credentials, name, _) =
        hatchery_net::join_over(platform.network(), join, &settings.wished_name(), &settings.labels).await?;
    credentials.save(&settings.state)?;
    Ok(Joined { credentials, name })
}

/// The credentials in the state folder; None if the machine has not joined.
pub fn load_credentials(settings: &AgentSettings) -> Result<Option<Credentials>, AgentError> {
    if !settings.state.join(CREDENTIALS_FILE).exists() {
        return Ok(None);
    }
    Ok(Some(Credentials::load(&settings.state)?))
}

/// What this machine is and has, as the coordinator would be told; speeds only where they were measured before.
pub async fn inventory(settings: &AgentSettings) -> Inventory {
    survey(&this_machine(settings), settings).await
}

fn this_machine(settings: &AgentSettings) -> Host {
    Host::new(settings.trainer_path())
}

/// Runs the agent until `shutdown`; then trainers write a last checkpoint, which is delivered, and the coordinator is
/// told goodbye, within [`LEAVE_WITHIN_SECS`]. Errors come only from the start: a coordinator that is away is waited
/// for, forever.
pub async fn run(
    settings: AgentSettings,
    credentials: Credentials,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    open_files::raise_limit();
    run_on(Arc::new(this_machine(&settings)), settings, credentials, shutdown).await
}

/// The same on another platform than this machine.
pub async fn run_on(
    platform: Arc<dyn Platform>,
    settings: AgentSettings,
    credentials: Credentials,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    let parts = Parts::open(platform, settings, credentials)?;
    let mut shutdown = pin!(shutdown);
    tokio::select! {
        started = parts.start() => started.run(shutdown).await,
        () = &mut shutdown => {}
    }
    Ok(())
}

/// Longest that [`run`] takes after `shutdown`, in seconds, the goodbye itself left out.
pub const LEAVE_WITHIN_SECS: u64 = agent::LEAVE_WITHIN.as_secs();

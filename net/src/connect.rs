//! Typed clients over connections of their own.

use std::sync::Arc;

use hatchery_common::{
    id::{Name, NodeId},
    recipe::Labels,
    tls::{Credentials, JoinString, client_config_pinned},
};
use hatchery_proto::client::{AgentsClient, CallError, FleetClient};
use tonic::transport::Channel;

use crate::transport::{Network, Profile, Tcp, connect_over};

/// A client that talks over a connection to a coordinator.
pub trait Connect: Sized {
    /// What the connection is for.
    const PROFILE: Profile;

    /// Over a connection that stands.
    fn over(channel: Channel) -> Self;

    /// Connects; an error says why not.
    fn connect(credentials: &Credentials) -> impl Future<Output = Result<Self, CallError>> + Send {
        Self::connect_over(Arc::new(Tcp), credentials)
    }

    /// Connects over another network than the system's.
    fn connect_over(
        network: Arc<dyn Network>,
        credentials: &Credentials,
    ) -> impl Future<Output = Result<Self, CallError>> + Send {
        async move {
            let config = credentials.client_config().map_err(|error| CallError::Failed(error.to_string()))?;
            Ok(Self::over(connect_over(network, &credentials.addresses, config, Self::PROFILE).await?))
        }
    }
}

impl Connect for FleetClient {
    const PROFILE: Profile = Profile::Control;

    fn over(channel: Channel) -> Self {
        Self::over(channel)
    }
}

impl Connect for AgentsClient {
    const PROFILE: Profile = Profile::Control;

    fn over(channel: Channel) -> Self {
        Self::over(channel)
    }
}

/// Uses up a join string at a coordinator that is checked against the string before anything is said to it; see
/// [`AgentsClient::join`].
pub async fn join(
    join: &JoinString,
    name: &Name,
    labels: &Labels,
) -> Result<(Credentials, Name, Option<NodeId>), CallError> {
    join_over(Arc::new(Tcp), join, name, labels).await
}

/// Joins over another network than the system's.
pub async fn join_over(
    network: Arc<dyn Network>,
    join: &JoinString,
    name: &Name,
    labels: &Labels,
) -> Result<(Credentials, Name, Option<NodeId>), CallError> {
    let config =
        client_config_pinned(join.authority).map_err(|error| CallError::Failed(error.to_string()))?;
    let channel = connect_over(network, &join.addresses, config, Profile::Control).await?;
    AgentsClient::over(channel).join(join, name, labels).await
}

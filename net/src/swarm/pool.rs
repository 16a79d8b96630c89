//! Connections to other nodes, shared by all blobs that come from there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use hatchery_common::{
    id::NodeId,
    swarm::{COORDINATOR, PlannedParent},
    tls::{Credentials, SERVER_NAME, node_server_name},
};
use tokio::{sync::watch, time::Instant};
use tonic::transport::Channel;

use super::{CONNECTION_IDLE, CONNECTIONS_MAX};
use crate::transport::{ConnectError, Network, Profile, connect_to};

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    network: Arc<dyn Network>,
    credentials: watch::Receiver<Credentials>,
    kept: Mutex<HashMap<NodeId, Kept>>,
}

#[derive(Debug)]
struct Kept {
    addresses: Vec<String>,
    channel: Channel,
    used_at: Instant,
}

impl Pool {
    pub(super) fn new(network: Arc<dyn Network>, credentials: watch::Receiver<Credentials>) -> Self {
        Self { network, credentials, kept: Mutex::default() }
    }

    /// A connection that finds the node again by itself.
    pub(super) async fn channel(&self, parent: &PlannedParent) -> Result<Channel, ConnectError> {
        let credentials = self.credentials.borrow().clone();
        let (name, addresses) = if parent.node == COORDINATOR {
            (SERVER_NAME.to_owned(), credentials.addresses.clone())
        } else {
            (node_server_name(parent.node), parent.addresses.clone())
        };
        if let Some(kept) = self.kept().get_mut(&parent.node).filter(|kept| kept.addresses == addresses) {
            kept.used_at = Instant::now();
            return Ok(kept.channel.clone());
        }
        let config = credentials.client_config().map_err(|error| ConnectError::Protocol {
            address: addresses.first().cloned().unwrap_or_default(),
            problem: error.to_string(),
        })?;
        let network = Arc::clone(&self.network);
        let channel = connect_to(network, &name, &addresses, config, Profile::Bulk).await?;
        let mut kept = self.kept();
        let now = Instant::now();
        kept.retain(|_, kept| now - kept.used_at < CONNECTION_IDLE);
        if kept.len() >= CONNECTIONS_MAX
            && let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.used_at).map(|(node, _)| *node)
        {
            kept.remove(&oldest);
        }
        kept.insert(parent.node, Kept { addresses, channel: channel.clone(), used_at: now });
        Ok(channel)
    }

    /// The next one to want this node dials anew.
    pub(super) fn forget(&self, node: NodeId) {
        self.kept().remove(&node);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The way to the coordinator that background work shares: the clients of the last session that stood.

use std::time::Duration;

use hatchery_net::transfer::BlobClient;
use hatchery_proto::client::AgentsClient;
use tokio::sync::watch;

use super::backoff::Backoff;

/// First and longest wait before a call is made again.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// The clients. Their channels find the coordinator again by themselves.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) agents: AgentsClient,
    pub(crate) blobs: BlobClient,
}

/// Hands out the clients, once there are any.
#[derive(Clone)]
pub(crate) struct Coordinator {
    clients: watch::Receiver<Option<Clients>>,
}

impl Coordinator {
    /// A link, and where to put the clients of each session.
    pub(crate) fn new() -> (watch::Sender<Option<Clients>>, Self) {
        let (sender, clients) = watch::channel(None);
        (sender, Self { clients })
    }

    /// The newest clients; waits for the first.
    pub(crate) async fn clients(&self) -> Clients {
        let mut receiver = self.clients.clone();
        let clients = receiver.wait_for(Option::is_some).await.ok().and_then(|clients| clients.clone());
        match clients {
            Some(clients) => clients,
            // The agent ends, and this work with it.
            None => std::future::pending().await,
        }
    }

    /// Notices sessions that begin from now on.
    pub(crate) fn next_session(&self) -> NextSession {
        let mut clients = self.clients.clone();
        clients.mark_unchanged();
        NextSession { clients }
    }

    /// The waits between tries of one piece of work.
    pub(crate) fn retries(&self) -> Retries {
        Retries { session: self.next_session(), backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST) }
    }
}

/// Waits for a session newer than itself.
pub(crate) struct NextSession {
    clients: watch::Receiver<Option<Clients>>,
}

impl NextSession {
    /// Waits for it, but no longer than this.
    pub(crate) async fn wait(&mut self, longest: Duration) {
        let renewed = async {
            if self.clients.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Out of time, or out of luck no longer: either way it is tried again.
        let _either = tokio::time::timeout(longest, renewed).await;
    }
}

/// Waits between tries; a new session ends a wait.
pub(crate) struct Retries {
    session: NextSession,
    backoff: Backoff,
}

impl Retries {
    /// Waits before the next try.
    pub(crate) async fn wait(&mut self) {
        self.session.wait(self.backoff.next_wait()).await;
    }
}

//! The session with the coordinator: dialled, kept, renewed and dialled again, for as long as the agent lives.

pub mod backoff;
pub(crate) mod coordinator;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use hatchery_common::{
    id::Name,
    node::Inventory,
    session::{AgentMessage, CoordinatorMessage},
    time::{BootTime, Timestamp},
    tls::{Credentials, validity},
};
use hatchery_net::{Connect, transfer::BlobClient, transport::Network};
use hatchery_proto::client::{AgentsClient, CallError};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use self::{backoff::Backoff, coordinator::Clients};
use crate::peers::Peers;

/// Messages to the coordinator that may wait. Whoever cannot add one waits, or leaves it out.
pub(crate) const OUTBOX_MAX: usize = 64;
/// How long the coordinator may take to welcome.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the certificate's age is looked at while a session stands.
const RENEWAL_LOOK_EVERY: Duration = Duration::from_mins(10);
/// How often at most a certificate is renewed: a clock that is months ahead takes each new one for old.
const RENEWAL_SPACING: Duration = Duration::from_hours(1);
/// How often reports may be asked for.
const REPORT_EVERY_MIN: Duration = Duration::from_millis(50);
const REPORT_EVERY_MAX: Duration = Duration::from_mins(1);

/// What comes from the session.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Opened {
        /// Takes messages until the session is closed.
        outbox: mpsc::Sender<AgentMessage>,
        name: Name,
        /// How often to report.
        report_every: Duration,
    },
    Message(CoordinatorMessage),
    /// There is no session any more.
    Closed,
    /// There was none to be had: the coordinator's machine says that nobody listens there.
    Down {
        /// When it was dialled.
        dialled: BootTime,
    },
}

/// What a node needs to keep a session.
pub(crate) struct Session {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) credentials: Credentials,
    /// Where renewed credentials are saved.
    pub(crate) state: PathBuf,
    pub(crate) inventory: watch::Receiver<Inventory>,
    pub(crate) clients: watch::Sender<Option<Clients>>,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    /// Cancelled before the goodbye: then the end of a session is nothing to complain about.
    pub(crate) leaving: CancellationToken,
    /// The exchange of blobs with other nodes.
    pub(crate) peers: Option<Peers>,
}

struct SessionLoop {
    of: Session,
    /// When the credentials were renewed last.
    renewed_at: Option<BootTime>,
    /// A lease's length, as the coordinator last said.
    lease: Duration,
}

/// How a session ended.
enum Closing {
    /// The other side ended it.
    Ended,
    /// There are newer credentials to dial with.
    Renewed,
}

impl Session {
    /// Dials until nobody listens to the events any more.
    pub(crate) async fn run(self) {
        SessionLoop { of: self, renewed_at: None, lease: Duration::MAX }.run().await;
    }
}

impl SessionLoop {
    async fn run(mut self) {
        let mut backoff = Backoff::of_dials(self.lease);
        let mut complaint = String::new();
        while !self.of.events.is_closed() {
            let mut welcomed = false;
            let dialled = BootTime::now();
            let closing = self.hold(&mut welcomed).await;
            if welcomed {
                backoff = Backoff::of_dials(self.lease);
                complaint.clear();
                if let Some(peers) = &self.of.peers {
                    peers.session_ended();
                }
                // Nobody listens any more only when the agent ends.
                let _nobody = self.of.events.send(SessionEvent::Closed).await;
            }
            if self.of.leaving.is_cancelled() {
                return;
            }
            if matches!(closing, Err(CallError::Down(_))) && !welcomed {
                // The same: nobody listens any more only when the agent ends.
                let _nobody = self.of.events.send(SessionEvent::Down { dialled }).await;
            }
            let reason = match closing {
                Ok(Closing::Renewed) => continue,
                Ok(Closing::Ended) => "the coordinator ended the session".to_owned(),
                Err(error) => error.to_string(),
            };
            if reason != complaint {
                tracing::warn!(reason, "no session with the coordinator; reconnecting");
                complaint = reason;
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// One session, from dialling to its end.
    async fn hold(&mut self, welcomed: &mut bool) -> Result<Closing, CallError> {
        let agents = AgentsClient::connect_over(Arc::clone(&self.of.network), &self.of.credentials).await?;
        if self.renew_if_due(&agents).await {
            return Ok(Closing::Renewed);
        }
        let blobs = BlobClient::connect_over(Arc::clone(&self.of.network), &self.of.credentials).await?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let inventory = self.of.inventory.borrow().clone();
        // There is room: nothing else was sent yet.
        let _first = outbox.try_send(AgentMessage::Hello(Box::new(inventory)));
        let dialled = async {
            let mut answers = agents.session(ReceiverStream::new(messages)).await?;
            let first = answers.next().await;
            Ok((answers, first))
        };
        let (mut answers, first) = timeout(WELCOME_TIMEOUT, dialled).await.unwrap_or_else(|_| {
            Err(CallError::Unreachable(format!("no welcome within {} s", WELCOME_TIMEOUT.as_secs())))
        })?;
        let (name, report_every) = match first.transpose()? {
            Some(CoordinatorMessage::Welcome { name, report_every }) => (name, report_every),
            Some(_) => {
                return Err(CallError::Failed("the coordinator did not send its welcome first".to_owned()));
            }
            None => return Ok(Closing::Ended),
        };
        *welcomed = true;
        self.of.clients.send_replace(Some(Clients { agents: agents.clone(), blobs }));
        let report_every = report_every.clamp(REPORT_EVERY_MIN, REPORT_EVERY_MAX);
        if let Some(peers) = &self.of.peers {
            peers.session_began(outbox.clone());
        }
        let opened = SessionEvent::Opened { outbox, name, report_every };
        if self.of.events.send(opened).await.is_err() {
            return Ok(Closing::Ended);
        }
        let mut renewal = tokio::time::interval(RENEWAL_LOOK_EVERY);
        loop {
            tokio::select! {
                answer = answers.next() => match answer.transpose()? {
                    Some(message) => {
                        if let CoordinatorMessage::Assignment(assignment) = &message {
                            self.lease = assignment.lease;
                        }
                        let message = match &self.of.peers {
                            Some(peers) => peers.take(message),
                            None => Some(message),
                        };
                        let Some(message) = message else { continue };
                        if self.of.events.send(SessionEvent::Message(message)).await.is_err() {
                            return Ok(Closing::Ended);
                        }
                    }
                    None => return Ok(Closing::Ended),
                },
                _ = renewal.tick() => if self.renew_if_due(&agents).await {
                    return Ok(Closing::Renewed);
                },
            }
        }
    }

    /// Gets a new certificate when two thirds of the old one's life are over; true if there is a new one. A failure is
    /// tried again at the next look, of which there are many before the certificate ends.
    async fn renew_if_due(&mut self, agents: &AgentsClient) -> bool {
        let due = validity(&self.of.credentials.certificate_pem)
            .is_ok_and(|validity| Timestamp::now() >= validity.renew_after());
        let just_renewed =
            self.renewed_at.is_some_and(|renewed_at| BootTime::now() < renewed_at + RENEWAL_SPACING);
        if !due || just_renewed {
            return false;
        }
        match agents.renew(&self.of.credentials).await {
            Ok(renewed) => {
                if let Err(error) = renewed.save(&self.of.state) {
                    tracing::warn!(%error, "cannot save the renewed certificate; the old one stays in use");
                    return false;
                }
                tracing::info!("certificate renewed");
                if let Some(peers) = &self.of.peers {
                    peers.renewed(&renewed);
                }
                self.of.credentials = renewed;
                self.renewed_at = Some(BootTime::now());
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the certificate yet");
                false
            }
        }
    }
}

//! One agent's session: desired state goes out whenever it changed, what is observed comes in.

use std::{net::IpAddr, ops::ControlFlow, sync::Arc, time::Duration};

use hatchery_common::{
    access::Scope,
    id::{AttemptId, NodeId},
    session::{AgentMessage, Assignment, CoordinatorMessage},
    swarm::{REVOKED_MAX, Revoked},
};
use hatchery_net::blocking;
use hatchery_proto::v1::{SessionRequest, SessionResponse};
use hatchery_scheduler::{Cluster, Goodbye, SetInventory, assignment};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    api::{context::Context, error::ApiError},
    core::handle::{CommandError, Input, SessionNumber},
};

/// A new session must say hello within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How often a session's reports of blobs are heard.
const SWARM_REPORT_SPACING: Duration = Duration::from_millis(20);
/// Messages on their way out over one session; an agent that does not read them is not listened to either.
pub(crate) const OUTBOUND_MAX: usize = 32;

type Outbound = mpsc::Sender<Result<SessionResponse, Status>>;

/// Serves one session of `node` to its end.
pub(crate) async fn serve(
    context: Arc<Context>,
    node: NodeId,
    remote: Option<IpAddr>,
    mut inbound: Streaming<SessionRequest>,
    outbound: Outbound,
) {
    let ended = match hello(&context, node, &mut inbound).await {
        Ok(()) => Session::open(&context, node, remote, inbound, outbound.clone()).serve().await,
        Err(status) => Err(status),
    };
    if let Err(status) = ended {
        tracing::debug!(%node, %status, "a session ended");
        // If there is no room for the reason, the agent sees the stream end without one.
        drop(outbound.try_send(Err(status)));
    }
}

/// Takes the first message.
async fn hello(
    context: &Context,
    node: NodeId,
    inbound: &mut Streaming<SessionRequest>,
) -> Result<(), Status> {
    let message = timeout(HELLO_WITHIN, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello arrived; a session begins with Hello"))??;
    match message.map(read).transpose()? {
        Some(AgentMessage::Hello(inventory)) => {
            take_inventory(context, SetInventory { node, inventory }).await
        }
        _ => Err(Status::invalid_argument("message: a session begins with Hello")),
    }
}

fn read(message: SessionRequest) -> Result<AgentMessage, Status> {
    AgentMessage::try_from(message).map_err(|error| ApiError::from(error).into())
}

/// A full disk is no reason to lose a node: its inventory is taken when it comes again.
async fn take_inventory(context: &Context, command: SetInventory) -> Result<(), Status> {
    match context.event_loop.command(command).await {
        Ok(()) => Ok(()),
        Err(error @ (CommandError::DiskFull(_) | CommandError::NotDurable(_))) => {
            tracing::warn!(%error, "cannot save an inventory");
            Ok(())
        }
        Err(error) => Err(ApiError::from(error).into()),
    }
}

/// The certificates that nodes must not serve any more; the newest, should there be too many to tell.
fn revoked_agents(cluster: &Cluster) -> Revoked {
    let agents = cluster.certificates.values().filter(|certificate| certificate.scope == Scope::Agent);
    let mut revoked: Vec<_> = agents.filter_map(|one| Some((one.revoked_at?, one.id))).collect();
    if revoked.len() > REVOKED_MAX {
        revoked.sort_unstable();
        revoked.drain(..revoked.len() - REVOKED_MAX);
    }
    revoked.into_iter().map(|(_, id)| id).collect()
}

struct Session<'a> {
    context: &'a Context,
    node: NodeId,
    number: SessionNumber,
    inbound: Streaming<SessionRequest>,
    outbound: Outbound,
    orders: mpsc::Receiver<CoordinatorMessage>,
    superseded: CancellationToken,
    last_event: watch::Receiver<u64>,
    /// The assignment that the agent has.
    assigned: Option<Assignment>,
    /// Where the agent dials from.
    remote: Option<IpAddr>,
    /// Told when there are plans for the agent.
    plans_due: Arc<Notify>,
    /// When it is heard again how the agent stands with blobs.
    next_swarm_report: Instant,
    /// The revoked certificates that the agent knows of.
    revoked: Option<Revoked>,
}

impl<'a> Session<'a> {
    fn open(
        context: &'a Context,
        node: NodeId,
        remote: Option<IpAddr>,
        inbound: Streaming<SessionRequest>,
        outbound: Outbound,
    ) -> Self {
        let (number, orders, superseded) = context.sessions.open(node);
        let last_event = context.event_loop.last_event.clone();
        let plans_due = context.tracking.session_opened(node, number);
        Self {
            context,
            node,
            number,
            inbound,
            outbound,
            orders,
            superseded,
            last_event,
            assigned: None,
            remote,
            plans_due,
            next_swarm_report: Instant::now(),
            revoked: None,
        }
    }

    async fn serve(mut self) -> Result<(), Status> {
        let (node, session) = (self.node, self.number);
        tracing::info!(%node, "session open");
        let (superseded, outbound) = (self.superseded.clone(), self.outbound.clone());
        let ended = tokio::select! {
            ended = self.drive() => ended,
            () = superseded.cancelled() => Err(Status::aborted("replaced by a newer session of this node")),
            () = outbound.closed() => Ok(()),
        };
        self.context.sessions.close(node, session);
        self.context.tracking.session_closed(node, session);
        self.context.generations.session_closed(session);
        tracing::info!(%node, "session closed");
        // When the event loop has gone there is nobody left to tell.
        drop(self.context.event_loop.send(Input::SessionClosed { node, session }).await);
        ended
    }

    async fn drive(&mut self) -> Result<(), Status> {
        self.context
            .event_loop
            .send(Input::SessionOpened { node: self.node, session: self.number })
            .await
            .map_err(ApiError::from)?;
        let snapshot = self.context.event_loop.snapshot();
        let node = snapshot.cluster.nodes.get(&self.node);
        let name = node
            .map(|node| node.name.clone())
            .ok_or_else(|| Status::unauthenticated("this node was removed"))?;
        drop(snapshot);
        self.send(CoordinatorMessage::Welcome { name, report_every: self.context.report_every }).await?;
        self.push_assignment().await?;
        loop {
            let flow = tokio::select! {
                message = self.inbound.message() => match message? {
                    // A kind that this version does not know.
                    Some(SessionRequest { message: None }) => ControlFlow::Continue(()),
                    Some(message) => self.take(read(message)?).await?,
                    None => ControlFlow::Break(()),
                },
                shown = self.last_event.changed() => {
                    shown.map_err(|_| Status::unavailable("the coordinator is stopping"))?;
                    self.push_assignment().await?;
                    ControlFlow::Continue(())
                }
                Some(order) = self.orders.recv() => {
                    self.send(order).await?;
                    ControlFlow::Continue(())
                }
                () = self.plans_due.notified() => {
                    for plan in self.context.tracking.due(self.node, self.number) {
                        self.send(CoordinatorMessage::FetchPlan(plan)).await?;
                    }
                    ControlFlow::Continue(())
                }
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, message: AgentMessage) -> Result<ControlFlow<()>, Status> {
        let node = self.node;
        match message {
            AgentMessage::Hello(_) => {
                return Err(Status::invalid_argument("message: Hello must come only once"));
            }
            AgentMessage::Report(report) => {
                let sequence = report.sequence;
                self.context.event_loop.report(node, self.number, report).await.map_err(ApiError::from)?;
                self.send(CoordinatorMessage::ReportReceived { sequence }).await?;
            }
            AgentMessage::Inventory(inventory) => {
                take_inventory(self.context, SetInventory { node, inventory }).await?;
            }
            AgentMessage::LogLines { attempt, offset, text } => {
                self.keep_log(attempt, offset, text).await;
            }
            AgentMessage::Generation { request, part } => {
                self.context.generations.pass_on(self.number, request, part);
            }
            AgentMessage::Swarm(report) => {
                // One that says too much is heard more slowly, its own heartbeats included.
                sleep_until(self.next_swarm_report).await;
                self.next_swarm_report = Instant::now() + SWARM_REPORT_SPACING;
                self.context.tracking.report(node, self.remote, report);
            }
            AgentMessage::PeerTrouble { blob, trouble } => self.context.tracking.trouble(blob, node, trouble),
            AgentMessage::Goodbye => {
                self.goodbye().await?;
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// First the session is closed, so that what its leases held does not go back to it.
    async fn goodbye(&self) -> Result<(), Status> {
        let (node, session) = (self.node, self.number);
        let event_loop = &self.context.event_loop;
        event_loop.send(Input::SessionClosed { node, session }).await.map_err(ApiError::from)?;
        event_loop.command(Goodbye { node }).await.map_err(ApiError::from)?;
        Ok(())
    }

    /// Keeps what an attempt of this node wrote. Logs are for people: a disk that does not take them stops nothing.
    async fn keep_log(&self, attempt: AttemptId, offset: u64, text: Vec<u8>) {
        let node = self.node;
        let snapshot = self.context.event_loop.snapshot();
        let leased = snapshot.cluster.jobs.get(&attempt.job).is_some_and(|job| {
            job.attempt() == attempt && job.lease.as_ref().is_some_and(|lease| lease.node == node)
        });
        drop(snapshot);
        let logs = self.context.logs.clone();
        let write = move || {
            if leased || logs.has(attempt, node) { logs.append(attempt, node, offset, &text) } else { Ok(()) }
        };
        if let Err(error) = blocking(write).await {
            tracing::warn!(%error, "cannot save a log");
        }
    }

    /// Sends the node's assignment, if it is not what the agent has already.
    async fn push_assignment(&mut self) -> Result<(), Status> {
        self.last_event.mark_unchanged();
        let snapshot = self.context.event_loop.snapshot();
        let now = assignment(&snapshot.cluster, self.node, snapshot.observed().lease);
        let revoked = revoked_agents(&snapshot.cluster);
        drop(snapshot);
        if self.revoked.as_ref() != Some(&revoked) {
            self.send(CoordinatorMessage::Revoked(revoked.clone())).await?;
            self.revoked = Some(revoked);
        }
        if self.assigned.as_ref() != Some(&now) {
            self.send(CoordinatorMessage::Assignment(now.clone())).await?;
            self.assigned = Some(now);
        }
        Ok(())
    }

    async fn send(&self, message: CoordinatorMessage) -> Result<(), Status> {
        self.outbound
            .send(Ok(message.into()))
            .await
            .map_err(|_| Status::cancelled("the agent has disconnected"))
    }
}

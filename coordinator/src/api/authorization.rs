//! Who may call what: one table, one gate before every service. What the table does not list is denied to everybody.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hatchery_common::{
    access::Scope,
    id::{CertificateId, Name, NodeId},
    tls::{Identity, Role},
};
use hatchery_net::transport::Peer;
use hatchery_scheduler::{Certificate, Cluster};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::Bytes};
use tower::{Layer, Service};

use crate::{
    api::error::ApiError,
    core::handle::{LoopHandle, Snapshot},
};

/// Longest time until the answer to a call begins, its request included; a stream goes on from there.
const CALL_WITHIN: Duration = Duration::from_mins(1);
/// The same for a dataset's manifest, which takes a while over a slow link.
const LARGE_CALL_WITHIN: Duration = Duration::from_mins(10);

const BLOBS_GET: &str = "/hatchery.v1.Blobs/Get";
const BLOBS_PUT: &str = "/hatchery.v1.Blobs/Put";
const CREATE_DATASET: &str = "/hatchery.v1.Fleet/CreateDataset";

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Anybody who can reach the port.
    Anyone,
    /// Whoever has a certificate.
    Members,
    Agents,
    /// Agents, and people who may change things.
    AgentsAndOperators,
    People,
    /// People who may change things.
    Operators,
}

/// Every call that there is. One that is not here is denied.
const TABLE: [(&str, Who); 45] = [
    ("/hatchery.v1.Agents/Join", Who::Anyone),
    ("/hatchery.v1.Agents/Renew", Who::Members),
    ("/hatchery.v1.Agents/Session", Who::Agents),
    ("/hatchery.v1.Agents/GetDatasetManifest", Who::Agents),
    ("/hatchery.v1.Agents/GetCheckpointManifest", Who::Agents),
    ("/hatchery.v1.Agents/OfferCheckpoint", Who::Agents),
    ("/hatchery.v1.Agents/CommitCheckpoint", Who::Agents),
    ("/hatchery.v1.Blobs/Have", Who::AgentsAndOperators),
    (BLOBS_GET, Who::AgentsAndOperators),
    (BLOBS_PUT, Who::AgentsAndOperators),
    ("/hatchery.v1.Peers/Fetch", Who::Agents),
    ("/hatchery.v1.Fleet/GetStatus", Who::People),
    (CREATE_DATASET, Who::Operators),
    ("/hatchery.v1.Fleet/ListDatasets", Who::People),
    ("/hatchery.v1.Fleet/SubmitJob", Who::Operators),
    ("/hatchery.v1.Fleet/ListJobs", Who::People),
    ("/hatchery.v1.Fleet/GetJob", Who::People),
    ("/hatchery.v1.Fleet/WatchJob", Who::People),
    ("/hatchery.v1.Fleet/CancelJob", Who::Operators),
    ("/hatchery.v1.Fleet/PauseJob", Who::Operators),
    ("/hatchery.v1.Fleet/ResumeJob", Who::Operators),
    ("/hatchery.v1.Fleet/RequeueJob", Who::Operators),
    ("/hatchery.v1.Fleet/SetJobPriority", Who::Operators),
    ("/hatchery.v1.Fleet/ExplainPlacement", Who::People),
    ("/hatchery.v1.Fleet/ReadLogs", Who::People),
    ("/hatchery.v1.Fleet/WatchEvents", Who::People),
    ("/hatchery.v1.Fleet/ListNodes", Who::People),
    ("/hatchery.v1.Fleet/GetNode", Who::People),
    ("/hatchery.v1.Fleet/SetNodeMode", Who::Operators),
    ("/hatchery.v1.Fleet/RemoveNode", Who::Operators),
    ("/hatchery.v1.Fleet/ListCheckpoints", Who::People),
    ("/hatchery.v1.Fleet/GetCheckpoint", Who::People),
    ("/hatchery.v1.Fleet/PushCheckpoint", Who::Operators),
    ("/hatchery.v1.Fleet/WithdrawRollout", Who::Operators),
    ("/hatchery.v1.Fleet/ListRollouts", Who::People),
    ("/hatchery.v1.Fleet/PinCheckpoint", Who::Operators),
    ("/hatchery.v1.Fleet/Generate", Who::Operators),
    ("/hatchery.v1.Fleet/CreateToken", Who::Operators),
    ("/hatchery.v1.Fleet/ListCertificates", Who::Operators),
    ("/hatchery.v1.Fleet/RevokeCertificate", Who::Operators),
    ("/grpc.health.v1.Health/Check", Who::Members),
    ("/grpc.health.v1.Health/Watch", Who::Members),
    ("/grpc.health.v1.Health/List", Who::Members),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Who::Members),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Who::Members),
];

impl Who {
    fn allows(self, scope: Scope) -> bool {
        match self {
            Self::Anyone | Self::Members => true,
            Self::Agents => scope == Scope::Agent,
            Self::AgentsAndOperators => matches!(scope, Scope::Agent | Scope::Operator),
            Self::People => matches!(scope, Scope::Operator | Scope::Viewer),
            Self::Operators => scope == Scope::Operator,
        }
    }
}

/// Who calls, as the fleet's records have it. Services find it among a request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) certificate: CertificateId,
    pub(crate) name: Name,
    pub(crate) node: Option<NodeId>,
}

impl Caller {
    /// Who makes this call. The gate lets no call without one through, but for [`Who::Anyone`]'s.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(no_certificate)
    }

    /// The node that makes this call.
    pub(crate) fn node_of<T>(request: &tonic::Request<T>) -> Result<NodeId, Status> {
        Self::of(request)?.node.ok_or_else(|| Status::permission_denied("only agents have a node"))
    }
}

fn no_certificate() -> Status {
    Status::unauthenticated(
        "this call needs a certificate of this fleet; join with a join string from `hatchery token create`",
    )
}

fn call_within(path: &str) -> Duration {
    match path {
        // They wait for their turn among the transfers first, however long those before them take.
        BLOBS_GET | BLOBS_PUT => Duration::MAX,
        CREATE_DATASET => LARGE_CALL_WITHIN,
        _ => CALL_WITHIN,
    }
}

fn too_slow(within: Duration) -> Status {
    Status::deadline_exceeded(format!("this call was not complete after {} s; try again", within.as_secs()))
}

/// The record of a certificate, if it is good for anything.
fn good_certificate(cluster: &Cluster, id: CertificateId) -> Result<&Certificate, Status> {
    match cluster.certificates.get(&id) {
        Some(certificate) if certificate.revoked_at.is_none() => Ok(certificate),
        Some(_) => {
            Err(Status::unauthenticated("this certificate was revoked; join again with a new join string"))
        }
        None => Err(Status::unauthenticated(
            "this certificate is unknown to this coordinator; join again with a new join string",
        )),
    }
}

/// The gate, as a layer around all services.
#[derive(Clone, Debug)]
pub(crate) struct AccessLayer {
    pub(crate) event_loop: LoopHandle,
    /// Cancelled when open streams are to end.
    pub(crate) stopping: CancellationToken,
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner, gate: self.clone() }
    }
}

impl AccessLayer {
    fn admit(&self, path: &str, peer: Option<&Peer>) -> Result<Option<Caller>, Status> {
        let who = TABLE.iter().find(|(listed, _)| *listed == path).map(|(_, who)| *who);
        if who == Some(Who::Anyone) {
            return Ok(None);
        }
        let identity = peer.and_then(|peer| peer.identity.as_ref()).ok_or_else(no_certificate)?;
        let snapshot = self.event_loop.snapshot();
        let certificate = good_certificate(&snapshot.cluster, identity.certificate)?;
        let same = match &identity.role {
            Role::Agent(node) => certificate.scope == Scope::Agent && certificate.node == Some(*node),
            Role::Operator(_) => certificate.scope == Scope::Operator,
            Role::Viewer(_) => certificate.scope == Scope::Viewer,
            Role::Coordinator => false,
        };
        if !same {
            return Err(Status::unauthenticated("this certificate contradicts the fleet's records"));
        }
        match who {
            Some(who) if who.allows(certificate.scope) => Ok(Some(Caller {
                certificate: certificate.id,
                name: certificate.name.clone(),
                node: certificate.node,
            })),
            Some(_) => Err(Status::permission_denied(format!("this certificate does not allow {path}"))),
            None => Err(Status::permission_denied(format!("this coordinator has no call {path}"))),
        }
    }

    /// Ends when nothing more may be sent to the bearer of `certificate`, and says why.
    fn cut_off(&self, certificate: Option<CertificateId>) -> impl Future<Output = Status> + Send + use<> {
        let (stopping, snapshots) = (self.stopping.clone(), self.event_loop.snapshots.clone());
        let last_event = self.event_loop.last_event.clone();
        async move {
            tokio::select! {
                status = revoked(certificate, snapshots, last_event) => status,
                () = stopping.cancelled() => {
                    Status::unavailable("the coordinator is stopping; try again when it is back")
                }
            }
        }
    }
}

async fn revoked(
    certificate: Option<CertificateId>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    mut last_event: watch::Receiver<u64>,
) -> Status {
    let Some(certificate) = certificate else { return std::future::pending().await };
    loop {
        last_event.mark_unchanged();
        if let Err(status) = good_certificate(&snapshots.borrow().cluster, certificate) {
            return status;
        }
        if last_event.changed().await.is_err() {
            return Status::unavailable("the coordinator is stopping; try again when it is back");
        }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub(crate) struct Access<S> {
    inner: S,
    gate: AccessLayer,
}

impl<S> Service<Request<Body>> for Access<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let admitted = self.gate.admit(request.uri().path(), request.extensions().get::<Peer>());
        let certificate = match admitted {
            Ok(caller) => {
                let certificate = caller.as_ref().map(|caller| caller.certificate);
                caller.map(|caller| request.extensions_mut().insert(caller));
                certificate
            }
            Err(status) => return Box::pin(async { Ok(status.into_http()) }),
        };
        let cut_off = Box::pin(self.gate.cut_off(certificate));
        let within = call_within(request.uri().path());
        let response = timeout(within, self.inner.call(request));
        Box::pin(async move {
            let Ok(response) = response.await else { return Ok(too_slow(within).into_http()) };
            Ok(response?.map(|body| Body::new(Guarded { body, cut_off, begun: false, ended: false })))
        })
    }
}

/// A response that ends early when its caller may hear no more.
struct Guarded {
    body: Body,
    cut_off: Pin<Box<dyn Future<Output = Status> + Send>>,
    /// A first message has been sent: if there is another one, this is a stream.
    begun: bool,
    ended: bool,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Guarded {
    /// An answer that is one message goes out whole; of a stream, what comes after the cut does not.
    fn is_cut_off(&mut self, context: &mut Context<'_>) -> Option<Frame<Bytes>> {
        let Poll::Ready(status) = self.cut_off.as_mut().poll(context) else { return None };
        self.ended = true;
        // Whatever the service still does for this caller ends with its body.
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        if let Err(unfit) = status.add_header(&mut trailers) {
            tracing::error!(%unfit, "a status does not fit into its headers");
        }
        Some(Frame::trailers(trailers))
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let may_be_cut = match &frame {
            Poll::Pending => true,
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => std::mem::replace(&mut self.begun, true),
            Poll::Ready(_) => false,
        };
        if may_be_cut && let Some(trailers) = self.is_cut_off(context) {
            return Poll::Ready(Some(Ok(trailers)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

/// What a certificate says of its holder.
pub(crate) fn identity(certificate: &Certificate) -> Result<Identity, ApiError> {
    let role = match (&certificate.scope, certificate.node) {
        (Scope::Agent, Some(node)) => Role::Agent(node),
        (Scope::Operator, _) => Role::Operator(certificate.name.clone()),
        (Scope::Viewer, _) => Role::Viewer(certificate.name.clone()),
        (Scope::Agent, None) => return Err(ApiError::Internal("an agent without a node".to_owned())),
    };
    Ok(Identity { role, certificate: certificate.id })
}

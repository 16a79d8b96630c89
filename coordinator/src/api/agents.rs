//! The service for agents.

use std::sync::Arc;

use hatchery_common::{
    checkpoint::CheckpointManifest,
    faults,
    field::FieldError,
    id::{CertificateId, CheckpointId, DatasetId, Epoch, Name, NodeId},
    self_test::SelfTest,
    tls::{Identity, JoinSecret, Role},
};
use hatchery_net::transport::Peer;
use hatchery_proto::{convert, v1};
use hatchery_scheduler::{Certificate, Outcome, Rejected, Request as Change};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::ResponseStream;
use crate::{
    api::{
        authorization::{self, Caller},
        context::Context,
        error::ApiError,
    },
    core::handle::RequestError,
    sessions::session,
};

/// The service for agents.
#[derive(Clone, Debug)]
pub(crate) struct AgentsService {
    pub(crate) context: Arc<Context>,
}

impl AgentsService {
    /// Enters a certificate into the records, then signs it.
    async fn certify(&self, request: Change, request_pem: &str) -> Result<(Certificate, String), ApiError> {
        // A key that cannot be signed is refused before a join string is used up for it.
        let nobody = Identity::new(Role::Viewer(Name::from_lossy("nobody")));
        self.context
            .authority
            .issue_client(&nobody, request_pem)
            .map_err(|error| FieldError::new("certificate_request_pem", error))?;
        match self.context.event_loop.request(request).await? {
            Outcome::Joined { certificate } => {
                let identity = authorization::identity(&certificate)?;
                let pem = self.context.authority.issue_client(&identity, request_pem)?;
                Ok((certificate, pem))
            }
            other => Err(ApiError::Internal(format!("the answer was {other:?}"))),
        }
    }

    /// What nobody should do: a checkpoint as if it came from the job's present holder, under its present epoch.
    fn unfenced(&self, node: NodeId, manifest: CheckpointManifest) -> (NodeId, CheckpointManifest) {
        let snapshot = self.context.event_loop.snapshot();
        let holder =
            snapshot.cluster.jobs.get(&manifest.job).and_then(|job| Some((job.lease.as_ref()?, job.epoch)));
        match holder {
            Some((lease, epoch)) => (lease.node, CheckpointManifest { epoch, ..manifest }),
            None => (node, manifest),
        }
    }
}

#[tonic::async_trait]
impl v1::agents_server::Agents for AgentsService {
    type SessionStream = ResponseStream<v1::SessionResponse>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let read = || {
            let secret = JoinSecret::from_slice("secret", &request.secret)?.digest();
            let name = Name::new("name", &request.name)?;
            let labels = convert::labels("labels", &request.labels)?;
            let (certificate, node) = (CertificateId::random(), NodeId::random());
            Ok(Change::Join { secret, certificate, node, name, labels })
        };
        let join = read().map_err(|error: FieldError| Status::from(ApiError::from(error)))?;
        if let Change::Join { secret, .. } = &join
            && !self.context.event_loop.snapshot().cluster.tokens.contains_key(secret)
        {
            // A stranger costs no signature and no place in the queue.
            return Err(ApiError::from(Rejected::BadToken).into());
        }
        let (certificate, certificate_pem) = self.certify(join, &request.certificate_request_pem).await?;
        tracing::info!(name = %certificate.name, scope = ?certificate.scope, "joined");
        Ok(Response::new(v1::JoinResponse {
            certificate_pem,
            authority_pem: self.context.authority.certificate_pem().to_owned(),
            name: certificate.name.to_string(),
            node: certificate.node.map(|node| node.to_string()),
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let old = Caller::of(&request)?.certificate;
        let renew = Change::Renew { old, new: CertificateId::random() };
        let (_, certificate_pem) = self.certify(renew, &request.into_inner().certificate_request_pem).await?;
        Ok(Response::new(v1::RenewResponse { certificate_pem }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = Caller::node_of(&request)?;
        let remote = request.extensions().get::<Peer>().map(|peer| peer.remote.ip());
        let (outbound, messages) = mpsc::channel(session::OUTBOUND_MAX);
        let context = Arc::clone(&self.context);
        tokio::spawn(session::serve(context, node, remote, request.into_inner(), outbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn get_dataset_manifest(
        &self,
        request: Request<v1::GetDatasetManifestRequest>,
    ) -> Result<Response<v1::GetDatasetManifestResponse>, Status> {
        let id = request.into_inner().dataset;
        let dataset: DatasetId = id.parse().map_err(ApiError::Field)?;
        let snapshot = self.context.event_loop.snapshot();
        let dataset = snapshot.cluster.datasets.get(&dataset);
        let dataset = dataset.ok_or(ApiError::from(Rejected::NotFound { what: "dataset", id }))?;
        let manifest = convert::dataset_manifest_bytes(&dataset.manifest);
        Ok(Response::new(v1::GetDatasetManifestResponse { manifest }))
    }

    async fn get_checkpoint_manifest(
        &self,
        request: Request<v1::GetCheckpointManifestRequest>,
    ) -> Result<Response<v1::GetCheckpointManifestResponse>, Status> {
        let id = request.into_inner().checkpoint;
        let checkpoint: CheckpointId = id.parse().map_err(ApiError::Field)?;
        let snapshot = self.context.event_loop.snapshot();
        let checkpoint = snapshot.cluster.checkpoints.get(&checkpoint);
        let checkpoint = checkpoint.ok_or(ApiError::from(Rejected::NotFound { what: "checkpoint", id }))?;
        let manifest = convert::checkpoint_manifest_bytes(&checkpoint.manifest);
        let self_test = checkpoint.self_test.clone().map(Into::into);
        Ok(Response::new(v1::GetCheckpointManifestResponse { manifest, self_test }))
    }

    async fn offer_checkpoint(
        &self,
        request: Request<v1::OfferCheckpointRequest>,
    ) -> Result<Response<v1::OfferCheckpointResponse>, Status> {
        let node = Caller::node_of(&request)?;
        let v1::OfferCheckpointRequest { job, epoch, step } = request.into_inner();
        let job = job.parse().map_err(ApiError::Field)?;
        if faults::strikes("mutant::fencing") {
            return Ok(Response::new(v1::OfferCheckpointResponse { declined: None }));
        }
        let offer = Change::OfferCheckpoint { node, job, epoch: Epoch(epoch), step };
        match self.context.event_loop.request(offer).await.map_err(ApiError::from)? {
            Outcome::Offered { declined } => Ok(Response::new(v1::OfferCheckpointResponse { declined })),
            other => Err(ApiError::Internal(format!("the answer was {other:?}")).into()),
        }
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let node = Caller::node_of(&request)?;
        let v1::CommitCheckpointRequest { manifest, self_test } = request.into_inner();
        let (id, manifest) = convert::checkpoint_manifest(&manifest).map_err(ApiError::Field)?;
        let self_test = self_test.map(SelfTest::try_from).transpose();
        let self_test = self_test.map_err(|error| ApiError::Field(error.within("self_test")))?.map(Box::new);
        self.context.check_blobs(manifest.files.iter().map(|file| (file.blob, file.size_bytes)))?;
        let (node, manifest) =
            if faults::strikes("mutant::fencing") { self.unfenced(node, manifest) } else { (node, manifest) };
        let commit = Change::CommitCheckpoint { node, manifest: Box::new(manifest), self_test };
        match self.context.event_loop.request(commit).await {
            Ok(_) => Ok(Response::new(v1::CommitCheckpointResponse { checkpoint: id.to_string() })),
            // To the agent an ended job is a job that it has no lease of any more.
            Err(RequestError::Rejected(ended @ Rejected::AlreadyEnded { .. })) => {
                Err(Status::aborted(ended.to_string()))
            }
            Err(error) => Err(ApiError::from(error).into()),
        }
    }
}

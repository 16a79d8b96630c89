//! The service for agents.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
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
use hatchery_scheduler::{Certificate, Command, CommitCheckpoint, Join, OfferCheckpoint, Rejected, Renew};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    authorization::{self, Caller},
    context::Context,
    error::ApiError,
};
use crate::{core::handle::CommandError, sessions::session};

/// The service for agents.
#[derive(Clone, Debug)]
pub(crate) struct AgentsService {
    pub(crate) context: Arc<Context>,
}

#[tonic::async_trait]
impl v1::agents_server::Agents for AgentsService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        Ok(Response::new(self.join(request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let old = Caller::of(&request)?.certificate;
        let renew = Renew { old, new: CertificateId::random() };
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
        Ok(Response::new(self.dataset_manifest(request.into_inner())?))
    }

    async fn get_checkpoint_manifest(
        &self,
        request: Request<v1::GetCheckpointManifestRequest>,
    ) -> Result<Response<v1::GetCheckpointManifestResponse>, Status> {
        Ok(Response::new(self.checkpoint_manifest(request.into_inner())?))
    }

    async fn offer_checkpoint(
        &self,
        request: Request<v1::OfferCheckpointRequest>,
    ) -> Result<Response<v1::OfferCheckpointResponse>, Status> {
        let node = Caller::node_of(&request)?;
        Ok(Response::new(self.offer_checkpoint(node, request.into_inner()).await?))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let node = Caller::node_of(&request)?;
        match self.commit_checkpoint(node, request.into_inner()).await {
            // To the agent an ended job is a job that it has no lease of any more.
            Err(ApiError::Command(CommandError::Rejected(ended @ Rejected::AlreadyEnded { .. }))) => {
                Err(Status::aborted(ended.to_string()))
            }
            result => Ok(Response::new(result?)),
        }
    }
}

impl AgentsService {
    async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinResponse, ApiError> {
        let secret = JoinSecret::from_slice("secret", &request.secret)?.digest();
        let name = Name::new("name", &request.name)?;
        let labels = convert::labels("labels", &request.labels)?;
        if !self.context.event_loop.snapshot().cluster.tokens.contains_key(&secret) {
            // A stranger costs no signature and no place in the queue.
            return Err(Rejected::BadToken.into());
        }
        let (certificate, node) = (CertificateId::random(), NodeId::random());
        let join = Join { secret, certificate, node, name, labels };
        let (certificate, certificate_pem) = self.certify(join, &request.certificate_request_pem).await?;
        tracing::info!(name = %certificate.name, scope = ?certificate.scope, "joined");
        Ok(v1::JoinResponse {
            certificate_pem,
            authority_pem: self.context.authority.certificate_pem().to_owned(),
            name: certificate.name.to_string(),
            node: certificate.node.map(|node| node.to_string()),
        })
    }

    /// Enters a certificate into the records, then signs it.
    async fn certify(
        &self,
        command: impl Command<Outcome = Certificate> + Send + 'static,
        request_pem: &str,
    ) -> Result<(Certificate, String), ApiError> {
        // A key that cannot be signed is refused before a join string is used up for it.
        let nobody = Identity::new(Role::Viewer(Name::from_lossy("nobody")));
        self.context
            .authority
            .issue_client(&nobody, request_pem)
            .map_err(|error| FieldError::new("certificate_request_pem", error))?;
        let certificate = self.context.event_loop.command(command).await?;
        let identity = authorization::identity(&certificate)?;
        let pem = self.context.authority.issue_client(&identity, request_pem)?;
        Ok((certificate, pem))
    }

    fn dataset_manifest(
        &self,
        request: v1::GetDatasetManifestRequest,
    ) -> Result<v1::GetDatasetManifestResponse, ApiError> {
        let dataset: DatasetId = request.dataset.parse()?;
        let snapshot = self.context.event_loop.snapshot();
        let dataset = snapshot.cluster.datasets.get(&dataset);
        let dataset = dataset.ok_or(Rejected::NotFound { what: "dataset", id: request.dataset })?;
        let manifest = convert::dataset_manifest_bytes(&dataset.manifest);
        Ok(v1::GetDatasetManifestResponse { manifest })
    }

    fn checkpoint_manifest(
        &self,
        request: v1::GetCheckpointManifestRequest,
    ) -> Result<v1::GetCheckpointManifestResponse, ApiError> {
        let checkpoint: CheckpointId = request.checkpoint.parse()?;
        let snapshot = self.context.event_loop.snapshot();
        let checkpoint = snapshot.cluster.checkpoints.get(&checkpoint);
        let checkpoint =
            checkpoint.ok_or(Rejected::NotFound { what: "checkpoint", id: request.checkpoint })?;
        let manifest = convert::checkpoint_manifest_bytes(&checkpoint.manifest);
        let self_test = checkpoint.self_test.clone().map(Into::into);
        Ok(v1::GetCheckpointManifestResponse { manifest, self_test })
    }

    async fn offer_checkpoint(
        &self,
        node: NodeId,
        request: v1::OfferCheckpointRequest,
    ) -> Result<v1::OfferCheckpointResponse, ApiError> {
        let v1::OfferCheckpointRequest { job, epoch, step } = request;
        let job = job.parse()?;
        if faults::strikes("mutant::fencing") {
            return Ok(v1::OfferCheckpointResponse { declined: None });
        }
        let offer = OfferCheckpoint { node, job, epoch: Epoch(epoch), step };
        let declined = self.context.event_loop.command(offer).await?.declined;
        Ok(v1::OfferCheckpointResponse { declined })
    }

    async fn commit_checkpoint(
        &self,
        node: NodeId,
        request: v1::CommitCheckpointRequest,
    ) -> Result<v1::CommitCheckpointResponse, ApiError> {
        let (id, manifest) = convert::checkpoint_manifest(&request.manifest)?;
        let self_test = request.self_test.map(SelfTest::try_from).transpose();
        let self_test = self_test.map_err(|error| error.within("self_test"))?.map(Box::new);
        self.context.check_blobs(manifest.files.iter().map(|file| (file.blob, file.size_bytes)))?;
        let (node, manifest) =
            if faults::strikes("mutant::fencing") { self.unfenced(node, manifest) } else { (node, manifest) };
        let commit = CommitCheckpoint { node, manifest: Box::new(manifest), self_test };
        self.context.event_loop.command(commit).await?;
        Ok(v1::CommitCheckpointResponse { checkpoint: id.to_string() })
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

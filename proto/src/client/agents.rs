//! What agents ask for, and how anyone joins.

use futures::{Stream, StreamExt};
use hatchery_common::{
    checkpoint::CheckpointManifest,
    dataset::DatasetManifest,
    field::FieldError,
    id::{AttemptId, CheckpointId, DatasetId, Name, NodeId},
    recipe::Labels,
    self_test::SelfTest,
    session::{AgentMessage, CoordinatorMessage},
    tls::{CertificateRequest, Credentials, JoinString, KeyHash},
};
use tonic::transport::Channel;

use super::{Answers, CallError, LARGE_CALL_TIMEOUT, answer, answer_within, id, read};
use crate::{
    convert::{checkpoint_manifest, checkpoint_manifest_bytes, dataset_manifest, wire_labels},
    services::{CONTROL_MESSAGE_BYTES_MAX, LARGE_MESSAGE_BYTES_MAX},
    v1::{self, agents_client},
};

/// The service for agents.
#[derive(Clone, Debug)]
pub struct AgentsClient(agents_client::AgentsClient<Channel>);

impl AgentsClient {
    /// Over a connection to the coordinator.
    pub fn over(channel: Channel) -> Self {
        let client = agents_client::AgentsClient::new(channel)
            .max_decoding_message_size(LARGE_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
        Self(client)
    }

    /// Uses up a join string, over a connection that was checked against it. The private key is made here and stays here.
    /// `name` is a wish, granted where the string has no name of its own. Gives the credentials to keep, the name given
    /// and, for an agent, its node id.
    pub async fn join(
        &self,
        join: &JoinString,
        name: &Name,
        labels: &Labels,
    ) -> Result<(Credentials, Name, Option<NodeId>), CallError> {
        let own = CertificateRequest::generate().map_err(CallError::failed)?;
        let request = v1::JoinRequest {
            secret: join.secret.as_bytes().to_vec(),
            certificate_request_pem: own.request_pem.clone(),
            name: name.to_string(),
            labels: wire_labels(labels.clone()),
        };
        let response = answer(self.calls().join(request)).await?;
        let authority = KeyHash::of_certificate_pem(&response.authority_pem).map_err(CallError::failed)?;
        if authority != join.authority {
            let problem = "belongs to another authority than the one in the join string";
            return Err(CallError::unusable(FieldError::new("authority_pem", problem)));
        }
        let certificate = own.complete(response.certificate_pem).map_err(CallError::failed)?;
        let credentials = Credentials::new(join.addresses.clone(), &response.authority_pem, certificate);
        let name = Name::new("name", &response.name).map_err(CallError::unusable)?;
        let node = response.node.as_deref().map(|node| id("node", node)).transpose()?;
        Ok((credentials, name, node))
    }

    fn calls(&self) -> agents_client::AgentsClient<Channel> {
        self.0.clone()
    }

    /// The same credentials with a new key and a new certificate; save them, then connect with them.
    pub async fn renew(&self, credentials: &Credentials) -> Result<Credentials, CallError> {
        let own = CertificateRequest::generate().map_err(CallError::failed)?;
        let request = v1::RenewRequest { certificate_request_pem: own.request_pem.clone() };
        let response = answer(self.calls().renew(request)).await?;
        let certificate = own.complete(response.certificate_pem).map_err(CallError::failed)?;
        Ok(Credentials::new(credentials.addresses.clone(), &credentials.authority_pem, certificate))
    }

    /// Opens the session: `messages` go to the coordinator as they come, its own come back. It lasts until `messages`
    /// end, the coordinator ends it, or the connection is lost. Kinds of message that this version does not know are
    /// left out.
    pub async fn session(
        &self,
        messages: impl Stream<Item = AgentMessage> + Send + 'static,
    ) -> Result<Answers<CoordinatorMessage>, CallError> {
        let stream = self.calls().session(messages.map(v1::SessionRequest::from)).await?.into_inner();
        let known = stream.filter_map(|response| async {
            match response {
                Ok(v1::SessionResponse { message: None }) => None,
                Ok(response) => Some(read(response)),
                Err(status) => Some(Err(CallError::from(status))),
            }
        });
        Ok(known.boxed())
    }

    /// The files of a dataset; the answer is checked against the id.
    pub async fn dataset_manifest(&self, dataset: DatasetId) -> Result<DatasetManifest, CallError> {
        let request = v1::GetDatasetManifestRequest { dataset: dataset.to_string() };
        let response = answer_within(LARGE_CALL_TIMEOUT, self.calls().get_dataset_manifest(request)).await?;
        let manifest = dataset_manifest(&response.manifest).map_err(CallError::unusable)?;
        if manifest.id() != dataset {
            return Err(CallError::unusable(FieldError::new("manifest", "belongs to another dataset")));
        }
        Ok(manifest)
    }

    /// What a checkpoint is made of, and what it answered on the node that made it; the answer is checked against the id.
    pub async fn checkpoint_manifest(
        &self,
        checkpoint: CheckpointId,
    ) -> Result<(CheckpointManifest, Option<SelfTest>), CallError> {
        let request = v1::GetCheckpointManifestRequest { checkpoint: checkpoint.to_string() };
        let response = answer(self.calls().get_checkpoint_manifest(request)).await?;
        let (id, manifest) = checkpoint_manifest(&response.manifest).map_err(CallError::unusable)?;
        if id != checkpoint {
            return Err(CallError::unusable(FieldError::new("manifest", "belongs to another checkpoint")));
        }
        let self_test = response.self_test.map(SelfTest::try_from).transpose();
        Ok((manifest, self_test.map_err(|error| CallError::unusable(error.within("self_test")))?))
    }

    /// Whether a checkpoint of this attempt and step is wanted; if not, why. [`CallError::NotFound`]: the coordinator knows
    /// no such job.
    pub async fn offer_checkpoint(
        &self,
        attempt: AttemptId,
        step: u64,
    ) -> Result<Result<(), String>, CallError> {
        let AttemptId { job, epoch } = attempt;
        let request = v1::OfferCheckpointRequest { job: job.to_string(), epoch: epoch.0, step };
        let response = answer(self.calls().offer_checkpoint(request)).await?;
        Ok(response.declined.map_or(Ok(()), Err))
    }

    /// Commits a checkpoint whose blobs have been put, with what it answers here. [`CallError::Refused`]: blobs are missing, the epoch was not this
    /// node's, or the job has come further meanwhile.
    pub async fn commit_checkpoint(
        &self,
        manifest: &CheckpointManifest,
        self_test: Option<SelfTest>,
    ) -> Result<CheckpointId, CallError> {
        let manifest = checkpoint_manifest_bytes(manifest);
        let request = v1::CommitCheckpointRequest { manifest, self_test: self_test.map(Into::into) };
        let response = answer(self.calls().commit_checkpoint(request)).await?;
        id("checkpoint", &response.checkpoint)
    }
}

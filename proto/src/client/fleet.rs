//! What people ask for.

use std::time::Duration;

use hatchery_common::{
    access::{Certificate, Scope},
    dataset::DatasetManifest,
    generate::{GenerationPart, SamplingParams, StopStrings},
    id::{Epoch, Name, RequestId, RolloutId},
    node::NodeMode,
    recipe::{JobSpec, Labels, NodeSelector, Priority},
    time::Timestamp,
    view::{
        CheckpointView, DatasetView, EventView, JobView, NodeView, PlacementView, RolloutView, StatusView,
        WithdrawnView,
    },
};
use tonic::transport::Channel;

use super::{Answers, CallError, LARGE_CALL_TIMEOUT, answer, answer_within, answers, id, part, parts, read};
use crate::{
    convert::{dataset_manifest_bytes, scope_number, wire_labels},
    services::LARGE_MESSAGE_BYTES_MAX,
    v1::{self, fleet_client},
};

/// What a model is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateCall {
    /// Id, unique prefix, a job (what is active of it), or `latest`.
    pub checkpoint: String,
    /// A node's name or id; none: any that holds it.
    pub node: Option<String>,
    /// The bytes before; at most 64 KiB.
    pub prompt: Vec<u8>,
    /// Most new bytes.
    pub max_bytes: u32,
    /// How they are chosen.
    pub sampling: SamplingParams,
    /// Strings at which the answer ends.
    pub stop: StopStrings,
}

/// A checkpoint for nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushCall {
    /// Id, unique prefix, a job (its newest), or `latest`.
    pub checkpoint: String,
    /// The nodes.
    pub to: NodeSelector,
    /// Whether it is to answer for its job there.
    pub activate: bool,
    /// How fast each node may fetch it at most, in bytes per second; none: as fast as it can.
    pub bytes_per_sec_max: Option<u64>,
}

/// What a join string is to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCall {
    /// For whom.
    pub scope: Scope,
    /// Name for the node or the person; none: the joiner's own wish.
    pub name: Option<Name>,
    /// Labels for the node.
    pub labels: Labels,
    /// How long it is good for, a minute to 30 days; none: one day.
    pub valid: Option<Duration>,
}

/// The service for people. Jobs, nodes and checkpoints are named by id, unique prefix or name; `latest` is the newest.
#[derive(Clone, Debug)]
pub struct FleetClient(fleet_client::FleetClient<Channel>);

impl FleetClient {
    /// Over a connection to the coordinator.
    pub fn over(channel: Channel) -> Self {
        let client = fleet_client::FleetClient::new(channel)
            .max_decoding_message_size(LARGE_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(LARGE_MESSAGE_BYTES_MAX);
        Self(client)
    }

    fn calls(&self) -> fleet_client::FleetClient<Channel> {
        self.0.clone()
    }

    /// The coordinator's version and state.
    pub async fn status(&self) -> Result<StatusView, CallError> {
        read(answer(self.calls().get_status(v1::GetStatusRequest {})).await?)
    }

    /// Registers a dataset whose blobs have been put.
    pub async fn create_dataset(&self, manifest: &DatasetManifest) -> Result<DatasetView, CallError> {
        let request = v1::CreateDatasetRequest { manifest: dataset_manifest_bytes(manifest) };
        let response = answer_within(LARGE_CALL_TIMEOUT, self.calls().create_dataset(request)).await?;
        part("dataset", response.dataset)
    }

    /// All datasets.
    pub async fn datasets(&self) -> Result<Vec<DatasetView>, CallError> {
        parts("datasets", answer(self.calls().list_datasets(v1::ListDatasetsRequest {})).await?.datasets)
    }

    /// Submits a job. When this returns, the job is durable. The same request id and spec give the same job; the flag
    /// says whether an earlier call has made it.
    pub async fn submit(&self, request: RequestId, spec: &JobSpec) -> Result<(JobView, bool), CallError> {
        let request =
            v1::SubmitJobRequest { request_id: request.to_string(), spec: Some(spec.clone().into()) };
        let response = answer(self.calls().submit_job(request)).await?;
        Ok((part("job", response.job)?, response.duplicate))
    }

    /// The jobs that have not ended, or `all`, newest first.
    pub async fn jobs(&self, all: bool) -> Result<Vec<JobView>, CallError> {
        parts("jobs", answer(self.calls().list_jobs(v1::ListJobsRequest { all })).await?.jobs)
    }

    /// One job.
    pub async fn job(&self, job: &str) -> Result<JobView, CallError> {
        let request = v1::GetJobRequest { job: job.to_owned() };
        part("job", answer(self.calls().get_job(request)).await?.job)
    }

    /// The job as it is, then again whenever it has changed, until it has ended.
    pub async fn watch_job(&self, job: &str) -> Result<Answers<JobView>, CallError> {
        let request = v1::WatchJobRequest { job: job.to_owned() };
        let stream = self.calls().watch_job(request).await?.into_inner();
        Ok(answers(stream, |response| part("job", response.job)))
    }

    /// Stops a job, through a checkpoint if it runs, until it is resumed.
    pub async fn pause(&self, job: &str) -> Result<JobView, CallError> {
        let request = v1::PauseJobRequest { job: job.to_owned() };
        part("job", answer(self.calls().pause_job(request)).await?.job)
    }

    /// Lets a paused job wait for a device again.
    pub async fn resume(&self, job: &str) -> Result<JobView, CallError> {
        let request = v1::ResumeJobRequest { job: job.to_owned() };
        part("job", answer(self.calls().resume_job(request)).await?.job)
    }

    /// Sends a running job back to the queue, through a checkpoint.
    pub async fn requeue(&self, job: &str) -> Result<JobView, CallError> {
        let request = v1::RequeueJobRequest { job: job.to_owned() };
        part("job", answer(self.calls().requeue_job(request)).await?.job)
    }

    /// Gives a job another priority.
    pub async fn set_priority(&self, job: &str, priority: Priority) -> Result<JobView, CallError> {
        let request = v1::SetJobPriorityRequest { job: job.to_owned(), priority: priority.get().into() };
        part("job", answer(self.calls().set_job_priority(request)).await?.job)
    }

    /// Every device as a place for a job.
    pub async fn placement(&self, job: &str) -> Result<PlacementView, CallError> {
        self.explain(v1::explain_placement_request::What::Job(job.to_owned())).await
    }

    /// Every device as a place for a job that nobody has submitted.
    pub async fn dry_run(&self, spec: &JobSpec) -> Result<PlacementView, CallError> {
        self.explain(v1::explain_placement_request::What::Spec(spec.clone().into())).await
    }

    async fn explain(&self, what: v1::explain_placement_request::What) -> Result<PlacementView, CallError> {
        read(answer(self.calls().explain_placement(v1::ExplainPlacementRequest { what: Some(what) })).await?)
    }

    /// Chooses whether a node is given work.
    pub async fn set_node_mode(&self, node: &str, mode: NodeMode) -> Result<NodeView, CallError> {
        let request = v1::SetNodeModeRequest { node: node.to_owned(), mode: mode.name().to_owned() };
        part("node", answer(self.calls().set_node_mode(request)).await?.node)
    }

    /// Stops a job, through a checkpoint if it runs.
    pub async fn cancel(&self, job: &str) -> Result<JobView, CallError> {
        let request = v1::CancelJobRequest { job: job.to_owned() };
        part("job", answer(self.calls().cancel_job(request)).await?.job)
    }

    /// What the trainers wrote to stderr, with the attempt that wrote it.
    pub async fn logs(&self, job: &str, follow: bool) -> Result<Answers<(Epoch, Vec<u8>)>, CallError> {
        let request = v1::ReadLogsRequest { job: job.to_owned(), follow };
        let stream = self.calls().read_logs(request).await?.into_inner();
        Ok(answers(stream, |response| Ok((Epoch(response.epoch), response.text))))
    }

    /// The fleet's events with a number above `after`, of one job or of all; then on as they happen, if asked to `follow`.
    pub async fn events(
        &self,
        after: u64,
        follow: bool,
        job: Option<&str>,
    ) -> Result<Answers<EventView>, CallError> {
        let request = v1::WatchEventsRequest { after, follow, job: job.map(str::to_owned) };
        let stream = self.calls().watch_events(request).await?.into_inner();
        Ok(answers(stream, |response| part("event", response.event)))
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, CallError> {
        parts("nodes", answer(self.calls().list_nodes(v1::ListNodesRequest {})).await?.nodes)
    }

    /// One node.
    pub async fn node(&self, node: &str) -> Result<NodeView, CallError> {
        let request = v1::GetNodeRequest { node: node.to_owned() };
        part("node", answer(self.calls().get_node(request)).await?.node)
    }

    /// Takes a node out of the fleet and revokes its certificates.
    pub async fn remove_node(&self, node: &str) -> Result<(), CallError> {
        let request = v1::RemoveNodeRequest { node: node.to_owned() };
        answer(self.calls().remove_node(request)).await.map(drop)
    }

    /// The checkpoints of one job or of all, newest first.
    pub async fn checkpoints(&self, job: Option<&str>) -> Result<Vec<CheckpointView>, CallError> {
        let request = v1::ListCheckpointsRequest { job: job.map(str::to_owned) };
        parts("checkpoints", answer(self.calls().list_checkpoints(request)).await?.checkpoints)
    }

    /// One checkpoint.
    pub async fn checkpoint(&self, checkpoint: &str) -> Result<CheckpointView, CallError> {
        let request = v1::GetCheckpointRequest { checkpoint: checkpoint.to_owned() };
        part("checkpoint", answer(self.calls().get_checkpoint(request)).await?.checkpoint)
    }

    /// Wishes a checkpoint on nodes.
    pub async fn push(&self, call: &PushCall) -> Result<(RolloutId, CheckpointView), CallError> {
        let request = v1::PushCheckpointRequest {
            checkpoint: call.checkpoint.clone(),
            to: Some(call.to.clone().into()),
            activate: call.activate,
            bytes_per_sec_max: call.bytes_per_sec_max,
        };
        let response = answer(self.calls().push_checkpoint(request)).await?;
        Ok((id("rollout_id", &response.rollout_id)?, part("checkpoint", response.checkpoint)?))
    }

    /// Takes the newest activating rollout of a job that reaches one of these nodes back from them.
    pub async fn roll_back(&self, job: &str, from: &NodeSelector) -> Result<WithdrawnView, CallError> {
        self.withdraw_which(v1::withdraw_rollout_request::Which::Job(job.to_owned()), from).await
    }

    /// Takes a rollout back from these nodes, by its id or a unique prefix of it.
    pub async fn withdraw(&self, rollout: &str, from: &NodeSelector) -> Result<WithdrawnView, CallError> {
        self.withdraw_which(v1::withdraw_rollout_request::Which::Rollout(rollout.to_owned()), from).await
    }

    async fn withdraw_which(
        &self,
        which: v1::withdraw_rollout_request::Which,
        from: &NodeSelector,
    ) -> Result<WithdrawnView, CallError> {
        read(
            answer(self.calls().withdraw_rollout(v1::WithdrawRolloutRequest {
                which: Some(which),
                from: Some(from.clone().into()),
            }))
            .await?,
        )
    }

    /// The rollouts in force, or `all`, newest first; those of jobs' policies among them.
    pub async fn rollouts(&self, all: bool) -> Result<Vec<RolloutView>, CallError> {
        parts("rollouts", answer(self.calls().list_rollouts(v1::ListRolloutsRequest { all })).await?.rollouts)
    }

    /// Keeps a checkpoint whatever its job's policy says, or no longer.
    pub async fn pin(&self, checkpoint: &str, is_pinned: bool) -> Result<CheckpointView, CallError> {
        let request = v1::PinCheckpointRequest { checkpoint: checkpoint.to_owned(), is_pinned };
        part("checkpoint", answer(self.calls().pin_checkpoint(request)).await?.checkpoint)
    }

    /// Asks a model for new bytes, given out as they are made: who answers, the bytes, the figures.
    pub async fn generate(&self, call: &GenerateCall) -> Result<Answers<GenerationPart>, CallError> {
        let request = v1::GenerateRequest {
            checkpoint: call.checkpoint.clone(),
            node: call.node.clone(),
            prompt: call.prompt.clone(),
            max_bytes: call.max_bytes,
            sampling: Some(call.sampling.into()),
            stop: call.stop.clone().into(),
        };
        let stream = self.calls().generate(request).await?.into_inner();
        Ok(answers(stream, read))
    }

    /// Makes a one-time join string, and says until when it is good.
    pub async fn create_token(&self, call: &TokenCall) -> Result<(String, Timestamp), CallError> {
        let request = v1::CreateTokenRequest {
            scope: scope_number(call.scope),
            name: call.name.as_ref().map(ToString::to_string),
            labels: wire_labels(call.labels.clone()),
            valid_secs: call.valid.map_or(0, |valid| valid.as_secs()),
        };
        let response = answer(self.calls().create_token(request)).await?;
        Ok((response.join_string, Timestamp(response.expires_at_ms)))
    }

    /// All certificates that were given out.
    pub async fn certificates(&self) -> Result<Vec<Certificate>, CallError> {
        let response = answer(self.calls().list_certificates(v1::ListCertificatesRequest {})).await?;
        parts("certificates", response.certificates)
    }

    /// Makes a certificate worthless, by its id or a unique prefix of it.
    pub async fn revoke_certificate(&self, certificate: &str) -> Result<Certificate, CallError> {
        let request = v1::RevokeCertificateRequest { certificate: certificate.to_owned() };
        part("certificate", answer(self.calls().revoke_certificate(request)).await?.certificate)
    }
}

//! The service for people.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hatchery_common::{
    digest::Digest,
    faults,
    field::{FieldError, check_range},
    generate::{GenerationOrder, GenerationPart, SamplingParams, StopStrings},
    id::{CheckpointId, JobId, Name, RequestId, RolloutId},
    node::NodeMode,
    recipe::{JobSpec, NodeSelector},
    session::AnswerPart,
    time::{BootTime, Timestamp},
    tls::{JoinSecret, JoinString},
    view::NodeView,
};
use hatchery_proto::{convert, v1};
use hatchery_scheduler::{Node, Outcome, Request as Change};
use tonic::{Request, Response, Status};

use super::ResponseStream;
use crate::{
    api::{
        authorization::Caller,
        context::Context,
        error::ApiError,
        lookup::{self, Asked},
        routing, watch,
    },
    collect,
    core::handle::Snapshot,
    sessions::generations::{GenerateError, Generation},
    views::{self, event::node_name, placement, rollouts},
};

/// How long a join string is good, in seconds: least, most, and unless told otherwise.
const TOKEN_SECS: (u64, u64, u64) = (60, 30 * 86_400, 86_400);

/// The service for people.
#[derive(Clone, Debug)]
pub(crate) struct FleetService {
    pub(crate) context: Arc<Context>,
}

impl FleetService {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.context.event_loop.snapshot()
    }

    fn node_view(&self, snapshot: &Snapshot, node: &Node, now: BootTime) -> NodeView {
        let name = |node| Name::from_lossy(&node_name(&snapshot.cluster, node));
        views::node(snapshot, node, self.context.tracking.standing(node.id, name), now)
    }

    async fn change(&self, change: Change) -> Result<Outcome, ApiError> {
        Ok(self.context.event_loop.request(change).await?)
    }

    fn job(&self, id: JobId) -> Result<v1::Job, ApiError> {
        let snapshot = self.snapshot();
        let job = lookup::job(&snapshot.cluster, &id.to_string())?;
        Ok(views::job(&snapshot, job).into())
    }

    fn job_id(&self, given: &str) -> Result<JobId, ApiError> {
        Ok(lookup::job(&self.snapshot().cluster, given)?.id)
    }

    fn checkpoint(&self, id: CheckpointId) -> Result<v1::Checkpoint, ApiError> {
        let snapshot = self.snapshot();
        let id = lookup::checkpoint(&snapshot.cluster, &id.to_string())?;
        Ok(views::checkpoint(
            &snapshot,
            &views::Places::of(&snapshot.cluster),
            id,
            &snapshot.cluster.checkpoints[&id],
        )
        .into())
    }

    /// Finds a node that answers, and asks it.
    async fn ask(&self, request: v1::GenerateRequest) -> Result<(GenerationPart, Generation), ApiError> {
        let snapshot = self.snapshot();
        let cluster = &snapshot.cluster;
        let asked = lookup::asked(cluster, &request.checkpoint)?;
        let given = request.node.as_deref().map(|node| lookup::node(cluster, node)).transpose()?;
        let active = match asked {
            Asked::Checkpoint(_) => None,
            Asked::Job(job) => routing::choose_active(&snapshot, job, given),
        };
        let checkpoint = match active {
            Some((_, checkpoint)) => checkpoint,
            None => lookup::checkpoint(cluster, &request.checkpoint)?,
        };
        let sampling = request.sampling.map(SamplingParams::try_from).transpose();
        let sampling = sampling.map_err(|error| error.within("sampling"))?.unwrap_or_default();
        let stop = StopStrings::new(request.stop)?;
        let (prompt, max_bytes) = (request.prompt, request.max_bytes);
        let order = GenerationOrder { checkpoint, prompt, max_bytes, sampling, stop };
        order.check()?;
        let node = match active {
            Some((node, _)) => node,
            None => routing::choose(&snapshot, checkpoint, given)?,
        };
        let name = node_name(cluster, node);
        let outbox = self.context.sessions.outbox(node);
        let outbox = outbox.ok_or_else(|| GenerateError::NodeLeft { node: name.clone() })?;
        let answer = self.context.generations.ask(outbox, name.clone(), order).await?;
        Ok((GenerationPart::Chosen { node, node_name: Name::from_lossy(&name), checkpoint }, answer))
    }
}

/// The parts of an answer up to its end.
fn parts(answer: Generation) -> impl futures::Stream<Item = Result<GenerationPart, GenerateError>> {
    stream::try_unfold(Some(answer), |answer| async move {
        let Some(mut answer) = answer else { return Ok(None) };
        Ok(match answer.next().await? {
            AnswerPart::Text(bytes) => Some((GenerationPart::Text { bytes }, Some(answer))),
            AnswerPart::Finished(figures) => Some((GenerationPart::Finished(figures), None)),
            AnswerPart::Failed(_) => None,
        })
    })
}

fn needed<W, D: TryFrom<W, Error = FieldError>>(field: &str, part: Option<W>) -> Result<D, ApiError> {
    let part = part.ok_or_else(|| FieldError::new(field, "is missing"))?;
    Ok(D::try_from(part).map_err(|error| error.within(field))?)
}

#[tonic::async_trait]
impl v1::fleet_server::Fleet for FleetService {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let blobs = collect::view(&self.context);
        Ok(Response::new(views::status(&self.snapshot(), self.context.started_at, blobs).into()))
    }

    async fn create_dataset(
        &self,
        request: Request<v1::CreateDatasetRequest>,
    ) -> Result<Response<v1::CreateDatasetResponse>, Status> {
        let manifest = convert::dataset_manifest(&request.into_inner().manifest).map_err(ApiError::Field)?;
        let id = manifest.id();
        self.context.check_blobs(manifest.files().iter().map(|file| (file.blob, file.size_bytes)))?;
        self.change(Change::RegisterDataset { manifest }).await?;
        let dataset = self.snapshot().cluster.datasets.get(&id).map(|dataset| views::dataset(dataset).into());
        Ok(Response::new(v1::CreateDatasetResponse { dataset }))
    }

    async fn list_datasets(
        &self,
        _: Request<v1::ListDatasetsRequest>,
    ) -> Result<Response<v1::ListDatasetsResponse>, Status> {
        let snapshot = self.snapshot();
        let mut datasets: Vec<_> = snapshot.cluster.datasets.values().collect();
        datasets.sort_by_key(|dataset| std::cmp::Reverse(dataset.registered_at));
        let datasets = datasets.into_iter().map(|dataset| views::dataset(dataset).into()).collect();
        Ok(Response::new(v1::ListDatasetsResponse { datasets }))
    }

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let submitter = Caller::of(&request)?.name;
        let request = request.into_inner();
        let id: RequestId = request
            .request_id
            .parse()
            .map_err(|error: FieldError| ApiError::from(FieldError::new("request_id", error.problem)))?;
        let id = if faults::strikes("mutant::request_deduplication") { RequestId::random() } else { id };
        let spec: JobSpec = needed("spec", request.spec)?;
        let body = serde_json::to_vec(&spec).map_err(|error| Status::internal(error.to_string()))?;
        let submit = Change::Submit {
            request: id,
            job: JobId::random(),
            body: Digest::of(&body),
            spec: Box::new(spec),
            submitter,
        };
        match self.change(submit).await? {
            Outcome::Submitted { job, duplicate } => {
                Ok(Response::new(v1::SubmitJobResponse { job: Some(self.job(job)?), duplicate }))
            }
            other => Err(Status::internal(format!("the answer was {other:?}"))),
        }
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let all = request.into_inner().all;
        let snapshot = self.snapshot();
        let jobs = snapshot.cluster.jobs.values().filter(|job| all || !job.phase.is_terminal());
        let mut jobs: Vec<_> = jobs.collect();
        jobs.sort_by_key(|job| std::cmp::Reverse((job.submitted_at, job.id)));
        let jobs = jobs.into_iter().map(|job| views::job(&snapshot, job).into()).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let id = self.job_id(&request.into_inner().job)?;
        Ok(Response::new(v1::GetJobResponse { job: Some(self.job(id)?) }))
    }

    type WatchJobStream = ResponseStream<v1::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let id = self.job_id(&request.into_inner().job)?;
        let jobs = watch::job(&self.context, id)
            .map_ok(|(job, event_number)| v1::WatchJobResponse { job: Some(job.into()), event_number });
        Ok(Response::new(jobs.boxed()))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let job = self.job_id(&request.into_inner().job)?;
        self.change(Change::Cancel { job, by }).await?;
        Ok(Response::new(v1::CancelJobResponse { job: Some(self.job(job)?) }))
    }

    async fn pause_job(
        &self,
        request: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let job = self.job_id(&request.into_inner().job)?;
        self.change(Change::Pause { job, by }).await?;
        Ok(Response::new(v1::PauseJobResponse { job: Some(self.job(job)?) }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let job = self.job_id(&request.into_inner().job)?;
        self.change(Change::Resume { job, by }).await?;
        Ok(Response::new(v1::ResumeJobResponse { job: Some(self.job(job)?) }))
    }

    async fn requeue_job(
        &self,
        request: Request<v1::RequeueJobRequest>,
    ) -> Result<Response<v1::RequeueJobResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let job = self.job_id(&request.into_inner().job)?;
        self.change(Change::Requeue { job, by }).await?;
        Ok(Response::new(v1::RequeueJobResponse { job: Some(self.job(job)?) }))
    }

    async fn set_job_priority(
        &self,
        request: Request<v1::SetJobPriorityRequest>,
    ) -> Result<Response<v1::SetJobPriorityResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let request = request.into_inner();
        let priority = convert::priority(request.priority).map_err(ApiError::Field)?;
        let job = self.job_id(&request.job)?;
        self.change(Change::SetPriority { job, priority, by }).await?;
        Ok(Response::new(v1::SetJobPriorityResponse { job: Some(self.job(job)?) }))
    }

    async fn explain_placement(
        &self,
        request: Request<v1::ExplainPlacementRequest>,
    ) -> Result<Response<v1::ExplainPlacementResponse>, Status> {
        let submitter = Caller::of(&request)?.name;
        let what = request.into_inner().what;
        let what = what.ok_or_else(|| ApiError::Field(FieldError::new("what", "give a job or a spec")))?;
        let snapshot = self.snapshot();
        let placement = match what {
            v1::explain_placement_request::What::Job(job) => {
                placement::of_job(&snapshot, lookup::job(&snapshot.cluster, &job).map_err(ApiError::from)?.id)
            }
            v1::explain_placement_request::What::Spec(spec) => {
                let spec: JobSpec = needed("spec", Some(spec))?;
                placement::of_spec(&snapshot, spec, submitter).map_err(ApiError::from)?
            }
        };
        Ok(Response::new(placement.into()))
    }

    type ReadLogsStream = ResponseStream<v1::ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        let job = self.job_id(&request.job)?;
        let lines = watch::logs(&self.context, job, request.follow)
            .map_ok(|(epoch, text)| v1::ReadLogsResponse { epoch: epoch.0, text });
        Ok(Response::new(lines.boxed()))
    }

    type WatchEventsStream = ResponseStream<v1::WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let job = request.job.as_deref().map(|job| self.job_id(job)).transpose()?;
        let events = watch::events(&self.context, request.after, request.follow, job)
            .map_ok(|event| v1::WatchEventsResponse { event: Some(event.into()) });
        Ok(Response::new(events.boxed()))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let (snapshot, now) = (self.snapshot(), BootTime::now());
        let mut nodes: Vec<_> = snapshot.cluster.nodes.values().collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let nodes = nodes.into_iter().map(|node| self.node_view(&snapshot, node, now).into()).collect();
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let snapshot = self.snapshot();
        let id = lookup::node(&snapshot.cluster, &request.into_inner().node).map_err(ApiError::from)?;
        let node = self.node_view(&snapshot, &snapshot.cluster.nodes[&id], BootTime::now());
        Ok(Response::new(v1::GetNodeResponse { node: Some(node.into()) }))
    }

    async fn set_node_mode(
        &self,
        request: Request<v1::SetNodeModeRequest>,
    ) -> Result<Response<v1::SetNodeModeResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let request = request.into_inner();
        let mode = request.mode.parse().map_err(ApiError::Field)?;
        let node = lookup::node(&self.snapshot().cluster, &request.node).map_err(ApiError::from)?;
        self.change(Change::SetNodeMode { node, mode, by }).await?;
        if mode == NodeMode::Open {
            // Whoever opens it has looked at it: what it sent wrong before is forgiven.
            self.context.tracking.trust(node);
        }
        let snapshot = self.snapshot();
        let shown = snapshot.cluster.nodes.get(&node);
        let shown = shown.map(|node| self.node_view(&snapshot, node, BootTime::now()).into());
        Ok(Response::new(v1::SetNodeModeResponse { node: shown }))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let given = request.into_inner().node;
        let snapshot = self.snapshot();
        let node = lookup::node(&snapshot.cluster, &given).map_err(ApiError::from)?;
        self.change(Change::RemoveNode { node, lease: snapshot.observed().lease }).await?;
        Ok(Response::new(v1::RemoveNodeResponse {}))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let job = request.into_inner().job.map(|job| self.job_id(&job)).transpose()?;
        let snapshot = self.snapshot();
        let wanted = snapshot.cluster.checkpoints.iter();
        let mut checkpoints: Vec<_> =
            wanted.filter(|(_, one)| job.is_none_or(|job| one.manifest.job == job)).collect();
        checkpoints.sort_by_key(|(_, one)| std::cmp::Reverse((one.committed_at, one.manifest.step)));
        let places = views::Places::of(&snapshot.cluster);
        let checkpoints = checkpoints
            .into_iter()
            .map(|(id, one)| views::checkpoint(&snapshot, &places, *id, one).into())
            .collect();
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let given = request.into_inner().checkpoint;
        let id = lookup::checkpoint(&self.snapshot().cluster, &given).map_err(ApiError::from)?;
        Ok(Response::new(v1::GetCheckpointResponse { checkpoint: Some(self.checkpoint(id)?) }))
    }

    async fn push_checkpoint(
        &self,
        request: Request<v1::PushCheckpointRequest>,
    ) -> Result<Response<v1::PushCheckpointResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let request = request.into_inner();
        let given = request.checkpoint;
        let checkpoint = lookup::checkpoint(&self.snapshot().cluster, &given).map_err(ApiError::from)?;
        let to: NodeSelector = needed("to", request.to)?;
        let rollout = RolloutId::random();
        let (activate, bytes_per_sec_max) = (request.activate, request.bytes_per_sec_max);
        self.change(Change::Push { rollout, checkpoint, to, activate, bytes_per_sec_max, by }).await?;
        Ok(Response::new(v1::PushCheckpointResponse {
            rollout_id: rollout.to_string(),
            checkpoint: Some(self.checkpoint(checkpoint)?),
        }))
    }

    async fn withdraw_rollout(
        &self,
        request: Request<v1::WithdrawRolloutRequest>,
    ) -> Result<Response<v1::WithdrawRolloutResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let v1::WithdrawRolloutRequest { which, from } = request.into_inner();
        let from: NodeSelector = needed("from", from)?;
        let missing = || ApiError::Field(FieldError::new("which", "give a job or a rollout"));
        let which = which.ok_or_else(missing)?;
        let before = self.snapshot();
        let withdraw = match which {
            v1::withdraw_rollout_request::Which::Job(job) => {
                Change::RollBack { job: self.job_id(&job)?, from: from.clone(), by }
            }
            v1::withdraw_rollout_request::Which::Rollout(given) => {
                let rollout = lookup::rollout(&self.snapshot().cluster, &given).map_err(ApiError::from)?;
                Change::Withdraw { rollout, from: from.clone(), by }
            }
        };
        match self.change(withdraw).await? {
            Outcome::Withdrawn { rollout } => {
                let after = self.snapshot();
                let on_record = |snapshot: &'_ Snapshot| snapshot.cluster.rollouts.get(&rollout).cloned();
                // Where very many are taken back at once, it may be off the record by now.
                let known = on_record(&after).or_else(|| on_record(&before));
                let known = known.ok_or_else(|| Status::internal("the rollout is gone"))?;
                Ok(Response::new(rollouts::withdrawn(&after, &known, &from).into()))
            }
            other => Err(Status::internal(format!("the answer was {other:?}"))),
        }
    }

    async fn list_rollouts(
        &self,
        request: Request<v1::ListRolloutsRequest>,
    ) -> Result<Response<v1::ListRolloutsResponse>, Status> {
        let rollouts = rollouts::list(&self.snapshot(), request.into_inner().all);
        let rollouts = rollouts.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::ListRolloutsResponse { rollouts }))
    }

    async fn pin_checkpoint(
        &self,
        request: Request<v1::PinCheckpointRequest>,
    ) -> Result<Response<v1::PinCheckpointResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let v1::PinCheckpointRequest { checkpoint, is_pinned } = request.into_inner();
        let checkpoint = lookup::checkpoint(&self.snapshot().cluster, &checkpoint).map_err(ApiError::from)?;
        let before = v1::Checkpoint { is_pinned, ..self.checkpoint(checkpoint)? };
        self.change(Change::Pin { checkpoint, is_pinned, by }).await?;
        // One that only its pin kept is gone by now.
        let checkpoint = self.checkpoint(checkpoint).unwrap_or(before);
        Ok(Response::new(v1::PinCheckpointResponse { checkpoint: Some(checkpoint) }))
    }

    type GenerateStream = ResponseStream<v1::GenerateResponse>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (chosen, answer) = self.ask(request.into_inner()).await?;
        let parts = stream::iter([Ok(chosen)]).chain(parts(answer));
        let parts = parts.map_ok(Into::into).map_err(|error| Status::from(ApiError::from(error)));
        Ok(Response::new(parts.boxed()))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let by = Caller::of(&request)?.name;
        let request = request.into_inner();
        let read = || {
            let scope = convert::scope(request.scope)?;
            let name = request.name.as_deref().map(|name| Name::new("name", name)).transpose()?;
            let labels = convert::labels("labels", &request.labels)?;
            let (least, most, default) = TOKEN_SECS;
            let secs = if request.valid_secs == 0 { default } else { request.valid_secs };
            let valid = Duration::from_secs(check_range("valid_secs", secs, least, most)?);
            Ok((scope, name, labels, valid))
        };
        let (scope, name, labels, valid) = read().map_err(ApiError::Field)?;
        let secret = JoinSecret::random();
        let expires_at = Timestamp::now() + valid;
        let digest = secret.digest();
        self.change(Change::CreateToken { secret: digest, scope, name, labels, by, expires_at }).await?;
        let authority = self.context.authority.key_hash();
        let addresses = self.context.addresses.clone();
        let join_string = JoinString { addresses, authority, secret, scope }.to_string();
        Ok(Response::new(v1::CreateTokenResponse { join_string, expires_at_ms: expires_at.0 }))
    }

    async fn list_certificates(
        &self,
        _: Request<v1::ListCertificatesRequest>,
    ) -> Result<Response<v1::ListCertificatesResponse>, Status> {
        let snapshot = self.snapshot();
        let mut certificates: Vec<_> = snapshot.cluster.certificates.values().collect();
        certificates.sort_by_key(|one| std::cmp::Reverse((one.issued_at, one.id)));
        let certificates = certificates.into_iter().map(|one| views::certificate(one).into()).collect();
        Ok(Response::new(v1::ListCertificatesResponse { certificates }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<v1::RevokeCertificateRequest>,
    ) -> Result<Response<v1::RevokeCertificateResponse>, Status> {
        let given = request.into_inner().certificate;
        let id = lookup::certificate(&self.snapshot().cluster, &given).map_err(ApiError::from)?;
        self.change(Change::RevokeCertificate { certificate: id }).await?;
        let certificate = views::certificate(&self.snapshot().cluster.certificates[&id]);
        Ok(Response::new(v1::RevokeCertificateResponse { certificate: Some(certificate.into()) }))
    }
}

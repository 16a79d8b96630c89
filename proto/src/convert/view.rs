//! What people are shown.

use hatchery_common::{
    access::{Certificate, Scope},
    device::Device,
    field::FieldError,
    id::{Epoch, Name},
    job::{Failure, JobPhase},
    placement::Candidate,
    recipe::{Reader, SpecError},
    session::ReplicaState,
    swarm::PEER_ADDRESSES_MAX,
    time::Timestamp,
    trainer::FailureCause,
    view::{
        BlobsView, CheckpointView, DatasetView, EventView, JobView, NodeView, PeersView, PlacementView,
        ReplicaView, RunningView, StatusView, WaitingView,
    },
};

use super::{
    enums::Enumeration,
    fields::{
        ENTRIES_MAX, OUTPUT_BYTES_MAX, at_most, each, head, labels, missing, name_optional, needed, optional,
        parsed, parsed_optional, short_text, wire_labels,
    },
    manifest::{checkpoint_manifest, checkpoint_manifest_bytes},
    node::{DEVICES_MAX, metrics, metrics_json},
    recipe::job_spec_in_part,
};
use crate::v1::{self, node, replica};

/// Most devices of a fleet.
const CANDIDATES_MAX: usize = 1_000_000;

fn milliseconds(time: Option<Timestamp>) -> Option<u64> {
    time.map(|time| time.0)
}

impl From<StatusView> for v1::GetStatusResponse {
    fn from(status: StatusView) -> Self {
        Self {
            version: status.version,
            started_at_ms: status.started_at.0,
            last_event: status.last_event,
            nodes_connected: status.nodes_connected,
            nodes: status.nodes,
            jobs_running: status.jobs_running,
            jobs_queued: status.jobs_queued,
            blobs: Some(status.blobs.into()),
            invariants_broken: status.invariants_broken,
            invariant_broken_last: status.invariant_broken_last,
        }
    }
}

impl TryFrom<v1::GetStatusResponse> for StatusView {
    type Error = FieldError;

    fn try_from(status: v1::GetStatusResponse) -> Result<Self, FieldError> {
        Ok(Self {
            version: status.version,
            started_at: Timestamp(status.started_at_ms),
            last_event: status.last_event,
            nodes_connected: status.nodes_connected,
            nodes: status.nodes,
            jobs_running: status.jobs_running,
            jobs_queued: status.jobs_queued,
            blobs: status.blobs.map(Into::into).unwrap_or_default(),
            invariants_broken: status.invariants_broken,
            invariant_broken_last: status.invariant_broken_last,
        })
    }
}

impl From<BlobsView> for v1::get_status_response::Blobs {
    fn from(blobs: BlobsView) -> Self {
        let BlobsView { count, bytes, unreferenced_bytes, unfinished_bytes, bytes_max, disk_free_bytes } =
            blobs;
        Self { count, bytes, unreferenced_bytes, unfinished_bytes, bytes_max, disk_free_bytes }
    }
}

impl From<v1::get_status_response::Blobs> for BlobsView {
    fn from(blobs: v1::get_status_response::Blobs) -> Self {
        let v1::get_status_response::Blobs {
            count,
            bytes,
            unreferenced_bytes,
            unfinished_bytes,
            bytes_max,
            disk_free_bytes,
        } = blobs;
        Self { count, bytes, unreferenced_bytes, unfinished_bytes, bytes_max, disk_free_bytes }
    }
}

impl From<JobView> for v1::Job {
    fn from(job: JobView) -> Self {
        Self {
            id: job.id.to_string(),
            spec: Some(job.spec.into()),
            submitter: job.submitter.into(),
            submitted_at_ms: job.submitted_at.0,
            phase: job.phase.name().to_owned(),
            why: job.why,
            epoch: job.epoch.0,
            node: job.node.map(Into::into),
            device: job.device.map(Into::into),
            started_at_ms: milliseconds(job.started_at),
            ended_at_ms: milliseconds(job.ended_at),
            activity: job.activity,
            running_on: job.running_on,
            progress: job.progress.map(Into::into),
            validation: job.validation.map(Into::into),
            checkpoint: job.checkpoint.map(|checkpoint| checkpoint.to_string()),
            best: job.best.map(|best| best.to_string()),
            checkpoint_step: job.checkpoint_step,
            metrics: Some(job.metrics.into()),
            failures: job.failures.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Job> for JobView {
    type Error = FieldError;

    fn try_from(job: v1::Job) -> Result<Self, FieldError> {
        // A list of jobs is of use also where one of them has a key that only newer versions know.
        let (spec, unread) =
            job_spec_in_part(job.spec, Reader::CommandLine).map_err(SpecError::into_field)?;
        Ok(Self {
            id: parsed("id", &job.id)?,
            spec,
            unread: unread.iter().map(ToString::to_string).collect(),
            submitter: Name::new("submitter", &job.submitter)?,
            submitted_at: Timestamp(job.submitted_at_ms),
            phase: JobPhase::named(&job.phase, job.why.clone())?,
            why: job.why,
            epoch: Epoch(job.epoch),
            node: name_optional("node", job.node.as_deref())?,
            device: parsed_optional("device", job.device.as_deref())?,
            started_at: job.started_at_ms.map(Timestamp),
            ended_at: job.ended_at_ms.map(Timestamp),
            activity: job.activity,
            running_on: job.running_on,
            progress: optional("progress", job.progress)?,
            validation: optional("validation", job.validation)?,
            checkpoint: parsed_optional("checkpoint", job.checkpoint.as_deref())?,
            best: parsed_optional("best", job.best.as_deref())?,
            checkpoint_step: job.checkpoint_step,
            metrics: needed("metrics", job.metrics)?,
            failures: each("failures", job.failures, ENTRIES_MAX)?,
        })
    }
}

impl From<Failure<Name>> for v1::Failure {
    fn from(failure: Failure<Name>) -> Self {
        Self {
            epoch: failure.epoch.0,
            node: failure.node.into(),
            device: failure.device.to_string(),
            cause: failure.cause.number(),
            message: head(failure.message, OUTPUT_BYTES_MAX),
            at_ms: failure.at.0,
        }
    }
}

impl TryFrom<v1::Failure> for Failure<Name> {
    type Error = FieldError;

    fn try_from(failure: v1::Failure) -> Result<Self, FieldError> {
        Ok(Self {
            epoch: Epoch(failure.epoch),
            node: Name::new("node", &failure.node)?,
            device: parsed("device", &failure.device)?,
            cause: FailureCause::read("cause", failure.cause)?,
            message: short_text("message", failure.message, OUTPUT_BYTES_MAX)?,
            at: Timestamp(failure.at_ms),
        })
    }
}

impl From<NodeView> for v1::Node {
    fn from(node: NodeView) -> Self {
        Self {
            id: node.id.to_string(),
            name: node.name.into(),
            labels: wire_labels(node.labels),
            inventory: Some(node.inventory.into()),
            joined_at_ms: node.joined_at.0,
            state: node.state.name().to_owned(),
            last_heard_ms_ago: node.last_heard_ms_ago,
            metrics_json: node.metrics.as_ref().map(metrics_json),
            running: node.running.into_iter().map(Into::into).collect(),
            replicas_ready: node.replicas_ready,
            replicas_wanted: node.replicas_wanted,
            mode: node.mode.name().to_owned(),
            waiting: node.waiting.into_iter().map(Into::into).collect(),
            away: node.away.map(Into::into),
            peers: node.peers.map(Into::into),
            active: node.active.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<PeersView> for v1::NodePeers {
    fn from(peers: PeersView) -> Self {
        Self {
            addresses: peers.addresses,
            can_be_dialled: peers.can_be_dialled,
            up_bytes_per_sec: peers.up_bytes_per_sec,
            down_bytes_per_sec: peers.down_bytes_per_sec,
            sent_bytes: peers.sent_bytes,
            received_bytes: peers.received_bytes,
            fetching: peers.fetching,
            suspected_by: peers.suspected_by.into_iter().map(Into::into).collect(),
            is_barred: peers.is_barred,
        }
    }
}

impl TryFrom<v1::NodePeers> for PeersView {
    type Error = FieldError;

    fn try_from(peers: v1::NodePeers) -> Result<Self, FieldError> {
        at_most("addresses", peers.addresses.len(), PEER_ADDRESSES_MAX, "entries")?;
        at_most("suspected_by", peers.suspected_by.len(), ENTRIES_MAX, "entries")?;
        let name = |(index, name): (usize, String)| Name::new(&format!("suspected_by.{index}"), &name);
        Ok(Self {
            addresses: peers.addresses,
            can_be_dialled: peers.can_be_dialled,
            up_bytes_per_sec: peers.up_bytes_per_sec,
            down_bytes_per_sec: peers.down_bytes_per_sec,
            sent_bytes: peers.sent_bytes,
            received_bytes: peers.received_bytes,
            fetching: peers.fetching,
            suspected_by: peers.suspected_by.into_iter().enumerate().map(name).collect::<Result<_, _>>()?,
            is_barred: peers.is_barred,
        })
    }
}

impl TryFrom<v1::Node> for NodeView {
    type Error = FieldError;

    fn try_from(node: v1::Node) -> Result<Self, FieldError> {
        Ok(Self {
            id: parsed("id", &node.id)?,
            name: Name::new("name", &node.name)?,
            labels: labels("labels", &node.labels)?,
            inventory: needed("inventory", node.inventory)?,
            joined_at: Timestamp(node.joined_at_ms),
            state: parsed("state", &node.state)?,
            last_heard_ms_ago: node.last_heard_ms_ago,
            metrics: node.metrics_json.as_deref().map(metrics).transpose()?,
            running: each("running", node.running, DEVICES_MAX)?,
            replicas_ready: node.replicas_ready,
            replicas_wanted: node.replicas_wanted,
            mode: parsed("mode", &node.mode)?,
            waiting: each("waiting", node.waiting, ENTRIES_MAX)?,
            active: each("active", node.active, ENTRIES_MAX)?,
            away: optional("away", node.away)?,
            peers: optional("peers", node.peers)?,
        })
    }
}

impl From<WaitingView> for node::Waiting {
    fn from(waiting: WaitingView) -> Self {
        Self {
            device: waiting.device.to_string(),
            job: waiting.job.to_string(),
            job_name: waiting.job_name.into(),
            start_in_ms: waiting.start_in_ms,
            end_in_ms: waiting.end_in_ms,
        }
    }
}

impl TryFrom<node::Waiting> for WaitingView {
    type Error = FieldError;

    fn try_from(waiting: node::Waiting) -> Result<Self, FieldError> {
        Ok(Self {
            device: parsed("device", &waiting.device)?,
            job: parsed("job", &waiting.job)?,
            job_name: Name::new("job_name", &waiting.job_name)?,
            start_in_ms: waiting.start_in_ms,
            end_in_ms: waiting.end_in_ms,
        })
    }
}

impl From<Candidate> for v1::Candidate {
    fn from(candidate: Candidate) -> Self {
        Self {
            node: candidate.node.to_string(),
            node_name: candidate.node_name.into(),
            device: candidate.device.to_string(),
            steps_per_sec: candidate.steps_per_sec,
            known: candidate.known.name().to_owned(),
            start_in_ms: candidate.start_in_ms,
            end_in_ms: candidate.end_in_ms,
            verdict: candidate.verdict.name().to_owned(),
            why: candidate.why,
        }
    }
}

impl TryFrom<v1::Candidate> for Candidate {
    type Error = FieldError;

    fn try_from(candidate: v1::Candidate) -> Result<Self, FieldError> {
        Ok(Self {
            node: parsed("node", &candidate.node)?,
            node_name: Name::new("node_name", &candidate.node_name)?,
            device: parsed("device", &candidate.device)?,
            steps_per_sec: candidate.steps_per_sec,
            known: parsed("known", &candidate.known)?,
            start_in_ms: candidate.start_in_ms,
            end_in_ms: candidate.end_in_ms,
            verdict: parsed("verdict", &candidate.verdict)?,
            why: candidate.why,
        })
    }
}

impl From<PlacementView> for v1::ExplainPlacementResponse {
    fn from(placement: PlacementView) -> Self {
        Self { candidates: placement.candidates.into_iter().map(Into::into).collect(), why: placement.why }
    }
}

impl TryFrom<v1::ExplainPlacementResponse> for PlacementView {
    type Error = FieldError;

    fn try_from(response: v1::ExplainPlacementResponse) -> Result<Self, FieldError> {
        Ok(Self { candidates: each("candidates", response.candidates, CANDIDATES_MAX)?, why: response.why })
    }
}

impl From<RunningView> for node::Running {
    fn from(running: RunningView) -> Self {
        Self {
            device: running.device.to_string(),
            job: running.job.to_string(),
            job_name: running.job_name.into(),
            progress: running.progress.map(Into::into),
        }
    }
}

impl TryFrom<node::Running> for RunningView {
    type Error = FieldError;

    fn try_from(running: node::Running) -> Result<Self, FieldError> {
        Ok(Self {
            device: parsed::<Device>("device", &running.device)?,
            job: parsed("job", &running.job)?,
            job_name: Name::new("job_name", &running.job_name)?,
            progress: optional("progress", running.progress)?,
        })
    }
}

impl From<DatasetView> for v1::Dataset {
    fn from(dataset: DatasetView) -> Self {
        Self {
            id: dataset.id.to_string(),
            name: dataset.name.into(),
            files: dataset.files,
            corpus_bytes: dataset.corpus_bytes,
            registered_at_ms: dataset.registered_at.0,
        }
    }
}

impl TryFrom<v1::Dataset> for DatasetView {
    type Error = FieldError;

    fn try_from(dataset: v1::Dataset) -> Result<Self, FieldError> {
        Ok(Self {
            id: parsed("id", &dataset.id)?,
            name: Name::new("name", &dataset.name)?,
            files: dataset.files,
            corpus_bytes: dataset.corpus_bytes,
            registered_at: Timestamp(dataset.registered_at_ms),
        })
    }
}

impl From<CheckpointView> for v1::Checkpoint {
    fn from(checkpoint: CheckpointView) -> Self {
        Self {
            id: checkpoint.id.to_string(),
            manifest: checkpoint_manifest_bytes(&checkpoint.manifest),
            job_name: checkpoint.job_name.into(),
            committed_at_ms: checkpoint.committed_at.0,
            is_best: checkpoint.is_best,
            is_pinned: checkpoint.is_pinned,
            replicas: checkpoint.replicas.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Checkpoint> for CheckpointView {
    type Error = FieldError;

    fn try_from(checkpoint: v1::Checkpoint) -> Result<Self, FieldError> {
        let (id, manifest) = checkpoint_manifest(&checkpoint.manifest)?;
        if parsed("id", &checkpoint.id) != Ok(id) {
            return Err(FieldError::new(
                "id",
                format!("`{}` does not match its manifest, {id}", checkpoint.id),
            ));
        }
        Ok(Self {
            id,
            manifest,
            job_name: Name::new("job_name", &checkpoint.job_name)?,
            committed_at: Timestamp(checkpoint.committed_at_ms),
            is_best: checkpoint.is_best,
            is_pinned: checkpoint.is_pinned,
            replicas: each("replicas", checkpoint.replicas, ENTRIES_MAX)?,
        })
    }
}

impl From<ReplicaView> for v1::Replica {
    fn from(replica: ReplicaView) -> Self {
        let state = match replica.state {
            None => replica::State::Waiting(replica::Waiting {}),
            Some(ReplicaState::Fetching { done_bytes, total_bytes }) => {
                replica::State::Fetching(replica::Fetching { done_bytes, total_bytes })
            }
            Some(ReplicaState::Ready { self_test_ms }) => {
                replica::State::Ready(replica::Ready { self_test_ms })
            }
            Some(ReplicaState::Failed { why }) => {
                let why = head(why, OUTPUT_BYTES_MAX);
                replica::State::Failed(replica::Failed { why })
            }
        };
        Self {
            node: replica.node.to_string(),
            node_name: replica.node_name.into(),
            state: Some(state),
            active: replica.active,
            to_be_active: replica.to_be_active,
            serving_only: replica.serving_only,
        }
    }
}

impl TryFrom<v1::Replica> for ReplicaView {
    type Error = FieldError;

    fn try_from(replica: v1::Replica) -> Result<Self, FieldError> {
        let state = match replica.state.ok_or_else(|| missing("state"))? {
            replica::State::Waiting(_) => None,
            replica::State::Fetching(fetching) => Some(fetching.into()),
            replica::State::Ready(ready) => Some(ready.try_into()?),
            replica::State::Failed(failed) => Some(failed.try_into()?),
        };
        Ok(Self {
            node: parsed("node", &replica.node)?,
            node_name: Name::new("node_name", &replica.node_name)?,
            state,
            active: replica.active,
            to_be_active: replica.to_be_active,
            serving_only: replica.serving_only,
        })
    }
}

impl From<EventView> for v1::Event {
    fn from(event: EventView) -> Self {
        Self {
            number: event.number,
            at_ms: event.at.0,
            kind: event.kind,
            job: event.job.map(|job| job.to_string()),
            node: event.node.map(|node| node.to_string()),
            text: event.text,
            change_json: event.change.to_string(),
        }
    }
}

impl TryFrom<v1::Event> for EventView {
    type Error = FieldError;

    fn try_from(event: v1::Event) -> Result<Self, FieldError> {
        Ok(Self {
            number: event.number,
            at: Timestamp(event.at_ms),
            kind: event.kind,
            job: parsed_optional("job", event.job.as_deref())?,
            node: parsed_optional("node", event.node.as_deref())?,
            text: event.text,
            change: serde_json::from_str(&event.change_json)
                .map_err(|error| FieldError::new("change_json", format!("is not JSON: {error}")))?,
        })
    }
}

impl From<Certificate> for v1::Certificate {
    fn from(certificate: Certificate) -> Self {
        Self {
            id: certificate.id.to_string(),
            scope: certificate.scope.number(),
            name: certificate.name.into(),
            node: certificate.node.map(|node| node.to_string()),
            issued_at_ms: certificate.issued_at.0,
            revoked_at_ms: milliseconds(certificate.revoked_at),
        }
    }
}

impl TryFrom<v1::Certificate> for Certificate {
    type Error = FieldError;

    fn try_from(certificate: v1::Certificate) -> Result<Self, FieldError> {
        Ok(Self {
            id: parsed("id", &certificate.id)?,
            scope: Scope::read("scope", certificate.scope)?,
            name: Name::new("name", &certificate.name)?,
            node: parsed_optional("node", certificate.node.as_deref())?,
            issued_at: Timestamp(certificate.issued_at_ms),
            revoked_at: certificate.revoked_at_ms.map(Timestamp),
        })
    }
}

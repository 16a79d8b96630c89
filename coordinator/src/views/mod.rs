//! What people are shown, built from a snapshot.

pub(crate) mod event;
pub(crate) mod placement;
pub(crate) mod rollouts;

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    device::Device,
    id::{CheckpointId, JobId, Name, NodeId},
    job::{Failure, JobPhase},
    session::{AttemptPhase, AttemptReport, ReplicaReport, ReplicaState},
    time::{BootTime, Timestamp},
    view::{
        ActiveView, BlobsView, CheckpointView, DatasetView, JobView, NodeState, NodeView, PeersView,
        ReplicaView, RunningView, StatusView, WaitingView,
    },
};
use hatchery_scheduler::{
    Checkpoint, Cluster, Dataset, HandOver, InLine, Job, Node, ObservedNode, Rough, active, assignment,
    desired_nodes,
};

use crate::{core::handle::Snapshot, views::event::node_name};

/// Most waiting jobs shown with a node.
const WAITING_SHOWN_MAX: usize = 1000;

pub(crate) fn status(snapshot: &Snapshot, started_at: Timestamp, blobs: BlobsView) -> StatusView {
    let (cluster, observed) = (&snapshot.cluster, snapshot.observed());
    let jobs = |wanted: fn(&Job) -> bool| cluster.jobs.values().filter(|job| wanted(job)).count() as u32;
    StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        last_event: cluster.last_event,
        nodes_connected: observed.nodes.values().filter(|node| node.connected).count() as u32,
        nodes: cluster.nodes.len() as u32,
        jobs_running: jobs(|job| job.lease.is_some()),
        jobs_queued: jobs(|job| job.phase == JobPhase::Queued),
        blobs,
        invariants_broken: snapshot.refused.count,
        invariant_broken_last: snapshot.refused.last.as_ref().map(ToString::to_string),
    }
}

/// A job.
pub(crate) fn job(snapshot: &Snapshot, job: &Job) -> JobView {
    let cluster = &snapshot.cluster;
    let last = snapshot.observations.last_attempts.get(&job.id).filter(|last| last.epoch == job.epoch);
    let attempt = job.lease.as_ref().and_then(|lease| attempt(snapshot, lease.node, job));
    let place = job.lease.as_ref().map(|lease| (lease.node, lease.device));
    let place = place.or_else(|| last.map(|last| (last.node, last.device)));
    JobView {
        id: job.id,
        spec: job.spec.clone(),
        unread: Vec::new(),
        submitter: job.submitter.clone(),
        submitted_at: job.submitted_at,
        phase: job.phase.clone(),
        why: match &job.phase {
            JobPhase::Queued => snapshot.waits.get(&job.id).map(ToString::to_string),
            JobPhase::Failed { why } | JobPhase::Poisoned { why } => Some(why.clone()),
            JobPhase::Completed => job.metrics.early_stop_reason(),
            JobPhase::Running => job.hand_over.as_ref().map(|why| handing_over(snapshot, why)),
            _ => None,
        },
        epoch: job.epoch,
        node: place.map(|(node, _)| Name::from_lossy(&node_name(cluster, node))),
        device: place.map(|(_, device)| device),
        started_at: job.started_at,
        ended_at: job.ended_at,
        activity: attempt.map(activity),
        running_on: last.and_then(|last| last.running_on.clone()),
        progress: last.and_then(|last| last.progress),
        validation: last.and_then(|last| last.validation.clone()),
        checkpoint: job.checkpoint,
        best: job.best,
        checkpoint_step: job.checkpoint_step,
        metrics: job.metrics,
        failures: job
            .failures
            .iter()
            .map(|failure| Failure {
                epoch: failure.epoch,
                node: Name::from_lossy(&node_name(cluster, failure.node)),
                device: failure.device,
                cause: failure.cause,
                message: failure.message.clone(),
                at: failure.at,
            })
            .collect(),
    }
}

/// Why an attempt is about to end, as a sentence.
fn handing_over(snapshot: &Snapshot, why: &HandOver) -> String {
    let cluster = &snapshot.cluster;
    let because = match why {
        HandOver::Pause { by } => format!("{by} paused it"),
        HandOver::Requeue { by } => format!("{by} requeued it"),
        HandOver::Drain => "its node is draining".to_owned(),
        HandOver::Overtaken { step } => format!("a reconnected node delivered step {step}"),
        HandOver::NodeAway { reason } => format!("its node is away: {reason}"),
        HandOver::Preempt { by } => {
            let name = cluster.jobs.get(by).map_or_else(|| by.short(), |job| job.spec.name.to_string());
            format!("{name} has a higher priority")
        }
        HandOver::Migrate { to, device, sooner_secs } => {
            let sooner = Rough(std::time::Duration::from_secs(*sooner_secs));
            format!("it would end {sooner} sooner on {device} of {}", node_name(cluster, *to))
        }
    };
    format!("stopping after a checkpoint: {because}")
}

/// What the node last said of the job's current attempt.
fn attempt<'a>(snapshot: &'a Snapshot, node: NodeId, job: &Job) -> Option<&'a AttemptReport> {
    let reports = &snapshot.observed().nodes.get(&node)?.report.attempts;
    reports.iter().find(|report| report.id == job.attempt())
}

fn activity(attempt: &AttemptReport) -> String {
    match &attempt.phase {
        AttemptPhase::Fetching { total_bytes: 0, .. } => "fetching".to_owned(),
        AttemptPhase::Fetching { done_bytes, total_bytes } => {
            format!("fetching {:.0} %", *done_bytes as f64 / *total_bytes as f64 * 100.0)
        }
        AttemptPhase::Starting => "starting".to_owned(),
        AttemptPhase::Running => "running".to_owned(),
        AttemptPhase::Stopping => "stopping".to_owned(),
        AttemptPhase::Ended { .. } => "ended".to_owned(),
    }
}

/// A node, and how it stands among those that exchange blobs.
pub(crate) fn node(snapshot: &Snapshot, node: &Node, peers: Option<PeersView>, now: BootTime) -> NodeView {
    let cluster = &snapshot.cluster;
    let heard = snapshot.observed().nodes.get(&node.id);
    let reported = heard.filter(|heard| heard.has_reported());
    let running = cluster.jobs.values().filter_map(|job| {
        let lease = job.lease.as_ref().filter(|lease| lease.node == node.id)?;
        Some(RunningView {
            device: lease.device,
            job: job.id,
            job_name: job.spec.name.clone(),
            progress: attempt(snapshot, node.id, job).and_then(|attempt| attempt.progress),
        })
    });
    let wanted = assignment(cluster, node.id, snapshot.observed().lease).checkpoints;
    NodeView {
        id: node.id,
        name: node.name.clone(),
        labels: node.labels.clone(),
        inventory: node.inventory.clone(),
        joined_at: node.joined_at,
        state: match heard {
            None => NodeState::Unknown,
            Some(heard) if heard.connected => NodeState::Connected,
            Some(_) => NodeState::Disconnected,
        },
        last_heard_ms_ago: reported.map(|heard| now.since(heard.last_heard).as_millis() as u64),
        metrics: reported.map(|heard| heard.report.metrics),
        running: running.collect(),
        replicas_ready: heard.map_or(0, ready_count),
        replicas_wanted: wanted.len() as u32,
        mode: node.mode,
        waiting: waiting(snapshot, node),
        away: heard.and_then(|heard| heard.report.away),
        peers,
        active: active_on(snapshot, node.id),
    }
}

/// What answers on a node for each job.
fn active_on(snapshot: &Snapshot, node: NodeId) -> Vec<ActiveView> {
    let cluster = &snapshot.cluster;
    let active = replicas(snapshot, node).filter(|replica| replica.active).filter_map(|replica| {
        let checkpoint = replica.checkpoint;
        let kept = cluster.checkpoints.get(&checkpoint).map(|one| (one.manifest.job, one.manifest.step));
        let (job, step) = kept.or_else(|| cluster.retired.get(&checkpoint).map(|one| (one.job, one.step)))?;
        Some(ActiveView { job, job_name: Name::from_lossy(&job_name(cluster, job)), checkpoint, step })
    });
    active.collect()
}

/// A job's name, or the first digits of its id.
pub(crate) fn job_name(cluster: &Cluster, job: JobId) -> String {
    cluster.jobs.get(&job).map_or_else(|| job.short(), |job| job.spec.name.to_string())
}

/// The jobs that wait for a node's devices.
fn waiting(snapshot: &Snapshot, node: &Node) -> Vec<WaitingView> {
    let devices = node.inventory.devices.iter().map(|device| device.device);
    let lines = devices.filter_map(|device| Some((device, snapshot.queues.get(&(node.id, device))?)));
    let one = |device: Device, waiting: &InLine| WaitingView {
        device,
        job: waiting.job,
        job_name: snapshot
            .cluster
            .jobs
            .get(&waiting.job)
            .map_or_else(|| Name::from_lossy(&waiting.job.short()), |job| job.spec.name.clone()),
        start_in_ms: waiting.start_in.as_millis() as u64,
        end_in_ms: waiting.end_in.as_millis() as u64,
    };
    let all = lines.flat_map(|(device, line)| line.iter().map(move |waiting| one(device, waiting)));
    all.take(WAITING_SHOWN_MAX).collect()
}

fn ready_count(node: &ObservedNode) -> u32 {
    let ready = |state: &ReplicaState| matches!(state, ReplicaState::Ready { .. });
    node.report.replicas.iter().filter(|replica| ready(&replica.state)).count() as u32
}

/// A dataset.
pub(crate) fn dataset(dataset: &Dataset) -> DatasetView {
    let manifest = &dataset.manifest;
    DatasetView {
        id: manifest.id(),
        name: manifest.name().clone(),
        files: manifest.files().len() as u64,
        corpus_bytes: manifest.corpus_bytes(),
        registered_at: dataset.registered_at,
    }
}

/// Where checkpoints are to be.
pub(crate) struct Places {
    held: BTreeMap<CheckpointId, BTreeSet<NodeId>>,
    active: BTreeSet<(CheckpointId, NodeId)>,
}

impl Places {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes.values();
        let chosen = nodes.flat_map(|node| active(cluster, node).into_values().map(|id| (id, node.id)));
        Self { held: desired_nodes(cluster), active: chosen.collect() }
    }
}

/// A checkpoint; `places` is where each is to be. Where it answers still, it is shown too.
pub(crate) fn checkpoint(
    snapshot: &Snapshot,
    places: &Places,
    id: CheckpointId,
    checkpoint: &Checkpoint,
) -> CheckpointView {
    let cluster = &snapshot.cluster;
    let job = cluster.jobs.get(&checkpoint.manifest.job);
    let is_active = |node: NodeId| replicas(snapshot, node).any(|one| one.checkpoint == id && one.active);
    let mut nodes = places.held.get(&id).cloned().unwrap_or_default();
    nodes.extend(cluster.nodes.keys().copied().filter(|node| is_active(*node)));
    let replicas = nodes.into_iter().map(|node| ReplicaView {
        node,
        node_name: Name::from_lossy(&node_name(cluster, node)),
        state: replica(snapshot, node, id).cloned(),
        active: is_active(node),
        to_be_active: places.active.contains(&(id, node)),
        serving_only: replicas(snapshot, node).any(|one| one.checkpoint == id && one.serving_only),
    });
    CheckpointView {
        id,
        manifest: checkpoint.manifest.clone(),
        job_name: job.map_or_else(|| Name::from_lossy("unknown"), |job| job.spec.name.clone()),
        committed_at: checkpoint.committed_at,
        is_best: job.is_some_and(|job| job.best == Some(id)),
        is_pinned: checkpoint.is_pinned,
        replicas: replicas.collect(),
    }
}

/// How a checkpoint stands on a node, while the node is connected.
pub(crate) fn replica(snapshot: &Snapshot, node: NodeId, checkpoint: CheckpointId) -> Option<&ReplicaState> {
    replicas(snapshot, node).find(|replica| replica.checkpoint == checkpoint).map(|replica| &replica.state)
}

/// All that a node holds or fetches, while it is connected.
pub(crate) fn replicas(snapshot: &Snapshot, node: NodeId) -> impl Iterator<Item = &ReplicaReport> {
    let heard = snapshot.observed().nodes.get(&node).filter(|node| node.connected);
    heard.into_iter().flat_map(|heard| &heard.report.replicas)
}

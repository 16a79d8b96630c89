//! `checkpoints`, and how commands show and name where they are.

use hatchery_common::{
    recipe::{Labels, NodeSelector},
    session::ReplicaState,
    view::{CheckpointView, NodeState, NodeView},
};
use hatchery_proto::client::FleetClient;

use crate::{
    args::{CheckpointsArgs, PinCommand, parse_label},
    exit::{Failure, Outcome},
    home::Home,
    human,
    output::{Output, table},
};

/// `hatchery checkpoints`.
pub(crate) async fn run(args: CheckpointsArgs, home: &Home, output: Output) -> Outcome {
    match &args.command {
        None => list(args, home, output).await,
        Some(PinCommand::Pin { checkpoint }) => pin(checkpoint, true, home, output).await,
        Some(PinCommand::Unpin { checkpoint }) => pin(checkpoint, false, home, output).await,
    }
}

async fn pin(checkpoint: &str, is_pinned: bool, home: &Home, output: Output) -> Outcome {
    let checkpoint = home.fleet().await?.pin(checkpoint, is_pinned).await?;
    output.print(&checkpoint, |checkpoint| {
        let (id, step, job) = (checkpoint.id.short(), checkpoint.manifest.step, &checkpoint.job_name);
        let what =
            if is_pinned { "is kept until it is unpinned" } else { "is kept as its job's recipe says" };
        format!("checkpoint {id} (step {step} of {job}) {what}")
    })
}

async fn list(args: CheckpointsArgs, home: &Home, output: Output) -> Outcome {
    let checkpoints = home.fleet().await?.checkpoints(args.job.as_deref()).await?;
    output.print(&checkpoints, |checkpoints| {
        table(
            &[
                "checkpoint",
                "job",
                ">step",
                ">train loss",
                ">validation",
                ">bits/byte",
                "",
                ">size",
                "committed",
                "on nodes",
                "active on",
            ],
            checkpoints.iter().map(|checkpoint| {
                let manifest = &checkpoint.manifest;
                vec![
                    checkpoint.id.short(),
                    checkpoint.job_name.to_string(),
                    manifest.step.to_string(),
                    human::loss(manifest.metrics.train_loss),
                    human::loss(manifest.metrics.validation_loss),
                    human::bits_per_byte(manifest.metrics.validation_loss),
                    marks(checkpoint),
                    human::bytes(manifest.size_bytes()),
                    human::ago(checkpoint.committed_at),
                    places(checkpoint),
                    active_on(checkpoint),
                ]
            }),
        )
    })
}

fn marks(checkpoint: &CheckpointView) -> String {
    let marks = [(checkpoint.is_best, "best"), (checkpoint.is_pinned, "pinned")];
    let marks: Vec<&str> = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, mark)| mark).collect();
    marks.join(", ")
}

/// The nodes on which it answers for its job.
fn active_on(checkpoint: &CheckpointView) -> String {
    let nodes = checkpoint.replicas.iter().filter(|replica| replica.active);
    let mut nodes: Vec<&str> = nodes.map(|replica| replica.node_name.as_str()).collect();
    nodes.sort_unstable();
    if nodes.is_empty() { "-".to_owned() } else { nodes.join(", ") }
}

/// Where a checkpoint is, in words: `2/3: gpu-a, cpu-b (bf16); mac fetching 40 %`. `bf16`: it only answers there.
pub(crate) fn places(checkpoint: &CheckpointView) -> String {
    let mut ready = Vec::new();
    let mut others = Vec::new();
    for replica in &checkpoint.replicas {
        let name = replica.node_name.as_str();
        match &replica.state {
            Some(ReplicaState::Ready { .. }) if replica.serving_only => ready.push(format!("{name} (bf16)")),
            Some(ReplicaState::Ready { .. }) => ready.push(name.to_owned()),
            Some(ReplicaState::Fetching { done_bytes, total_bytes }) => {
                others.push(format!("{name} fetching {} %", 100 * done_bytes / (*total_bytes).max(1)));
            }
            Some(ReplicaState::Failed { why }) => others.push(format!("{name} failed: {why}")),
            None => others.push(format!("{name} waiting")),
        }
    }
    ready.sort();
    others.sort();
    let mut text = format!("{}/{}", ready.len(), checkpoint.replicas.len());
    if !ready.is_empty() {
        text += &format!(": {}", ready.join(", "));
    }
    if !others.is_empty() {
        text += &format!("; {}", others.join("; "));
    }
    text
}

/// Whether every node that should hold it does.
pub(crate) fn is_everywhere(checkpoint: &CheckpointView) -> bool {
    checkpoint.replicas.iter().all(|replica| matches!(replica.state, Some(ReplicaState::Ready { .. })))
}

/// Whether nothing more is to be waited for: every node that should hold it does, cannot, or is not there.
pub(crate) fn is_settled(checkpoint: &CheckpointView, nodes: &[NodeView]) -> bool {
    let is_there = |id| nodes.iter().any(|node| node.id == id && node.state == NodeState::Connected);
    checkpoint.replicas.iter().all(|replica| match &replica.state {
        Some(ReplicaState::Ready { .. } | ReplicaState::Failed { .. }) => true,
        Some(ReplicaState::Fetching { .. }) | None => !is_there(replica.node),
    })
}

/// Reads `all`, `none`, `key=value,...` or node names separated by commas.
pub(crate) async fn selector(text: &str, fleet: &FleetClient) -> Result<NodeSelector, Failure> {
    if let Some(selector) = parse_selector(text)? {
        return Ok(selector);
    }
    let mut ids = Vec::new();
    for name in text.split(',') {
        ids.push(fleet.node(name.trim()).await?.id);
    }
    Ok(NodeSelector::Nodes(ids))
}

/// Reads `all`, `none` or `key=value,...`; none if it is neither, that is, names of nodes.
pub(crate) fn parse_selector(text: &str) -> Result<Option<NodeSelector>, Failure> {
    match text {
        "all" => Ok(Some(NodeSelector::All)),
        "none" => Ok(Some(NodeSelector::None)),
        text if text.contains('=') => {
            let labels: Labels = text
                .split(',')
                .map(|label| parse_label(label.trim()))
                .collect::<Result<_, _>>()
                .map_err(Failure::usage)?;
            Ok(Some(NodeSelector::Labels(labels)))
        }
        _ => Ok(None),
    }
}

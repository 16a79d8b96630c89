//! `checkpoints`, `push`.

use std::time::Duration;

use hatchery_common::{
    id::Name,
    recipe::{Labels, NodeSelector},
    session::ReplicaState,
    view::{CheckpointView, NodeState, NodeView, ReplicaView},
};
use hatchery_proto::client::FleetClient;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    args::{CheckpointsArgs, PushArgs, parse_label},
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{Output, is_interactive, table},
};

/// How often replicas are looked at while waiting for them.
const POLL_EVERY: Duration = Duration::from_millis(300);

/// `hatchery checkpoints`.
pub(crate) async fn list(args: CheckpointsArgs, home: &Home, output: Output) -> Outcome {
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
                    if checkpoint.is_best { "best".to_owned() } else { String::new() },
                    human::bytes(manifest.size_bytes()),
                    human::ago(checkpoint.committed_at),
                    places(checkpoint),
                ]
            }),
        )
    })
}

/// Where a checkpoint is, in words: `2/3: gpu-a, cpu-b; mac fetching 40 %`.
pub(crate) fn places(checkpoint: &CheckpointView) -> String {
    let mut ready = Vec::new();
    let mut others = Vec::new();
    for replica in &checkpoint.replicas {
        let name = replica.node_name.as_str();
        match &replica.state {
            Some(ReplicaState::Ready { .. }) => ready.push(name.to_owned()),
            Some(ReplicaState::Fetching { done_bytes, total_bytes }) => {
                others.push(format!("{name} fetching {} %", 100 * done_bytes / (*total_bytes).max(1)));
            }
            Some(ReplicaState::Failed { why }) => others.push(format!("{name} failed: {why}")),
            None => others.push(format!("{name} waiting")),
        }
    }
    ready.sort();
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

/// `hatchery push`.
pub(crate) async fn push(args: PushArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let to = selector(&args.to, &fleet).await?;
    let (_, mut checkpoint) = fleet.push(&args.checkpoint, &to).await?;
    if args.wait {
        checkpoint = wait_everywhere(&fleet, checkpoint, output).await?;
    }
    output.print(&checkpoint, |checkpoint| {
        format!(
            "checkpoint {} (step {}) on {}",
            checkpoint.id.short(),
            checkpoint.manifest.step,
            places(checkpoint)
        )
    })
}

/// Waits until every node that should hold `checkpoint` does, with a bar for each in a terminal.
async fn wait_everywhere(
    fleet: &FleetClient,
    mut checkpoint: CheckpointView,
    output: Output,
) -> Result<CheckpointView, Failure> {
    let bars = (output == Output::Text && is_interactive()).then(MultiProgress::new);
    let mut shown: Vec<(Name, ProgressBar)> = Vec::new();
    let mut said = String::new();
    while !is_everywhere(&checkpoint) {
        if let Some((node, why)) = failed(&checkpoint) {
            return Err(Failure::failed(format!(
                "checkpoint {} is not on {node}: {why}; the node goes on trying, see `hatchery checkpoints`",
                checkpoint.id.short()
            )));
        }
        let now = format!("waiting: checkpoint {} on {}", checkpoint.id.short(), places(&checkpoint));
        if bars.is_none() && output == Output::Text && said != now {
            eprintln!("{now}");
            said = now;
        }
        if let Some(bars) = &bars {
            for replica in &checkpoint.replicas {
                let position =
                    shown.iter().position(|(name, _)| *name == replica.node_name).unwrap_or_else(|| {
                        let bar = bars.add(ProgressBar::new(checkpoint.manifest.size_bytes()));
                        bar.set_style(
                            ProgressStyle::with_template("{prefix:>16} {bar:30} {bytes}/{total_bytes} {msg}")
                                .unwrap_or_else(|_| ProgressStyle::default_bar()),
                        );
                        bar.set_prefix(replica.node_name.to_string());
                        shown.push((replica.node_name.clone(), bar));
                        shown.len() - 1
                    });
                show(replica, &shown[position].1);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_EVERY) => {}
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::new(Code::Interrupted, "the rollout goes on; see `hatchery checkpoints`"));
            }
        }
        checkpoint = fleet.checkpoint(&checkpoint.id.to_string()).await?;
    }
    if let Some(bars) = &bars {
        bars.clear().map_err(Failure::failed)?;
    }
    Ok(checkpoint)
}

/// A node that could not take it, and why.
fn failed(checkpoint: &CheckpointView) -> Option<(&Name, &str)> {
    checkpoint.replicas.iter().find_map(|replica| match &replica.state {
        Some(ReplicaState::Failed { why }) => Some((&replica.node_name, why.as_str())),
        _ => None,
    })
}

fn show(replica: &ReplicaView, bar: &ProgressBar) {
    match &replica.state {
        Some(ReplicaState::Fetching { done_bytes, .. }) => bar.set_position(*done_bytes),
        Some(ReplicaState::Ready { self_test_ms }) => {
            bar.set_position(bar.length().unwrap_or(0));
            bar.set_message(format!("answers, self-test {self_test_ms:.0} ms"));
        }
        Some(ReplicaState::Failed { why }) => bar.set_message(why.clone()),
        None => bar.set_message("waiting"),
    }
}

/// Reads `all`, `none`, `key=value,...` or node names separated by commas.
async fn selector(text: &str, fleet: &FleetClient) -> Result<NodeSelector, Failure> {
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

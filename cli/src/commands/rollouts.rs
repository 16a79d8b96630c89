//! `push`, `rollback`, `rollouts`.

use std::{collections::BTreeMap, time::Duration};

use hatchery_common::{
    id::NodeId,
    session::ReplicaState,
    view::{CheckpointView, ReplicaView, RolloutView, WithdrawnView},
};
use hatchery_proto::client::{FleetClient, PushCall};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::checkpoints::{places, selector};
use crate::{
    args::{PushArgs, RollbackArgs, RolloutsArgs},
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{Output, is_interactive, line, table},
};

/// How often replicas are looked at while waiting for them.
const POLL_EVERY: Duration = Duration::from_millis(300);

/// `hatchery push`.
pub(crate) async fn push(args: PushArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let to = selector(&args.to, &fleet).await?;
    let call = PushCall {
        checkpoint: args.checkpoint,
        to: to.clone(),
        activate: args.activate,
        bytes_per_sec_max: args.limit_rate,
    };
    let (_, mut checkpoint) = fleet.push(&call).await?;
    if args.wait {
        let selected = fleet.nodes().await?.into_iter().filter(|node| to.selects(node.id, &node.labels));
        let nodes = selected.map(|node| (node.id, node.name.to_string())).collect();
        checkpoint = Waiting { nodes, activate: args.activate, output }.wait(&fleet, checkpoint).await?;
        if output == Output::Json {
            return Ok(());
        }
    }
    output.print(&checkpoint, |checkpoint| {
        let step = checkpoint.manifest.step;
        format!("checkpoint {} (step {step}) on {}", checkpoint.id.short(), places(checkpoint))
    })
}

/// How far a node is.
#[derive(PartialEq)]
enum Stage {
    Going,
    Done,
    Failed(String),
}

/// Waiting for the nodes of a rollout.
struct Waiting {
    nodes: BTreeMap<NodeId, String>,
    activate: bool,
    output: Output,
}

impl Waiting {
    /// Waits until every node has it, or cannot have it; the latter is a failure that names them.
    async fn wait(
        self,
        fleet: &FleetClient,
        mut checkpoint: CheckpointView,
    ) -> Result<CheckpointView, Failure> {
        let mut screen = Screen::new(&self, checkpoint.manifest.size_bytes());
        loop {
            screen.show(&self, &checkpoint)?;
            let stages: Vec<(&String, Stage)> =
                self.nodes.iter().map(|(id, name)| (name, self.stage(&checkpoint, *id))).collect();
            if stages.iter().all(|(_, stage)| *stage != Stage::Going) {
                screen.clear()?;
                let failed = stages.iter().filter_map(|(name, stage)| match stage {
                    Stage::Failed(why) => Some(format!("{name}: {why}")),
                    Stage::Going | Stage::Done => None,
                });
                let failed: Vec<String> = failed.collect();
                if failed.is_empty() {
                    return Ok(checkpoint);
                }
                return Err(Failure::failed(format!(
                    "checkpoint {} is not on {} of {} nodes, which go on trying; what answered there before does so still\n  {}",
                    checkpoint.id.short(),
                    failed.len(),
                    stages.len(),
                    failed.join("\n  ")
                )));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                _ = tokio::signal::ctrl_c() => {
                    screen.clear()?;
                    return Err(Failure::new(Code::Interrupted, "the rollout goes on; see `hatchery rollouts`"));
                }
            }
            checkpoint = fleet.checkpoint(&checkpoint.id.to_string()).await?;
        }
    }

    fn stage(&self, checkpoint: &CheckpointView, node: NodeId) -> Stage {
        let Some(replica) = replica(checkpoint, node) else { return Stage::Going };
        match &replica.state {
            Some(ReplicaState::Ready { .. }) if !self.activate || replica.active => Stage::Done,
            Some(ReplicaState::Failed { why }) => Stage::Failed(why.clone()),
            _ => Stage::Going,
        }
    }
}

fn replica(checkpoint: &CheckpointView, node: NodeId) -> Option<&ReplicaView> {
    checkpoint.replicas.iter().find(|replica| replica.node == node)
}

/// What is shown: a bar for each node and one for all in a terminal, else a line for each change.
struct Screen {
    bars: Option<(MultiProgress, BTreeMap<NodeId, ProgressBar>, ProgressBar)>,
    said: String,
}

impl Screen {
    fn new(waiting: &Waiting, size_bytes: u64) -> Self {
        let bars = (waiting.output == Output::Text && is_interactive()).then(|| {
            let bars = MultiProgress::new();
            let add = |name: &str, bytes: u64| {
                let bar = bars.add(ProgressBar::new(bytes));
                let style =
                    ProgressStyle::with_template("{prefix:>16} {bar:30} {bytes:>9}/{total_bytes:9} {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(name.to_owned());
                bar
            };
            let nodes = waiting.nodes.iter().map(|(id, name)| (*id, add(name, size_bytes))).collect();
            let all = add("all nodes", size_bytes * waiting.nodes.len() as u64);
            (bars, nodes, all)
        });
        Self { bars, said: String::new() }
    }

    fn show(&mut self, waiting: &Waiting, checkpoint: &CheckpointView) -> Outcome {
        match (&self.bars, waiting.output) {
            (Some((_, nodes, all)), _) => {
                let (mut bytes, mut done) = (0, 0);
                for (id, bar) in nodes {
                    show_bar(replica(checkpoint, *id), bar);
                    bytes += bar.position();
                    done += u32::from(waiting.stage(checkpoint, *id) == Stage::Done);
                }
                all.set_position(bytes);
                let verb = if waiting.activate { "active on" } else { "ready on" };
                all.set_message(format!("{verb} {done} of {}", nodes.len()));
            }
            (None, Output::Text) => {
                let now = format!("checkpoint {} on {}", checkpoint.id.short(), places(checkpoint));
                if self.said != now {
                    eprintln!("{now}");
                    self.said = now;
                }
            }
            (None, Output::Json) => {
                let now = serde_json::to_string(checkpoint).map_err(Failure::failed)?;
                if self.said != now {
                    line(&now)?;
                    self.said = now;
                }
            }
        }
        Ok(())
    }

    fn clear(&self) -> Outcome {
        self.bars.as_ref().map_or(Ok(()), |(bars, ..)| bars.clear().map_err(Failure::failed))
    }
}

fn show_bar(replica: Option<&ReplicaView>, bar: &ProgressBar) {
    match replica.and_then(|replica| replica.state.as_ref()) {
        Some(ReplicaState::Fetching { done_bytes, .. }) => {
            bar.set_position(*done_bytes);
            bar.set_message("");
        }
        Some(ReplicaState::Ready { self_test_ms }) => {
            bar.set_position(bar.length().unwrap_or(0));
            let active = if replica.is_some_and(|replica| replica.active) { "active, " } else { "" };
            bar.set_message(format!("{active}self-test {self_test_ms:.0} ms"));
        }
        Some(ReplicaState::Failed { why }) => bar.set_message(why.clone()),
        None => bar.set_message("waiting"),
    }
}

/// `hatchery rollback`.
pub(crate) async fn rollback(args: RollbackArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let from = selector(&args.to, &fleet).await?;
    let withdrawn = match &args.rollout {
        Some(rollout) => fleet.withdraw(rollout, &from).await?,
        None => fleet.roll_back(&args.job, &from).await?,
    };
    output.print(&withdrawn, now_active)
}

fn now_active(withdrawn: &WithdrawnView) -> String {
    let WithdrawnView { rollout, active } = withdrawn;
    let mut text = format!(
        "took back checkpoint {} (step {}) of {}",
        rollout.checkpoint.short(),
        rollout.step,
        rollout.job_name
    );
    for node in active {
        let now =
            node.checkpoint.map_or_else(|| "nothing".to_owned(), |id| format!("checkpoint {}", id.short()));
        text += &format!("\n{}: {now} answers for {} now", node.node_name, rollout.job_name);
    }
    text
}

/// `hatchery rollouts`.
pub(crate) async fn list(args: RolloutsArgs, home: &Home, output: Output) -> Outcome {
    let rollouts = home.fleet().await?.rollouts(args.all).await?;
    output.print(&rollouts, |rollouts| {
        table(
            &[
                "rollout",
                "checkpoint",
                "job",
                ">step",
                "to",
                "by",
                "when",
                ">ready",
                ">active",
                ">failed",
                "",
            ],
            rollouts.iter().map(row),
        )
    })
}

fn row(rollout: &RolloutView) -> Vec<String> {
    let of_all = |count: u32| format!("{count}/{}", rollout.nodes);
    let mut notes = Vec::new();
    notes.extend((!rollout.activate).then(|| "held only".to_owned()));
    notes.extend(rollout.bytes_per_sec_max.map(|rate| format!("at most {}/s", human::bytes(rate))));
    notes.extend(rollout.withdrawn_at.map(|at| format!("taken back {}", human::ago(at))));
    vec![
        rollout.id.map_or_else(|| "-".to_owned(), |id| id.short()),
        rollout.checkpoint.short(),
        rollout.job_name.to_string(),
        rollout.step.to_string(),
        rollout.to.clone(),
        rollout.by.as_ref().map_or_else(|| "policy".to_owned(), ToString::to_string),
        human::ago(rollout.at),
        of_all(rollout.ready),
        of_all(rollout.active),
        rollout.failed.to_string(),
        notes.join(", "),
    ]
}

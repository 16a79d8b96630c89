//! `push`, `rollback`, `rollouts`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hatchery_common::{
    checkpoint::ReplicaForm,
    id::{NodeId, RolloutId},
    session::ReplicaState,
    view::{CheckpointView, NodeState, ReplicaView, RolloutView, WithdrawnView},
};
use hatchery_proto::client::{CallError, FleetClient, PushCall};
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
/// How long the failure of before a push is taken for that: a node tries again each minute at least.
const OLD_FAILURE_MAX: Duration = Duration::from_secs(90);

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
    let (rollout, mut checkpoint) = fleet.push(&call).await?;
    let selected = fleet.nodes().await?.into_iter().filter(|node| to.selects(node.id, &node.labels));
    let nodes: BTreeMap<NodeId, String> = selected.map(|node| (node.id, node.name.to_string())).collect();
    if nodes.is_empty() {
        eprintln!("no node matches `{}` now; nodes that match later will get the checkpoint", args.to);
    }
    if args.wait {
        checkpoint = Waiting::new(rollout, nodes, args.activate, output).wait(&fleet, &checkpoint).await?;
        if output == Output::Json {
            return Ok(());
        }
    }
    output.print(&checkpoint, |checkpoint| {
        let step = checkpoint.manifest.step;
        let active = if args.wait && args.activate { "active " } else { "" };
        format!("checkpoint {} (step {step}) {active}on {}", checkpoint.id.short(), places(checkpoint))
    })
}

/// How far a node is.
#[derive(PartialEq)]
enum Stage {
    Going,
    /// It is not connected, and is waited for.
    Away,
    Done,
    Failed(String),
}

/// The fleet as it was last seen.
struct Seen {
    checkpoint: CheckpointView,
    nodes: BTreeMap<NodeId, NodeState>,
}

/// Waiting for the nodes of a rollout.
struct Waiting {
    rollout: RolloutId,
    nodes: BTreeMap<NodeId, String>,
    activate: bool,
    output: Output,
    /// Why it had failed on a node before it was pushed, until the node says something else.
    failed_before: BTreeMap<NodeId, String>,
    since: Instant,
}

impl Waiting {
    fn new(rollout: RolloutId, nodes: BTreeMap<NodeId, String>, activate: bool, output: Output) -> Self {
        let (failed_before, since) = (BTreeMap::new(), Instant::now());
        Self { rollout, nodes, activate, output, failed_before, since }
    }

    /// Waits until every node has it, or cannot have it; the latter is a failure that names them.
    async fn wait(mut self, fleet: &FleetClient, pushed: &CheckpointView) -> Result<CheckpointView, Failure> {
        let failures = pushed.replicas.iter().filter_map(|replica| Some((replica.node, failure(replica)?)));
        self.failed_before = failures.map(|(node, why)| (node, why.to_owned())).collect();
        // A node that has all of it says so soon; one that fetches says how much that is.
        let manifest = &pushed.manifest;
        let form = manifest.form_for(ReplicaForm::ServingOnly);
        let mut screen = Screen::new(&self, manifest.bytes_in(form));
        // Heard also while a call is under way.
        let waited = tokio::select! {
            waited = self.follow(fleet, pushed, &mut screen) => waited,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(
                Code::Interrupted,
                format!(
                    "the rollout continues; see it with `hatchery rollouts`, undo it with `hatchery \
                     rollback --rollout {}`",
                    self.rollout.short()
                ),
            )),
        };
        screen.clear()?;
        waited
    }

    async fn follow(
        &mut self,
        fleet: &FleetClient,
        pushed: &CheckpointView,
        screen: &mut Screen,
    ) -> Result<CheckpointView, Failure> {
        loop {
            let checkpoint = fleet.checkpoint(&pushed.id.to_string()).await.map_err(|error| match error {
                CallError::NotFound(_) => Failure::failed(format!(
                    "checkpoint {} is no longer kept: the rollout was undone",
                    pushed.id.short()
                )),
                other => other.into(),
            })?;
            let nodes = fleet.nodes().await?.into_iter().map(|node| (node.id, node.state));
            let seen = Seen { checkpoint, nodes: nodes.collect() };
            self.failed_before.retain(|node, why| {
                let replica = replica(&seen.checkpoint, *node);
                // One that is not connected has said nothing else.
                let is_same = replica.is_some_and(|one| one.state.is_none() || failure(one) == Some(&*why));
                is_same && self.since.elapsed() < OLD_FAILURE_MAX
            });
            screen.show(self, &seen)?;
            let stages: Vec<(&String, Stage)> =
                self.nodes.iter().map(|(id, name)| (name, self.stage(&seen, *id))).collect();
            if stages.iter().all(|(_, stage)| matches!(stage, Stage::Done | Stage::Failed(_))) {
                let failed = stages.iter().filter_map(|(name, stage)| match stage {
                    Stage::Failed(why) => Some(format!("{name}: {why}")),
                    Stage::Going | Stage::Away | Stage::Done => None,
                });
                let failed: Vec<String> = failed.collect();
                if failed.is_empty() {
                    return Ok(seen.checkpoint);
                }
                let verb = if self.activate { "active" } else { "ready" };
                return Err(Failure::failed(format!(
                    "checkpoint {} is not {verb} on {} of {} nodes; there, the previous checkpoint still \
                     answers\n  {}",
                    pushed.id.short(),
                    failed.len(),
                    stages.len(),
                    failed.join("\n  ")
                )));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    fn stage(&self, seen: &Seen, id: NodeId) -> Stage {
        let Some(node) = seen.nodes.get(&id) else {
            return Stage::Failed("it has left the fleet".to_owned());
        };
        let Some(replica) = replica(&seen.checkpoint, id) else {
            return Stage::Failed("the rollout was undone there".to_owned());
        };
        if self.activate && !replica.to_be_active {
            let why = "the rollout was undone there, or superseded by a newer one";
            return Stage::Failed(why.to_owned());
        }
        match &replica.state {
            Some(ReplicaState::Ready { .. }) if !self.activate || replica.active => Stage::Done,
            Some(ReplicaState::Failed { why }) if !self.failed_before.contains_key(&id) => {
                Stage::Failed(format!("{why}; it will retry"))
            }
            _ if *node != NodeState::Connected => Stage::Away,
            _ => Stage::Going,
        }
    }

    /// The names of the nodes that are waited for though they are not connected.
    fn away(&self, seen: &Seen) -> Vec<&str> {
        let away = self.nodes.iter().filter(|(id, _)| self.stage(seen, **id) == Stage::Away);
        away.map(|(_, name)| name.as_str()).collect()
    }
}

fn failure(replica: &ReplicaView) -> Option<&String> {
    match &replica.state {
        Some(ReplicaState::Failed { why }) => Some(why),
        _ => None,
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
            let mut by_name: Vec<(&NodeId, &String)> = waiting.nodes.iter().collect();
            by_name.sort_by_key(|(_, name)| *name);
            let nodes = by_name.into_iter().map(|(id, name)| (*id, add(name, size_bytes))).collect();
            let all = add("all nodes", size_bytes * waiting.nodes.len() as u64);
            (bars, nodes, all)
        });
        Self { bars, said: String::new() }
    }

    fn show(&mut self, waiting: &Waiting, seen: &Seen) -> Outcome {
        let checkpoint = &seen.checkpoint;
        match (&self.bars, waiting.output) {
            (Some((_, nodes, all)), _) => {
                let (mut bytes, mut total_bytes, mut done) = (0, 0, 0);
                for (id, bar) in nodes {
                    let stage = waiting.stage(seen, *id);
                    show_bar(replica(checkpoint, *id), &stage, bar);
                    bytes += bar.position();
                    total_bytes += bar.length().unwrap_or(0);
                    done += u32::from(stage == Stage::Done);
                }
                all.set_length(total_bytes);
                all.set_position(bytes);
                let verb = if waiting.activate { "active on" } else { "ready on" };
                all.set_message(format!("{verb} {done} of {}", nodes.len()));
            }
            (None, Output::Text) => {
                let mut now = format!("checkpoint {} on {}", checkpoint.id.short(), places(checkpoint));
                let away = waiting.away(seen);
                if !away.is_empty() {
                    now += &format!("; not connected: {}", away.join(", "));
                }
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

fn show_bar(replica: Option<&ReplicaView>, stage: &Stage, bar: &ProgressBar) {
    match replica.and_then(|replica| replica.state.as_ref()) {
        Some(ReplicaState::Fetching { done_bytes, total_bytes }) => {
            bar.set_length(*total_bytes);
            bar.set_position(*done_bytes);
            bar.set_message("");
        }
        Some(ReplicaState::Ready { self_test_ms }) => {
            bar.set_position(bar.length().unwrap_or(0));
            let active = if replica.is_some_and(|replica| replica.active) { "active, " } else { "" };
            bar.set_message(format!("{active}self-test {self_test_ms:.0} ms"));
        }
        Some(ReplicaState::Failed { why }) => bar.set_message(why.clone()),
        None => bar.set_message(match stage {
            Stage::Failed(why) => why.clone(),
            Stage::Away => "not connected".to_owned(),
            Stage::Going | Stage::Done => "waiting".to_owned(),
        }),
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
        "undid the rollout of checkpoint {} (step {}) of {}",
        rollout.checkpoint.short(),
        rollout.step,
        rollout.job_name
    );
    for node in active {
        let now = node
            .checkpoint
            .map_or_else(|| "no checkpoint".to_owned(), |id| format!("checkpoint {}", id.short()));
        text += &format!("\n{}: {now} becomes active for {}", node.node_name, rollout.job_name);
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
    notes.extend((!rollout.activate).then(|| "not activated".to_owned()));
    notes.extend(rollout.bytes_per_sec_max.map(|rate| format!("at most {}/s", human::bytes(rate))));
    notes.extend(rollout.withdrawn_at.map(|at| format!("undone {}", human::ago(at))));
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

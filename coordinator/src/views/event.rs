//! The fleet's history in words.

use std::time::Duration;

use hatchery_common::{
    access::Scope,
    id::{JobId, NodeId},
    node::NodeMode,
    recipe::NodeSelector,
    view::EventView,
};
use hatchery_scheduler::{Cluster, HandOver, JobPhase, LeaseEnd, Rough, What};

use crate::store::StoredEvent;

/// Most nodes or labels of one set that are called by their names.
const NAMED_MAX: usize = 8;

/// An event as people see it. Names are those of `cluster`; what has left it is called by its id.
pub(crate) fn event(cluster: &Cluster, StoredEvent { seq, event }: &StoredEvent) -> EventView {
    EventView {
        number: *seq,
        at: event.at,
        kind: event.what.kind().to_owned(),
        job: event.what.job(),
        node: event.what.node(),
        text: sentence(cluster, &event.what),
        change: serde_json::to_value(event).expect("an event was read from JSON"),
    }
}

/// What happened, as a sentence without its full stop.
fn sentence(cluster: &Cluster, what: &What) -> String {
    let job = |id: &JobId| job_name(cluster, *id);
    let node = |id: &NodeId| node_name(cluster, *id);
    match what {
        What::TokenCreated { token, .. } => {
            format!("{} created a join string for {}", token.created_by, scope_name(token.scope))
        }
        What::TokenUsed { .. } => "a join string was used".to_owned(),
        What::CertificateIssued { certificate } => {
            format!("{} received a certificate as {}", certificate.name, scope_name(certificate.scope))
        }
        What::CertificateRevoked { certificate, .. } => match cluster.certificates.get(certificate) {
            Some(known) => format!("certificate {} of {} was revoked", certificate.short(), known.name),
            None => format!("certificate {} was revoked", certificate.short()),
        },
        What::NodeJoined { name, .. } => format!("node {name} joined"),
        What::NodeInventoried { node: id, inventory, .. } => {
            let devices: Vec<String> = inventory.devices.iter().map(|one| one.device.to_string()).collect();
            let devices =
                if devices.is_empty() { "no device for training".to_owned() } else { devices.join(", ") };
            format!("node {} has {devices}", node(id))
        }
        What::NodeRemoved { node: id, .. } => format!("node {} was removed", id.short()),
        What::DatasetRegistered { manifest, .. } => format!(
            "dataset {} was registered ({} files, {} bytes)",
            manifest.name(),
            manifest.files().len(),
            manifest.corpus_bytes()
        ),
        What::JobSubmitted { spec, submitter, .. } => format!("{submitter} submitted {}", spec.name),
        What::LeaseGranted { job: id, epoch, lease } => {
            let from = lease.resume_from.map(|from| format!(", from checkpoint {}", from.short()));
            let from = from.unwrap_or_default();
            format!("{} starts on {} {} (attempt {epoch}){from}", job(id), node(&lease.node), lease.device)
        }
        What::LeaseEnded { job: id, epoch, why, .. } => {
            format!("attempt {epoch} of {} ended: {}; the job waits again", job(id), lease_end(why))
        }
        What::CancelRequested { job: id, by, .. } => format!("{by} cancelled {}", job(id)),
        What::HandOverRequested { job: id, why, .. } => match why {
            HandOver::Pause { by } => format!("{by} paused {}, after a checkpoint", job(id)),
            HandOver::Requeue { by } => format!("{by} requeued {}", job(id)),
            HandOver::Drain => format!("{} leaves its node, which is draining", job(id)),
            HandOver::Overtaken { step } => {
                format!("{} resumes from step {step}, delivered by a reconnected node", job(id))
            }
            HandOver::NodeAway { reason } => format!("{} leaves its node: {reason}", job(id)),
            HandOver::Preempt { by } => format!("{} makes room for {}", job(id), job(by)),
            HandOver::Migrate { to, device, sooner_secs } => format!(
                "{} moves to {} {device}, to end {} sooner",
                job(id),
                node(to),
                Rough(Duration::from_secs(*sooner_secs))
            ),
        },
        What::JobPaused { job: id, by, .. } => format!("{by} paused {}", job(id)),
        What::JobResumed { job: id, by, .. } => format!("{by} resumed {}", job(id)),
        What::PriorityChanged { job: id, priority, by, .. } => {
            format!("{by} changed the priority of {} to {}", job(id), priority.get())
        }
        What::NodeModeChanged { node: id, mode, by, .. } => match mode {
            NodeMode::Open => format!("{by} reopened node {}", node(id)),
            NodeMode::Cordoned => format!("{by} cordoned node {}", node(id)),
            NodeMode::Draining => format!("{by} drains node {}", node(id)),
        },
        What::SpeedMeasured { key, speed } => format!(
            "{} {} averages {:.2} steps/s over {} measurements of one workload",
            node(&key.node),
            key.device,
            speed.steps_per_sec,
            speed.measurements
        ),
        What::JobEnded { job: id, phase, .. } => match phase {
            JobPhase::Failed { why } => format!("{} failed: {}", job(id), first_line(why)),
            JobPhase::Poisoned { why } => format!("{} is poisoned: {}", job(id), first_line(why)),
            phase => {
                let ended = cluster.jobs.get(id).filter(|_| *phase == JobPhase::Completed);
                let early = ended.and_then(|job| job.metrics.early_stop_reason());
                let early = early.map_or_else(String::new, |why| format!(": {why}"));
                format!("{} is {}{early}", job(id), phase.name())
            }
        },
        What::CheckpointCommitted { manifest, late, .. } => {
            let (id, step) = (manifest.id().short(), manifest.step);
            let late = if *late {
                format!(", delivered late by attempt {}: its node had been disconnected", manifest.epoch)
            } else {
                String::new()
            };
            format!("{} has checkpoint {id} at step {step}{late}", job(&manifest.job))
        }
        What::CheckpointDeclined { job: id, epoch, node: of, step, .. } => format!(
            "attempt {epoch} of {} on {} delivered a checkpoint of step {step} too late; it is discarded",
            job(id),
            node(of)
        ),
        What::Restored { epoch_floor, .. } => {
            format!("the fleet was restored from a backup; attempts continue from number {epoch_floor}")
        }
        What::CheckpointRetired { checkpoint, job: id, .. } => {
            let step = cluster.retired.get(checkpoint).map(|retired| format!(" of step {}", retired.step));
            let step = step.unwrap_or_default();
            format!("checkpoint {}{step} of {} was retired", checkpoint.short(), job(id))
        }
        What::PinChanged { checkpoint, is_pinned: true, by, .. } => {
            format!("{by} pinned checkpoint {}", checkpoint.short())
        }
        What::PinChanged { checkpoint, by, .. } => {
            format!("{by} unpinned checkpoint {}", checkpoint.short())
        }
        What::RolloutStarted { rollout } => {
            let active = if rollout.activate { " and activated it there" } else { "" };
            let (checkpoint, to) = (rollout.checkpoint.short(), selected(cluster, &rollout.to));
            format!("{} rolled out checkpoint {checkpoint} to {to}{active}", rollout.by)
        }
        What::RolloutWithdrawn { rollout: id, from, by, .. } => match cluster.rollouts.get(id) {
            Some(rollout) => {
                let from = if *from == NodeSelector::All { &rollout.to } else { from };
                let (checkpoint, from) = (rollout.checkpoint.short(), selected(cluster, from));
                format!("{by} undid the rollout of checkpoint {checkpoint} to {from}")
            }
            None => format!("{by} undid rollout {}", id.short()),
        },
        What::RolloutForgotten { rollout, checkpoint, .. } => format!(
            "rollout {} of checkpoint {} was removed from the records, superseded by newer ones",
            rollout.short(),
            checkpoint.short()
        ),
    }
}

/// The node's name, or the first digits of its id when it has left.
pub(crate) fn node_name(cluster: &Cluster, node: NodeId) -> String {
    cluster.nodes.get(&node).map_or_else(|| node.short(), |node| node.name.to_string())
}

fn job_name(cluster: &Cluster, job: JobId) -> String {
    let id = job.short();
    cluster.jobs.get(&job).map_or_else(|| format!("job {id}"), |job| format!("{} ({id})", job.spec.name))
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Agent => "an agent",
        Scope::Operator => "an operator",
        Scope::Viewer => "a viewer",
    }
}

fn lease_end(why: &LeaseEnd) -> String {
    match why {
        LeaseEnd::NodeLost => "its node did not report".to_owned(),
        LeaseEnd::Stopped => "the agent stopped it".to_owned(),
        LeaseEnd::HandedOver => "it handed over its device".to_owned(),
        LeaseEnd::Failed { message, .. } => first_line(message).to_owned(),
    }
}

/// A set of nodes in words: `a, b, c and 997 more` where there are many.
pub(crate) fn selected(cluster: &Cluster, to: &NodeSelector) -> String {
    let list = |items: Vec<String>| match items.len().checked_sub(NAMED_MAX) {
        None | Some(0) => items.join(", "),
        Some(more) => format!("{} and {more} more", items[..NAMED_MAX].join(", ")),
    };
    match to {
        NodeSelector::All => "all nodes".to_owned(),
        NodeSelector::None => "no node".to_owned(),
        NodeSelector::Labels(labels) => {
            format!(
                "nodes with {}",
                list(labels.iter().map(|(key, value)| format!("{key}={value}")).collect())
            )
        }
        NodeSelector::Nodes(nodes) => list(nodes.iter().map(|node| node_name(cluster, *node)).collect()),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

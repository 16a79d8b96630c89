//! Why a job is where it is: every device of the fleet with what it would mean for the job.

use std::time::Duration;

use hatchery_common::{
    availability::Away,
    device::Device,
    id::{JobId, Name, NodeId},
    node::NodeMode,
};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, Job, Lease},
    draft::{Draft, Leased},
    observed::{Now, Observed},
    placement::{Placement, steps_left},
    plan::made,
    slot::{Needs, Reach, Slot, Unfit},
    speed::{Known, duration},
};

/// A device as a place for a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub node: NodeId,
    pub node_name: Name,
    pub device: Device,
    /// Steps per second that it is expected to make.
    pub steps_per_sec: f64,
    /// How that is known.
    pub known: Known,
    /// How long until the job could start there, jobs before it included; none: never as things are.
    pub start_in: Option<Duration>,
    /// How long until it would end there.
    pub end_in: Option<Duration>,
    /// What speaks for or against it.
    pub verdict: Verdict,
}

/// What speaks for or against a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The job runs there.
    Runs,
    /// The job is to start there.
    Chosen,
    /// The job would end later there than where it is to start.
    EndsLater { by: Duration },
    /// The job would end no later there, but others would.
    BetterForOthers,
    /// The job could run there, and does not wait for a device now: it is paused, pauses after a failure, or comes after
    /// another job.
    Possible,
    /// It is not what the job wishes for.
    Unwished,
    /// The job will not run on this node.
    Excluded,
    /// Its memory is too small.
    TooLittleMemory {
        /// What the job needs at the least.
        least_bytes: u64,
    },
    /// The node is closed to new work.
    Cordoned,
    /// The node's devices are its owner's for now.
    NodeAway {
        /// Why, and until when.
        away: Away,
    },
    /// The node is not connected.
    NotConnected,
}

impl Verdict {
    /// In one word, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Chosen => "chosen",
            Self::EndsLater { .. } => "ends_later",
            Self::BetterForOthers => "better_for_others",
            Self::Possible => "possible",
            Self::Unwished => "unwished",
            Self::Excluded => "excluded",
            Self::TooLittleMemory { .. } => "too_little_memory",
            Self::Cordoned => "cordoned",
            Self::NodeAway { .. } => "node_away",
            Self::NotConnected => "not_connected",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runs => f.write_str("runs here"),
            Self::Chosen => f.write_str("chosen: it ends earliest here"),
            Self::EndsLater { by } => write!(f, "would end {} later", crate::wait::Rough(*by)),
            Self::BetterForOthers => f.write_str("assigned to jobs that gain more from it"),
            Self::Possible => f.write_str("possible once the job is in the queue"),
            Self::Unwished => f.write_str("outside the job's wishes"),
            Self::Excluded => f.write_str("excluded"),
            Self::TooLittleMemory { least_bytes } => {
                write!(f, "too little memory: it needs at least {} MiB", least_bytes.div_ceil(1 << 20))
            }
            Self::Cordoned => f.write_str("closed to new jobs"),
            Self::NodeAway { away } => write!(f, "away: {away}"),
            Self::NotConnected => f.write_str("not connected"),
        }
    }
}

/// Every device of the fleet as a place for `job`, the best first. Empty for a job that has ended or is not there.
pub fn explain(cluster: &Cluster, observed: &Observed, now: Now, job: JobId) -> Vec<Candidate> {
    let Some(job) = cluster.jobs.get(&job).filter(|job| !job.phase.is_terminal()) else { return Vec::new() };
    let (_, draft, placement) = made(cluster, observed, now);
    let mut candidates = candidates(job, &draft, &placement);
    let key = |candidate: &Candidate| {
        (candidate.end_in.is_none(), candidate.end_in, candidate.node_name.clone(), candidate.device)
    };
    candidates.sort_by_key(key);
    candidates
}

fn candidates(job: &Job, draft: &Draft<'_>, placement: &Placement<'_>) -> Vec<Candidate> {
    let (speeds, needs) = (draft.speeds.speeds(job), Needs::of(job));
    let leased = draft.leases().find(|leased| leased.job.id == job.id);
    let granted = draft.granted.iter().any(|(other, _)| other.id == job.id);
    let steps = leased.as_ref().map_or(steps_left(job), Leased::steps_left) as f64;
    let in_line = placement.jobs.iter().position(|other| other.id == job.id);
    let chosen = in_line.and_then(|index| placement.lines.iter().position(|line| line.contains(&index)));
    let ends = placement.slots.iter().enumerate().map(|(index, slot)| {
        let here = leased.as_ref().is_some_and(|leased| is_at(slot, leased.lease));
        let secs = speeds.at(slot.node.id, slot.device).secs_per_step * steps;
        let start_secs = if here { 0.0 } else { start_secs(placement, index, in_line) };
        let secs = if here { slot.attempt.map_or(secs, |left| left.secs) } else { secs };
        (here, start_secs, start_secs + in_line.map_or(secs, |job| placement.secs(job, index)))
    });
    let ends: Vec<(bool, f64, f64)> = ends.collect();
    let best = ends.iter().position(|(here, ..)| *here).or(chosen).map(|index| ends[index].2);
    let slots = placement.slots.iter().enumerate();
    let candidate = |(index, slot): (usize, &Slot<'_>)| {
        let speed = speeds.at(slot.node.id, slot.device);
        let (here, start_secs, end_secs) = ends[index];
        let verdict = match unusable(slot, &needs) {
            _ if here && granted => Verdict::Chosen,
            _ if here => Verdict::Runs,
            Some(verdict) => verdict,
            None if chosen == Some(index) => Verdict::Chosen,
            None if best.is_none() => Verdict::Possible,
            None => match best.map(|best| end_secs - best) {
                Some(later) if later >= 0.0 => Verdict::EndsLater { by: duration(later) },
                _ => Verdict::BetterForOthers,
            },
        };
        let possible = here || unusable(slot, &needs).is_none();
        Candidate {
            node: slot.node.id,
            node_name: slot.node.name.clone(),
            device: slot.device.device,
            steps_per_sec: 1.0 / speed.secs_per_step,
            known: speed.known,
            start_in: possible.then(|| duration(start_secs)),
            end_in: possible.then(|| duration(end_secs)),
            verdict,
        }
    };
    slots.map(candidate).collect()
}

fn is_at(slot: &Slot<'_>, lease: &Lease) -> bool {
    (slot.node.id, slot.device.device) == (lease.node, lease.device)
}

/// When a job could start in a slot: at its own place in the line, else behind those that are in it.
fn start_secs(placement: &Placement<'_>, slot: usize, job: Option<usize>) -> f64 {
    let line = &placement.lines[slot];
    let before = line.iter().take_while(|other| Some(**other) != job);
    placement.slots[slot].free_in_secs() + before.map(|other| placement.secs(*other, slot)).sum::<f64>()
}

fn unusable(slot: &Slot<'_>, needs: &Needs<'_>) -> Option<Verdict> {
    match slot.unfit(needs) {
        Some(Unfit::Unwished) => Some(Verdict::Unwished),
        Some(Unfit::Excluded) => Some(Verdict::Excluded),
        Some(Unfit::Memory { least_bytes }) => Some(Verdict::TooLittleMemory { least_bytes }),
        None if slot.reach == Reach::Lost => Some(Verdict::NotConnected),
        None if slot.node.mode != NodeMode::Open => Some(Verdict::Cordoned),
        None => match slot.reach {
            Reach::Away(away) => Some(Verdict::NodeAway { away }),
            _ => None,
        },
    }
}

//! Slots: every device that can train, whether it can be reached, and how long it is taken.

use std::collections::BTreeMap;

use hatchery_common::{
    availability::Away,
    id::NodeId,
    node::{NodeDevice, NodeMode, TrainerState},
    recipe::DeviceWishes,
    time::BootTime,
};

use crate::{
    cluster::{HandOver, Job, JobPhase, Node},
    draft::{Draft, Leased},
    observed::{Now, Observed},
    speed,
};

/// How long an attempt that was told to stop is expected to need for its last checkpoint.
pub(crate) const HAND_OVER_SECS: f64 = 10.0;
/// The least time that a busy device is expected to stay busy; a trainer at its last step still has to write it.
pub(crate) const BUSY_SECS_MIN: f64 = 1.0;

/// Whether a node can be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Its session is open and it was heard from within the lease.
    Connected,
    /// The coordinator has just started and the node has not been heard from; it has until then to come back: I5.
    Unknown { until: BootTime },
    /// It is there, and its devices are its owner's for now.
    Away(Away),
    /// It was lost, or has said goodbye.
    Lost,
}

impl Reach {
    pub(crate) fn of(node: NodeId, observed: &Observed, now: Now) -> Self {
        let until = observed.lease_until(node);
        match observed.nodes.get(&node) {
            _ if until <= now.boot => Self::Lost,
            Some(node) if !node.connected || node.report.leaving => Self::Lost,
            // It has only just dialled; whether it can be given work stands in its first report.
            Some(node) if !node.has_reported() => Self::Unknown { until },
            Some(node) => node.report.away.map_or(Self::Connected, Self::Away),
            None => Self::Unknown { until },
        }
    }
}

/// One device that can train.
pub(crate) struct Slot<'a> {
    pub(crate) node: &'a Node,
    pub(crate) device: &'a NodeDevice,
    pub(crate) reach: Reach,
    /// What is left of the attempt that has it, or is about to come to it.
    pub(crate) attempt: Option<Left>,
    /// Seconds until its node must be back, if that is not known to be there.
    back_in_secs: f64,
}

/// What is left of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) secs: f64,
    /// Whether that rests on a measurement.
    pub(crate) measured: bool,
}

/// Why a device is none for a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unfit {
    /// It is not what the job wishes for.
    Unwished,
    /// The job will not run on this node.
    Excluded,
    /// Its memory is too small.
    Memory { least_bytes: u64 },
}

impl Slot<'_> {
    pub(crate) fn is_free(&self) -> bool {
        self.attempt.is_none() && self.reach == Reach::Connected && self.node.mode == NodeMode::Open
    }

    /// Whether it may be given a job, now or later.
    pub(crate) fn is_open(&self) -> bool {
        let comes = matches!(self.reach, Reach::Connected | Reach::Unknown { .. });
        comes && self.node.mode == NodeMode::Open
    }

    pub(crate) fn free_in_secs(&self) -> f64 {
        self.attempt.map_or(0.0, |left| left.secs).max(self.back_in_secs)
    }

    /// Whether a job can never run here as it is, and why.
    pub(crate) fn unfit(&self, needs: &Needs<'_>) -> Option<Unfit> {
        let least_bytes = needs.memory_bytes_least;
        if needs.wishes.exclude.contains(&self.node.name) {
            Some(Unfit::Excluded)
        } else if !self.is_as_wished(needs.wishes) {
            Some(Unfit::Unwished)
        } else if self.device.memory_bytes != 0 && self.device.memory_bytes < least_bytes {
            Some(Unfit::Memory { least_bytes })
        } else {
            None
        }
    }

    fn is_as_wished(&self, wishes: &DeviceWishes) -> bool {
        let kind = wishes.kinds.is_empty() || wishes.kinds.contains(&self.device.device.kind);
        let name = wishes.nodes.is_empty() || wishes.nodes.contains(&self.node.name);
        kind && name && wishes.labels.iter().all(|(key, value)| self.node.labels.get(key) == Some(value))
    }
}

/// What a job needs of a device.
pub(crate) struct Needs<'a> {
    wishes: &'a DeviceWishes,
    /// By its wish, or by its model and batch.
    pub(crate) memory_bytes_least: u64,
}

impl<'a> Needs<'a> {
    pub(crate) fn of(job: &'a Job) -> Self {
        let wishes = &job.spec.devices;
        let memory_bytes_least = match wishes.memory_bytes_min {
            // A step's sequences can go through one by one.
            0 => job.spec.model.memory_bytes_least(1, job.spec.train.raw().block),
            wished => wished,
        };
        Self { wishes, memory_bytes_least }
    }
}

pub(crate) fn slots<'a>(draft: &Draft<'a>) -> Vec<Slot<'a>> {
    let (cluster, observed, now) = (draft.cluster, draft.observed, draft.now);
    let mut nodes: Vec<&Node> = cluster.nodes.values().filter(|node| can_train(node)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut slots = Vec::new();
    let mut places = BTreeMap::new();
    for node in nodes {
        let reach = Reach::of(node.id, observed, now);
        let back_in_secs = match reach {
            Reach::Unknown { until } => until.since(now.boot).as_secs_f64(),
            Reach::Connected | Reach::Away(_) | Reach::Lost => 0.0,
        };
        for device in &node.inventory.devices {
            places.insert((node.id, device.device), slots.len());
            slots.push(Slot { node, device, reach, attempt: None, back_in_secs });
        }
    }
    for leased in draft.leases() {
        let place = (leased.lease.node, leased.lease.device);
        if let Some(index) = places.get(&place) {
            slots[*index].attempt = Some(attempt_left(&leased, slots[*index].device, draft));
        }
        // What moves there has the device as good as taken.
        if let Some(HandOver::Migrate { to, device, .. }) = leased.hand_over
            && let Some(index) = places.get(&(*to, *device))
            && slots[*index].attempt.is_none()
        {
            let slot = &slots[*index];
            let speed = draft.speeds.speeds(leased.job).at(slot.node.id, slot.device);
            let secs = HAND_OVER_SECS + speed.secs_per_step * leased.steps_left() as f64;
            slots[*index].attempt = Some(Left { secs, measured: speed.is_measured() });
        }
    }
    slots
}

/// Whether the node has a trainer that runs.
pub(crate) fn can_train(node: &Node) -> bool {
    matches!(node.inventory.trainer, TrainerState::Ready { .. })
}

/// What is left of the attempt that has a lease.
fn attempt_left(leased: &Leased<'_, '_>, device: &NodeDevice, draft: &Draft<'_>) -> Left {
    let job = leased.job;
    if job.phase == JobPhase::Cancelling || leased.hand_over.is_some() {
        return Left { secs: HAND_OVER_SECS, measured: true };
    }
    let steps_left = leased.steps_left() as f64;
    let reported =
        leased.progress.map(|progress| progress.steps_per_sec).filter(|rate| speed::is_rate(*rate));
    let (secs, measured) = if let Some(steps_per_sec) = reported {
        (steps_left / steps_per_sec, true)
    } else {
        let speed = draft.speeds.speeds(job).at(leased.lease.node, device);
        (steps_left * speed.secs_per_step, speed.is_measured())
    };
    Left { secs: secs.max(BUSY_SECS_MIN), measured }
}

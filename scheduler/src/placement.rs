//! Placement: which device a waiting job gets, or which one it is better off waiting for.
//!
//! Every device that can train is a [`Slot`]. A job goes where it is expected to end first, the time until the device
//! is free included. If that device is free the job gets it; if not, the job waits and stands in the device's queue,
//! so that those behind it see a longer one.

use std::{collections::BTreeMap, time::Duration};

use hatchery_common::{device::Device, id::NodeId, node::TrainerState, recipe::DeviceWishes, time::BootTime};

use crate::{
    cluster::{Cluster, Job, JobPhase, Lease, Node},
    observed::{Now, Observed},
    speed::{Speed, duration, is_rate},
    wait::{Fleet, Instead, Wait},
};

/// How long a cancelled attempt is expected to need for its last checkpoint.
const CANCELLING_SECS: f64 = 10.0;
/// The least time that a busy device is expected to stay busy; a trainer at its last step still has to write it.
const BUSY_SECS_MIN: f64 = 1.0;

/// Whether a node can be given work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Its session is open and it was heard from within the lease.
    Connected,
    /// The coordinator has just started and the node has not been heard from; it has until then to come back: I5.
    Unknown { until: BootTime },
    /// It was lost, or has said goodbye.
    Away,
}

impl Reach {
    pub(crate) fn of(node: NodeId, observed: &Observed, now: Now) -> Self {
        let until = observed.lease_until(node);
        match observed.nodes.get(&node) {
            _ if until <= now.boot => Self::Away,
            Some(node) if node.connected && !node.report.leaving => Self::Connected,
            Some(_) => Self::Away,
            None => Self::Unknown { until },
        }
    }
}

/// One device that can train, as far as the plan has filled it.
struct Slot<'a> {
    node: &'a Node,
    device: Device,
    speed: Speed,
    reach: Reach,
    /// What is left of the attempt that has it.
    attempt: Option<Left>,
    /// Seconds until its node must be back, if that is not known to be there.
    back_in_secs: f64,
    /// Seconds until it can be given to one more job, those queued for it included.
    free_in_secs: f64,
    /// Jobs of this plan that wait for it.
    queue: usize,
}

/// What is left of an attempt.
#[derive(Clone, Copy, Debug)]
struct Left {
    secs: f64,
    /// Whether that rests on a measurement.
    measured: bool,
}

impl Slot<'_> {
    fn is_free(&self) -> bool {
        self.attempt.is_none() && self.reach == Reach::Connected
    }

    fn finish_secs(&self, job: &Job) -> f64 {
        self.free_in_secs + self.speed.secs(job, steps_left(job))
    }

    fn satisfies(&self, wishes: &DeviceWishes) -> bool {
        let kind = wishes.kinds.is_empty() || wishes.kinds.contains(&self.device.kind);
        let name = wishes.nodes.is_empty() || wishes.nodes.contains(&self.node.name);
        kind && name && wishes.labels.iter().all(|(key, value)| self.node.labels.get(key) == Some(value))
    }

    /// What an attempt at `job` takes here, from its checkpoint on.
    fn whole_attempt(&self, job: &Job) -> Left {
        let secs = self.speed.secs(job, steps_left(job)).max(BUSY_SECS_MIN);
        Left { secs, measured: self.speed.measured }
    }

    /// How long until it is free, if that can be said with reason.
    fn free_in(&self) -> Option<Duration> {
        let measured =
            self.attempt.is_none_or(|left| left.measured) && (self.queue == 0 || self.speed.measured);
        measured.then(|| duration(self.free_in_secs))
    }
}

/// Every device that can train, filled job by job.
pub(crate) struct Placement<'a> {
    cluster: &'a Cluster,
    now: Now,
    slots: Vec<Slot<'a>>,
}

impl<'a> Placement<'a> {
    pub(crate) fn new(cluster: &'a Cluster, observed: &Observed, now: Now) -> Self {
        let leased: BTreeMap<(NodeId, Device), &Job> = cluster
            .jobs
            .values()
            .filter_map(|job| job.lease.as_ref().map(|lease| ((lease.node, lease.device), job)))
            .collect();
        let mut slots = Vec::new();
        for node in cluster.nodes.values().filter(|node| can_train(node)) {
            let reach = Reach::of(node.id, observed, now);
            let back_in_secs = match reach {
                Reach::Unknown { until } => until.since(now.boot).as_secs_f64(),
                Reach::Connected | Reach::Away => 0.0,
            };
            for device in &node.inventory.devices {
                let speed = Speed::of(device);
                let holder = leased.get(&(node.id, device.device));
                let attempt = holder.map(|job| attempt_left(job, node.id, speed, observed));
                let attempt_secs = attempt.map_or(0.0, |left| left.secs);
                slots.push(Slot {
                    node,
                    device: device.device,
                    speed,
                    reach,
                    attempt,
                    back_in_secs,
                    free_in_secs: attempt_secs.max(back_in_secs),
                    queue: 0,
                });
            }
        }
        Self { cluster, now, slots }
    }

    /// Empties the queues, now that these jobs have been given their devices for good.
    pub(crate) fn look_again(&mut self, granted: &[(&Job, Lease)]) {
        for slot in &mut self.slots {
            let here =
                |(_, lease): &&(&Job, Lease)| (lease.node, lease.device) == (slot.node.id, slot.device);
            if let Some((job, _)) = granted.iter().find(here) {
                slot.attempt = Some(slot.whole_attempt(job));
            }
            slot.free_in_secs = slot.attempt.map_or(0.0, |left| left.secs).max(slot.back_in_secs);
            slot.queue = 0;
        }
    }

    /// Gives `job` a device, or says what it waits for.
    pub(crate) fn place(&mut self, job: &Job) -> Result<Lease, Wait> {
        let candidates = self.candidates(job)?;
        let best = self.first_to_finish(job, &candidates).expect("there is at least one candidate");
        if self.slots[best].is_free() {
            Ok(self.grant(job, best))
        } else {
            Err(self.wait(job, best, &candidates))
        }
    }

    /// The slots that `job` may get now or later. A node on which it failed is left out while a free device of
    /// another one is there.
    fn candidates(&self, job: &Job) -> Result<Vec<usize>, Wait> {
        if self.cluster.nodes.is_empty() {
            return Err(Wait::NoNodes);
        }
        let wishes = &job.spec.devices;
        let suitable: Vec<usize> = self.indices(|slot| slot.satisfies(wishes));
        if suitable.is_empty() {
            return Err(Wait::NoSuchDevice { wishes: wishes.clone(), fleet: Fleet::of(self.cluster) });
        }
        let mut reachable = suitable.clone();
        reachable.retain(|index| self.slots[*index].reach != Reach::Away);
        if reachable.is_empty() {
            let mut nodes: Vec<_> =
                suitable.iter().map(|index| self.slots[*index].node.name.clone()).collect();
            nodes.sort();
            nodes.dedup();
            return Err(Wait::NodeNotConnected { nodes });
        }
        let failed_on = |index: &usize| job.failures.iter().any(|f| f.node == self.slots[*index].node.id);
        let untried = |index: &usize| !failed_on(index);
        if reachable.iter().any(|index| untried(index) && self.slots[*index].is_free()) {
            reachable.retain(untried);
        }
        Ok(reachable)
    }

    fn indices(&self, keep: impl Fn(&Slot<'_>) -> bool) -> Vec<usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| keep(slot)).map(|(index, _)| index).collect()
    }

    /// The slot in which `job` ends first; of equal ones, the first by name.
    fn first_to_finish(&self, job: &Job, among: &[usize]) -> Option<usize> {
        let key = |index: usize| {
            let slot = &self.slots[index];
            (slot.finish_secs(job), slot.free_in_secs, &slot.node.name, slot.device)
        };
        among.iter().copied().min_by(|a, b| {
            let (a, b) = (key(*a), key(*b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then((a.2, a.3).cmp(&(b.2, b.3)))
        })
    }

    fn grant(&mut self, job: &Job, index: usize) -> Lease {
        let slot = &mut self.slots[index];
        let attempt = slot.whole_attempt(job);
        slot.attempt = Some(attempt);
        slot.free_in_secs = attempt.secs;
        Lease {
            node: slot.node.id,
            device: slot.device,
            granted_at: self.now.wall,
            resume_from: job.checkpoint.or(job.spec.start_from.map(|start| start.checkpoint)),
        }
    }

    fn wait(&mut self, job: &Job, best: usize, candidates: &[usize]) -> Wait {
        let free: Vec<usize> =
            candidates.iter().copied().filter(|index| self.slots[*index].is_free()).collect();
        let instead = self.first_to_finish(job, &free).map(|index| {
            let slot = &self.slots[index];
            let later_secs = slot.finish_secs(job) - self.slots[best].finish_secs(job);
            Instead { device: slot.device, node: slot.node.name.clone(), later: duration(later_secs) }
        });
        let slot = &mut self.slots[best];
        let (device, node) = (slot.device, slot.node.name.clone());
        let about = slot.free_in();
        let wait = match slot.reach {
            Reach::Unknown { until } if slot.attempt.is_none() && slot.queue == 0 => {
                Wait::NodeUnknown { node, given: until.since(self.now.boot), instead }
            }
            _ if slot.queue > 0 => Wait::Behind { jobs: slot.queue, device, node, about, instead },
            _ => Wait::Busy { device, node, about, instead },
        };
        slot.queue += 1;
        slot.free_in_secs += slot.whole_attempt(job).secs;
        wait
    }
}

/// Whether the node has a trainer that runs.
pub(crate) fn can_train(node: &Node) -> bool {
    matches!(node.inventory.trainer, TrainerState::Ready { .. })
}

fn steps_left(job: &Job) -> u64 {
    job.spec.train.raw().steps.saturating_sub(job.steps_done())
}

/// What is left of the attempt that has `job`'s lease.
fn attempt_left(job: &Job, node: NodeId, speed: Speed, observed: &Observed) -> Left {
    if job.phase == JobPhase::Cancelling {
        return Left { secs: CANCELLING_SECS, measured: true };
    }
    let progress = observed
        .nodes
        .get(&node)
        .and_then(|node| node.report.attempts.iter().find(|a| a.job == job.id && a.epoch == job.epoch))
        .and_then(|attempt| attempt.progress);
    let steps_left = progress.map_or(steps_left(job), |p| job.spec.train.raw().steps.saturating_sub(p.step));
    let (secs, measured) = match progress.map(|progress| progress.steps_per_sec).filter(|rate| is_rate(*rate))
    {
        Some(steps_per_sec) => (steps_left as f64 / steps_per_sec, true),
        None => (speed.secs(job, steps_left), speed.measured),
    };
    Left { secs: secs.max(BUSY_SECS_MIN), measured }
}

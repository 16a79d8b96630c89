//! Placement: the fleet as machines and the queue as tasks, for the [schedule](crate::schedule), and what it comes to.
//!
//! Every device that can train is a [`Slot`]. A job stands in the line of the slot that the schedule gave it: at the head
//! of a free slot's line it gets the device, everywhere else it waits.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{
    availability::Away,
    id::{CheckpointId, JobId, Name, NodeId},
    node::{NodeDevice, NodeMode, TrainerState},
    recipe::DeviceWishes,
    session::ReplicaState,
    time::BootTime,
    trainer::Progress,
};

use crate::{
    cluster::{Cluster, HandOver, Job, JobPhase, Lease, Node},
    observed::{Now, Observed},
    plan::{Draft, Leased},
    schedule::{Problem, Task},
    speed::{self, Shape, Speed, duration},
    urgency::{self, Shares},
    wait::{AwayNode, Fleet, Instead, Wait},
};

/// How long an attempt that was told to stop is expected to need for its last checkpoint.
pub(crate) const HAND_OVER_SECS: f64 = 10.0;
/// The least time that a busy device is expected to stay busy; a trainer at its last step still has to write it.
const BUSY_SECS_MIN: f64 = 1.0;
/// What a node is taken to fetch in a second: a tenth of a gigabit link.
const LINK_BYTES_PER_SEC: f64 = 12.5e6;
/// A node where an attempt failed must bring its job's end forward by so much, for each failure, to get it again.
const FAILED_HERE_SECS: f64 = 600.0;

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
    memory_bytes_least: u64,
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

/// The fleet and the queue at one moment of planning.
pub(crate) struct Placement<'a> {
    cluster: &'a Cluster,
    now: Now,
    pub(crate) slots: Vec<Slot<'a>>,
    /// The jobs that wait for a device, and can get one.
    pub(crate) jobs: Vec<&'a Job>,
    /// The speed of each slot for each class of jobs; none where it is no place for them.
    speeds: Vec<Vec<Option<Speed>>>,
    problem: Problem,
    /// The jobs in line for each slot, by their place in `jobs`.
    pub(crate) lines: Vec<Vec<usize>>,
    /// Jobs that no slot can take, with the reason.
    pub(crate) placeless: Vec<(&'a Job, Wait)>,
}

impl<'a> Placement<'a> {
    /// Places the jobs of the draft's queue.
    pub(crate) fn of(draft: &Draft<'a>) -> Self {
        let slots = slots(draft);
        let free_in_secs = slots.iter().map(Slot::free_in_secs).collect();
        let mut this = Self {
            cluster: draft.cluster,
            now: draft.now,
            slots,
            jobs: Vec::new(),
            speeds: Vec::new(),
            problem: Problem { free_in_secs, ..Problem::default() },
            lines: Vec::new(),
            placeless: Vec::new(),
        };
        let shares = Shares::of(draft.cluster);
        this.problem.weight_running = draft.leases().map(|leased| shares.weight(leased.job)).sum();
        let at_hand = Self::nodes_with_checkpoints(draft);
        let mut classes = BTreeMap::new();
        for job in &draft.queue {
            let class = *classes.entry(class_key(job)).or_insert_with(|| this.add_class(job, draft));
            if this.speeds[class].iter().all(Option::is_none) {
                let wait = this.no_place(job);
                this.placeless.push((job, wait));
            } else {
                let task = this.task(job, class, &shares, &at_hand);
                this.problem.tasks.push(task);
                this.jobs.push(job);
            }
        }
        this.problem.intended = this.intended(draft);
        this.lines = this.problem.schedule();
        this
    }

    /// The lines that the last plan made, as far as their jobs still wait.
    fn intended(&self, draft: &Draft<'_>) -> Vec<Vec<usize>> {
        let intended = &draft.intended;
        if intended.is_empty() {
            return Vec::new();
        }
        let tasks: BTreeMap<JobId, usize> =
            self.jobs.iter().enumerate().map(|(index, job)| (job.id, index)).collect();
        let line = |slot: &Slot<'_>| {
            let line = intended.get(&(slot.node.id, slot.device.device)).into_iter().flatten();
            line.filter_map(|waiting| tasks.get(&waiting.job).copied()).collect()
        };
        self.slots.iter().map(line).collect()
    }

    fn add_class(&mut self, job: &Job, draft: &Draft<'a>) -> usize {
        let (speeds, needs) = (draft.speeds.speeds(job), Needs::of(job));
        let speed = |slot: &Slot<'_>| {
            (slot.is_open() && slot.unfit(&needs).is_none()).then(|| speeds.at(slot.node.id, slot.device))
        };
        let row: Vec<Option<Speed>> = self.slots.iter().map(speed).collect();
        let secs = row.iter().map(|speed| speed.map_or(f64::INFINITY, |speed| speed.secs_per_step));
        let secs: Vec<f64> = secs.collect();
        self.problem.least.push(secs.iter().copied().fold(f64::INFINITY, f64::min));
        self.problem.classes.push(secs);
        self.speeds.push(row);
        self.speeds.len() - 1
    }

    fn task(
        &self,
        job: &Job,
        class: usize,
        shares: &Shares<'_>,
        at_hand: &BTreeMap<CheckpointId, BTreeSet<NodeId>>,
    ) -> Task {
        let steps = steps_left(job) as f64;
        let checkpoint = resume_from(job).and_then(|id| Some((id, self.cluster.checkpoints.get(&id)?)));
        let fetch_bytes = checkpoint.map_or(0, |(_, checkpoint)| checkpoint.manifest.size_bytes());
        let holders = checkpoint.and_then(|(id, _)| at_hand.get(&id));
        let indices = || self.slots.iter().enumerate();
        let holds = |slot: &Slot<'_>| holders.is_some_and(|nodes| nodes.contains(&slot.node.id));
        let slower = |slot: &Slot<'_>| {
            let failures = job.failures.iter().filter(|failure| failure.node == slot.node.id).count();
            (failures > 0).then_some(failures as f64 * FAILED_HERE_SECS)
        };
        let secs_per_step = self.problem.least[class];
        Task {
            tier: urgency::tier(job, steps * secs_per_step, self.now.wall),
            weight: shares.weight(job),
            class,
            steps,
            fetch_secs: fetch_bytes as f64 / LINK_BYTES_PER_SEC,
            at_hand: match holders {
                None => Vec::new(),
                Some(_) => indices().filter(|(_, slot)| holds(slot)).map(|(index, _)| index).collect(),
            },
            slower: if job.failures.is_empty() {
                Vec::new()
            } else {
                indices().filter_map(|(index, slot)| Some((index, slower(slot)?))).collect()
            },
        }
    }

    /// The nodes that hold all of the checkpoints which jobs of the queue go on from.
    fn nodes_with_checkpoints(draft: &Draft<'_>) -> BTreeMap<CheckpointId, BTreeSet<NodeId>> {
        let wanted: BTreeSet<CheckpointId> = draft.queue.iter().filter_map(|job| resume_from(job)).collect();
        let mut holders: BTreeMap<CheckpointId, BTreeSet<NodeId>> = BTreeMap::new();
        if wanted.is_empty() {
            return holders;
        }
        for (node, heard) in &draft.observed.nodes {
            for replica in &heard.report.replicas {
                let is_ready = matches!(replica.state, ReplicaState::Ready { .. });
                if is_ready && !replica.serving_only && wanted.contains(&replica.checkpoint) {
                    holders.entry(replica.checkpoint).or_default().insert(*node);
                }
            }
        }
        holders
    }

    /// The leases of the jobs that get a device now, by their place in `jobs`; the most urgent first.
    pub(crate) fn grants(&self) -> Vec<(usize, Lease)> {
        let free = self.lines.iter().zip(&self.slots).filter(|(_, slot)| slot.is_free());
        let heads = free.filter_map(|(line, slot)| Some((*line.first()?, slot)));
        let lease = |(index, slot): (usize, &Slot<'_>)| {
            let lease = Lease {
                node: slot.node.id,
                device: slot.device.device,
                granted_at: self.now.wall,
                resume_from: resume_from(self.jobs[index]),
            };
            (index, lease)
        };
        let mut grants: Vec<(usize, Lease)> = heads.map(lease).collect();
        grants.sort_by_key(|(index, _)| {
            (Reverse(self.problem.tasks[*index].tier), self.jobs[*index].submitted_at, self.jobs[*index].id)
        });
        grants
    }

    /// Seconds that a job keeps a slot; infinite where it cannot run.
    pub(crate) fn secs(&self, job: usize, slot: usize) -> f64 {
        self.problem.secs(job, slot)
    }

    /// Seconds to bring the newest checkpoint of a running job to another node.
    pub(crate) fn move_secs(&self, job: &Job) -> f64 {
        let checkpoint = resume_from(job).and_then(|id| self.cluster.checkpoints.get(&id));
        checkpoint.map_or(0.0, |checkpoint| checkpoint.manifest.size_bytes() as f64 / LINK_BYTES_PER_SEC)
    }

    pub(crate) fn speed(&self, job: usize, slot: usize) -> Option<Speed> {
        self.speeds[self.problem.tasks[job].class][slot]
    }

    /// What every job in line waits for; of no use while there are grants.
    pub(crate) fn waits(&self) -> Vec<(&'a Job, Wait)> {
        let mut waits = Vec::with_capacity(self.jobs.len());
        let free = self.free_slots();
        for (index, slot) in self.slots.iter().enumerate() {
            let mut start_secs = slot.free_in_secs();
            let mut measured = slot.attempt.is_none_or(|left| left.measured);
            for (ahead, job) in self.lines[index].iter().enumerate() {
                let end_secs = start_secs + self.secs(*job, index);
                let about = measured.then(|| duration(start_secs));
                let instead = self.instead(*job, end_secs, &free);
                waits.push((self.jobs[*job], self.wait(slot, ahead, about, instead)));
                measured &= self.speed(*job, index).is_some_and(Speed::is_measured);
                start_secs += self.secs(*job, index).max(BUSY_SECS_MIN);
            }
        }
        waits
    }

    fn wait(&self, slot: &Slot<'_>, ahead: usize, about: Option<Duration>, instead: Option<Instead>) -> Wait {
        let (device, node) = (slot.device.device, slot.node.name.clone());
        match slot.reach {
            Reach::Unknown { until } if slot.attempt.is_none() && ahead == 0 => {
                Wait::NodeUnknown { node, given: until.since(self.now.boot), instead }
            }
            _ if ahead > 0 => Wait::Behind { jobs: ahead, device, node, about, instead },
            _ => Wait::Busy { device, node, about, instead },
        }
    }

    /// The free slot where `job` would end first, and how much later that is than `end_secs`.
    fn instead(&self, job: usize, end_secs: f64, free: &FreeSlots) -> Option<Instead> {
        let task = &self.problem.tasks[job];
        let end = |slot: usize| (self.secs(job, slot), slot);
        let (secs, slot) = if task.is_plain() {
            end(free.fastest[task.class]?)
        } else {
            let ends = free.slots.iter().map(|slot| end(*slot)).filter(|(secs, _)| secs.is_finite());
            ends.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?
        };
        let slot = &self.slots[slot];
        let (device, node) = (slot.device.device, slot.node.name.clone());
        Some(Instead { device, node, later: duration(secs - end_secs) })
    }

    fn free_slots(&self) -> FreeSlots {
        let slots: Vec<usize> = (0..self.slots.len()).filter(|index| self.slots[*index].is_free()).collect();
        let fastest = self.problem.classes.iter().map(|row| {
            let can = slots.iter().copied().filter(|slot| row[*slot].is_finite());
            can.min_by(|a, b| row[*a].total_cmp(&row[*b]).then(a.cmp(b)))
        });
        FreeSlots { fastest: fastest.collect(), slots }
    }

    /// Why no slot can take `job`.
    fn no_place(&self, job: &Job) -> Wait {
        if self.cluster.nodes.is_empty() {
            return Wait::NoNodes;
        }
        let needs = Needs::of(job);
        let fit: Vec<&Slot<'_>> = self.slots.iter().filter(|slot| slot.unfit(&needs).is_none()).collect();
        if fit.is_empty() {
            let small = |slot: &&Slot<'_>| matches!(slot.unfit(&needs), Some(Unfit::Memory { .. }));
            let most_bytes = self.slots.iter().filter(small).map(|slot| slot.device.memory_bytes).max();
            return match most_bytes {
                Some(most_bytes) => {
                    Wait::TooLittleMemory { least_bytes: needs.memory_bytes_least, most_bytes }
                }
                None => {
                    Wait::NoSuchDevice { wishes: job.spec.devices.clone(), fleet: Fleet::of(self.cluster) }
                }
            };
        }
        let names = |slots: &mut dyn Iterator<Item = &&Slot<'_>>| -> Vec<Name> {
            let names: BTreeSet<Name> = slots.map(|slot| slot.node.name.clone()).collect();
            names.into_iter().collect()
        };
        let open = fit.iter().filter(|slot| slot.node.mode == NodeMode::Open);
        let away = open.filter_map(|slot| match slot.reach {
            Reach::Away(away) => Some((slot.node.name.clone(), away)),
            _ => None,
        });
        let away: BTreeMap<Name, Away> = away.collect();
        if !away.is_empty() {
            let nodes = away.into_iter().map(|(name, away)| AwayNode { name, away });
            return Wait::NodeAway { nodes: nodes.collect() };
        }
        let nodes = names(&mut fit.iter().filter(|slot| slot.reach != Reach::Lost));
        if nodes.is_empty() {
            Wait::NodeNotConnected { nodes: names(&mut fit.iter()) }
        } else {
            Wait::NodeCordoned { nodes }
        }
    }
}

/// The slots that are free.
struct FreeSlots {
    slots: Vec<usize>,
    /// For each class of jobs, the fastest of them, if one will do.
    fastest: Vec<Option<usize>>,
}

/// Jobs of one class have the same speed on every device, and wish for the same.
fn class_key(job: &Job) -> (Shape, &DeviceWishes) {
    (Shape::of(&job.spec), &job.spec.devices)
}

fn slots<'a>(draft: &Draft<'a>) -> Vec<Slot<'a>> {
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

/// The checkpoint that the next attempt of `job` goes on from, or begins with.
pub(crate) fn resume_from(job: &Job) -> Option<CheckpointId> {
    job.checkpoint.or(job.spec.start_from.map(|start| start.checkpoint))
}

/// Steps that an attempt from the newest checkpoint on makes.
pub(crate) fn steps_left(job: &Job) -> u64 {
    job.spec.train.raw().steps.saturating_sub(job.steps_done())
}

/// The last progress of the job's attempt.
pub(crate) fn progress(job: &Job, node: NodeId, observed: &Observed) -> Option<Progress> {
    let reports = &observed.nodes.get(&node)?.report.attempts;
    reports.iter().find(|attempt| attempt.job == job.id && attempt.epoch == job.epoch)?.progress
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

//! Placement: the fleet as machines and the queue as tasks, for the [schedule](crate::schedule), and what it comes to.
//!
//! Every device that can train is a [`Slot`]. A job stands in the line of the slot that the schedule gave it: at the head
//! of a free slot's line it gets the device, everywhere else it waits.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use hatchery_common::{
    id::{CheckpointId, JobId, NodeId},
    recipe::DeviceWishes,
    session::ReplicaState,
};

use crate::{
    cluster::{Cluster, Job, Lease},
    draft::Draft,
    observed::Now,
    schedule::{Problem, Task},
    slot::{Needs, Slot, slots},
    speed::{Shape, Speed},
    urgency::{self, Shares},
};

/// What a node is taken to fetch in a second: a tenth of a gigabit link.
const LINK_BYTES_PER_SEC: f64 = 12.5e6;
/// A node where an attempt failed must bring its job's end forward by so much, for each failure, to get it again.
const FAILED_HERE_SECS: f64 = 600.0;

/// The fleet and the queue at one moment of planning.
pub(crate) struct Placement<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) now: Now,
    pub(crate) slots: Vec<Slot<'a>>,
    /// The jobs that wait for a device, and can get one.
    pub(crate) jobs: Vec<&'a Job>,
    /// The speed of each slot for each class of jobs; none where it is no place for them.
    speeds: Vec<Vec<Option<Speed>>>,
    pub(crate) problem: Problem,
    /// The jobs in line for each slot, by their place in `jobs`.
    pub(crate) lines: Vec<Vec<usize>>,
    /// Jobs that no slot can take.
    pub(crate) placeless: Vec<&'a Job>,
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
                this.placeless.push(job);
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
}

/// Jobs of one class have the same speed on every device, and wish for the same.
fn class_key(job: &Job) -> (Shape, &DeviceWishes) {
    (Shape::of(&job.spec), &job.spec.devices)
}

/// The checkpoint that the next attempt of `job` goes on from, or begins with.
pub(crate) fn resume_from(job: &Job) -> Option<CheckpointId> {
    job.checkpoint.or(job.spec.start_from.map(|start| start.checkpoint))
}

/// Steps that an attempt from the newest checkpoint on makes.
pub(crate) fn steps_left(job: &Job) -> u64 {
    job.spec.train.raw().steps.saturating_sub(job.steps_done())
}

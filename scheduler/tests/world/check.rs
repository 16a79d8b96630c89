//! What must hold after every change, every plan and every history.

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    device::Device,
    id::{CheckpointId, JobId, NodeId},
    node::{NodeMode, TrainerState},
    recipe::{NodeSelector, ReplicateWhich},
    session::Report,
};
use hatchery_scheduler::{
    AwayNode, Cluster, Event, HandOver, Instead, Job, JobPhase, LeaseEnd, Now, ObservedNode, Plan, Rollout,
    Wait, What, assignment, desired_nodes, plan,
};

use super::{LEASE, MEMORY_BYTES, ROLLOUTS_KEPT, World};

impl World {
    /// I3 and I4: epochs grow by one with each lease, terminal phases are final, no other step than the drawn ones.
    pub(super) fn check_event(&self, event: &Event, before: Option<&Job>) {
        let (Some(before), Some(after)) = (before, event.what.job().map(|job| self.job(job))) else { return };
        let granted = u64::from(matches!(&event.what, What::LeaseGranted { .. }));
        assert_eq!(after.epoch.0, before.epoch.0 + granted, "{event:?}");
        let legal = match (&before.phase, &after.phase) {
            (before, after) if before == after && !before.is_terminal() => {
                let keeps = matches!(
                    &event.what,
                    What::CheckpointCommitted { .. }
                        | What::CheckpointDeclined { .. }
                        | What::HandOverRequested { .. }
                        | What::PriorityChanged { .. }
                        | What::CheckpointRetired { .. }
                        | What::PinChanged { .. }
                );
                let queued_too = match &event.what {
                    What::CheckpointCommitted { late, .. } => *late,
                    event => !matches!(event, What::HandOverRequested { .. }),
                };
                keeps && (queued_too || after.name() != "queued")
            }
            // One that comes too late for a job that has ended is in the history all the same; its checkpoints are kept or not.
            (before, after) if before == after => matches!(
                &event.what,
                What::CheckpointDeclined { .. } | What::CheckpointRetired { .. } | What::PinChanged { .. }
            ),
            (JobPhase::Queued | JobPhase::Paused, JobPhase::Completed) => true,
            (JobPhase::Queued, after) => matches!(
                after,
                JobPhase::Running | JobPhase::Paused | JobPhase::Cancelled | JobPhase::Failed { .. }
            ),
            (JobPhase::Paused, after) => matches!(after, JobPhase::Queued | JobPhase::Cancelled),
            (JobPhase::Running, JobPhase::Paused) => matches!(before.hand_over, Some(HandOver::Pause { .. })),
            (JobPhase::Running, after) => *after != JobPhase::Cancelled,
            (JobPhase::Cancelling, after) => *after == JobPhase::Cancelled,
            _ => false,
        };
        assert!(legal, "{event:?} took the job from {:?} to {:?}", before.phase, after.phase);
        assert!(after.checkpoint_step >= before.checkpoint_step, "{event:?}");
    }

    /// A plan ends exactly the leases that ran out, explains exactly the jobs that wait, and is a function.
    pub(super) fn check_plan(&self, made: &Plan) {
        assert_eq!(*made, plan(&self.cluster, &self.observed, self.now), "planning is a function");
        assert!(made.wake_at.is_none_or(|at| at > self.now.boot), "{:?}", made.wake_at);
        let expired = |job: &Job| {
            job.lease.as_ref().is_some_and(|lease| self.observed.lease_until(lease.node) <= self.now.boot)
        };
        let ended: BTreeSet<_> = made
            .events
            .iter()
            .filter_map(|event| match &event.what {
                What::LeaseEnded { job, why: LeaseEnd::NodeLost, .. } | What::JobEnded { job, .. } => {
                    Some(*job)
                }
                What::LeaseGranted { .. } | What::SpeedMeasured { .. } | What::HandOverRequested { .. } => {
                    None
                }
                other => panic!("a plan makes no {other:?}"),
            })
            .collect();
        for event in &made.events {
            let What::LeaseGranted { lease, .. } = &event.what else { continue };
            assert!(self.is_connected(lease.node), "what is lost or its owner's is given nothing");
        }
        let due: BTreeSet<_> =
            self.cluster.jobs.values().filter(|job| expired(job)).map(|job| job.id).collect();
        assert!(ended.is_superset(&due), "{ended:?} but {due:?}");
        for job in ended.difference(&due).map(|job| self.job(*job)) {
            assert!(!job.spec.queue.after.is_empty(), "only what comes after others ends before it began");
        }
    }

    /// What is retired is of no use to anybody, and is beyond what its job's policy keeps; then nothing more is.
    pub(super) fn check_retired(&self, events: &[Event]) {
        for event in events {
            let What::CheckpointRetired { checkpoint, job, .. } = &event.what else { panic!("{event:?}") };
            let gone = &self.cluster.checkpoints[checkpoint];
            let (owner, retain) = (self.job(*job), self.job(*job).spec.retain);
            let line = self.cluster.checkpoints.values().filter(|one| one.manifest.job == *job);
            let newer = line.filter(|one| one.manifest.step > gone.manifest.step).count();
            assert!(newer >= retain.last.unwrap().get() as usize, "{newer} are newer");
            assert!(retain.every == 0 || !gone.manifest.step.is_multiple_of(retain.every));
            assert!(
                !gone.is_pinned && owner.checkpoint != Some(*checkpoint) && owner.best != Some(*checkpoint)
            );
            let named =
                |rollout: &Rollout| rollout.withdrawn_at.is_none() && rollout.checkpoint == *checkpoint;
            assert!(!self.cluster.rollouts.values().any(named), "a rollout names it");
            for job in self.cluster.jobs.values() {
                assert_ne!(job.lease.as_ref().and_then(|lease| lease.resume_from), Some(*checkpoint));
                let begins = job.spec.start_from.filter(|_| !job.phase.is_terminal());
                assert_ne!(begins.map(|start| start.checkpoint), Some(*checkpoint));
            }
        }
    }

    /// What goes off the record decided nothing, and so many newer ones stand before it that nobody misses it.
    pub(super) fn check_forgotten(&self, events: &[Event]) {
        let mut after = self.cluster.clone();
        for event in events {
            let What::RolloutForgotten { rollout, checkpoint, .. } = &event.what else { panic!("{event:?}") };
            let gone = &self.cluster.rollouts[rollout];
            assert_eq!(gone.checkpoint, *checkpoint);
            let job = self.cluster.job_of(*checkpoint);
            let others: Vec<&Rollout> = self.cluster.rollouts.values().collect();
            let of_job = others.into_iter().filter(|one| self.cluster.job_of(one.checkpoint) == job);
            let newer = |one: &&Rollout| (one.at, one.id) > (gone.at, gone.id);
            if gone.withdrawn_at.is_some() {
                let later = of_job.filter(|one| one.withdrawn_at > gone.withdrawn_at).count();
                assert!(later >= ROLLOUTS_KEPT, "{later} were taken back after it");
            } else {
                let alike = |one: &&Rollout| {
                    one.activate == gone.activate && (one.activate || one.checkpoint == *checkpoint)
                };
                let before: Vec<&Rollout> = of_job.filter(newer).filter(alike).collect();
                for node in self.cluster.nodes.values().filter(|node| gone.reaches(node)) {
                    let there = before.iter().filter(|one| one.reaches(node)).count();
                    assert!(there >= ROLLOUTS_KEPT, "{there} rollbacks lead to it on {}", node.name);
                }
            }
            after.evolve(event);
        }
        for id in self.cluster.nodes.keys() {
            let [was, is] = [&self.cluster, &after].map(|cluster| assignment(cluster, *id, LEASE));
            assert_eq!(was.active, is.active);
        }
        let mut withdrawn: BTreeMap<_, usize> = BTreeMap::new();
        let mut everywhere: BTreeMap<_, usize> = BTreeMap::new();
        for rollout in after.rollouts.values() {
            let job = after.job_of(rollout.checkpoint);
            if rollout.withdrawn_at.is_some() {
                *withdrawn.entry(job).or_default() += 1;
            } else if rollout.activate && rollout.to == NodeSelector::All && rollout.not_on.is_empty() {
                *everywhere.entry(job).or_default() += 1;
            }
        }
        let counts: Vec<&usize> = withdrawn.values().chain(everywhere.values()).collect();
        assert!(counts.iter().all(|count| **count <= ROLLOUTS_KEPT), "{counts:?}");
    }

    /// After a plan the cluster is at rest: the same plan again, no changes, and no device idle without a reason.
    pub(super) fn check_rest(&self, made: &Plan) {
        let again = plan(&self.cluster, &self.observed, self.now);
        assert_eq!(again.events, [], "after {:?}", made.events);
        assert_eq!(again.waits, made.waits);
        let queued = self.cluster.jobs.values().filter(|job| job.phase == JobPhase::Queued);
        assert!(queued.map(|job| &job.id).eq(made.waits.keys()));
        for (job, wait) in &made.waits {
            self.check_wait(self.job(*job), wait);
            for before in self.job(*job).spec.queue.after.iter().map(|id| self.job(*id)) {
                let lost = before.phase.is_terminal() && before.phase != JobPhase::Completed;
                assert!(!lost, "what it comes after is {:?}", before.phase);
            }
        }
        for job in self.cluster.jobs.values().filter(|job| job.phase == JobPhase::Running) {
            let heard = job.lease.as_ref().and_then(|lease| self.observed.nodes.get(&lease.node));
            let away = heard.is_some_and(|heard| heard.report.away.is_some());
            assert!(!away || job.hand_over.is_some(), "{} stays with a node that is its owner's", job.id);
        }
        // Nothing to do until the plan said to look again.
        let rest = again.wake_at.map_or(3_600_000, |at| at.0 - self.now.boot.0 - 1);
        let rest = std::time::Duration::from_millis(rest);
        let later = Now { wall: self.now.wall + rest, boot: self.now.boot + rest };
        let early = plan(&self.cluster, &self.observed, later).events;
        // What needs no haste is seen to when the coordinator looks at the clock anyway, with what follows from it.
        let no_haste = |event: &Event| {
            matches!(&event.what, What::SpeedMeasured { .. } | What::HandOverRequested { .. })
        };
        let early = if early.iter().any(no_haste) { Vec::new() } else { early };
        assert_eq!(early, [], "it was to sleep for {rest:?}");
    }

    /// A job is never left waiting beside an idle device that will do, unless it backs off or a better one is awaited.
    fn check_wait(&self, job: &Job, wait: &Wait) {
        let free = self.free_devices(job);
        match wait {
            Wait::BackingOff { .. } => assert!(
                job.not_before.is_some_and(|until| until > self.now.wall)
                    || self.now.boot < self.observed.started_at + LEASE
                        && job.holders.last().is_none_or(|last| last.epoch != job.epoch)
            ),
            Wait::Busy { node, device, instead, .. } | Wait::Behind { node, device, instead, .. } => {
                let awaited = self.cluster.nodes.values().find(|known| known.name == *node).unwrap();
                let taken =
                    |lease: &hatchery_scheduler::Lease| (lease.node, lease.device) == (awaited.id, *device);
                let comes = |job: &&Job| match &job.hand_over {
                    Some(HandOver::Migrate { to, device: there, .. }) => {
                        (*to, *there) == (awaited.id, *device)
                    }
                    _ => false,
                };
                let holds = |job: &&Job| job.lease.as_ref().is_some_and(taken) || comes(job);
                let holder = self.cluster.jobs.values().find(holds);
                assert!(
                    holder.is_some() || !self.is_connected(awaited.id),
                    "{device} of {node} is free: {wait}"
                );
                assert!(self.suits(job, awaited.id, *device), "{wait}");
                self.check_instead(&free, instead.as_ref(), wait);
            }
            Wait::NodeUnknown { instead, node, .. } => {
                let awaited = self.cluster.nodes.values().find(|known| known.name == *node).unwrap();
                let heard = self.observed.nodes.get(&awaited.id);
                assert!(heard.is_none_or(|heard| !heard.has_reported()), "{wait}");
                self.check_instead(&free, instead.as_ref(), wait);
            }
            Wait::NoNodes => assert!(self.cluster.nodes.is_empty()),
            Wait::NoSuchDevice { .. }
            | Wait::NodeNotConnected { .. }
            | Wait::TooLittleMemory { .. }
            | Wait::NodeCordoned { .. } => assert_eq!(free, [], "{wait}"),
            Wait::NodeAway { nodes } => {
                assert_eq!(free, [], "{wait}");
                assert!(!nodes.is_empty(), "{wait}");
                for AwayNode { name, away } in nodes {
                    let node = self.cluster.nodes.values().find(|node| node.name == *name).unwrap();
                    assert_eq!(self.observed.nodes[&node.id].report.away, Some(*away));
                }
            }
            Wait::After { jobs } => assert_eq!(
                jobs.len(),
                job.spec.queue.after.iter().filter(|id| !self.job(**id).phase.is_terminal()).count()
            ),
            Wait::SubmitterAtLimit { limit, .. } => {
                let theirs = |other: &&Job| other.submitter == job.submitter && other.lease.is_some();
                assert!(self.cluster.jobs.values().filter(theirs).count() >= *limit, "{wait}");
            }
        }
    }

    fn check_instead(&self, free: &[(NodeId, Device)], instead: Option<&Instead>, wait: &Wait) {
        assert_eq!(instead.is_none(), free.is_empty(), "{wait}: free are {free:?}");
        if let Some(Instead { device, node, .. }) = instead {
            assert!(
                free.iter().any(|(id, free)| free == device && self.cluster.nodes[id].name == *node),
                "{wait}"
            );
        }
    }

    fn is_connected(&self, node: NodeId) -> bool {
        let given = |report: &Report| !report.leaving && report.away.is_none();
        let there = |node: &ObservedNode| node.connected && node.has_reported() && given(&node.report);
        let heard = self.observed.nodes.get(&node).is_some_and(there);
        heard && self.observed.lease_until(node) > self.now.boot
    }

    fn suits(&self, job: &Job, node: NodeId, device: Device) -> bool {
        let (wishes, node) = (&job.spec.devices, &self.cluster.nodes[&node]);
        matches!(node.inventory.trainer, TrainerState::Ready { .. })
            && node.inventory.devices.iter().any(|there| there.device == device)
            && (wishes.kinds.is_empty() || wishes.kinds.contains(&device.kind))
            && (wishes.nodes.is_empty() || wishes.nodes.contains(&node.name))
            && wishes.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
            && !wishes.exclude.contains(&node.name)
            && node.mode == NodeMode::Open
            && wishes.memory_bytes_min <= MEMORY_BYTES
    }

    /// Devices that `job` could have at once, found without the plan's help.
    fn free_devices(&self, job: &Job) -> Vec<(NodeId, Device)> {
        let leases = self.cluster.jobs.values().filter_map(|job| job.lease.as_ref());
        let mut taken: BTreeSet<_> = leases.map(|lease| (lease.node, lease.device)).collect();
        taken.extend(self.cluster.jobs.values().filter_map(|job| match &job.hand_over {
            Some(HandOver::Migrate { to, device, .. }) => Some((*to, *device)),
            _ => None,
        }));
        let nodes = self.cluster.nodes.values().filter(|node| self.is_connected(node.id));
        nodes
            .flat_map(|node| node.inventory.devices.iter().map(|device| (node.id, device.device)))
            .filter(|place| !taken.contains(place) && self.suits(job, place.0, place.1))
            .collect()
    }

    /// The history as JSON, from nothing, makes the same cluster; every node is told exactly its own part.
    pub(crate) fn check_history(&self) {
        let mut replayed = Cluster::default();
        for event in self.batches.iter().flatten() {
            let text = serde_json::to_string(event).unwrap();
            let back: Event = serde_json::from_str(&text).unwrap();
            assert_eq!(back, *event);
            assert!(text.contains(&format!(r#""change":"{}""#, event.what.kind())), "{text}");
            replayed.evolve(&back);
        }
        assert_eq!(replayed, self.cluster);
        let mut told = 0;
        let desired = desired_nodes(&self.cluster);
        for node in self.cluster.nodes.keys() {
            let assignment = assignment(&self.cluster, *node, LEASE);
            for attempt in &assignment.attempts {
                let job = self.job(attempt.id.job);
                let lease = job.lease.as_ref().unwrap();
                assert_eq!((lease.node, lease.device, job.epoch), (*node, attempt.device, attempt.id.epoch));
                assert_eq!(attempt.stop, job.phase == JobPhase::Cancelling || job.hand_over.is_some());
                told += 1;
            }
            let held: BTreeSet<_> = assignment.checkpoints.iter().copied().collect();
            self.check_active(*node, &assignment.active);
            assert!(assignment.active.values().all(|active| held.contains(active)));
            for checkpoint in self.cluster.checkpoints.keys() {
                let desired = desired.get(checkpoint).is_some_and(|nodes| nodes.contains(node));
                assert_eq!(held.contains(checkpoint), desired);
            }
        }
        let leases = self.cluster.jobs.values().filter(|job| job.lease.is_some()).count();
        assert_eq!(told, leases, "every lease is told to its node");
    }

    /// What is active is what was activated there last, else what the job's policy puts there.
    fn check_active(&self, id: NodeId, active: &BTreeMap<JobId, CheckpointId>) {
        let labels = &self.cluster.nodes[&id].labels;
        for job in self.cluster.jobs.values() {
            let activations = self.cluster.activations(job.id);
            let is_there = |selector: &NodeSelector| selector.selects(id, labels);
            let activated = activations
                .iter()
                .rfind(|rollout| is_there(&rollout.to) && !rollout.not_on.iter().any(is_there));
            let replicate = &job.spec.replicate;
            let by_policy = match replicate.which {
                _ if !replicate.to.selects(id, labels) => None,
                ReplicateWhich::Best => job.best,
                _ => job.checkpoint,
            };
            let wanted = activated.map(|rollout| rollout.checkpoint).or(by_policy);
            assert_eq!(active.get(&job.id).copied(), wanted, "{activations:?}");
        }
    }
}

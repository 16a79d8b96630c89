//! Random steps: what people, nodes, clocks and stray messages may do.

use std::{fmt::Debug, num::NonZeroU32, time::Duration};

use hatchery_common::{
    access::Scope,
    availability::{Away, AwayReason, LocalTime},
    dataset::DatasetManifest,
    device::{Device, DeviceKind},
    digest::Digest,
    id::{CertificateId, CheckpointId, Epoch, JobId, NodeId, RequestId},
    node::NodeMode,
    recipe::{
        DeviceWishes, JobSpec, NodeSelector, Priority, QueueWishes, ReplicaPolicy, ReplicateWhich,
        RetainPolicy, StartFrom, StartHow,
    },
    session::{AttemptPhase, AttemptReport},
    trainer::{Ending, FailureCause, Progress},
};
use hatchery_scheduler::{
    Cancel, Command, CommitCheckpoint, CreateToken, EndAttempt, Goodbye, Holder, JobPhase, Join, Observed,
    OfferCheckpoint, Pause, Policy, Rejected, RemoveNode, Renew, Requeue, Resume, RevokeCertificate,
    SetInventory, SetNodeMode, SetPriority, Submit, Submitted,
};
use proptest::prelude::*;

use super::{CORPUS_BYTES, LEASE, World, checkpoint, inventory, name, rollouts::self_test, spec};

/// One thing that happens. Small numbers choose among what is there, wrapping around.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Join { name: u8, devices: u8, scope: u8 },
    StrayJoin,
    Renew(u8),
    Revoke(u8),
    RemoveNode(u8),
    Inventory { node: u8, devices: u8 },
    Submit { steps: u8, wishes: u8, policy: u8 },
    SubmitAgain { which: u8, other_body: bool },
    Cancel(u8),
    Control { job: u8, what: u8 },
    Mode { node: u8, mode: u8 },
    Owner { node: u8, what: u8 },
    Commit { job: u8, stray: Stray, far: u8 },
    CommitAgain(u8),
    CommitLate { job: u8, holder: u8, far: u8 },
    End { job: u8, stray: Stray, ending: u8 },
    KeepsCrashing(u8),
    Goodbye(u8),
    Push { checkpoint: u8, to: u8 },
    Withdraw { which: u8, how: u8 },
    Pin { checkpoint: u8, is_pinned: bool },
    Hear { node: u8, progress: u8, rate: u8 },
    Disconnect(u8),
    Restart,
    Advance(u32),
}

/// Whether a message is the lease holder's own, or one that comes late or from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stray {
    No,
    OldEpoch,
    FutureEpoch,
    OtherNode,
}

/// A history of up to `most` steps.
pub(crate) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let small = 0..8u8;
    let stray = prop_oneof![
        5 => Just(Stray::No),
        1 => Just(Stray::OldEpoch),
        1 => Just(Stray::FutureEpoch),
        1 => Just(Stray::OtherNode),
    ];
    let step = prop_oneof![
        4 => (small.clone(), small.clone(), 0..8u8).prop_map(|(name, devices, scope)| Step::Join { name, devices, scope }),
        1 => Just(Step::StrayJoin),
        1 => small.clone().prop_map(Step::Renew),
        1 => small.clone().prop_map(Step::Revoke),
        1 => small.clone().prop_map(Step::RemoveNode),
        1 => (small.clone(), small.clone()).prop_map(|(node, devices)| Step::Inventory { node, devices }),
        8 => (small.clone(), 0..16u8, small.clone())
            .prop_map(|(steps, wishes, policy)| Step::Submit { steps, wishes, policy }),
        2 => (small.clone(), any::<bool>()).prop_map(|(which, other_body)| Step::SubmitAgain { which, other_body }),
        2 => small.clone().prop_map(Step::Cancel),
        5 => (small.clone(), 0..7u8).prop_map(|(job, what)| Step::Control { job, what }),
        2 => (small.clone(), 0..3u8).prop_map(|(node, mode)| Step::Mode { node, mode }),
        4 => (small.clone(), 0..6u8).prop_map(|(node, what)| Step::Owner { node, what }),
        8 => (small.clone(), stray.clone(), 0..4u8).prop_map(|(job, stray, far)| Step::Commit { job, stray, far }),
        1 => small.clone().prop_map(Step::CommitAgain),
        4 => (small.clone(), small.clone(), 0..4u8)
            .prop_map(|(job, holder, far)| Step::CommitLate { job, holder, far }),
        8 => (small.clone(), stray, 0..12u8).prop_map(|(job, stray, ending)| Step::End { job, stray, ending }),
        1 => small.clone().prop_map(Step::KeepsCrashing),
        1 => small.clone().prop_map(Step::Goodbye),
        2 => (small.clone(), small.clone()).prop_map(|(checkpoint, to)| Step::Push { checkpoint, to }),
        1 => (small.clone(), 0..4u8).prop_map(|(which, how)| Step::Withdraw { which, how }),
        1 => (small.clone(), any::<bool>())
            .prop_map(|(checkpoint, is_pinned)| Step::Pin { checkpoint, is_pinned }),
        8 => (small.clone(), small.clone(), small.clone())
            .prop_map(|(node, progress, rate)| Step::Hear { node, progress, rate }),
        2 => small.prop_map(Step::Disconnect),
        1 => Just(Step::Restart),
        6 => prop_oneof![0..2000u32, 0..20_000u32, 0..100_000u32].prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 1..=most)
}

pub(super) fn pick<T>(mut all: impl ExactSizeIterator<Item = T>, which: u8) -> Option<T> {
    let count = all.len();
    (count > 0).then(|| all.nth(usize::from(which) % count)).flatten()
}

impl World {
    /// Lets one step happen, and plans.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Join { name, devices, scope } => self.step_join(*name, *devices, *scope),
            Step::StrayJoin => {
                let secret = pick(self.cluster.tokens.keys(), 0).copied().unwrap_or(Digest::of(b"no such"));
                let (node, certificate) = (NodeId::from_bytes(self.draw_id()), self.draw_id());
                let certificate = CertificateId::from_bytes(certificate);
                let join = Join { secret, certificate, node, name: name("thief"), labels: [].into() };
                assert_eq!(self.ask(join), Err(Rejected::BadToken), "a token is used once");
            }
            Step::Renew(which) => self.step_renew(*which),
            Step::Revoke(which) => {
                if let Some(certificate) = pick(self.cluster.certificates.keys(), *which).copied() {
                    self.ask(RevokeCertificate { certificate }).unwrap();
                    assert!(self.ask(RevokeCertificate { certificate }).unwrap().events.is_empty());
                }
            }
            Step::RemoveNode(which) => {
                if let Some(node) = self.pick_node(*which) {
                    self.ask(RemoveNode { node, lease: LEASE }).unwrap();
                    self.observed.nodes.remove(&node);
                }
            }
            Step::Inventory { node, devices } => {
                if let Some(node) = self.pick_node(*node) {
                    let inventory = Box::new(inventory(&devices_of(*devices)));
                    self.ask(SetInventory { node, inventory: inventory.clone() }).unwrap();
                    assert!(self.ask(SetInventory { node, inventory }).unwrap().events.is_empty());
                }
            }
            Step::Submit { steps, wishes, policy } => self.step_submit(*steps, *wishes, *policy),
            Step::SubmitAgain { which, other_body } => self.step_submit_again(*which, *other_body),
            Step::Cancel(which) => {
                if let Some(job) = self.pick_job(*which) {
                    let ended = self.job(job).phase.is_terminal();
                    let answer = self.ask(Cancel { job, by: name("bob") });
                    assert_eq!(answer.is_err(), ended);
                }
            }
            Step::Control { job, what } => self.step_control(*job, *what),
            Step::Mode { node, mode } => {
                if let Some(node) = self.pick_node(*node) {
                    let mode = [NodeMode::Open, NodeMode::Cordoned, NodeMode::Draining][usize::from(*mode)];
                    let set = SetNodeMode { node, mode, by: name("bob") };
                    self.ask(set.clone()).unwrap();
                    assert_eq!(self.ask(set).unwrap().events, []);
                }
            }
            Step::Owner { node, what } => self.step_owner(*node, *what),
            Step::Commit { job, stray, far } => self.step_commit(*job, *stray, *far),
            Step::CommitAgain(which) => self.step_commit_again(*which),
            Step::CommitLate { job, holder, far } => self.step_commit_late(*job, *holder, *far),
            Step::End { job, stray, ending } => self.step_end(*job, *stray, *ending),
            Step::KeepsCrashing(which) => self.step_keeps_crashing(*which),
            Step::Goodbye(which) => {
                if let Some(node) = self.pick_node(*which) {
                    self.ask(Goodbye { node }).unwrap();
                    let left = self.cluster.jobs.values().filter_map(|job| job.lease.as_ref());
                    assert_eq!(left.filter(|lease| lease.node == node).count(), 0);
                    self.disconnect(node);
                }
            }
            Step::Push { checkpoint, to } => self.step_push(*checkpoint, *to),
            Step::Withdraw { which, how } => self.step_withdraw(*which, *how),
            Step::Pin { checkpoint, is_pinned } => self.step_pin(*checkpoint, *is_pinned),
            Step::Hear { node, progress, rate } => self.step_hear(*node, *progress, *rate),
            Step::Disconnect(which) => {
                if let Some(node) = self.pick_node(*which) {
                    self.disconnect(node);
                }
            }
            Step::Restart => {
                let running_per_submitter_max = self.batches.len().is_multiple_of(3).then_some(2);
                let policy = Policy { running_per_submitter_max };
                self.observed = Observed { policy, ..Observed::new(self.now.boot, LEASE) };
            }
            Step::Advance(millis) => self.advance(Duration::from_millis(u64::from(*millis))),
        }
        self.plan();
    }

    pub(super) fn pick_node(&self, which: u8) -> Option<NodeId> {
        pick(self.cluster.nodes.keys(), which).copied()
    }

    pub(super) fn pick_job(&self, which: u8) -> Option<JobId> {
        pick(self.cluster.jobs.keys(), which).copied()
    }

    /// Of the jobs that have a lease, mostly; of all, sometimes.
    fn pick_running(&self, which: u8) -> Option<JobId> {
        let running: Vec<JobId> =
            self.cluster.jobs.values().filter(|job| job.lease.is_some()).map(|job| job.id).collect();
        if which == 7 || running.is_empty() { self.pick_job(which) } else { pick(running.into_iter(), which) }
    }

    fn disconnect(&mut self, node: NodeId) {
        if let Some(seen) = self.observed.nodes.get_mut(&node) {
            seen.connected = false;
        }
    }

    fn step_join(&mut self, which: u8, devices: u8, scope: u8) {
        if scope > 1 {
            // Few names, so that they collide.
            self.join(["gpu-a", "cpu-b", "mac"][usize::from(which) % 3], &devices_of(devices));
            return;
        }
        let scope = [Scope::Operator, Scope::Viewer][usize::from(scope)];
        let secret = self.draw();
        let expires_at = self.now.wall + Duration::from_millis(1);
        let labels = [].into();
        self.ask(CreateToken { secret, scope, name: None, labels, by: name("ann"), expires_at }).unwrap();
        let (node, certificate) = (NodeId::from_bytes(self.draw_id()), self.draw_id());
        let certificate = CertificateId::from_bytes(certificate);
        let join = Join { secret, certificate, node, name: name("eve"), labels: [].into() };
        if which == 0 {
            self.advance(Duration::from_millis(1));
            assert_eq!(self.ask(join), Err(Rejected::BadToken), "an expired token is void");
        } else {
            self.ask(join).unwrap();
            assert!(!self.cluster.nodes.contains_key(&node), "people are no nodes");
        }
    }

    fn step_renew(&mut self, which: u8) {
        let Some(old) = pick(self.cluster.certificates.keys(), which).copied() else { return };
        let revoked = self.cluster.certificates[&old].revoked_at.is_some();
        let new = CertificateId::from_bytes(self.draw_id());
        match self.ask(Renew { old, new }) {
            Ok(decision) => {
                let certificate = decision.outcome;
                let old = &self.cluster.certificates[&old];
                assert!(!revoked);
                assert_eq!((&certificate.scope, certificate.node), (&old.scope, old.node));
            }
            Err(error) => assert!(revoked && error == Rejected::BadCertificate, "{error}"),
        }
    }

    fn step_submit(&mut self, steps: u8, wishes: u8, policy: u8) {
        let dataset = self.dataset(CORPUS_BYTES);
        let steps = [1, 3, 10, 1000, 1_000_000][usize::from(steps) % 5];
        let kinds = match wishes % 4 {
            0 => vec![DeviceKind::Cuda],
            1 => vec![DeviceKind::Cpu, DeviceKind::Mps],
            _ => vec![],
        };
        let nodes = if wishes == 8 { vec![name("gpu-a"), name("mac")] } else { vec![] };
        let labels = if wishes == 9 { [(name("room"), name("cellar"))].into() } else { [].into() };
        let to = match policy {
            0 => NodeSelector::None,
            1 => NodeSelector::Labels([(name("room"), name("attic"))].into()),
            2 => NodeSelector::Nodes(self.pick_node(1).into_iter().collect()),
            _ => NodeSelector::All,
        };
        let which =
            [ReplicateWhich::Each, ReplicateWhich::Last, ReplicateWhich::Best][usize::from(policy) % 3];
        let exclude = if wishes == 10 { vec![name("gpu-a")] } else { vec![] };
        let memory_bytes_min = if wishes == 11 { 1 << 50 } else { 0 };
        let devices = DeviceWishes { kinds, nodes, labels, exclude, memory_bytes_min };
        let queue = QueueWishes {
            priority: Priority::new([50, 20, 90][usize::from(wishes) % 3]).unwrap(),
            group: None,
            after: self.pick_running(policy).filter(|_| wishes > 12).into_iter().collect(),
            deadline: (wishes == 12).then(|| self.now.wall + Duration::from_mins(1)),
        };
        let start_from = self.pick_start(policy, &dataset, steps).filter(|_| wishes.is_multiple_of(3));
        let replicate = ReplicaPolicy { to, which, ..ReplicaPolicy::default() };
        let last = NonZeroU32::new(u32::from((wishes + policy) % 4)).filter(|last| last.get() < 3);
        let retain = RetainPolicy { last, every: u64::from(wishes % 2) * 3 };
        let spec = JobSpec { devices, replicate, start_from, queue, retain, ..spec(&dataset, steps) };
        let body = Digest::of(&serde_json::to_vec(&spec).unwrap());
        let (request, job) = (RequestId::from_bytes(self.draw_id()), JobId::from_bytes(self.draw_id()));
        self.submitted.push((request, body, job, spec.clone()));
        let spec = Box::new(spec);
        let lost = |id: &JobId| {
            let phase = &self.cluster.jobs[id].phase;
            phase.is_terminal() && *phase != JobPhase::Completed
        };
        let doomed = spec.queue.after.iter().any(lost);
        let submitter = name(["ann", "bob"][usize::from(policy) % 2]);
        let answer = self.ask(Submit { request, job, body, spec, submitter });
        if doomed {
            assert!(matches!(answer, Err(Rejected::Field(_))), "{answer:?}");
            self.submitted.pop();
        } else {
            assert_eq!(answer.unwrap().outcome, Submitted { job, duplicate: false });
        }
    }

    /// A checkpoint that a job of so many steps on `dataset` can begin with, and how.
    fn pick_start(&self, which: u8, dataset: &DatasetManifest, steps: u64) -> Option<StartFrom> {
        let (checkpoint, committed) = pick(self.cluster.checkpoints.iter(), which)?;
        let manifest = &committed.manifest;
        let continues = manifest.step < steps && manifest.dataset == dataset.id() && which.is_multiple_of(2);
        let how = if continues { StartHow::Continue } else { StartHow::FineTune };
        Some(StartFrom { checkpoint: *checkpoint, how })
    }

    /// I2: the same request again is the same job, whatever became of it.
    fn step_submit_again(&mut self, which: u8, other_body: bool) {
        let Some((request, body, job, spec)) = pick(self.submitted.iter(), which).cloned() else { return };
        let (fresh, spec) = (JobId::from_bytes(self.draw_id()), Box::new(spec));
        let body = if other_body { self.draw() } else { body };
        let answer = self.ask(Submit { request, job: fresh, body, spec, submitter: name("ann") });
        if other_body {
            assert_eq!(answer, Err(Rejected::RequestReused { request, job }));
        } else {
            let decision = answer.unwrap();
            assert_eq!(decision.outcome, Submitted { job, duplicate: true });
            assert_eq!(decision.events, []);
        }
    }

    /// Who speaks for `job`, and under which epoch; whether that is the holder of its lease.
    fn speaker(&mut self, job: JobId, stray: Stray) -> (NodeId, Epoch, bool) {
        let stranger = NodeId::from_bytes(self.draw_id());
        let job = &self.cluster.jobs[&job];
        let holder = job.lease.as_ref().map(|lease| lease.node);
        let (node, epoch) = match stray {
            Stray::No => (holder.unwrap_or(stranger), job.epoch),
            Stray::OldEpoch => (holder.unwrap_or(stranger), Epoch(job.epoch.0.wrapping_sub(1))),
            Stray::FutureEpoch => (holder.unwrap_or(stranger), job.epoch.next()),
            Stray::OtherNode => (stranger, job.epoch),
        };
        (node, epoch, holder == Some(node) && epoch == job.epoch)
    }

    fn step_commit(&mut self, which: u8, stray: Stray, far: u8) {
        let Some(id) = self.pick_running(which) else { return };
        let (node, epoch, is_holder) = self.speaker(id, stray);
        let job = self.job(id);
        let (reached, last) = (job.steps_done(), job.spec.train.raw().steps);
        let step = [reached + 1, u64::midpoint(reached, last), last, reached][usize::from(far) % 4];
        let new = step > reached && step <= last;
        let manifest = Box::new(checkpoint(job, epoch, step));
        let known = self.is_known(manifest.id());
        let was_held = job.was_held(epoch, node);
        let answer =
            self.ask(CommitCheckpoint { node, manifest: manifest.clone(), self_test: self_test(far) });
        if known {
            assert_eq!(answer.unwrap().events, []);
        } else {
            let counts = new && (is_holder || was_held);
            assert_eq!(answer.is_ok(), counts, "{answer:?}");
            assert_eq!(self.cluster.checkpoints.contains_key(&manifest.id()), counts);
        }
    }

    /// A node that once had the job offers what it made then, and brings it if it is wanted.
    fn step_commit_late(&mut self, which: u8, holder: u8, far: u8) {
        let Some(id) = self.pick_job(which) else { return };
        let before = self.job(id).clone();
        let Some(Holder { epoch, node }) = pick(before.holders.iter(), holder).copied() else { return };
        let (reached, last) = (before.steps_done(), before.spec.train.raw().steps);
        let step = [reached + 1, u64::midpoint(reached, last), last, reached][usize::from(far) % 4];
        let is_holder =
            before.lease.as_ref().is_some_and(|lease| lease.node == node) && before.epoch == epoch;
        let manifest = Box::new(checkpoint(&before, epoch, step));
        let known = self.cluster.checkpoints.values().any(|known| {
            let known = &known.manifest;
            (known.job, known.epoch, known.step) == (id, epoch, step)
        }) || self
            .cluster
            .retired
            .values()
            .any(|known| (known.job, known.epoch, known.step) == (id, epoch, step));
        let offer = self.ask(OfferCheckpoint { node, job: id, epoch, step }).unwrap();
        let declined = offer.outcome.declined;
        let wanted = known || !before.phase.is_terminal() && (reached + 1..=last).contains(&step);
        assert_eq!(declined.is_none(), wanted, "{declined:?}");
        // What was of no use stands in the history, unless the attempt has its lease and says so itself.
        let told = !wanted && !is_holder && (1..=last).contains(&step);
        assert_eq!(offer.events.len(), usize::from(told), "{:?}", offer.events);
        let terminal = before.phase.is_terminal();
        if wanted && !known {
            let parents = self.cluster.checkpoints.len();
            let waits = matches!(before.phase, JobPhase::Queued | JobPhase::Paused);
            let commit = CommitCheckpoint { node, manifest: manifest.clone(), self_test: None };
            let decision = self.ask(commit).unwrap();
            assert_eq!(self.cluster.checkpoints.len(), parents + 1);
            assert_eq!(self.cluster.checkpoints[&manifest.id()].late, !is_holder);
            assert_eq!(decision.events.len(), 1 + usize::from(waits && step == last), "{decision:?}");
        } else if !known {
            let commit = CommitCheckpoint { node, manifest, self_test: None };
            assert!(self.ask(commit).is_err(), "{terminal}");
        }
    }

    fn step_commit_again(&mut self, which: u8) {
        let Some(known) = pick(self.cluster.checkpoints.values(), which) else { return };
        let manifest = Box::new(known.manifest.clone());
        let node = self.pick_node(which).unwrap_or(NodeId::from_bytes([9; 16]));
        let commit = CommitCheckpoint { node, manifest, self_test: self_test(which) };
        assert_eq!(self.ask(commit).unwrap().events, []);
    }

    fn step_end(&mut self, which: u8, stray: Stray, ending: u8) {
        let Some(job) = self.pick_running(which) else { return };
        let (node, epoch, is_holder) = self.speaker(job, stray);
        let failed = |cause| Ending::Failed { cause, message: "it says so".into() };
        let ending = match ending {
            0..=2 => Ending::Completed,
            3 => Ending::Stopped,
            4 => [Ending::LeaseExpired, Ending::NodeAway][usize::from(which) % 2].clone(),
            5 => failed(FailureCause::OutOfMemory),
            6 => failed(FailureCause::Storage),
            7 => failed(FailureCause::Unavailable),
            8 => failed([FailureCause::BadInput, FailureCause::NotANumber][usize::from(which) % 2]),
            _ => failed(FailureCause::Crashed),
        };
        let last_output = "x".repeat(usize::from(which) * 1000);
        match self.ask(EndAttempt { node, job, epoch, ending, last_output }) {
            Ok(decision) => assert!(is_holder && decision.events.len() == 1, "{decision:?}"),
            Err(error) => assert!(!is_holder, "{error}"),
        }
    }

    /// Whatever job has a lease crashes, is given another one, and crashes again: I10.
    fn step_keeps_crashing(&mut self, which: u8) {
        const CRASHES: usize = 3;
        let Some(id) = self.pick_running(which) else { return };
        for _ in 0..CRASHES {
            let job = self.job(id);
            let (Some(lease), epoch) = (&job.lease, job.epoch) else { return };
            let (node, message) = (lease.node, "signal 11".into());
            let ending = Ending::Failed { cause: FailureCause::Crashed, message };
            self.ask(EndAttempt { node, job: id, epoch, ending, last_output: String::new() }).unwrap();
            if let Some(until) = self.job(id).not_before {
                self.advance(until.since(self.now.wall));
            }
            self.hear(node);
            self.plan();
        }
    }

    /// Somebody pauses, resumes or requeues a job, or gives it another priority; twice is as good as once.
    fn step_control(&mut self, which: u8, what: u8) {
        let Some(job) = self.pick_job(which) else { return };
        let by = name("bob");
        let phase = self.job(job).phase.clone();
        let is_open = !phase.is_terminal();
        match what {
            0 | 1 => self.control(Pause { job, by }, is_open && phase != JobPhase::Cancelling),
            2 | 3 => self.control(Resume { job, by }, is_open && phase != JobPhase::Cancelling),
            4 => self.control(Requeue { job, by }, matches!(phase, JobPhase::Queued | JobPhase::Running)),
            _ => {
                let priority = Priority::new([0, 55, 100][usize::from(which) % 3]).unwrap();
                self.control(SetPriority { job, priority, by }, is_open);
            }
        }
    }

    fn control<C: Command<Outcome = ()> + Clone + Debug>(&mut self, command: C, possible: bool) {
        let answer = self.ask(command.clone());
        assert_eq!(answer.is_ok(), possible, "{command:?}: {answer:?}");
        if possible {
            assert_eq!(self.ask(command).unwrap().events, []);
        }
    }

    /// A node's owner takes it, or gives it back.
    fn step_owner(&mut self, which: u8, what: u8) {
        let Some(node) = self.pick_node(which) else { return };
        let until = LocalTime { at: self.now.wall + LEASE, utc_offset_secs: 3600 };
        let reason = AwayReason::ALL.get(usize::from(what));
        let away = reason.map(|reason| Away { reason: *reason, until: (what == 0).then_some(until) });
        self.hear(node);
        self.observed.nodes.get_mut(&node).unwrap().report.away = away;
    }

    fn is_known(&self, checkpoint: CheckpointId) -> bool {
        self.cluster.checkpoints.contains_key(&checkpoint) || self.cluster.retired.contains_key(&checkpoint)
    }

    /// A report: the attempts of a node with some progress, or with none.
    fn step_hear(&mut self, which: u8, progress: u8, rate: u8) {
        let Some(node) = self.pick_node(which) else { return };
        let steps_per_sec = [0.0, f64::NAN, f64::INFINITY, -1.0, 0.01, 1.0, 30.0, 1e6][usize::from(rate) % 8];
        let attempts =
            self.cluster.jobs.values().filter(|job| job.lease.as_ref().is_some_and(|l| l.node == node));
        let attempts = attempts.map(|job| AttemptReport {
            id: job.attempt(),
            phase: AttemptPhase::Running,
            progress: (progress > 1).then(|| Progress {
                step: job.checkpoint_step + u64::from(progress) * 100,
                steps_per_sec,
                ..Progress::default()
            }),
            validation: None,
            running_on: None,
        });
        let attempts = attempts.collect();
        self.hear(node);
        let report = &mut self.observed.nodes.get_mut(&node).unwrap().report;
        (report.attempts, report.leaving) = (attempts, progress == 7);
    }
}

fn devices_of(which: u8) -> Vec<(Device, Option<f64>)> {
    match which % 8 {
        0 => vec![],
        1 => vec![(Device::CPU, Some(8e10)), (Device::cuda(0), Some(7.3e12))],
        2 => vec![(Device::CPU, None), (Device::cuda(0), None), (Device::cuda(1), Some(1e13))],
        3 => vec![(Device::CPU, Some(5e10)), (Device::MPS, Some(8e11))],
        4 => vec![(Device::CPU, Some(f64::MIN_POSITIVE))],
        5 => vec![(Device::CPU, Some(0.0))],
        _ => vec![(Device::CPU, Some(8e10))],
    }
}

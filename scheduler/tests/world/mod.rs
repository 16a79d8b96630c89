//! A small fleet that random steps happen to, with everything that must hold checked after every change.

mod check;
mod rollouts;
mod steps;

use std::{fmt::Debug, sync::Arc, time::Duration};

use hatchery_common::{
    access::Scope,
    checkpoint::{CheckpointFile, CheckpointManifest},
    dataset::{DatasetFile, DatasetManifest},
    device::{Device, DeviceKind},
    digest::Digest,
    id::{BlobId, Epoch, JobId, Name, NodeId, RequestId},
    model::{ModelConfig, RawModelConfig},
    node::{Inventory, NodeDevice, TrainerState},
    recipe::{DeviceWishes, JobSpec, RawTrainSpec, TrainSpec},
    session::{AttemptPhase, AttemptReport},
    time::{BootTime, Timestamp},
    trainer::{Calibration, Metrics, Progress},
};
use hatchery_scheduler::{
    Cluster, Command, CreateToken, Decision, Event, Job, Join, Now, Observed, Plan, RegisterDataset,
    Rejected, SetInventory, Submit, forget_rollouts, plan, retire, violations,
};

pub(crate) use steps::{Step, Stray, steps};

/// The term of a lease in this fleet.
pub(crate) const LEASE: Duration = Duration::from_secs(15);

/// The memory of every device in this fleet.
pub(crate) const MEMORY_BYTES: u64 = 8 << 30;

/// How many rollouts are kept for rollbacks and as history: few, so that short histories come to it.
pub(crate) const ROLLOUTS_KEPT: usize = 2;

/// The fleet and what happened to it.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
    pub(crate) now: Now,
    /// Every batch of changes, as it would be committed.
    pub(crate) batches: Vec<Vec<Event>>,
    /// Everything that was ever submitted: request, body, job.
    submitted: Vec<(RequestId, Digest, JobId, JobSpec)>,
    ids_drawn: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Now { wall: Timestamp(1_800_000_000_000), boot: BootTime(1_000_000) };
        Self {
            cluster: Cluster::default(),
            observed: Observed::new(now.boot, LEASE),
            now,
            batches: Vec::new(),
            submitted: Vec::new(),
            ids_drawn: 0,
        }
    }

    /// Decides, and applies what was decided.
    pub(crate) fn ask<C>(&mut self, command: C) -> Result<Decision<C::Outcome>, Rejected>
    where
        C: Command + Clone,
        C::Outcome: Debug + PartialEq,
    {
        let again = command.clone();
        let decision = command.decide(&self.cluster, self.now);
        assert_eq!(decision, again.decide(&self.cluster, self.now), "deciding is a function");
        if let Ok(decision) = &decision {
            self.apply(decision.events.clone());
        }
        decision
    }

    /// Plans, and applies the plan.
    pub(crate) fn plan(&mut self) -> Plan {
        let made = plan(&self.cluster, &self.observed, self.now);
        self.check_plan(&made);
        self.apply(made.events.clone());
        self.observed.intended = Arc::new(made.queues.clone());
        let forgotten = forget_rollouts(&self.cluster, ROLLOUTS_KEPT, self.now.wall);
        self.check_forgotten(&forgotten);
        self.apply(forgotten);
        assert_eq!(forget_rollouts(&self.cluster, ROLLOUTS_KEPT, self.now.wall), [], "one step is enough");
        let retired = retire(&self.cluster, self.now.wall);
        self.check_retired(&retired);
        self.apply(retired);
        assert_eq!(retire(&self.cluster, self.now.wall), [], "one step is enough");
        self.check_rest(&made);
        made
    }

    pub(crate) fn apply(&mut self, events: Vec<Event>) {
        for event in &events {
            let before = event.what.job().and_then(|job| self.cluster.jobs.get(&job)).cloned();
            self.cluster.evolve(event);
            self.check_event(event, before.as_ref());
        }
        // What is committed together need hold together only.
        let found = violations(&self.cluster);
        assert!(found.is_empty(), "after {events:?}: {found:?}");
        if !events.is_empty() {
            self.batches.push(events);
        }
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now = Now { wall: self.now.wall + time, boot: self.now.boot + time };
    }

    /// A fresh digest; ids come from it, so that their order says nothing.
    pub(crate) fn draw(&mut self) -> Digest {
        self.ids_drawn += 1;
        Digest::of(&self.ids_drawn.to_le_bytes())
    }

    pub(crate) fn draw_id(&mut self) -> [u8; 16] {
        self.draw().as_bytes()[..16].try_into().unwrap()
    }

    /// Brings in a node, connected, with these devices and speeds in FLOP/s.
    pub(crate) fn join(&mut self, wished: &str, devices: &[(Device, Option<f64>)]) -> NodeId {
        let secret = self.draw();
        let expires_at = self.now.wall + Duration::from_mins(1);
        self.ask(CreateToken {
            secret,
            scope: Scope::Agent,
            name: None,
            labels: [(name("room"), name("attic"))].into(),
            by: name("ann"),
            expires_at,
        })
        .unwrap();
        let (node, certificate) = (NodeId::from_bytes(self.draw_id()), self.draw_id());
        let certificate = hatchery_common::id::CertificateId::from_bytes(certificate);
        let labels = [(name("os"), name("linux"))].into();
        self.ask(Join { secret, certificate, node, name: name(wished), labels }).unwrap();
        self.ask(SetInventory { node, inventory: Box::new(inventory(devices)) }).unwrap();
        self.hear(node);
        node
    }

    /// The node's session is open and it was just heard from.
    pub(crate) fn hear(&mut self, node: NodeId) {
        let boot = self.now.boot;
        let seen = self.observed.nodes.entry(node).or_default();
        (seen.last_heard, seen.connected) = (boot, true);
    }

    pub(crate) fn dataset(&mut self, corpus_bytes: u64) -> DatasetManifest {
        let manifest = dataset(corpus_bytes);
        self.ask(RegisterDataset { manifest: manifest.clone() }).unwrap();
        manifest
    }

    /// Submits a job of so many steps, later than the one before, and returns its id.
    pub(crate) fn submit(&mut self, steps: u64, devices: DeviceWishes) -> JobId {
        self.submit_as("ann", steps, |spec| spec.devices = devices)
    }

    /// The same for a person, and with changes to the spec.
    pub(crate) fn submit_as(
        &mut self,
        submitter: &str,
        steps: u64,
        change: impl FnOnce(&mut JobSpec),
    ) -> JobId {
        self.advance(Duration::from_millis(1));
        let dataset = self.dataset(CORPUS_BYTES);
        let mut spec = spec(&dataset, steps);
        change(&mut spec);
        let (request, job) = (RequestId::from_bytes(self.draw_id()), JobId::from_bytes(self.draw_id()));
        let body = Digest::of(&serde_json::to_vec(&spec).unwrap());
        let spec = Box::new(spec);
        self.ask(Submit { request, job, body, spec, submitter: name(submitter) }).unwrap();
        job
    }

    /// Every node is heard from, with its attempts at the steps and speeds that `progress` gives.
    pub(crate) fn report(&mut self, progress: impl Fn(&Job) -> (u64, f64)) {
        for node in self.cluster.nodes.keys().copied().collect::<Vec<_>>() {
            self.hear(node);
            let jobs = self.cluster.jobs.values();
            let leased = jobs.filter(|job| job.lease.as_ref().is_some_and(|lease| lease.node == node));
            let attempts = leased.map(|job| {
                let (step, steps_per_sec) = progress(job);
                AttemptReport {
                    id: job.attempt(),
                    phase: AttemptPhase::Running,
                    progress: Some(Progress { step, steps_per_sec, ..Progress::default() }),
                    validation: None,
                    running_on: None,
                }
            });
            let attempts = attempts.collect();
            self.observed.nodes.get_mut(&node).unwrap().report.attempts = attempts;
        }
    }

    pub(crate) fn job(&self, job: JobId) -> &Job {
        &self.cluster.jobs[&job]
    }
}

/// Enough for every spec made here.
pub(crate) const CORPUS_BYTES: u64 = 1_000_000;

pub(crate) fn name(text: &str) -> Name {
    Name::new("name", text).unwrap()
}

pub(crate) fn dataset(corpus_bytes: u64) -> DatasetManifest {
    let blob = BlobId(Digest::of(&corpus_bytes.to_le_bytes()));
    let file = DatasetFile { path: "a.md".into(), blob, size_bytes: corpus_bytes };
    DatasetManifest::new(name("notes"), vec![file]).unwrap()
}

pub(crate) fn spec(dataset: &DatasetManifest, steps: u64) -> JobSpec {
    let model =
        RawModelConfig { n_layer: 1, n_embd: 8, mlp_internal_dim_multiplier: 4, ..Default::default() };
    let train = RawTrainSpec { steps, block: 16, ..Default::default() };
    let (model, train) = (ModelConfig::new(model).unwrap(), TrainSpec::new(train).unwrap());
    JobSpec::new(name("run"), dataset.id(), model, train)
}

pub(crate) fn inventory(devices: &[(Device, Option<f64>)]) -> Inventory {
    let devices = devices.iter().map(|&(device, flops_per_sec)| NodeDevice {
        device,
        name: if device.kind == DeviceKind::Cpu { "a processor".into() } else { "a card".into() },
        memory_bytes: MEMORY_BYTES,
        bf16: false,
        driver: None,
        power_watts_max: None,
        calibration: flops_per_sec.map(|flops_per_sec| Calibration {
            device,
            steps_per_sec: flops_per_sec / 1e9,
            flops_per_sec,
            version: 1,
        }),
    });
    Inventory {
        hostname: "box".into(),
        trainer: TrainerState::Ready { version: "0.1.0".into(), libtorch: "2.11.0".into() },
        devices: devices.collect(),
        ..Inventory::default()
    }
}

/// A checkpoint of `job` at `step`, as the attempt of `epoch` would describe it.
pub(crate) fn checkpoint(job: &Job, epoch: Epoch, step: u64) -> CheckpointManifest {
    let file = |name: &str| CheckpointFile {
        name: name.into(),
        blob: BlobId(Digest::of(format!("{name} {step}").as_bytes())),
        size_bytes: 100,
    };
    // A loss that no short decimal holds: what is stored as text must come back to the last bit.
    let loss = 5.5 / (1.0 + step as f64).sqrt();
    // Every third one is not validated, and the loss goes up and down.
    let validation = (!step.is_multiple_of(3)).then(|| 2.0 + (step as f64).sin());
    CheckpointManifest {
        job: job.id,
        epoch,
        step,
        parent: job.lease.as_ref().and_then(|lease| lease.resume_from),
        dataset: job.spec.dataset,
        model: job.spec.model.clone(),
        block: job.spec.train.raw().block,
        metrics: Metrics {
            first_loss: Some(5.5),
            train_loss: Some(loss),
            validation_loss: validation,
            validation_step: validation.map(|_| step),
            ..Metrics::default()
        },
        files: CheckpointManifest::FILES.map(file).to_vec(),
    }
}

//! The real scheduler with a fleet and a clock of its own: requests are decided, plans applied, reports made
//! up.

use std::{collections::BTreeMap, sync::Arc, sync::LazyLock, time::Duration};

use anyhow::{Context as _, Result};
use hatchery_common::{
    access::Scope,
    checkpoint::{CheckpointFile, CheckpointManifest},
    dataset::{DatasetFile, DatasetManifest},
    device::{Device, DeviceKind},
    digest::Digest,
    id::{BlobId, CertificateId, JobId, Name, NodeId, RequestId},
    node::{Inventory, NodeDevice, TrainerState},
    recipe::{DeviceWishes, JobSpec, RawTrainSpec, Recipe, TrainSpec},
    session::{AttemptPhase, AttemptReport},
    time::{BootTime, Timestamp},
    trainer::{Calibration, Ending, Metrics, Progress},
};
use hatchery_scheduler::{
    Cluster, Command, CommitCheckpoint, CreateToken, EndAttempt, Event, Join, Now, Observed, Plan,
    RegisterDataset, SetInventory, Submit, plan,
};

/// So long that no lease ever runs out: every node is heard from all the time, between the events too.
pub(crate) const LEASE: Duration = Duration::from_hours(24 * 365 * 10);
const START: Now = Now { wall: Timestamp(1_800_000_000_000), boot: BootTime(1_000_000) };
const CORPUS_BYTES: u64 = 10_000_000;

/// The reference run, whose steps the speeds of the cases count, and the run that calibrates.
static SEED: LazyLock<Recipe> = LazyLock::new(|| preset("seed"));
static TINY: LazyLock<Recipe> = LazyLock::new(|| preset("tiny"));

fn preset(name: &str) -> Recipe {
    Recipe::parse(Some(name), "", &[]).expect("the presets are good recipes")
}

fn flops_per_step(recipe: &Recipe) -> f64 {
    let train = recipe.train.raw();
    recipe.model.flops_per_step(train.batch, train.block)
}

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
    pub(crate) now: Now,
    dataset: DatasetManifest,
    ids_drawn: u64,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        let blob = BlobId(Digest::of(b"corpus"));
        let file = DatasetFile { path: "a.md".into(), blob, size_bytes: CORPUS_BYTES };
        let dataset = DatasetManifest::new(name("notes"), vec![file])?;
        let (cluster, observed) = (Cluster::default(), Observed::new(START.boot, LEASE));
        let mut world = Self { cluster, observed, now: START, dataset, ids_drawn: 0 };
        world.ask(RegisterDataset { manifest: world.dataset.clone() })?;
        Ok(world)
    }

    /// Milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        since_start_ms(self.now.boot)
    }

    pub(crate) fn go_to(&mut self, ms: u64) {
        let passed = Duration::from_millis(ms);
        self.now = Now { wall: START.wall + passed, boot: START.boot + passed };
    }

    /// Decides, and applies what was decided.
    pub(crate) fn ask(&mut self, command: impl Command) -> Result<()> {
        let decision = command.decide(&self.cluster, self.now)?;
        self.apply(&decision.events);
        Ok(())
    }

    pub(crate) fn plan(&mut self) -> Plan {
        let plan = plan(&self.cluster, &self.observed, self.now);
        self.observed.intended = Arc::new(plan.queues.clone());
        plan
    }

    pub(crate) fn apply(&mut self, events: &[Event]) {
        for event in events {
            self.cluster.evolve(event);
        }
    }

    /// Brings in a node with one device that is calibrated to so many steps of the reference run. Nodes sort,
    /// by id and by name, as they joined.
    pub(crate) fn join(&mut self, kind: DeviceKind, steps_per_sec: f64) -> Result<NodeId> {
        let id = self.draw_id();
        let (node, certificate) = (NodeId::from_bytes(id), CertificateId::from_bytes(id));
        let name = name(&format!("n{:05}-{kind}", self.cluster.nodes.len()));
        let secret = Digest::of(&id);
        let expires_at = self.now.wall + Duration::from_mins(1);
        self.ask(CreateToken {
            secret,
            scope: Scope::Agent,
            name: None,
            labels: BTreeMap::new(),
            by: name.clone(),
            expires_at,
        })?;
        self.ask(Join { secret, certificate, node, name, labels: BTreeMap::new() })?;
        self.ask(SetInventory { node, inventory: Box::new(inventory(kind, steps_per_sec)) })?;
        self.hear(node);
        Ok(node)
    }

    pub(crate) fn submit(&mut self, steps: u64, kinds: Vec<DeviceKind>) -> Result<JobId> {
        let id = self.draw_id();
        let (request, job, body) = (RequestId::from_bytes(id), JobId::from_bytes(id), Digest::of(&id));
        let train = TrainSpec::new(RawTrainSpec { steps, ..SEED.train.raw().clone() })?;
        let devices = DeviceWishes { kinds, ..DeviceWishes::default() };
        let spec = SEED.job(self.dataset.id(), &name("run"));
        let spec = Box::new(JobSpec { train, devices, ..spec });
        self.ask(Submit { request, job, body, spec, submitter: name("ann") })?;
        Ok(job)
    }

    /// The node is heard from, with nothing to say of attempts.
    fn hear(&mut self, node: NodeId) {
        let seen = self.observed.nodes.entry(node).or_default();
        (seen.last_heard, seen.connected) = (self.now.boot, true);
        seen.report.sequence += 1;
        seen.report.attempts.clear();
    }

    /// The node is heard from, and says where its attempt stands.
    pub(crate) fn hear_of(&mut self, node: NodeId, attempt: Option<(JobId, Option<Progress>)>) {
        self.hear(node);
        let Some((job, progress)) = attempt else { return };
        let id = self.cluster.jobs[&job].attempt();
        let phase = if progress.is_some() { AttemptPhase::Running } else { AttemptPhase::Starting };
        let report = AttemptReport { id, phase, progress, validation: None, running_on: None };
        self.observed.nodes.entry(node).or_default().report.attempts.push(report);
    }

    /// The attempt at `job` ends so, after it has committed a checkpoint of `step`, if that is further than
    /// the last one.
    pub(crate) fn end(&mut self, job: JobId, step: u64, ending: Ending) -> Result<()> {
        let one = &self.cluster.jobs[&job];
        let lease = one.lease.as_ref().with_context(|| format!("job {job} has no lease"))?;
        let (node, epoch) = (lease.node, one.epoch);
        if step > one.steps_done() {
            let file = |name: &str| CheckpointFile {
                name: name.into(),
                blob: BlobId(Digest::of(format!("{job} {step} {name}").as_bytes())),
                size_bytes: 100,
            };
            let manifest = Box::new(CheckpointManifest {
                job,
                epoch,
                step,
                parent: lease.resume_from,
                dataset: one.spec.dataset,
                model: one.spec.model.clone(),
                block: one.spec.train.raw().block,
                metrics: Metrics::default(),
                files: CheckpointManifest::FILES.map(file).to_vec(),
            });
            self.ask(CommitCheckpoint { node, manifest, self_test: None })?;
        }
        self.ask(EndAttempt { node, job, epoch, ending, last_output: String::new() })
    }

    /// Later ones sort after earlier ones.
    fn draw_id(&mut self) -> [u8; 16] {
        self.ids_drawn += 1;
        u128::from(self.ids_drawn).to_be_bytes()
    }
}

pub(crate) fn since_start_ms(at: BootTime) -> u64 {
    at.since(START.boot).as_millis() as u64
}

fn name(text: &str) -> Name {
    Name::from_lossy(text)
}

fn inventory(kind: DeviceKind, steps_per_sec: f64) -> Inventory {
    let device = Device { kind, index: 0 };
    let flops_per_sec = steps_per_sec * flops_per_step(&SEED);
    let calibration = Calibration {
        device,
        steps_per_sec: flops_per_sec / flops_per_step(&TINY),
        flops_per_sec,
        version: 1,
    };
    let device = NodeDevice {
        device,
        name: kind.to_string(),
        memory_bytes: 64 << 30,
        bf16: false,
        driver: None,
        power_watts_max: None,
        calibration: Some(calibration),
    };
    Inventory {
        trainer: TrainerState::Ready { version: "0.1.0".into(), libtorch: "2.11.0".into() },
        memory_bytes: 64 << 30,
        devices: vec![device],
        ..Inventory::default()
    }
}

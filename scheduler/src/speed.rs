//! How fast a device trains a job: as measured while it trained such jobs, else as estimated from its calibration and
//! from how other devices' training compared with theirs, else a guess by its kind.

use std::{collections::BTreeMap, time::Duration};

use hatchery_common::{
    device::{Device, DeviceKind},
    digest::Digest,
    id::NodeId,
    node::NodeDevice,
    placement::Known,
    recipe::{JobSpec, Precision},
    time::Timestamp,
};

use crate::{
    cluster::{Cluster, Job, JobPhase, MeasuredSpeed, SpeedKey, Workload},
    event::{Event, What},
    observed::{Now, Observed},
};

/// An attempt is measured once it has run for so long.
const MEASURE_AFTER: Duration = Duration::from_secs(10);
/// And again after so long.
const MEASURE_EVERY: Duration = Duration::from_mins(10);
/// What a new measurement counts for in the mean, once there are many.
const MEASUREMENT_SHARE: f64 = 0.25;

/// How fast a device makes the steps of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    pub(crate) secs_per_step: f64,
    pub(crate) known: Known,
}

impl Speed {
    /// Whether it rests on a measurement of this device.
    pub(crate) fn is_measured(self) -> bool {
        self.known != Known::Guessed
    }
}

/// What a device that was never measured is taken for, in FLOP per second: the reference run of 264.5 GFLOP a step makes
/// 27.8 steps/s on a CUDA card of the middle class, 3.09 on an Apple GPU and about 0.3 on a small processor.
const fn guessed_flops_per_sec(kind: DeviceKind) -> f64 {
    const STEP_FLOPS: f64 = 264.5e9;
    match kind {
        DeviceKind::Cuda => 27.8 * STEP_FLOPS,
        DeviceKind::Mps => 3.09 * STEP_FLOPS,
        DeviceKind::Cpu => 0.3 * STEP_FLOPS,
    }
}

/// What makes steps alike: the model's shape, batch, block and precision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    model: [u32; 5],
    batch: u32,
    block: u32,
    precision: Precision,
}

impl Shape {
    pub(crate) fn of(spec: &JobSpec) -> Self {
        let (model, train) = (spec.model.raw(), spec.train.raw());
        let multiplier = model.mlp_internal_dim_multiplier;
        Self {
            model: [model.n_layer, model.n_embd, model.n_head, multiplier, model.vocab_size],
            batch: train.batch,
            block: train.block,
            precision: train.precision,
        }
    }

    pub(crate) fn workload(&self) -> Workload {
        let Self { model, batch, block, precision } = self;
        Workload(Digest::of(format!("{model:?} {batch} {block} {precision:?}").as_bytes()))
    }
}

/// The speeds of the fleet's devices at the steps of every job that matters.
pub(crate) struct SpeedBook(BTreeMap<Shape, Speeds>);

impl SpeedBook {
    pub(crate) fn of<'a>(
        cluster: &Cluster,
        measured: &BTreeMap<SpeedKey, MeasuredSpeed>,
        jobs: impl Iterator<Item = &'a Job>,
    ) -> Self {
        let mut by_workload: BTreeMap<Workload, Measured> = BTreeMap::new();
        for (key, speed) in measured {
            by_workload.entry(key.workload).or_default().insert((key.node, key.device), *speed);
        }
        let mut book = BTreeMap::new();
        for job in jobs {
            book.entry(Shape::of(&job.spec)).or_insert_with_key(|shape| {
                let measured = by_workload.get(&shape.workload()).cloned().unwrap_or_default();
                Speeds::of(&job.spec, cluster, measured)
            });
        }
        Self(book)
    }

    /// Those of the steps of a job that the book was made for.
    pub(crate) fn speeds(&self, job: &Job) -> &Speeds {
        self.0.get(&Shape::of(&job.spec)).expect("the book was made for every job that is looked at")
    }
}

type Measured = BTreeMap<(NodeId, Device), MeasuredSpeed>;

/// The speeds of the fleet's devices at steps of one shape.
pub(crate) struct Speeds {
    /// Floating-point operations of one step.
    flops_per_step: f64,
    /// For each kind of device, how the speeds measured compare with those that the calibrations foretell: the
    /// geometric mean of the ratios.
    corrections: BTreeMap<DeviceKind, f64>,
    measured: Measured,
}

impl Speeds {
    fn of(spec: &JobSpec, cluster: &Cluster, measured: Measured) -> Self {
        let train = spec.train.raw();
        let flops_per_step = spec.model.flops_per_step(train.batch, train.block);
        let mut speeds = Self { flops_per_step, corrections: BTreeMap::new(), measured };
        let mut ratios: BTreeMap<DeviceKind, (f64, u32)> = BTreeMap::new();
        for ((node, device), measured) in &speeds.measured {
            let devices = cluster.nodes.get(node).into_iter().flat_map(|node| &node.inventory.devices);
            let mut calibrated = devices.filter(|known| known.device == *device);
            if let Some(foretold) = calibrated.find_map(|device| speeds.calibrated(device)) {
                let (sum, count) = ratios.entry(device.kind).or_default();
                *sum += (measured.steps_per_sec * foretold).ln();
                *count += 1;
            }
        }
        let mean = |(kind, (sum, count)): (DeviceKind, (f64, u32))| (kind, (sum / f64::from(count)).exp());
        speeds.corrections = ratios.into_iter().map(mean).collect();
        speeds
    }

    /// Seconds per step by the device's calibration alone.
    fn calibrated(&self, device: &NodeDevice) -> Option<f64> {
        let calibration = device.calibration.as_ref()?;
        is_rate(calibration.flops_per_sec).then(|| self.flops_per_step / calibration.flops_per_sec)
    }

    pub(crate) fn at(&self, node: NodeId, device: &NodeDevice) -> Speed {
        if let Some(measured) = self.measured.get(&(node, device.device)) {
            return Speed { secs_per_step: 1.0 / measured.steps_per_sec, known: Known::Measured };
        }
        if let Some(secs_per_step) = self.calibrated(device) {
            let correction = self.corrections.get(&device.device.kind).copied().unwrap_or(1.0);
            return Speed { secs_per_step: secs_per_step / correction, known: Known::Estimated };
        }
        let flops_per_sec = guessed_flops_per_sec(device.device.kind);
        Speed { secs_per_step: self.flops_per_step / flops_per_sec, known: Known::Guessed }
    }
}

/// The measurements that are due: of attempts that have run for a while, on devices not measured for a while.
pub(crate) fn due(cluster: &Cluster, observed: &Observed, now: Now) -> Vec<Event> {
    let mut events: BTreeMap<SpeedKey, Event> = BTreeMap::new();
    for job in cluster.jobs.values().filter(|job| job.phase == JobPhase::Running) {
        let Some(lease) = &job.lease else { continue };
        let Some(steps_per_sec) = reported(job, lease.node, observed) else { continue };
        let key =
            SpeedKey { node: lease.node, device: lease.device, workload: Shape::of(&job.spec).workload() };
        let before = cluster.speeds.get(&key);
        let since_last = before.is_none_or(|before| now.wall.since(before.at) >= MEASURE_EVERY);
        if since_last && now.wall.since(lease.granted_at) >= MEASURE_AFTER {
            let speed = with_measurement(before, steps_per_sec, now.wall);
            events.entry(key).or_insert(What::SpeedMeasured { key, speed }.at(now.wall));
        }
    }
    events.into_values().collect()
}

/// Steps per second of the job's attempt, as its node last said.
pub(crate) fn reported(job: &Job, node: NodeId, observed: &Observed) -> Option<f64> {
    let progress = observed.progress(job, node)?;
    Some(progress.steps_per_sec).filter(|rate| is_rate(*rate))
}

fn with_measurement(before: Option<&MeasuredSpeed>, steps_per_sec: f64, at: Timestamp) -> MeasuredSpeed {
    let Some(before) = before else {
        return MeasuredSpeed { steps_per_sec, spread: 0.0, measurements: 1, at };
    };
    let measurements = before.measurements.saturating_add(1);
    let share = MEASUREMENT_SHARE.max(1.0 / f64::from(measurements));
    let mean = before.steps_per_sec + share * (steps_per_sec - before.steps_per_sec);
    let deviation = (steps_per_sec / before.steps_per_sec - 1.0).abs();
    let spread = before.spread + share * (deviation - before.spread);
    MeasuredSpeed { steps_per_sec: mean, spread, measurements, at }
}

/// Whether `per_sec` can be divided by; reports come from outside.
pub(crate) fn is_rate(per_sec: f64) -> bool {
    per_sec.is_finite() && per_sec > 1e-9 && per_sec < 1e15
}

/// Seconds as a duration; what is beyond all measure becomes a century.
pub(crate) fn duration(secs: f64) -> Duration {
    const CENTURY_SECS: f64 = 100.0 * 365.25 * 86_400.0;
    Duration::from_secs_f64(if secs.is_nan() { CENTURY_SECS } else { secs.clamp(0.0, CENTURY_SECS) })
}

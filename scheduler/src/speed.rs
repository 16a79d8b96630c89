//! How fast a device trains a job: measured where it was measured, and otherwise a guess by its kind.

use std::time::Duration;

use hatchery_common::{device::DeviceKind, node::NodeDevice};

use crate::cluster::Job;

/// FLOP per second of a device, matrix products only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Speed {
    pub(crate) flops_per_sec: f64,
    /// Whether it was measured on this device.
    pub(crate) measured: bool,
}

/// What a device that was never measured is taken for: the reference run of 264.5 GFLOP a step makes 27.8 steps/s on a
/// CUDA card of the middle class, 3.09 on an Apple GPU and about 0.3 on a small processor.
const fn guessed_flops_per_sec(kind: DeviceKind) -> f64 {
    const STEP_FLOPS: f64 = 264.5e9;
    match kind {
        DeviceKind::Cuda => 27.8 * STEP_FLOPS,
        DeviceKind::Mps => 3.09 * STEP_FLOPS,
        DeviceKind::Cpu => 0.3 * STEP_FLOPS,
    }
}

impl Speed {
    pub(crate) fn of(device: &NodeDevice) -> Self {
        let measured = device.calibration.as_ref().map(|calibration| calibration.flops_per_sec);
        match measured.filter(|flops| is_rate(*flops)) {
            Some(flops_per_sec) => Self { flops_per_sec, measured: true },
            None => Self { flops_per_sec: guessed_flops_per_sec(device.device.kind), measured: false },
        }
    }

    /// Seconds for `steps` steps of `job`.
    pub(crate) fn secs(self, job: &Job, steps: u64) -> f64 {
        let train = job.spec.train.raw();
        steps as f64 * job.spec.model.flops_per_step(train.batch, train.block) / self.flops_per_sec
    }
}

/// Whether `per_sec` can be divided by; reports come from outside.
pub(crate) fn is_rate(per_sec: f64) -> bool {
    per_sec.is_finite() && per_sec > 0.0
}

/// Seconds as a duration; what is beyond all measure becomes a century.
pub(crate) fn duration(secs: f64) -> Duration {
    const CENTURY_SECS: f64 = 100.0 * 365.25 * 86_400.0;
    Duration::from_secs_f64(if secs.is_nan() { CENTURY_SECS } else { secs.clamp(0.0, CENTURY_SECS) })
}

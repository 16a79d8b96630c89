//! Answers of many at once by libtorch on a device, beside the engine on one core.

use std::{fmt, path::Path};

use hatchery_common::{answerer::Pace, device::Device, recipe::Precision};
use hatchery_trainer::{answers::Answers, device};
use serde::Serialize;

/// A device's pace in each arithmetic.
#[derive(Debug, Serialize)]
pub(super) struct Together {
    name: String,
    f32: Vec<Pace>,
    bf16: Vec<Pace>,
    /// Bytes a second of the engine on one core in f32: the best of its batches.
    core_bytes_per_sec: f64,
}

impl Together {
    /// Measures `device` with the checkpoint in `folder`.
    pub(super) fn measure(folder: &Path, device: Device, core_bytes_per_sec: f64) -> anyhow::Result<Self> {
        let device = device::find(Some(device))?;
        let pace = |precision| anyhow::Ok(Answers::open(folder, &device, precision)?.pace()?);
        let (f32, bf16) = (pace(Precision::F32)?, pace(Precision::Bf16)?);
        Ok(Self { name: device.name, f32, bf16, core_bytes_per_sec })
    }
}

fn bytes_per_sec(pace: &Pace) -> f64 {
    f64::from(pace.sequences) / pace.secs_per_step
}

impl fmt::Display for Together {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, f32, bf16, core_bytes_per_sec } = self;
        writeln!(out, "answers at once on {name}; a core does {core_bytes_per_sec:.0} bytes/s in f32")?;
        writeln!(out, "sequences           f32              bf16     in f32 that many cores")?;
        for (f32, bf16) in f32.iter().zip(bf16) {
            let [f32_rate, bf16_rate] = [f32, bf16].map(bytes_per_sec);
            writeln!(
                out,
                "{:<10} {:>8.0} bytes/s {:>8.0} bytes/s {:>14.1}",
                f32.sequences,
                f32_rate,
                bf16_rate,
                f32_rate / core_bytes_per_sec
            )?;
        }
        Ok(())
    }
}

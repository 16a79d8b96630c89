//! Answers of many at once by libtorch on a device, beside the engine on one core.

use std::{fmt, path::Path};

use hatchery_common::{
    answerer::{Pace, secs_per_step},
    device::Device,
    recipe::Precision,
};
use hatchery_trainer::{batching::Batcher, device};
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
        let pace = |precision| anyhow::Ok(Batcher::open(folder, &device, precision)?.pace()?);
        let (f32, bf16) = (pace(Precision::F32)?, pace(Precision::Bf16)?);
        Ok(Self { name: device.name, f32, bf16, core_bytes_per_sec })
    }
}

impl fmt::Display for Together {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, f32, bf16, core_bytes_per_sec } = self;
        writeln!(out, "answers at once on {name}; a core does {core_bytes_per_sec:.0} bytes/s in f32")?;
        writeln!(out, "sequences           f32              bf16     in f32 that many cores")?;
        // With little memory there is room for more in bf16.
        let mut counts: Vec<u32> = f32.iter().chain(bf16).map(|pace| pace.sequences).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let rate = |pace: &[Pace]| {
                let has_room = pace.last().is_some_and(|last| last.sequences >= count);
                has_room.then(|| secs_per_step(pace, count).map(|secs| f64::from(count) / secs)).flatten()
            };
            let told = |rate: Option<f64>| {
                rate.map_or_else(|| "no room".into(), |rate| format!("{rate:.0} bytes/s"))
            };
            let cores =
                rate(f32).map_or_else(String::new, |rate| format!("{:.1}", rate / core_bytes_per_sec));
            writeln!(out, "{count:<10} {:>16} {:>16} {cores:>14}", told(rate(f32)), told(rate(bf16)))?;
        }
        Ok(())
    }
}

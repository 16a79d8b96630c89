//! Whether a run that was interrupted comes to the bits of one that was not.

use std::{fmt, fs, path::Path};

use anyhow::{Context, ensure};
use hatchery_common::checkpoint::{MODEL_FILE, OPTIMIZER_FILE};
use serde::Serialize;

use super::preset::Preset;

/// Weights and moments of three runs of a preset, at their ends.
#[derive(Debug, Serialize)]
pub(super) struct Resume {
    preset: String,
    steps: u32,
    /// Where one of them was interrupted.
    step_resumed: u32,
    /// A second run has the bits of the first.
    again_is_same: bool,
    /// And so has the one that went on from a checkpoint.
    resumed_is_same: bool,
}

impl Resume {
    /// Trains for `steps` steps, once more, and from a checkpoint half way.
    pub(super) fn measure(preset: &Preset, steps: u32) -> anyhow::Result<Self> {
        let step_resumed = (steps / 2).max(1);
        let settings = [format!("train.steps={steps}"), format!("train.checkpoint_every={step_resumed}")];
        let folder = tempfile::tempdir().context("cannot make a folder for the runs' checkpoints")?;
        let train = |name: &str, from: Option<&Path>| {
            eprintln!("exact resume: {name}");
            let checkpoints = folder.path().join(name);
            let run = preset.train(&settings, &checkpoints, from.map(ToOwned::to_owned))?;
            Ok::<_, anyhow::Error>(run.checkpoints)
        };
        let whole = train("whole", None)?;
        let (Some(half), Some(end)) = (whole.first(), whole.last()) else {
            anyhow::bail!("a run left no checkpoints");
        };
        ensure!(whole.len() > 1, "a run left no checkpoint half way");
        let is_same = |checkpoints: &[std::path::PathBuf]| {
            let last = checkpoints.last().context("a run left no checkpoint")?;
            Ok::<_, anyhow::Error>(same(end, last, MODEL_FILE)? && same(end, last, OPTIMIZER_FILE)?)
        };
        let again_is_same = is_same(&train("again", None)?)?;
        let resumed_is_same = is_same(&train("resumed", Some(half))?)?;
        Ok(Self { preset: preset.name.clone(), steps, step_resumed, again_is_same, resumed_is_same })
    }
}

fn same(some: &Path, other: &Path, name: &str) -> anyhow::Result<bool> {
    let read = |folder: &Path| fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"));
    Ok(read(some)? == read(other)?)
}

impl fmt::Display for Resume {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { preset, steps, step_resumed, .. } = self;
        let told = |is_same| if is_same { "the same to the bit" } else { "NOT the same bits" };
        writeln!(out, "weights and moments of the preset {preset} after {steps} steps:")?;
        writeln!(out, "  of a second run               {}", told(self.again_is_same))?;
        writeln!(out, "  interrupted at step {step_resumed:<10}{}", told(self.resumed_is_same))
    }
}

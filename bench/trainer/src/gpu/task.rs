//! What every contender gets: the same weights and the same windows of the same text, as files.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use hatchery_common::{model::ModelConfig, recipe::TrainSpec};
use hatchery_trainer::{
    data::{Corpus, Sampler},
    weights::Weights,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tempfile::TempDir;

/// `task.json`; `reference.py` reads it too.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) model: ModelConfig,
    pub(super) train: TrainSpec,
    /// As libtorch names it: `cuda:0`.
    pub(super) device: String,
    /// Products in bf16, rather than f32.
    pub(super) is_bf16: bool,
    /// Steps before the clock starts.
    pub(super) warm_up_steps: u32,
    /// Steps on the clock.
    pub(super) steps: u32,
    /// Steps from one look at the clock to the next; the device is waited for at each.
    pub(super) steps_per_look: u32,
}

/// What one contender found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Found {
    /// Seconds a step, from look to look.
    pub(super) step_secs: Vec<f64>,
    /// Of the first step after each look, the seconds until the host had asked for all of it.
    pub(super) host_secs: Vec<f64>,
    /// Of tensors on the device, at most; on a CPU the process's resident memory.
    pub(super) memory_bytes: u64,
    /// Of each step, the warm-up's too.
    pub(super) losses: Vec<f64>,
}

impl fmt::Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(secs) = median(self.step_secs.iter().copied()) {
            write!(out, "{:.2} ms a step, ", 1e3 * secs)?;
        }
        write!(out, "{} MiB", self.memory_bytes >> 20)
    }
}

/// The middle one, or the one above the middle.
pub(super) fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = figures.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// `weights.bin`: the five weights in their order, f32. `windows.bin`: for each step B windows of T + 1 bytes.
#[derive(Debug)]
pub(super) struct Folder(TempDir);

const TASK: &str = "task.json";
const WEIGHTS: &str = "weights.bin";
const WINDOWS: &str = "windows.bin";

impl Folder {
    pub(super) fn write(task: &Task, corpus: &Corpus) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for the contenders' task")?;
        let write = |name: &str, bytes: &[u8]| {
            fs::write(folder.path().join(name), bytes).with_context(|| format!("cannot write {name}"))
        };
        write(TASK, &serde_json::to_vec(task)?)?;
        let weights = Weights::start(&task.model, task.train.raw().seed)?;
        let mut bytes = Vec::new();
        for weight in weights.all() {
            let numbers = Vec::<f32>::try_from(&weight.f_detach()?.f_flatten(0, -1)?)?;
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        write(WEIGHTS, &bytes)?;
        let sampler = Sampler::new(&task.train, corpus.len())?;
        let text = corpus.bytes();
        let starts = (0..u64::from(task.warm_up_steps + task.steps)).flat_map(|step| sampler.starts(step));
        let windows: Vec<u8> =
            starts.flat_map(|start| &text[start as usize..][..=sampler.block()]).copied().collect();
        write(WINDOWS, &windows)?;
        Ok(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// What a turn of this trainer reads of it.
pub(super) fn read(folder: &Path) -> anyhow::Result<(Task, Weights, Vec<u8>)> {
    let read = |name: &str| {
        let path: PathBuf = folder.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let task: Task = serde_json::from_slice(&read(TASK)?)?;
    let bytes = read(WEIGHTS)?;
    let mut numbers = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number));
    let weights = Weights::each(&task.model, |_, shape| {
        let numbers: Vec<f32> = numbers.by_ref().take(shape.iter().product()).collect();
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        Ok::<_, anyhow::Error>(Tensor::f_from_slice(&numbers)?.f_to_kind(Kind::Float)?.f_view_(shape)?)
    })?;
    Ok((task, weights, read(WINDOWS)?))
}

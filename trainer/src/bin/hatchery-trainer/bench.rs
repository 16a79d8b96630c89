//! `hatchery-trainer bench train`: this trainer, its plain path and eager PyTorch, taking turns on the same machine.
//!
//! Each turn is a process of its own, so that each has its own peak of memory and its own allocator settings.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};
use hatchery_common::recipe::{Precision, Recipe};
use hatchery_trainer::{data::noise, device, ffi, learner::Learner, weights::Weights};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    args::{BenchShape, BenchTrain, Contender, Output},
    print, print_json,
};

/// The published equations in PyTorch.
const REFERENCE: &str = include_str!("reference.py");
/// glibc's settings for the tuned reference: never map, never give back.
const TUNED: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000";

/// What one turn found.
#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    step_secs: Vec<f64>,
    memory_bytes: u64,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    contender: String,
    threads: u32,
    /// Median over all steps of all turns but each turn's first.
    step_secs: f64,
    steps_per_sec: f64,
    memory_bytes: u64,
    /// How many times as fast as this line the fast path is, on the same number of threads.
    fast_is_times: f64,
}

/// Measures, or is one turn of a measurement.
pub(crate) fn train(args: &BenchTrain) -> anyhow::Result<()> {
    match args.turn {
        Some(contender) => print_json(&turn(args, contender)?),
        None => compare(args),
    }
}

fn compare(args: &BenchTrain) -> anyhow::Result<()> {
    let python = find_python(args.python.as_deref());
    if python.is_none() {
        eprintln!("no python with torch was found: without the lines of PyTorch (--python names one)");
    }
    let mut contenders = vec![Contender::Fast, Contender::Plain];
    if python.is_some() {
        contenders.extend([Contender::TorchTuned, Contender::Torch]);
    }
    let mut turns: Vec<Vec<Turn>> = contenders.iter().map(|_| Vec::new()).collect();
    for repeat in 1..=args.repeats {
        for (contender, turns) in contenders.iter().zip(&mut turns) {
            eprintln!("turn {repeat}/{}: {}", args.repeats, contender.name());
            turns.push(run_turn(args, *contender, python.as_deref())?);
        }
    }
    let medians: Vec<f64> = turns.iter().map(|turns| median(turns)).collect();
    let threads = threads(args);
    let lines: Vec<Line> = contenders
        .iter()
        .zip(&turns)
        .zip(&medians)
        .map(|((contender, turns), step_secs)| Line {
            contender: contender.name().into(),
            threads,
            step_secs: *step_secs,
            steps_per_sec: 1.0 / step_secs,
            memory_bytes: turns.iter().map(|turn| turn.memory_bytes).max().unwrap_or_default(),
            fast_is_times: step_secs / medians[0],
        })
        .collect();
    if args.output == Output::Json {
        return print_json(&lines);
    }
    let Recipe { model, train, .. } = recipe(args.shape)?;
    let raw = train.raw();
    print(&format!(
        "{} parameters, batch {}, block {}, f32, {threads} threads; large sgemm {:.0} GFLOP/s\n",
        model.parameters(),
        raw.batch,
        raw.block,
        sgemm_gflops(threads)
    ))?;
    print("contender                        s/step   steps/s   peak MiB   fast is")?;
    for line in lines {
        print(&format!(
            "{:<30} {:>8.3} {:>9.3} {:>10} {:>8.2}x",
            line.contender,
            line.step_secs,
            line.steps_per_sec,
            line.memory_bytes >> 20,
            line.fast_is_times
        ))?;
    }
    Ok(())
}

fn run_turn(args: &BenchTrain, contender: Contender, python: Option<&str>) -> anyhow::Result<Turn> {
    let threads = threads(args);
    let mut command = match (contender, python) {
        (Contender::Fast | Contender::Plain, _) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["bench", "train", "--shape", args.shape.name(), "--turn", contender.name()]);
            command.args(["--steps", &args.steps.to_string(), "--threads", &threads.to_string()]);
            command
        }
        (_, Some(python)) => {
            let recipe = recipe(args.shape)?;
            let (model, train) = (recipe.model.raw(), recipe.train.raw());
            let numbers = [
                model.n_layer,
                model.n_embd,
                model.n_head,
                model.mlp_internal_dim_multiplier,
                train.block,
                train.batch,
                threads,
                args.steps,
            ];
            let mut command = Command::new(python);
            command.arg("-c").arg(REFERENCE).args(numbers.map(|number| number.to_string()));
            // This process may have been started anew with settings of its own.
            command.env_remove("GLIBC_TUNABLES").env_remove("OMP_WAIT_POLICY");
            if contender == Contender::TorchTuned {
                command.env("GLIBC_TUNABLES", TUNED);
            }
            command
        }
        (_, None) => bail!("PyTorch cannot be measured without python"),
    };
    let output = command.stdin(Stdio::null()).output().context("cannot start a turn")?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        bail!("the turn of {} failed: {}", contender.name(), output.status);
    }
    serde_json::from_slice(&output.stdout).context("a turn has not told its figures")
}

fn turn(args: &BenchTrain, contender: Contender) -> anyhow::Result<Turn> {
    device::use_threads(threads(args));
    let Recipe { model, train, .. } = recipe(args.shape)?;
    let (batch, block) = (train.raw().batch, train.raw().block);
    let weights = Weights::start(&model, 1)?;
    let mut learner = Learner::new(model, &train, weights, None, Device::Cpu, Precision::F32)?;
    if contender == Contender::Plain {
        learner.use_plain_path();
    }
    let mut step_secs = Vec::new();
    for step in 0..u64::from(args.steps) {
        let begun = Instant::now();
        let batch = noise(step, batch, block, Device::Cpu)?;
        f64::try_from(learner.step(step, &batch)?)?;
        step_secs.push(begun.elapsed().as_secs_f64());
    }
    Ok(Turn { step_secs, memory_bytes: ffi::resident_bytes_max() })
}

fn threads(args: &BenchTrain) -> u32 {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    if args.threads == 0 { cores() } else { args.threads }
}

fn recipe(shape: BenchShape) -> anyhow::Result<Recipe> {
    let (preset, settings): (_, &[&str]) = match shape {
        BenchShape::Tiny => ("tiny", &[]),
        BenchShape::Seed => ("seed", &[]),
        BenchShape::Published => (
            "seed",
            &[
                "model.n_layer=6",
                "model.n_embd=256",
                "model.mlp_internal_dim_multiplier=128",
                "train.block=512",
            ],
        ),
    };
    let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    Ok(Recipe::parse(Some(preset), "", &settings)?)
}

/// The first of `wanted`, `python3` and `python` that can import torch.
pub(crate) fn find_python(wanted: Option<&str>) -> Option<String> {
    let candidates = wanted.map_or_else(|| vec!["python3", "python"], |wanted| vec![wanted]);
    let has_torch = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(has_torch).map(ToOwned::to_owned)
}

fn median(turns: &[Turn]) -> f64 {
    let mut all: Vec<f64> = turns.iter().flat_map(|turn| turn.step_secs.iter().skip(1)).copied().collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The best of some products of 2048 x 2048 matrices.
fn sgemm_gflops(threads: u32) -> f64 {
    const SIZE: i64 = 2048;
    const TRIES: usize = 5;
    device::use_threads(threads);
    let [a, b] = [0, 1].map(|_| Tensor::rand([SIZE, SIZE], (Kind::Float, Device::Cpu)));
    let secs = (0..TRIES).map(|_| {
        let begun = Instant::now();
        let _ = a.matmul(&b);
        begun.elapsed().as_secs_f64()
    });
    2.0 * (SIZE as f64).powi(3) / secs.fold(f64::INFINITY, f64::min) / 1e9
}

//! `hatchery-bench-trainer train`: this trainer, its plain path and eager PyTorch, taking turns on the same machine.
//!
//! Each turn is a process of its own, so that each has its own peak of memory and its own allocator settings. A large
//! matrix product takes turns too: a machine that others use is not equally fast all the time.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use hatchery_common::recipe::{Precision, Recipe};
use hatchery_trainer::{
    command_line::{Output, print, print_json, threads as threads_argument},
    data::noise,
    device, fast, ffi,
    learner::Learner,
    weights::Weights,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    overhead,
    python::{PythonWish, TORCH},
};

/// The published equations in PyTorch.
const REFERENCE: &str = include_str!("reference.py");
/// glibc's settings for the tuned reference: never map, never give back.
const TUNED: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000";
/// Rows and columns of the large matrices.
const SGEMM_SIZE: i64 = 2048;

#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Model shape.
    #[arg(long, value_enum, default_value_t = Shape::Seed)]
    shape: Shape,
    /// Steps in each turn; the first one is not counted.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Turns of each contender.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Sequences per step [default: 8]. PyTorch keeps a whole batch in memory at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: Option<u32>,
    /// Threads; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads_argument())]
    threads: u32,
    #[command(flatten)]
    python: PythonWish,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Be one turn, and print its figures as JSON.
    #[arg(long, hide = true, value_enum)]
    turn: Option<Contender>,
}

/// A model to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// The preset tiny.
    Tiny,
    /// The preset seed: the reference run.
    Seed,
    /// The published default: 6 layers, width 256, multiplier 128, block 512.
    Published,
}

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    Fast,
    Plain,
    Torch,
    TorchTuned,
    /// A large matrix product.
    Sgemm,
    /// What a run adds to its steps.
    Overhead,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Seed => "seed",
            Self::Published => "published",
        }
    }
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Plain => "plain",
            Self::Torch => "torch",
            Self::TorchTuned => "torch-tuned",
            Self::Sgemm => "sgemm",
            Self::Overhead => "overhead",
        }
    }
}

/// What one turn found.
#[derive(Debug, Serialize, Deserialize)]
struct Turn {
    step_secs: Vec<f64>,
    memory_bytes: u64,
    /// Pages that the kernel had to bring in during all steps but the first.
    page_faults: Option<u64>,
}

/// Who takes turns, and on how many threads.
#[derive(Clone, Copy, Debug)]
struct Entry {
    contender: Contender,
    threads: u32,
}

/// Everything that a comparison found.
#[derive(Debug, Serialize)]
struct Report {
    parameters: u64,
    batch: u32,
    block: u32,
    lines: Vec<Line>,
    /// What the fast path computes in a step, in 10^9 floating-point operations.
    step_gflop: f64,
    /// The same by the second.
    fast_gflops: f64,
    /// What a large f32 matrix product reaches on as many threads.
    sgemm_gflops: f64,
    /// What a run adds to its steps.
    overhead: overhead::Overhead,
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
    page_faults_per_step: Option<u64>,
    /// How many times as fast as this line the fast path is on all threads.
    fast_is_times: f64,
}

/// Measures, or is one turn of a measurement.
pub(crate) fn train(args: &TrainArgs) -> anyhow::Result<()> {
    match args.turn {
        Some(Contender::Overhead) => {
            device::use_threads(threads(args));
            print_json(&overhead::measure(&recipe(args)?)?)
        }
        Some(contender) => print_json(&turn(args, contender)?),
        None => compare(args),
    }
}

fn compare(args: &TrainArgs) -> anyhow::Result<()> {
    let python = args.python.find(TORCH)?;
    let threads = threads(args);
    let mut entries = vec![Entry { contender: Contender::Fast, threads }];
    let fewer = std::iter::successors(Some(1), |count| Some(count * 2)).take_while(|count| *count < threads);
    entries.extend(fewer.map(|threads| Entry { contender: Contender::Fast, threads }));
    entries.push(Entry { contender: Contender::Plain, threads });
    if python.is_some() {
        entries
            .extend([Contender::TorchTuned, Contender::Torch].map(|contender| Entry { contender, threads }));
    }
    entries.push(Entry { contender: Contender::Sgemm, threads });
    let mut turns: Vec<Vec<Turn>> = entries.iter().map(|_| Vec::new()).collect();
    for repeat in 1..=args.repeats {
        for (entry, turns) in entries.iter().zip(&mut turns) {
            eprintln!(
                "turn {repeat}/{}: {} on {} threads",
                args.repeats,
                entry.contender.name(),
                entry.threads
            );
            turns.push(read(run_turn(args, *entry, python.as_deref())?)?);
        }
    }
    let overhead = Entry { contender: Contender::Overhead, threads };
    let overhead = read(run_turn(args, overhead, None)?)?;
    let medians: Vec<f64> = turns.iter().map(|turns| median(turns)).collect();
    let Recipe { model, train, .. } = recipe(args)?;
    let raw = train.raw();
    let step_gflop = f64::from(raw.batch) * fast::flops_per_sequence(&model, raw.block as usize) / 1e9;
    let sgemm_secs = medians.last().context("the large product has no figures")?;
    let line = |((entry, turns), step_secs): ((&Entry, &Vec<Turn>), &f64)| Line {
        contender: entry.contender.name().into(),
        threads: entry.threads,
        step_secs: *step_secs,
        steps_per_sec: 1.0 / step_secs,
        memory_bytes: turns.iter().map(|turn| turn.memory_bytes).max().unwrap_or_default(),
        page_faults_per_step: page_faults_per_step(turns),
        fast_is_times: step_secs / medians[0],
    };
    let is_trainer = |((entry, _), _): &((&Entry, &Vec<Turn>), &f64)| entry.contender != Contender::Sgemm;
    let report = Report {
        parameters: model.parameters(),
        batch: raw.batch,
        block: raw.block,
        lines: entries.iter().zip(&turns).zip(&medians).filter(is_trainer).map(line).collect(),
        step_gflop,
        fast_gflops: step_gflop / medians[0],
        sgemm_gflops: 2.0 * (SGEMM_SIZE as f64).powi(3) / 1e9 / sgemm_secs,
        overhead,
    };
    if args.output == Output::Json {
        return print_json(&report);
    }
    show(&report)
}

fn show(report: &Report) -> anyhow::Result<()> {
    let Report { parameters, batch, block, step_gflop, fast_gflops, sgemm_gflops, .. } = report;
    print(&format!(
        "{parameters} parameters, batch {batch}, block {block}, f32, dropout and AdamW included\n"
    ))?;
    print("contender     threads    s/step   steps/s   peak MiB   page faults/step   fast is")?;
    for line in &report.lines {
        let page_faults = line.page_faults_per_step.map_or_else(|| "-".to_owned(), |count| count.to_string());
        print(&format!(
            "{:<13} {:>7} {:>9.3} {:>9.3} {:>10} {:>18} {:>8.2}x",
            line.contender,
            line.threads,
            line.step_secs,
            line.steps_per_sec,
            line.memory_bytes >> 20,
            page_faults,
            line.fast_is_times
        ))?;
    }
    print(&format!(
        "\nfast computes {step_gflop:.1} GFLOP a step: {fast_gflops:.0} GFLOP/s, {:.0} % of a large product's {sgemm_gflops:.0}\n",
        100.0 * fast_gflops / sgemm_gflops
    ))?;
    print(&report.overhead.table())
}

/// What one turn prints: JSON.
fn run_turn(args: &TrainArgs, entry: Entry, python: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let Entry { contender, threads } = entry;
    let mut command = match (contender, python) {
        (Contender::Fast | Contender::Plain | Contender::Sgemm | Contender::Overhead, _) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["train", "--shape", args.shape.name(), "--turn", contender.name()]);
            command.args(["--steps", &args.steps.to_string(), "--threads", &threads.to_string()]);
            if let Some(batch) = args.batch {
                command.args(["--batch", &batch.to_string()]);
            }
            command
        }
        (_, Some(python)) => {
            let recipe = recipe(args)?;
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
    Ok(output.stdout)
}

fn read<T: for<'a> Deserialize<'a>>(told: Vec<u8>) -> anyhow::Result<T> {
    serde_json::from_slice(&told).context("a turn has not told its figures")
}

fn turn(args: &TrainArgs, contender: Contender) -> anyhow::Result<Turn> {
    device::use_threads(threads(args));
    let mut step: Box<dyn FnMut(u64) -> anyhow::Result<()>> = if contender == Contender::Sgemm {
        let [a, b] = [0, 1].map(|_| Tensor::rand([SGEMM_SIZE, SGEMM_SIZE], (Kind::Float, Device::Cpu)));
        let product = a.f_matmul(&b)?;
        Box::new(move |_| {
            let _ = a.f_matmul_out(&product, &b)?;
            Ok(())
        })
    } else {
        let Recipe { model, train, .. } = recipe(args)?;
        let (batch, block) = (train.raw().batch, train.raw().block);
        let weights = Weights::start(&model, 1)?;
        let mut learner = Learner::new(model, &train, weights, None, Device::Cpu, Precision::F32)?;
        if contender == Contender::Plain {
            learner.use_plain_path();
        }
        Box::new(move |step| {
            let batch = noise(step, batch, block, Device::Cpu)?;
            f64::try_from(learner.step(step, &batch)?)?;
            Ok(())
        })
    };
    let (mut step_secs, mut page_faults_before) = (Vec::new(), None);
    for number in 0..u64::from(args.steps) {
        let begun = Instant::now();
        step(number)?;
        step_secs.push(begun.elapsed().as_secs_f64());
        if number == 0 {
            page_faults_before = ffi::page_faults();
        }
    }
    let page_faults = ffi::page_faults().zip(page_faults_before).map(|(after, before)| after - before);
    Ok(Turn { step_secs, memory_bytes: ffi::resident_bytes_max(), page_faults })
}

fn threads(args: &TrainArgs) -> u32 {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    if args.threads == 0 { cores() } else { args.threads }
}

fn recipe(args: &TrainArgs) -> anyhow::Result<Recipe> {
    let (preset, settings): (_, &[&str]) = match args.shape {
        Shape::Tiny => ("tiny", &[]),
        Shape::Seed => ("seed", &[]),
        Shape::Published => (
            "seed",
            &[
                "model.n_layer=6",
                "model.n_embd=256",
                "model.mlp_internal_dim_multiplier=128",
                "train.block=512",
            ],
        ),
    };
    let mut settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
    settings.extend(args.batch.map(|batch| format!("train.batch={batch}")));
    Ok(Recipe::parse(Some(preset), "", &settings)?)
}

fn median(turns: &[Turn]) -> f64 {
    let mut all: Vec<f64> = turns.iter().flat_map(|turn| turn.step_secs.iter().skip(1)).copied().collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Over all steps but each turn's first.
fn page_faults_per_step(turns: &[Turn]) -> Option<u64> {
    let steps: u64 = turns.iter().map(|turn| turn.step_secs.len() as u64 - 1).sum();
    let page_faults = turns.iter().map(|turn| turn.page_faults).sum::<Option<u64>>()?;
    page_faults.checked_div(steps)
}

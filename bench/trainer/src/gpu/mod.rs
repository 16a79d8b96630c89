//! `hatchery-bench-trainer gpu`: this trainer and PyTorch on one GPU, taking turns on the same weights and the same text.
//!
//! Each turn is a process of its own. In this order, each told as soon as it is known: how fast and in how much memory, at each
//! shape; whether bf16 learns what f32 learns; the reference run, from start to sample; how many answers at once its checkpoint
//! gives; and whether a run that was interrupted comes to the same bits.

mod card;
mod full;
mod preset;
mod report;
mod resume;
mod task;
mod turn;

use std::{
    fmt::Display,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use hatchery_common::{
    device::{Device, DeviceKind},
    recipe::{DataSpec, Precision, Recipe},
};
use hatchery_trainer::{
    command_line::{self, DeviceWish, Output, print, print_json},
    data::Corpus,
    device,
};
use serde::de::DeserializeOwned;

use self::{
    full::Full,
    preset::Preset,
    report::{Head, Line, Operations, Parity, Report, Shape},
    resume::Resume,
    task::{Folder, Found, Task},
};
use crate::{
    generate::core_bytes_per_sec,
    outcome::Outcome,
    python::{PythonWish, TORCH, TORCH_WITH_CUDA, reason},
    together::Together,
};

/// The published equations in PyTorch.
const REFERENCE: &str = include_str!("reference.py");
/// Steps from one look at the clock to the next.
const STEPS_PER_LOOK: u32 = 10;
/// Steps over which the losses of two ways are averaged before they are compared: single steps are noise.
const PARITY_WINDOW: usize = 50;

#[derive(Debug, clap::Args)]
pub(crate) struct GpuArgs {
    /// Device; `auto` is the first NVIDIA GPU. A CPU only checks that the benchmark works.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceWish,
    /// Arithmetic to measure, in addition to f32.
    #[arg(long, value_enum, default_value_t)]
    precision: command_line::Precision,
    /// Files and folders to train on [default: the Markdown files of Cargo's unpacked registry].
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Of folders in --data, use only the files that match, such as '**/*.md'.
    #[arg(long, value_name = "GLOB", num_args = 1.., requires = "data")]
    include: Vec<String>,
    /// Model shapes to measure.
    #[arg(long, value_enum, num_args = 1.., default_values_t = [GpuShape::Seed, GpuShape::Large])]
    shapes: Vec<GpuShape>,
    /// Contenders; PyTorch needs a Python with torch.
    #[arg(long, value_enum, num_args = 1.., default_values_t = Contender::ALL)]
    contenders: Vec<Contender>,
    /// Timed steps in each turn, a multiple of ten; medians cover all readings of all turns.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = timed_steps)]
    steps: u32,
    /// Warm-up steps, in which kernels are chosen and compiled.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    warm_up: u32,
    /// Turns of each contender.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Preset for the parts after the shapes.
    #[arg(long, value_name = "PRESET", default_value = "seed")]
    preset: String,
    /// Steps of the comparison of bf16 with f32; 0 skips it.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    parity_steps: u32,
    /// Steps of the whole run, whose checkpoint then answers many prompts at once; 0 skips both.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    full_steps: u32,
    /// Steps of the runs of which one is interrupted half way; 0 skips them.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = resume_steps)]
    resume_steps: u32,
    #[command(flatten)]
    python: PythonWish,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// Be one turn in the folder `--task`, and print its figures as JSON.
    #[arg(long, hide = true, value_enum, requires = "task")]
    turn: Option<Contender>,
    /// Time the operations of the task in the folder `--task`, and print the figures as JSON.
    #[arg(long, hide = true, requires = "task", conflicts_with = "turn")]
    operations: bool,
    #[arg(long, hide = true)]
    task: Option<PathBuf>,
}

fn timed_steps(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(steps) if (STEPS_PER_LOOK..=10_000).contains(&steps) && steps.is_multiple_of(STEPS_PER_LOOK) => {
            Ok(steps)
        }
        _ => Err(format!(
            "must be a multiple of {STEPS_PER_LOOK}, up to 10000: the clock is looked at so often"
        )),
    }
}

fn resume_steps(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(steps) if steps != 1 && steps <= 10_000 => Ok(steps),
        _ => Err("must be 0, or from 2 to 10000: one run is interrupted half way".into()),
    }
}

/// A model and a batch to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GpuShape {
    /// The preset tiny: a quick check.
    Tiny,
    /// The preset seed: the reference run.
    Seed,
    /// 6 layers, width 256, multiplier 128, block 512, batch 32.
    Large,
}

impl GpuShape {
    fn recipe(self, settings: &[&str]) -> anyhow::Result<Recipe> {
        const LARGE: [&str; 5] = [
            "model.n_layer=6",
            "model.n_embd=256",
            "model.mlp_internal_dim_multiplier=128",
            "train.block=512",
            "train.batch=32",
        ];
        let preset = if self == Self::Tiny { "tiny" } else { "seed" };
        let own: &[&str] = if self == Self::Large { &LARGE } else { &[] };
        let settings: Vec<String> = own.iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
        Ok(Recipe::parse(Some(preset), "", &settings)?)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Seed => "seed",
            Self::Large => "large",
        }
    }
}

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// Hand-written gradients, with fused kernels: as in a run.
    Kernels,
    /// Hand-written gradients, with libtorch's operations.
    Operations,
    /// libtorch's own gradients.
    Autograd,
    /// PyTorch, as written.
    Eager,
    /// PyTorch through `torch.compile`.
    Compiled,
}

impl Contender {
    const ALL: [Self; 5] = [Self::Kernels, Self::Operations, Self::Autograd, Self::Eager, Self::Compiled];

    fn name(self) -> &'static str {
        match self {
            Self::Kernels => "kernels",
            Self::Operations => "operations",
            Self::Autograd => "autograd",
            Self::Eager => "torch eager",
            Self::Compiled => "torch compiled",
        }
    }

    fn is_pythons(self) -> bool {
        matches!(self, Self::Eager | Self::Compiled)
    }
}

/// Measures, or is one turn of a measurement.
pub(crate) fn gpu(args: &GpuArgs) -> anyhow::Result<()> {
    if let (Some(contender), Some(folder)) = (args.turn, &args.task) {
        return print_json(&turn::take(contender, folder)?);
    }
    if let (true, Some(folder)) = (args.operations, &args.task) {
        return print_json(&turn::measure(folder)?);
    }
    let report = Bench::new(args)?.measure()?;
    // For a person it was printed part by part.
    if args.output == Output::Json {
        print_json(&report)?;
    }
    report.all_found()
}

struct Bench<'a> {
    args: &'a GpuArgs,
    device: hatchery_common::trainer::TrainerDevice,
    precision: Precision,
    corpus: Corpus,
    python: Option<String>,
}

impl<'a> Bench<'a> {
    fn new(args: &'a GpuArgs) -> anyhow::Result<Self> {
        // What is wrong with it is said before anything is measured, and once: its words hold their cause.
        Recipe::parse(Some(&args.preset), "", &[]).map_err(|error| anyhow::anyhow!("{error}"))?;
        let device = device::find(Some(args.device.wanted().unwrap_or(Device::cuda(0))))?;
        let is_cuda = match device.device.kind {
            DeviceKind::Cuda => true,
            DeviceKind::Cpu => false,
            DeviceKind::Mps => {
                bail!("this compares on NVIDIA's cards, and on a CPU to see that all goes; not on mps")
            }
        };
        let python = if args.contenders.iter().any(|contender| contender.is_pythons()) {
            args.python.find(if is_cuda { TORCH_WITH_CUDA } else { TORCH })?
        } else {
            None
        };
        let data = data(args)?;
        let corpus = command_line::corpus(&data)?;
        ensure!(
            corpus.len() > 1 << 16,
            "the text has {} bytes; a comparison needs more than 65,536 (--data names files and folders)",
            corpus.len()
        );
        let precision = device::precision(args.precision.into(), &device);
        Ok(Self { args, device, precision, corpus, python })
    }

    /// Tells a person each part as soon as it is there: hours of measuring are not lost to what fails after them, or to Ctrl-C.
    fn measure(self) -> anyhow::Result<Report> {
        let Self { args, device, corpus, .. } = &self;
        let head =
            Head { device: device.name.clone(), precision: self.precision, corpus_bytes: corpus.len() };
        self.tell(&head)?;
        let mut shapes = Vec::new();
        for shape in &args.shapes {
            shapes.extend(self.part(shape.name(), true, || self.shape(*shape))?);
        }
        let parity = self.part("comparison of losses", args.parity_steps > 0, || self.parity())?;
        let preset = Preset {
            name: args.preset.clone(),
            corpus: corpus.clone(),
            device: device.device,
            precision: self.precision,
        };
        let folder = tempfile::tempdir().context("cannot make a folder for the full run")?;
        let full = || Full::measure(&preset, args.full_steps, folder.path());
        let full = self.part("whole run", args.full_steps > 0, full)?;
        let trained = full.as_ref().and_then(Outcome::found).map(|full| &full.checkpoint);
        let answers = trained.map(|checkpoint| {
            self.part("answers at once", true, || {
                eprintln!("answers at once");
                Together::measure(checkpoint, device.device, core_bytes_per_sec(checkpoint)?)
            })
        });
        let answers = answers.transpose()?.flatten();
        let resume = || Resume::measure(&preset, args.resume_steps);
        let resume = self.part("exact resume", args.resume_steps > 0, resume)?;
        Ok(Report { head, shapes, parity, full, answers, resume })
    }

    /// A part of the bench, if it is wanted.
    fn part<T: Display>(
        &self,
        name: &str,
        is_wanted: bool,
        find: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<Outcome<T>>> {
        let outcome = is_wanted.then(|| Outcome::of(find()));
        if let Some(outcome) = &outcome {
            self.tell(&format!("\n{}", outcome.told(name)))?;
        }
        Ok(outcome)
    }

    /// For a person; a program gets everything at the end.
    fn tell(&self, part: &dyn Display) -> anyhow::Result<()> {
        if self.args.output == Output::Json { Ok(()) } else { print(part.to_string().trim_end_matches('\n')) }
    }

    fn contenders(&self) -> impl Iterator<Item = Contender> {
        let with_torch = !self.args.python.without_torch;
        let wanted = self.args.contenders.iter().copied();
        wanted.filter(move |contender| with_torch || !contender.is_pythons())
    }

    fn shape(&self, shape: GpuShape) -> anyhow::Result<Shape> {
        let Recipe { model, train, .. } = shape.recipe(&[])?;
        let (batch, block, parameters) = (train.raw().batch, train.raw().block, model.parameters());
        let task = Task {
            model,
            train,
            device: self.device.device.to_string(),
            is_bf16: self.precision == Precision::Bf16,
            warm_up_steps: self.args.warm_up,
            steps: self.args.steps,
            steps_per_look: STEPS_PER_LOOK,
        };
        let folder = Folder::write(&task, &self.corpus)?;
        let contenders: Vec<Contender> = self.contenders().collect();
        let mut turns: Vec<Vec<Found>> = vec![Vec::new(); contenders.len()];
        let mut failures: Vec<Option<String>> = vec![None; contenders.len()];
        for repeat in 1..=self.args.repeats {
            for (index, contender) in contenders.iter().enumerate() {
                eprintln!("{}: turn {repeat}/{}: {}", shape.name(), self.args.repeats, contender.name());
                // One that cannot run, such as one that needs too much memory, is a line of the table.
                match self.turn(*contender, &folder) {
                    Ok(found) => {
                        eprintln!("  {found}");
                        turns[index].push(found);
                    }
                    Err(error) => failures[index] = Some(format!("{error:#}")),
                }
            }
        }
        let line = |((contender, turns), failure): ((&Contender, &Vec<Found>), Option<String>)| {
            Line::new(contender.name(), turns, failure)
        };
        let lines = contenders.iter().zip(&turns).zip(failures).map(line).collect();
        eprintln!("{}: each operation between the products", shape.name());
        let operations = Outcome::of(ask(&["--operations"], &folder).map(Operations));
        Ok(Shape { name: shape.name().into(), parameters, batch, block, lines, operations })
    }

    /// The same run in f32, in this device's own arithmetic, and in PyTorch's: nothing dropped, for its masks are others.
    fn parity(&self) -> anyhow::Result<Parity> {
        let Recipe { model, train, .. } =
            Recipe::parse(Some(&self.args.preset), "", &["model.dropout=0".to_owned()])?;
        let task = |is_bf16| Task {
            model: model.clone(),
            train: train.clone(),
            device: self.device.device.to_string(),
            is_bf16,
            warm_up_steps: 1,
            steps: self.args.parity_steps - 1,
            steps_per_look: self.args.parity_steps - 1,
        };
        let losses = |contender: Contender, is_bf16: bool| {
            eprintln!("parity: {} in {}", contender.name(), if is_bf16 { "bf16" } else { "f32" });
            let folder = Folder::write(&task(is_bf16), &self.corpus)?;
            Ok::<_, anyhow::Error>(self.turn(contender, &folder)?.losses)
        };
        let is_bf16 = self.precision == Precision::Bf16;
        // A card has kernels; where it has none that is worth to be known.
        let own = match self.device.device.kind {
            DeviceKind::Cuda => Contender::Kernels,
            DeviceKind::Mps | DeviceKind::Cpu => Contender::Operations,
        };
        let own = losses(own, is_bf16)?;
        let f32 = losses(Contender::Autograd, false)?;
        let with_torch =
            self.python.is_some() && self.contenders().any(|contender| contender == Contender::Eager);
        let torch = with_torch.then(|| Outcome::of(losses(Contender::Eager, is_bf16)));
        Ok(Parity::new(&self.args.preset, &own, &f32, torch, PARITY_WINDOW))
    }

    fn turn(&self, contender: Contender, folder: &Folder) -> anyhow::Result<Found> {
        match (&self.python, contender.is_pythons()) {
            (Some(python), true) => {
                let mut command = Command::new(python);
                let way = if contender == Contender::Compiled { "compiled" } else { "eager" };
                command.arg("-c").arg(REFERENCE).arg(folder.path()).arg(way);
                // This process may have been started anew with settings of its own.
                command.env_remove("GLIBC_TUNABLES").env_remove("OMP_WAIT_POLICY");
                told(&mut command)
            }
            (None, true) => bail!("no python with PyTorch was found"),
            (_, false) => {
                let name = contender.to_possible_value().context("every contender has a name")?;
                ask(&["--turn", name.get_name()], folder)
            }
        }
    }
}

/// Asks this program, in a process of its own.
fn ask<T: DeserializeOwned>(arguments: &[&str], folder: &Folder) -> anyhow::Result<T> {
    let mut command = Command::new(std::env::current_exe()?);
    let told = told(command.arg("gpu").args(arguments).arg("--task").arg(folder.path()));
    // Who says it is known.
    told.map_err(|error| {
        anyhow::anyhow!("{}", format!("{error:#}").trim_start_matches(concat!(env!("CARGO_BIN_NAME"), ": ")))
    })
}

/// What a process tells as JSON.
fn told<T: DeserializeOwned>(command: &mut Command) -> anyhow::Result<T> {
    let output = command.stdin(Stdio::null()).output().context("cannot start a turn")?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        bail!("{}", reason(&output));
    }
    serde_json::from_slice(&output.stdout).context("a turn has not told its figures, or not in numbers")
}

/// What to learn: what was named, or the markdown that every Rust machine has.
fn data(args: &GpuArgs) -> anyhow::Result<DataSpec> {
    if !args.data.is_empty() {
        return Ok(DataSpec { paths: args.data.clone(), include: args.include.clone() });
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.map(|home| home.join("registry/src")).filter(|folder| folder.is_dir());
    let sources = sources.context("Cargo has no unpacked registry here: name a text with --data")?;
    Ok(DataSpec { paths: vec![sources], include: vec!["**/*.md".into()] })
}

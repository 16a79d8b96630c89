//! The command line as typed.

use std::{path::PathBuf, str::FromStr};

use crate::bench::{BenchGenerate, BenchGpu, PythonWish};
use clap::{Parser, Subcommand, ValueEnum};
use hatchery_common::{device::Device, field::FieldError, recipe};

const EXAMPLES: &str = "\
Examples:
  hatchery-trainer doctor
  hatchery-trainer train --data notes/ --include '**/*.md' --out runs/notes
  hatchery-trainer train --data book.txt --preset seed --set train.steps=2000 --out runs/book
  hatchery-trainer train --data notes/ --include '**/*.md' --out runs/notes --resume runs/notes/step-000000100
  hatchery-trainer train --data letters/ --out runs/letters --fine-tune runs/book/step-000002000 --set train.lr=1e-4
  hatchery-trainer eval --checkpoint runs/notes/step-000000300 --data held-out.txt --output json
  hatchery-trainer eval --checkpoint runs/notes/step-000000300 --data held-out.txt --by-position
  hatchery-trainer import bdh_step_3000.pt --out imported
  hatchery-trainer bench train --shape seed
  hatchery-trainer bench generate --checkpoint runs/notes/step-000000300
  hatchery-trainer bench gpu --data notes/ --include '**/*.md'
  hatchery-trainer generate --checkpoint runs/notes/step-000000300 --prompt 'The ' --max-bytes 200

Exit codes: 0 done, or stopped cleanly; 1 failed; 2 wrong command line.";

/// Trains BDH models on this machine's devices, measures them, and lets them answer.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model, or go on training it. Ctrl-C stops with a checkpoint; twice stops at once.
    Train(Train),
    /// The loss of a checkpoint on text, over consecutive windows.
    Eval(Eval),
    /// The losses of a run so far, as its checkpoint keeps them.
    Curve(Curve),
    /// Let a checkpoint go on with a prompt.
    Generate(Generate),
    /// Answer many at once on a GPU, asked line by line in JSON: what an agent starts.
    Answer(Answer),
    /// Make a checkpoint folder out of a .pt or .safetensors file of the public PyTorch code. Nothing in it is run.
    Import(Import),
    /// Which libtorch was found, which devices it sees, and why not others.
    Doctor(Doctor),
    /// Measure how fast a device trains a fixed small model.
    Calibrate(Calibrate),
    /// Compile the kernels for GPUs, which needs NVRTC but no GPU: whether a run could have them.
    Kernels(KernelsArgs),
    /// Compare this trainer with others, side by side on this machine.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Training on the CPU: the fast path, the plain path, and eager PyTorch where a python has it; they take turns.
    Train(BenchTrain),
    /// Answers on one core: the engine in f32 and bf16, at any length, several at once; and eager PyTorch, which takes
    /// the whole context through the model for each byte, where a python has it; and many at once on a GPU.
    Generate(BenchGenerate),
    /// Training on a GPU: this trainer three ways, PyTorch eager and compiled, on the same weights and text; whether bf16
    /// learns what f32 does; and the whole reference run.
    Gpu(BenchGpu),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchTrain {
    /// Which model.
    #[arg(long, value_enum, default_value_t = BenchShape::Seed)]
    pub(crate) shape: BenchShape,
    /// Steps in each turn; the first one of each is not counted.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub(crate) steps: u32,
    /// Turns of each contender.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repeats: u32,
    /// Sequences in a step; without it, 8. PyTorch keeps all of a large batch in memory at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) batch: Option<u32>,
    /// Threads; 0: as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    #[command(flatten)]
    pub(crate) python: PythonWish,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Be one turn, and print its figures as JSON.
    #[arg(long, hide = true, value_enum)]
    pub(crate) turn: Option<Contender>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct KernelsArgs {
    /// Compute capabilities, 90 for 9.0; without it, five from 8.0 on.
    #[arg(long, value_name = "NUMBER", num_args = 1.., default_values_t = [80, 89, 90, 100, 120])]
    pub(crate) architectures: Vec<u32>,
}

/// A model to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchShape {
    /// The preset tiny.
    Tiny,
    /// The preset seed: the reference run.
    Seed,
    /// The published default: 6 layers, width 256, multiplier 128, block 512.
    Published,
}

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Contender {
    Fast,
    Plain,
    Torch,
    TorchTuned,
    /// A large matrix product.
    Sgemm,
    /// What a run adds to its steps.
    Overhead,
}

impl BenchShape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Seed => "seed",
            Self::Published => "published",
        }
    }
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
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

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For a person.
    #[default]
    Text,
    /// For a program: one JSON value on a line.
    Json,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// Run the order in this file, as the agent does; stdin takes its commands, stdout gives events.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "out"])]
    pub(crate) attempt: Option<PathBuf>,
    /// Files and folders to learn; folders are read recursively.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present_any = ["attempt", "recipe"])]
    pub(crate) data: Vec<PathBuf>,
    /// Only files in folders that match this glob; may be given again.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// A ready-made recipe: tiny or seed.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) preset: Option<String>,
    /// A recipe in TOML.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(crate) recipe: Option<PathBuf>,
    /// One key of the recipe, such as train.steps=500; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// The folder for checkpoints, each in a folder of its own such as step-000000100.
    #[arg(long, value_name = "DIR", required_unless_present = "attempt")]
    pub(crate) out: Option<PathBuf>,
    /// Go on from this checkpoint, by its own recipe; --set changes it. With more train.steps the learning rate is
    /// from here on that of a run meant so long from the start.
    #[arg(long, value_name = "DIR")]
    pub(crate) resume: Option<PathBuf>,
    /// Begin at step 0 with the weights of this folder, which needs no more than config.json and model.safetensors, and a
    /// fresh optimizer; the recipe is --preset, --recipe and --set.
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) fine_tune: Option<PathBuf>,
    /// Where to run.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Threads for a CPU device; 0: as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// Lines for people on stderr, or events as JSON lines on stdout.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// A folder with at least config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// Files and folders to measure on.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Only files in folders that match this glob; may be given again.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Bytes in a window; without it, the block that the checkpoint was trained on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(recipe::TrainSpec::BLOCK_MAX)))]
    pub(crate) block: Option<u32>,
    /// Where to run.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Arithmetic.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: Precision,
    /// Threads for a CPU device; 0: as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// Instead, the loss by how far a stream of bytes has come, far beyond the block, with the engine that answers: with
    /// its default window and without one. On the CPU, one thread.
    #[arg(long, conflicts_with_all = ["device", "threads"])]
    pub(crate) by_position: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Curve {
    /// A checkpoint folder with its training.json.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

const GENERATE_EXAMPLES: &str = "\
Examples:
  hatchery-trainer generate --checkpoint imported --prompt 'Once upon' --top-p 0.9 --stop $'\\n'
  hatchery-trainer generate --checkpoint imported --prompt 'Once upon' --save-session tale
  hatchery-trainer generate --checkpoint imported --session tale --save-session tale         go on
  hatchery-trainer generate --checkpoint imported --session tale --seed 2 --save-session b   fork";

#[derive(Debug, clap::Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(crate) struct Generate {
    /// A folder with at least config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// The text to go on with.
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present_any = ["prompt_hex", "session"],
        conflicts_with = "prompt_hex",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
    /// The bytes to go on with, as hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    pub(crate) prompt_hex: Option<String>,
    /// Go on from the session in this file, by its own sampling unless an option says otherwise; the file stays as it is,
    /// so that it can be gone on from again, another way. Without a prompt it goes on as if never interrupted.
    #[arg(long, value_name = "FILE")]
    pub(crate) session: Option<PathBuf>,
    /// Put the session into this file at the end; the same name as --session moves that one on. It holds the model's
    /// state, not its weights, and tells of the bytes that made it: only you may read it.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_session: Option<PathBuf>,
    /// How many new bytes.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) max_bytes: u32,
    /// Below 1: likelier bytes; above 1: more varied ones.
    #[arg(long, value_name = "X")]
    pub(crate) temperature: Option<f64>,
    /// Choose among the K likeliest bytes only.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Choose among the likeliest that together have this share of the probability: above 0 to 1.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Choose among those with at least this share of the likeliest one's probability: 0 to 1.
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Make bytes less likely that are among the last 64: above 1; 1 changes nothing.
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// End before this text; may be given again.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// So many answers to the same prompt, by so many seeds from --seed on.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        conflicts_with_all = ["session", "save_session", "greedy"]
    )]
    pub(crate) samples: u32,
    /// Where they are made; a GPU, such as cuda:0, makes many in hardly more time than one, each of up to 65,536 bytes
    /// after a prompt of up to 65,536. With several samples or a GPU, JSON is an object with a list of samples.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", conflicts_with_all = ["session", "save_session"])]
    pub(crate) device: Device,
    /// Always the likeliest byte; of the above only the repetition penalty and the stop strings then matter.
    #[arg(long)]
    pub(crate) greedy: bool,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Answer {
    /// A folder with at least config.json and model.safetensors, of a model whose trained block is known.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// The device; without it, the most preferred one.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// The arithmetic. In f32 it answers as the processor does, up to rounding; in bf16 there is room for twice as many.
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// What torch.save wrote, {model, config, step} or a state dict alone; or a state dict in safetensors.
    pub(crate) file: PathBuf,
    /// The checkpoint folder to write; it must be new, or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Layers, where the file does not say; weights do not tell, since all layers share them.
    #[arg(long, value_name = "N")]
    pub(crate) n_layer: Option<u32>,
    /// Dropout in training, where the file does not say [default: 0.1, as published].
    #[arg(long, value_name = "SHARE")]
    pub(crate) dropout: Option<f64>,
    /// The block in bytes that it was trained on: answers then look back no further than that.
    #[arg(long, value_name = "BYTES")]
    pub(crate) block: Option<u32>,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Calibrate {
    /// Which device.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Threads for a CPU device; 0: as many as there are cores.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// `auto`, `cpu`, `cuda:N` or `mps`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceWish(Option<Device>);

impl DeviceWish {
    /// None: the most preferred one.
    pub(crate) fn wanted(self) -> Option<Device> {
        self.0
    }
}

impl FromStr for DeviceWish {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        if text == "auto" { Ok(Self(None)) } else { text.parse().map(|device| Self(Some(device))) }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Precision {
    /// bf16 on a CUDA device that supports it, f32 elsewhere.
    #[default]
    Auto,
    /// f32 everywhere.
    F32,
    /// bf16 matrix products.
    Bf16,
}

impl From<Precision> for recipe::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Auto => Self::Auto,
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

fn threads() -> clap::builder::RangedI64ValueParser<u32> {
    const THREADS_MAX: i64 = 4096;
    clap::value_parser!(u32).range(0..=THREADS_MAX)
}

//! The command line as typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use hatchery_common::{device::Device, recipe};
use hatchery_trainer::command_line::{DeviceWish, threads};
pub(crate) use hatchery_trainer::command_line::{Output, Precision};

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
  hatchery-trainer generate --checkpoint runs/notes/step-000000300 --prompt 'The ' --max-bytes 200

Exit codes: 0 success, or stopped cleanly; 1 failure; 2 wrong usage.";

/// Train, evaluate and run BDH models on this machine's devices.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model, or resume its training. Ctrl-C stops after a checkpoint; a second one stops at once.
    Train(Train),
    /// Measure a checkpoint's loss on text, over consecutive windows.
    Eval(Eval),
    /// Show the loss curve of a run, as recorded in its checkpoint.
    Curve(Curve),
    /// Generate text from a checkpoint.
    Generate(Generate),
    /// Answer many prompts at once on a GPU; reads requests from stdin, one JSON value per line. Started by agents.
    Answer(Answer),
    /// Convert a .pt or .safetensors file of the public PyTorch code into a checkpoint folder. No code in the file is
    /// run.
    Import(Import),
    /// Show the libtorch in use, the devices it sees, and why others are missing.
    Doctor(Doctor),
    /// Measure the training speed of a device with a small fixed model.
    Calibrate(Calibrate),
    /// Check that the GPU kernels compile; needs NVRTC but no GPU.
    Kernels(KernelsArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct KernelsArgs {
    /// Compute capabilities, such as 90 for 9.0.
    #[arg(long, value_name = "NUMBER", num_args = 1.., default_values_t = [80, 89, 90, 100, 120])]
    pub(crate) architectures: Vec<u32>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Train {
    /// Run the order in this file, as agents do; commands come from stdin, events go to stdout.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "out"])]
    pub(crate) attempt: Option<PathBuf>,
    /// Files and folders to train on; folders are read recursively.
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present_any = ["attempt", "recipe"])]
    pub(crate) data: Vec<PathBuf>,
    /// Of folders, use only the files that match this glob; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Preset recipe: tiny or seed.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) preset: Option<String>,
    /// Recipe file in TOML.
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(crate) recipe: Option<PathBuf>,
    /// Set a recipe key, such as train.steps=500; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Folder for checkpoints, each in a subfolder such as step-000000100.
    #[arg(long, value_name = "DIR", required_unless_present = "attempt")]
    pub(crate) out: Option<PathBuf>,
    /// Resume from this checkpoint with its own recipe, changed by --set. With more train.steps the learning rate
    /// follows the schedule of the longer run.
    #[arg(long, value_name = "DIR")]
    pub(crate) resume: Option<PathBuf>,
    /// Start at step 0 with the weights of this checkpoint folder (config.json and model.safetensors) and a fresh
    /// optimizer; the recipe comes from --preset, --recipe and --set.
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) fine_tune: Option<PathBuf>,
    /// Device; auto takes the preferred one.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Threads of a CPU device; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// Progress as text on stderr, or events as JSON lines on stdout.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Eval {
    /// Folder with at least config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// Files and folders to evaluate on.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    pub(crate) data: Vec<PathBuf>,
    /// Of folders, use only the files that match this glob; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Window size in bytes [default: the checkpoint's training block].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(recipe::TrainSpec::BLOCK_MAX)))]
    pub(crate) block: Option<u32>,
    /// Device; auto takes the preferred one.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Arithmetic of the forward pass.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) precision: Precision,
    /// Threads of a CPU device; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// Instead, measure the loss by position in a stream far longer than the block, with the inference engine, with
    /// and without its default window. Runs on one CPU thread.
    #[arg(long, conflicts_with_all = ["device", "threads"])]
    pub(crate) by_position: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Curve {
    /// Checkpoint folder with a training.json.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// Output format.
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
    /// Folder with at least config.json and model.safetensors.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// Prompt.
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present_any = ["prompt_hex", "session"],
        conflicts_with = "prompt_hex",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
    /// Prompt bytes as hexadecimal digits.
    #[arg(long, value_name = "HEX")]
    pub(crate) prompt_hex: Option<String>,
    /// Continue the session in this file, with its own sampling settings unless options override them. The file is
    /// not changed, so a session can be continued in several ways. Without a prompt it continues as if never
    /// interrupted.
    #[arg(long, value_name = "FILE")]
    pub(crate) session: Option<PathBuf>,
    /// Save the session to this file at the end; it may be the --session file. A session holds the model's state, not
    /// its weights. It reveals the text that produced it, so only you may read the file.
    #[arg(long, value_name = "FILE")]
    pub(crate) save_session: Option<PathBuf>,
    /// Maximum number of new bytes.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) max_bytes: u32,
    /// Sampling temperature: lower is more predictable, higher more varied [default: 1].
    #[arg(long, value_name = "X")]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K likeliest bytes only [default: all].
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Sample from the likeliest bytes that together reach this probability, above 0 to 1 [default: all].
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Sample from bytes with at least this share of the top byte's probability, 0 to 1 [default: all].
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Penalty for bytes that are among the last 64, 1 or more [default: 1, no penalty].
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Stop before this text; may be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Random seed; the same seed gives the same bytes [default: 0].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Number of answers to the prompt, with consecutive seeds from --seed on.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        conflicts_with_all = ["session", "save_session", "greedy"]
    )]
    pub(crate) samples: u32,
    /// Device that generates. A GPU, such as cuda:0, takes hardly longer for many answers than for one; answers and
    /// prompts are limited to 65,536 bytes there. With several samples or a GPU, JSON output is an object with a list
    /// of samples.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", conflicts_with_all = ["session", "save_session"])]
    pub(crate) device: Device,
    /// Always pick the likeliest byte; only --repetition-penalty and --stop still apply.
    #[arg(long)]
    pub(crate) greedy: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Answer {
    /// Folder with at least config.json and model.safetensors; the training block must be recorded.
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    /// Device; auto takes the preferred one.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Arithmetic. f32 answers as the processor does, up to rounding; bf16 has room for twice as many answers.
    #[arg(long, value_enum, default_value = "f32")]
    pub(crate) precision: Precision,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// File of torch.save, with {model, config, step} or a bare state dict; or a state dict in safetensors.
    pub(crate) file: PathBuf,
    /// Checkpoint folder to write; must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Number of layers, if the file does not record it; the weights cannot tell, as all layers share them.
    #[arg(long, value_name = "N")]
    pub(crate) n_layer: Option<u32>,
    /// Dropout in training, if the file does not record it [default: 0.1, as published].
    #[arg(long, value_name = "SHARE")]
    pub(crate) dropout: Option<f64>,
    /// Training block in bytes; answers look back no further [default: as recorded in the file, else unlimited].
    #[arg(long, value_name = "BYTES")]
    pub(crate) block: Option<u32>,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Calibrate {
    /// Device; auto takes the preferred one.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceWish,
    /// Threads of a CPU device; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    pub(crate) threads: u32,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::Args;

    #[test]
    fn every_trainer_line_of_the_pages_parses() {
        hatchery_docs::assert_commands_parse("hatchery-trainer", 8, |arguments| {
            let line = ["hatchery-trainer".to_owned()].into_iter().chain(arguments);
            match Args::command().try_get_matches_from(line) {
                Err(error) if error.kind() != ErrorKind::DisplayHelp => Err(error),
                _ => Ok(()),
            }
        });
    }
}

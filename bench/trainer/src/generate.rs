//! `hatchery-bench-trainer generate`: how long answers take on one core, and how long the published way takes.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use hatchery_bdh::{
    Engine, Generation, Model, Precision, RawSamplingParams, SamplingParams, Window, step_all,
};
use hatchery_common::{device::Device, model::ModelConfig, recipe::Recipe};
use hatchery_trainer::{
    command_line::{Output, print, print_json},
    device,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    outcome::{Outcome, all_found, is_found},
    python::{PythonWish, TORCH, reason},
    stand_in,
    together::Together,
};

/// The published way in PyTorch.
const REFERENCE: &str = include_str!("reference_generate.py");
const REPEATS: u32 = 5;
const PROMPT_BYTES: usize = 200;
const NEW_BYTES: usize = 100;
/// Bytes timed at each position and in each batch.
const TIMED_BYTES: usize = 40;
const BATCHES: [usize; 4] = [1, 2, 4, 8];
/// Contexts at which the published way is measured, and how many new bytes each.
const REFERENCE_CONTEXTS: [(u64, u32); 2] = [(1024, 5), (4096, 2)];
/// Text that the model writes itself, and is then fed over and over.
const OWN_BYTES: usize = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// Checkpoint folder [default: a random model of the preset seed's shape].
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Share of active neurons per byte in the random model; trained models have 0.06 to 0.25.
    #[arg(long, value_name = "SHARE", default_value_t = 0.15, conflicts_with = "checkpoint", value_parser = share)]
    active: f64,
    /// Context lengths at which a byte is timed, in bytes.
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1024, 4096, 100_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    contexts: Vec<u64>,
    /// Repeats of each measurement; the fastest counts.
    #[arg(long, value_name = "N", default_value_t = REPEATS, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Also measure many answers at once on this device, such as cuda:0.
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    #[command(flatten)]
    python: PythonWish,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.01..=0.5).contains(&share) => Ok(share),
        _ => Err("must be a number from 0.01 to 0.5".into()),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    parameters: u64,
    is_stand_in: bool,
    /// Share of neurons active for a byte, while the model read the prompt.
    active_share: f64,
    prompt_bytes: usize,
    new_bytes: usize,
    engines: Vec<Figures>,
    /// None where no python has torch.
    reference: Option<Outcome<Vec<ReferenceLine>>>,
    /// On a device that was asked for.
    together: Option<Outcome<Together>>,
}

/// The engine in one precision.
#[derive(Debug, Serialize)]
struct Figures {
    precision: Precision,
    /// A fresh engine reads the prompt.
    prompt_ms: f64,
    /// It writes the new bytes.
    new_ms: f64,
    state_bytes: usize,
    contexts: Vec<ContextLine>,
    batches: Vec<BatchLine>,
}

#[derive(Debug, Serialize)]
struct ContextLine {
    context: u64,
    ms_per_byte: f64,
}

#[derive(Debug, Serialize)]
struct BatchLine {
    sequences: usize,
    /// For each byte of each sequence.
    ms_per_byte: f64,
}

#[derive(Debug, Serialize)]
struct ReferenceLine {
    context: u64,
    ms_per_byte: f64,
    /// How many times as fast the engine is there, in f32; none if it was not timed there.
    engine_is_times: Option<f64>,
}

pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    // What is wrong with these is said before anything is measured.
    args.device.map(|device| device::find(Some(device))).transpose()?;
    let python = args.python.find(TORCH)?;
    let stand_in = if args.checkpoint.is_some() {
        None
    } else {
        eprintln!("making a stand-in with {:.0} % of its neurons active", 100.0 * args.active);
        let config = Recipe::parse(Some("seed"), "", &[])?.model;
        Some(stand_in::make(&config, args.active)?)
    };
    let folder = args.checkpoint.as_deref().or(stand_in.as_ref().map(TempDir::path));
    let folder = folder.context("there is a checkpoint or a stand-in")?;
    let model = Arc::new(Model::load(folder)?);
    let text = own_text(&model)?;
    let config = model.config().clone();
    let mut reader = Engine::new(model, Window::Default)?;
    reader.prefill(&text[..PROMPT_BYTES]);
    let active_share = reader.active_share();
    drop(reader);

    let mut engines = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        eprintln!("measuring in {precision}");
        engines.push(measure(args, folder, precision, &text)?);
    }
    let reference = python.map(|python| {
        eprintln!("measuring PyTorch");
        Outcome::of(measure_reference(&python, &config, &engines[0].contexts))
    });
    let together = args.device.map(|device| {
        eprintln!("measuring {device}");
        Outcome::of(Together::measure(folder, device, best_bytes_per_sec(&engines[0].batches)))
    });
    let report = Report {
        together,
        parameters: config.parameters(),
        is_stand_in: stand_in.is_some(),
        active_share,
        prompt_bytes: PROMPT_BYTES,
        new_bytes: NEW_BYTES,
        engines,
        reference,
    };
    if args.output == Output::Json {
        print_json(&report)?;
    } else {
        print_report(&report)?;
    }
    all_found([
        ("PyTorch", is_found(report.reference.as_ref())),
        ("answers at once", is_found(report.together.as_ref())),
    ])
}

/// What the model writes by itself: so it reads what it knows.
fn own_text(model: &Arc<Model>) -> anyhow::Result<Vec<u8>> {
    let params = SamplingParams::new(RawSamplingParams { temperature: 0.8, ..Default::default() })?;
    let engine = Engine::new(model.clone(), Window::Default)?;
    let text: Vec<u8> = Generation::new(engine, b"", &params, OWN_BYTES).collect();
    anyhow::ensure!(
        text.len() == OWN_BYTES,
        "the model's weights do not give numbers; choose another checkpoint"
    );
    Ok(text)
}

fn measure(args: &GenerateArgs, folder: &Path, precision: Precision, text: &[u8]) -> anyhow::Result<Figures> {
    let model = Arc::new(Model::load_in(folder, precision)?);
    let (prompt, new) = text[..PROMPT_BYTES + NEW_BYTES].split_at(PROMPT_BYTES);
    let (mut prompt_ms, mut new_ms, mut state_bytes) = (f64::INFINITY, f64::INFINITY, 0);
    for _ in 0..args.repeats {
        let begun = Instant::now();
        let mut engine = Engine::new(model.clone(), Window::Default)?;
        engine.prefill(prompt);
        let read = Instant::now();
        for byte in new {
            engine.step(*byte);
        }
        prompt_ms = prompt_ms.min((read - begun).as_secs_f64() * 1e3);
        new_ms = new_ms.min(read.elapsed().as_secs_f64() * 1e3);
        state_bytes = engine.state_bytes();
    }

    let mut engine = Engine::new(model.clone(), Window::Default)?;
    let mut contexts = Vec::new();
    let mut wanted = args.contexts.clone();
    wanted.sort_unstable();
    for context in wanted {
        while engine.position() < context {
            let len = text.len().min((context - engine.position()) as usize);
            engine.prefill(&text[..len]);
        }
        let ms_per_byte = fastest(args.repeats, || {
            let mut engine = engine.clone();
            timed(TIMED_BYTES, |index| {
                engine.step(text[index]);
            })
        });
        contexts.push(ContextLine { context, ms_per_byte });
    }

    let batches = batches(&model, text, args.repeats)?;
    Ok(Figures { precision, prompt_ms, new_ms, state_bytes, contexts, batches })
}

/// Several sequences at once.
fn batches(model: &Arc<Model>, text: &[u8], repeats: u32) -> anyhow::Result<Vec<BatchLine>> {
    let line = |sequences: usize| {
        let mut engines = vec![Engine::new(model.clone(), Window::Default)?; sequences];
        for (index, engine) in engines.iter_mut().enumerate() {
            engine.prefill(&text[index * 50..][..PROMPT_BYTES]);
        }
        let ms_per_step = fastest(repeats, || {
            timed(TIMED_BYTES, |step| {
                let bytes = text[step..].iter().step_by(50);
                let mut steps: Vec<_> = engines.iter_mut().zip(bytes.copied()).collect();
                step_all(&mut steps);
            })
        });
        Ok(BatchLine { sequences, ms_per_byte: ms_per_step / sequences as f64 })
    };
    BATCHES.into_iter().map(line).collect()
}

/// What a core does in a second: one after another or side by side, whichever it does better.
fn best_bytes_per_sec(batches: &[BatchLine]) -> f64 {
    batches.iter().map(|line| 1e3 / line.ms_per_byte).fold(0.0, f64::max)
}

/// The same for the checkpoint in `folder`, in f32.
pub(super) fn core_bytes_per_sec(folder: &Path) -> anyhow::Result<f64> {
    let model = Arc::new(Model::load(folder)?);
    let text = own_text(&model)?;
    Ok(best_bytes_per_sec(&batches(&model, &text, REPEATS)?))
}

/// Milliseconds for one of `count` calls.
fn timed(count: usize, mut call: impl FnMut(usize)) -> f64 {
    let begun = Instant::now();
    for index in 0..count {
        call(index);
    }
    begun.elapsed().as_secs_f64() * 1e3 / count as f64
}

fn fastest(repeats: u32, mut measure: impl FnMut() -> f64) -> f64 {
    (0..repeats).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

#[derive(Deserialize)]
struct ReferenceTurn {
    context: u64,
    secs: f64,
}

fn measure_reference(
    python: &str,
    config: &ModelConfig,
    engine: &[ContextLine],
) -> anyhow::Result<Vec<ReferenceLine>> {
    let raw = config.raw();
    let shape = [raw.n_layer, raw.n_embd, raw.n_head, raw.mlp_internal_dim_multiplier];
    let mut command = Command::new(python);
    command.arg("-c").arg(REFERENCE).args(shape.map(|number| number.to_string()));
    for (context, new_bytes) in REFERENCE_CONTEXTS {
        command.args([context.to_string(), new_bytes.to_string()]);
    }
    // This process may have been started anew with settings of its own.
    command.env_remove("GLIBC_TUNABLES").env_remove("OMP_WAIT_POLICY");
    let output = command.stdin(Stdio::null()).output().context("cannot start python")?;
    if !output.status.success() {
        io::stderr().write_all(&output.stderr)?;
        bail!("{}", reason(&output));
    }
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let turn: ReferenceTurn =
                serde_json::from_slice(line).context("PyTorch has not told its figures")?;
            let ms_per_byte = turn.secs * 1e3;
            let here = engine.iter().find(|line| line.context == turn.context);
            let engine_is_times = here.map(|line| ms_per_byte / line.ms_per_byte);
            Ok(ReferenceLine { context: turn.context, ms_per_byte, engine_is_times })
        })
        .collect()
}

fn print_report(report: &Report) -> anyhow::Result<()> {
    print(&format!(
        "{}{} parameters, {:.1} % of the neurons active; one core\n",
        if report.is_stand_in { "a stand-in for a trained model, " } else { "" },
        report.parameters,
        100.0 * report.active_share,
    ))?;
    let Report { prompt_bytes, new_bytes, .. } = report;
    print(&format!(
        "{:<10} {:>16} {:>14} {:>12} {:>11}",
        "engine",
        format!("{prompt_bytes} of prompt"),
        format!("{new_bytes} new bytes"),
        "together",
        "state MiB"
    ))?;
    for Figures { precision, prompt_ms, new_ms, state_bytes, .. } in &report.engines {
        print(&format!(
            "{:<10} {prompt_ms:>13.1} ms {new_ms:>11.1} ms {:>9.1} ms {:>11}",
            precision.to_string(),
            prompt_ms + new_ms,
            state_bytes >> 20
        ))?;
    }
    print(&format!(
        "\n{:<10} {:>16} {:>14} {:>16} {:>12}",
        "context", "f32", "bf16", "eager PyTorch", "f32 is"
    ))?;
    let reference = report.reference.as_ref().and_then(Outcome::found).map_or(&[][..], Vec::as_slice);
    let [f32, bf16] = &report.engines[..] else { bail!("the engine is measured in two precisions") };
    for (f32, bf16) in f32.contexts.iter().zip(&bf16.contexts) {
        let there = reference.iter().find(|line| line.context == f32.context);
        print(&format!(
            "{:<10} {:>8.3} ms/byte {:>6.3} ms/byte {:>16} {:>12}",
            f32.context,
            f32.ms_per_byte,
            bf16.ms_per_byte,
            there.map_or_else(String::new, |line| format!("{:.0} ms/byte", line.ms_per_byte)),
            there
                .and_then(|line| line.engine_is_times)
                .map_or_else(String::new, |times| format!("{times:.0}x"))
        ))?;
    }
    if let Some(Outcome::Failed { failure }) = &report.reference {
        print(&format!("eager PyTorch: failed: {failure}"))?;
    }
    print(&format!("\n{:<10} {:>16} {:>14}", "sequences", "f32", "bf16"))?;
    for (f32, bf16) in f32.batches.iter().zip(&bf16.batches) {
        print(&format!(
            "{:<10} {:>8.3} ms/byte {:>6.3} ms/byte",
            f32.sequences, f32.ms_per_byte, bf16.ms_per_byte
        ))?;
    }
    if let Some(together) = &report.together {
        print(&format!("\n{}", together.told("answers at once")))?;
    }
    Ok(())
}

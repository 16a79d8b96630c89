//! `hatchery-trainer`: the trainer's command line, for the agent and by hand.

mod answer;
mod args;
mod by_position;
mod curve;
mod generate;
mod import;
mod samples;
mod train;

use std::{process::ExitCode, time::Instant};

use args::{Args, Command};
use clap::Parser;
use hatchery_common::{
    device::DeviceKind,
    recipe::DataSpec,
    trainer::{PositionLoss, bits},
};
use hatchery_trainer::{
    calibrate::calibrate,
    checkpoint::read_model,
    command_line::{FAILED, Output, corpus, exit_code, print, print_json},
    data::consecutive_starts,
    device, environment,
    evaluate::{Evaluation, evaluate},
    failure::Failure,
    ffi,
    model::Model,
};
use hatchery_trainer_shim::kernels::{self, Variant};
use serde::Serialize;

fn main() -> ExitCode {
    let command = Args::parse().command;
    let needs_no_libtorch = match &command {
        Command::Generate(args) => args.device.kind == DeviceKind::Cpu,
        Command::Import(_) | Command::Curve(_) => true,
        _ => false,
    };
    if !needs_no_libtorch {
        environment::apply();
    }
    // Both before libtorch allocates or looks for devices.
    ffi::keep_freed_memory();
    device::open_cuda();
    let result = match command {
        Command::Train(args) => train::train(args),
        Command::Eval(args) if args.by_position => by_position::eval(&args).map(|()| ExitCode::SUCCESS),
        Command::Eval(args) => eval(&args).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::generate(&args).map(|()| ExitCode::SUCCESS),
        Command::Answer(args) => answer::answer(&args).map(|()| ExitCode::SUCCESS),
        Command::Curve(args) => curve::curve(&args).map(|()| ExitCode::SUCCESS),
        Command::Import(args) => import::import(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor(args.output).map(|()| ExitCode::SUCCESS),
        Command::Calibrate(args) => measure(&args).map(|()| ExitCode::SUCCESS),
        Command::Kernels(args) => compile_kernels(&args).map(|()| ExitCode::SUCCESS),
    };
    exit_code("hatchery-trainer", result)
}

fn eval(args: &args::Eval) -> anyhow::Result<()> {
    let found = read_model(&args.checkpoint)?;
    let corpus = corpus(&DataSpec { paths: args.data.clone(), include: args.include.clone() })?;
    let block = args.block.unwrap_or_else(|| {
        if found.trained_block.is_none() {
            eprintln!(
                "the checkpoint does not record its training block; taking {}, the public code's default \
                 (set another with --block)",
                found.block()
            );
        }
        found.block()
    });
    let starts = consecutive_starts(0..corpus.len(), u64::from(block));
    anyhow::ensure!(
        !starts.is_empty(),
        "the data has {} bytes, but one window of {block} bytes and the byte after it need {}; give more \
         data or a smaller --block",
        corpus.len(),
        u64::from(block) + 1
    );
    let device = device::find(args.device.wanted())?;
    device::use_threads(args.threads);
    let precision = device::precision(args.precision.into(), &device);
    let torch = device::torch_device(device.device);
    let model =
        Model::new(found.config, found.weights, torch, precision, block as usize).map_err(Failure::from)?;
    let evaluation = evaluate(&mut &model, &corpus, &starts, block as usize, || false)
        .map_err(Failure::from)?
        .ok_or_else(|| anyhow::anyhow!("the evaluation was stopped"))?;
    if args.output == Output::Json {
        return print_json(&EvaluationReport::from(evaluation));
    }
    print(&format!(
        "loss {:.4} nats, {:.4} bits per byte, over {} bytes in windows of {block}\n",
        evaluation.loss,
        bits(evaluation.loss),
        evaluation.bytes
    ))?;
    print("position in window       loss  bits per byte")?;
    for found in evaluation.by_position {
        let positions = if found.from == found.to {
            found.from.to_string()
        } else {
            format!("{}-{}", found.from, found.to)
        };
        print(&format!("{positions:>18} {:>10.4} {:>14.4}", found.loss, bits(found.loss)))?;
    }
    Ok(())
}

/// An evaluation as JSON; losses in nats per byte.
#[derive(Debug, Serialize)]
struct EvaluationReport {
    loss: f64,
    bits_per_byte: f64,
    bytes: u64,
    by_position: Vec<PositionReport>,
}

/// The mean loss at the positions `from` to `to` of the windows, counted from 1.
#[derive(Debug, Serialize)]
struct PositionReport {
    from: u32,
    to: u32,
    loss: f64,
    bits_per_byte: f64,
}

impl From<Evaluation> for EvaluationReport {
    fn from(evaluation: Evaluation) -> Self {
        let Evaluation { loss, by_position, bytes } = evaluation;
        let position =
            |PositionLoss { from, to, loss }| PositionReport { from, to, loss, bits_per_byte: bits(loss) };
        Self {
            loss,
            bits_per_byte: bits(loss),
            bytes,
            by_position: by_position.into_iter().map(position).collect(),
        }
    }
}

fn doctor(output: Output) -> anyhow::Result<()> {
    let report = device::doctor();
    if output == Output::Json {
        return print_json(&report);
    }
    let folder =
        report.libtorch_folder.map_or_else(|| "an unknown folder".into(), |f| f.display().to_string());
    print(&format!("hatchery-trainer {}\nlibtorch {} from {folder}", report.trainer, report.libtorch))?;
    for found in report.devices {
        let memory = if found.memory_bytes == 0 {
            String::new()
        } else {
            format!(", {} MiB", found.memory_bytes >> 20)
        };
        let bf16 = if found.bf16 { ", bf16" } else { "" };
        print(&format!("  yes  {:<8} {}{memory}{bf16}", found.device, found.name))?;
    }
    for missing in report.unavailable {
        print(&format!("  no   {:<8} {}", missing.kind, missing.why))?;
    }
    Ok(())
}

fn compile_kernels(args: &args::KernelsArgs) -> anyhow::Result<()> {
    for architecture in &args.architectures {
        let begun = Instant::now();
        for variant in Variant::ALL {
            kernels::compile(&format!("compute_{architecture}"), variant)?;
            kernels::compile(&format!("sm_{architecture}"), variant)?;
        }
        print(&format!(
            "compute capability {}.{}: {} variants in {:.1} s",
            architecture / 10,
            architecture % 10,
            Variant::ALL.len(),
            begun.elapsed().as_secs_f64()
        ))?;
    }
    Ok(())
}

fn measure(args: &args::Calibrate) -> anyhow::Result<()> {
    let calibration = calibrate(args.device.wanted(), args.threads)?;
    match args.output {
        Output::Json => print_json(&calibration),
        Output::Text => print(&format!(
            "{}: {:.2} steps/s on preset tiny, {:.1} GFLOP/s",
            calibration.device,
            calibration.steps_per_sec,
            calibration.flops_per_sec / 1e9
        )),
    }
}

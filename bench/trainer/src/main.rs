//! `hatchery-bench-trainer`: this trainer and its engine beside eager PyTorch, in the same run on the same machine.
//!
//! A binary of its own that needs no cargo: copied to a machine with a card, it finds libtorch as the trainer does.

mod generate;
mod gpu;
mod outcome;
mod overhead;
mod python;
mod stand_in;
mod together;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hatchery_trainer::{command_line::exit_code, device, environment, ffi};

use crate::{generate::GenerateArgs, gpu::GpuArgs, train::TrainArgs};

/// Compare the trainer with alternatives, side by side on this machine.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Training on the CPU: the fast path, the plain path, and eager PyTorch if a Python has it, in turns.
    Train(TrainArgs),
    /// Answers on one core: the engine in f32 and bf16, at several lengths and batch sizes; eager PyTorch, if a
    /// Python has it, which recomputes the whole context for each byte; and many answers at once on a GPU.
    Generate(GenerateArgs),
    /// Training on a GPU: this trainer in three variants, PyTorch eager and compiled, on the same weights and text;
    /// bf16 against f32; and the whole reference run.
    Gpu(GpuArgs),
}

fn main() -> ExitCode {
    let bench = Args::parse().bench;
    environment::apply();
    // Both before libtorch allocates or looks for devices.
    ffi::keep_freed_memory();
    device::open_cuda();
    let result = match bench {
        Bench::Train(args) => train::train(&args),
        Bench::Generate(args) => generate::generate(&args),
        Bench::Gpu(args) => gpu::gpu(&args),
    };
    exit_code(env!("CARGO_BIN_NAME"), result.map(|()| ExitCode::SUCCESS))
}

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

/// Compares the trainer with others, side by side on this machine.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Training on the CPU: the fast path, the plain path, and eager PyTorch where a python has it; they take turns.
    Train(TrainArgs),
    /// Answers on one core: the engine in f32 and bf16, at any length, several at once; and eager PyTorch, which takes
    /// the whole context through the model for each byte, where a python has it; and many at once on a GPU.
    Generate(GenerateArgs),
    /// Training on a GPU: this trainer three ways, PyTorch eager and compiled, on the same weights and text; whether bf16
    /// learns what f32 does; and the whole reference run.
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

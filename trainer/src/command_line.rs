//! What the trainer's command line and the benchmarks' share: arguments, output, and the exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
    str::FromStr,
};

use clap::ValueEnum;
use hatchery_common::{device::Device, field::FieldError, recipe, recipe::DataSpec};
use serde::Serialize;
use tch::TchError;

use crate::{
    data::{Corpus, DataError},
    failure::first_line,
};

/// Exit code of everything that failed; clap exits with 2 for a wrong command line.
pub const FAILED: u8 = 1;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people.
    #[default]
    Text,
    /// JSON for programs, one value per line.
    Json,
}

/// `auto`, `cpu`, `cuda:N` or `mps`.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWish(Option<Device>);

impl DeviceWish {
    /// None: the most preferred one.
    pub fn wanted(self) -> Option<Device> {
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
pub enum Precision {
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

/// The argument `--threads`: 0 means as many as there are cores.
pub fn threads() -> clap::builder::RangedI64ValueParser<u32> {
    const THREADS_MAX: i64 = 4096;
    clap::value_parser!(u32).range(0..=THREADS_MAX)
}

/// The exit code of `program`; an error is said on stderr.
pub fn exit_code(program: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        if reader_is_gone(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("{program}: {:#}", in_a_line(error));
        ExitCode::from(FAILED)
    })
}

/// Whether the output went to somebody who has seen enough: `| head`.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error without the stack trace that libtorch lets follow: whoever reads the last line is to find what happened.
pub fn in_a_line(error: anyhow::Error) -> anyhow::Error {
    error
        .downcast::<TchError>()
        .map_or_else(|other| other, |torch| anyhow::anyhow!("libtorch: {}", first_line(&torch)))
}

/// Finds and maps what `--data` and `--include` name.
pub fn corpus(data: &DataSpec) -> Result<Corpus, DataError> {
    Corpus::gather(&hatchery_common::dataset::scan(data)?)
}

/// Prints one line of JSON. A reader that is gone is an error, not a panic.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string(value)?)
}

/// Prints one line.
pub fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_happened_is_told_without_the_stack() {
        let torch = || TchError::Torch("CUDA out of memory.\nframe #0: c10::Error::Error(...)".into());
        assert_eq!(in_a_line(torch().into()).to_string(), "libtorch: CUDA out of memory.");
        let result: anyhow::Result<()> = Err(torch()).context("in the middle");
        assert_eq!(format!("{:#}", in_a_line(result.unwrap_err())), "libtorch: CUDA out of memory.");
        assert_eq!(in_a_line(anyhow::anyhow!("two\nlines")).to_string(), "two\nlines");
    }
}

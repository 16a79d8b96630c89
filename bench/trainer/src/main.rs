//! `hatchery-trainer bench`: this trainer and its engine beside eager PyTorch, in the same run on the same machine.

mod generate;
mod gpu;
mod outcome;
mod overhead;
mod python;
mod stand_in;
mod together;
mod train;

pub(crate) use generate::{BenchGenerate, generate};
pub(crate) use gpu::{BenchGpu, gpu};
pub(crate) use python::PythonWish;
pub(crate) use train::train;

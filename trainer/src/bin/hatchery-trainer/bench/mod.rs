//! `hatchery-trainer bench`: this trainer and its engine beside eager PyTorch, in the same run on the same machine.

mod generate;
mod gpu;
mod overhead;
mod stand_in;
mod together;
mod train;

use std::process::{Command, Stdio};

pub(crate) use generate::{BenchGenerate, generate};
pub(crate) use gpu::{BenchGpu, gpu};
pub(crate) use train::train;

/// What a python has to be able to run.
const TORCH: &str = "import torch";
const TORCH_WITH_CUDA: &str = "import torch; assert torch.cuda.is_available()";

/// The first of `wanted`, `python3` and `python` that can run `script`.
fn find_python(wanted: Option<&str>, script: &str) -> Option<String> {
    let candidates = wanted.map_or_else(|| vec!["python3", "python"], |wanted| vec![wanted]);
    let can_run = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(can_run).map(ToOwned::to_owned)
}

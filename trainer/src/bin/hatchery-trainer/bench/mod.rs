//! `hatchery-trainer bench`: this trainer and its engine beside eager PyTorch, in the same run on the same machine.

mod generate;
mod overhead;
mod stand_in;
mod train;

use std::process::{Command, Stdio};

pub(crate) use generate::{BenchGenerate, generate};
pub(crate) use train::train;

/// The first of `wanted`, `python3` and `python` that can import torch.
fn find_python(wanted: Option<&str>) -> Option<String> {
    let candidates = wanted.map_or_else(|| vec!["python3", "python"], |wanted| vec![wanted]);
    let has_torch = |python: &&str| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(has_torch).map(ToOwned::to_owned)
}

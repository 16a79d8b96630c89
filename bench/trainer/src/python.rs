//! The python that PyTorch runs in, and what a process that failed says of it.

use std::{
    io,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, ensure};

/// What a python has to be able to run.
pub(super) const TORCH: &str = "import torch";
pub(super) const TORCH_WITH_CUDA: &str =
    "import sys, torch; torch.cuda.is_available() or sys.exit('its torch sees no NVIDIA card')";

/// Which python.
#[derive(Debug, clap::Args)]
pub(crate) struct PythonWish {
    /// A python that can import torch; without it, python3 and python are tried.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,
    /// Leave PyTorch out.
    #[arg(long, conflicts_with = "python")]
    pub(super) without_torch: bool,
}

impl PythonWish {
    /// The one that was named, or the first of `python3` and `python` that can run `script`; none if none can, which is told. An
    /// error says why the one that was named cannot.
    pub(super) fn find(&self, script: &str) -> anyhow::Result<Option<String>> {
        if self.without_torch {
            return Ok(None);
        }
        if let Some(python) = &self.python {
            let output = run(python, script).with_context(|| format!("cannot start {python} (--python)"))?;
            ensure!(output.status.success(), "{python} (--python) is not of use: {}", reason(&output));
            return Ok(Some(python.clone()));
        }
        let can_run = |python: &&str| run(python, script).is_ok_and(|output| output.status.success());
        let found = ["python3", "python"].into_iter().find(can_run);
        if found.is_none() {
            let which = if script == TORCH { "torch" } else { "a torch that sees the card" };
            eprintln!("no python with {which} was found: without PyTorch's figures (--python names one)");
        }
        Ok(found.map(ToOwned::to_owned))
    }
}

fn run(python: &str, script: &str) -> io::Result<Output> {
    Command::new(python).args(["-c", script]).stdin(Stdio::null()).output()
}

/// Why a process failed, in a line of what it said: the last that names an error, since advice may follow it, or the last.
pub(super) fn reason(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = || said.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find(|line| line.to_lowercase().contains("error")).or_else(|| lines().next());
    match (line, output.status.code()) {
        (Some(line), Some(_)) => line.to_owned(),
        // It cannot have said why.
        (Some(line), None) => format!("{} after: {line}", output.status),
        (None, _) => format!("it said nothing ({})", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(script: &str) -> String {
        reason(&Command::new("sh").args(["-c", script]).output().unwrap())
    }

    #[test]
    fn the_reason_is_the_line_that_names_the_error() {
        assert_eq!(failed("exit 1"), "it said nothing (exit status: 1)");
        assert_eq!(failed("echo warning >&2; echo 'no card' >&2; echo >&2; exit 1"), "no card");
        let with_advice =
            "printf 'trace\\nInvalidCxxCompiler: Error: no compiler\\nset VERBOSE=1\\n\\n' >&2; exit 1";
        assert_eq!(failed(with_advice), "InvalidCxxCompiler: Error: no compiler");
        assert_eq!(failed("echo a warning >&2; kill -9 $$"), "signal: 9 (SIGKILL) after: a warning");
    }

    #[test]
    fn a_python_that_is_named_is_taken_or_refused() {
        let wish = |python: &str| PythonWish { python: Some(python.into()), without_torch: false };
        assert!(wish("no-such-python").find(TORCH).unwrap_err().to_string().contains("no-such-python"));
        assert!(
            wish("false").find(TORCH).unwrap_err().to_string().contains("false (--python) is not of use")
        );
        assert_eq!(wish("true").find(TORCH).unwrap().as_deref(), Some("true"));
        assert_eq!(PythonWish { python: None, without_torch: true }.find(TORCH).unwrap(), None);
    }
}

//! Asking the trainer short questions: what it finds on this machine, how fast a device is.

use std::{path::Path, process::Stdio, time::Duration};

use hatchery_common::{
    device::Device,
    trainer::{Calibration, DoctorReport},
};
use serde::de::DeserializeOwned;
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::child_process::CUDA_ORDER;

/// How long loading libtorch and looking at the devices may take.
const DOCTOR_TIMEOUT: Duration = Duration::from_mins(1);
/// How long one measurement may take.
const CALIBRATE_TIMEOUT: Duration = Duration::from_mins(2);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of stderr shown with a failure.
const COMPLAINT_BYTES_MAX: usize = 2048;

/// Why the trainer gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum TrainerToolError {
    /// There is no such program.
    #[error(
        "there is no trainer at {0}; install hatchery-trainer next to hatchery, or set HATCHERY_TRAINER to \
         its path"
    )]
    Missing(String),
    /// It cannot be started.
    #[error("cannot start the trainer {program}: {source}")]
    Start { program: String, source: std::io::Error },
    /// It did not answer in time.
    #[error("the trainer {program} did not respond within {} s", limit.as_secs())]
    TimedOut {
        program: String,
        /// How long it was given.
        limit: Duration,
    },
    /// It failed, as when it finds no libtorch.
    #[error("the trainer {program} failed ({status}): {complaint}")]
    Failed {
        program: String,
        status: String,
        /// What it wrote to stderr, cut.
        complaint: String,
    },
    /// It answers something else.
    #[error(
        "the agent does not understand the trainer {program} ({problem}); are both from the same release?"
    )]
    Answer {
        program: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What the trainer finds on this machine.
pub async fn doctor(program: &Path) -> Result<DoctorReport, TrainerToolError> {
    ask(program, &["doctor", "--output", "json"], DOCTOR_TIMEOUT).await
}

/// How fast a device is, the processor with so many threads (0: as many as there are cores). Dropping the future ends the
/// measurement.
pub async fn calibrate(
    program: &Path,
    device: Device,
    cpu_threads: u32,
) -> Result<Calibration, TrainerToolError> {
    let (device, threads) = (device.to_string(), cpu_threads.to_string());
    let arguments = ["calibrate", "--device", &device, "--threads", &threads, "--output", "json"];
    ask(program, &arguments, CALIBRATE_TIMEOUT).await
}

async fn ask<T: DeserializeOwned>(
    program: &Path,
    arguments: &[&str],
    limit: Duration,
) -> Result<T, TrainerToolError> {
    let name = || program.display().to_string();
    let start_error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound if !program.exists() => TrainerToolError::Missing(name()),
        _ => TrainerToolError::Start { program: name(), source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env(CUDA_ORDER.0, CUDA_ORDER.1)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start_error)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let read = async {
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            let (mut stdout, mut stderr) = (stdout.take(ANSWER_BYTES_MAX), stderr.take(ANSWER_BYTES_MAX));
            tokio::try_join!(stdout.read_to_end(&mut answer), stderr.read_to_end(&mut complaint))?;
        }
        child.wait().await
    };
    let status = match timeout(limit, read).await {
        Ok(Ok(status)) => status,
        Ok(Err(source)) => return Err(TrainerToolError::Start { program: name(), source }),
        Err(_) => return Err(TrainerToolError::TimedOut { program: name(), limit }),
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&complaint);
        let complaint = text.trim().chars().take(COMPLAINT_BYTES_MAX).collect();
        return Err(TrainerToolError::Failed { program: name(), status: status.to_string(), complaint });
    }
    serde_json::from_slice(&answer)
        .map_err(|error| TrainerToolError::Answer { program: name(), problem: error.to_string() })
}

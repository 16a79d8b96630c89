//! One trainer process: what it says is understood and its output kept; what it is told reaches it in two ways.

use std::{io, path::Path, process::ExitStatus};

use hatchery_common::trainer::{TrainerCommand, TrainerEvent};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
    time::timeout,
};

use super::{
    child_process::{Bounds, ChildProcess, DRAIN, Said},
    stderr_log::StderrLog,
};

/// Longest line of stdout that is taken for an event, and commands that may wait for a trainer that does not read.
const BOUNDS: Bounds = Bounds { line_bytes_max: 64 * 1024, commands_max: 16 };
/// Most bytes of a line that is no event, when it is shown among the output.
const STRAY_LINE_BYTES_MAX: usize = 1024;
const STDERR_BUFFER_BYTES: usize = 64 * 1024;

/// What comes from a trainer.
#[derive(Debug)]
pub enum Heard {
    Event(TrainerEvent),
    /// It is gone, and so is everything that it started; nothing more will come.
    Exited(ExitStatus),
}

/// A running trainer. Dropping it kills it and everything that it started.
#[derive(Debug)]
pub struct TrainerProcess {
    process: ChildProcess<TrainerCommand>,
    stderr: JoinHandle<()>,
    log: StderrLog,
}

impl TrainerProcess {
    /// Starts `program train --attempt ORDER`; its stderr goes to `log`, and `grew` is called when it did.
    pub fn start(
        program: &Path,
        order: &Path,
        log: &StderrLog,
        grew: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let arguments = ["train".as_ref(), "--attempt".as_ref(), order.as_os_str()];
        let (process, stderr) = ChildProcess::start(program, arguments, BOUNDS)?;
        let stderr = tokio::spawn(keep_stderr(stderr, log.clone(), grew));
        Ok(Self { process, stderr, log: log.clone() })
    }

    /// The process id, which is the group's too.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Passes a command on. One that a trainer does not read is lost: it has its own deadline, and signals.
    pub fn tell(&self, command: TrainerCommand) {
        if self.process.commands().try_send(command).is_err() {
            tracing::debug!(process = self.id(), "the trainer does not read its commands");
        }
    }

    /// Asks it to write a checkpoint and end.
    pub fn terminate(&self) {
        self.tell(TrainerCommand::Stop);
        self.process.terminate();
    }

    /// Ends it and everything that it started.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Waits for what comes next. Can be dropped and called again without losing anything.
    pub async fn hear(&mut self) -> Heard {
        loop {
            match self.process.next().await {
                Said::Line(line) => match serde_json::from_slice(&line) {
                    Ok(event) => return Heard::Event(event),
                    Err(_) => self.keep_stray(&line),
                },
                Said::Exited(status) => {
                    // The log is whole before the end is known.
                    let _late = timeout(DRAIN, &mut self.stderr).await;
                    return Heard::Exited(status);
                }
            }
        }
    }

    /// Something other than the trainer's own code wrote to stdout: people see it among the rest.
    fn keep_stray(&self, line: &[u8]) {
        let shown = &line[..line.len().min(STRAY_LINE_BYTES_MAX)];
        if let Err(error) = self.log.append(&[b"[stdout] ", shown, b"\n"].concat()) {
            tracing::warn!(%error, "cannot log a trainer's output");
        }
    }
}

impl Drop for TrainerProcess {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

async fn keep_stderr(mut stderr: impl AsyncRead + Unpin, log: StderrLog, grew: impl Fn()) {
    let mut buffer = vec![0; STDERR_BUFFER_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        // A full disk costs the output, not the run; the pipe must be read on either way.
        match log.append(&buffer[..count]) {
            Ok(()) => grew(),
            Err(error) => tracing::warn!(%error, "cannot log a trainer's output"),
        }
    }
}

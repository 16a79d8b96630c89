//! One process that answers on a device: what it says is understood, and its last words are kept.

use std::{
    io,
    path::Path,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
};

use hatchery_common::{
    answerer::{AnswererCommand, AnswererEvent, LINE_BYTES_MAX},
    device::Device,
};
use tokio::{
    io::{AsyncRead, BufReader},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::child_process::{Bounds, ChildProcess, DRAIN, Lines, Said};

/// Most requests that an agent has at work or waiting.
pub(crate) const REQUESTS_MAX: usize = 64;
/// An answer and its cancellation for each request that an agent takes in.
const COMMANDS_MAX: usize = 2 * REQUESTS_MAX;
/// Of a line for people so much is taken.
const STDERR_LINE_BYTES_MAX: usize = 1024;

/// What comes from a process that answers.
#[derive(Debug)]
pub enum Heard {
    Event(AnswererEvent),
    /// It is gone, and so is everything that it started; nothing more will come.
    Exited(ExitStatus),
}

/// A running process that answers. Dropping it kills it and everything that it started.
#[derive(Debug)]
pub struct AnswererProcess {
    process: ChildProcess<AnswererCommand>,
    stderr: JoinHandle<()>,
    last_line: Arc<Mutex<String>>,
}

impl AnswererProcess {
    /// Starts `program answer` for the checkpoint in the folder `checkpoint` on `device`.
    pub fn start(program: &Path, checkpoint: &Path, device: Device) -> io::Result<Self> {
        let device = device.to_string();
        Self::start_with(
            program,
            [
                "answer".as_ref(),
                "--checkpoint".as_ref(),
                checkpoint.as_os_str(),
                "--device".as_ref(),
                device.as_ref(),
            ],
        )
    }

    /// Starts any program that speaks as one that answers.
    pub(crate) fn start_with(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> io::Result<Self> {
        let bounds = Bounds { line_bytes_max: LINE_BYTES_MAX, commands_max: COMMANDS_MAX };
        let (process, stderr) = ChildProcess::start(program, arguments, bounds)?;
        let last_line = Arc::default();
        let stderr = tokio::spawn(show_stderr(process.id(), stderr, Arc::clone(&last_line)));
        Ok(Self { process, stderr, last_line })
    }

    /// The process id, which is the group's too.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where commands go in; one that finds no room is not read by the process.
    pub(crate) fn commands(&self) -> &mpsc::Sender<AnswererCommand> {
        self.process.commands()
    }

    /// The last line that it wrote for people, cut.
    pub fn last_line(&self) -> String {
        self.last_line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for what comes next. Can be dropped and called again without losing anything.
    pub async fn hear(&mut self) -> Heard {
        loop {
            match self.process.next().await {
                Said::Line(line) => match serde_json::from_slice(&line) {
                    Ok(event) => return Heard::Event(event),
                    Err(_) => show(self.id(), &line),
                },
                Said::Exited(status) => {
                    if !self.stderr.is_finished() {
                        // Its last words come before its end.
                        let _late = timeout(DRAIN, &mut self.stderr).await;
                    }
                    return Heard::Exited(status);
                }
            }
        }
    }

    /// Kills it and everything that it started, and waits until that is gone, however long it takes.
    pub(crate) async fn end(mut self) {
        self.process.kill();
        while let Said::Line(_) = self.process.next().await {}
    }
}

impl Drop for AnswererProcess {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

async fn show_stderr(process: u32, stderr: impl AsyncRead + Unpin, last_line: Arc<Mutex<String>>) {
    let mut lines = Lines::new(BufReader::new(stderr), STDERR_LINE_BYTES_MAX);
    while let Ok(Some(line)) = lines.next().await {
        show(process, &line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if !text.is_empty() {
            text.clone_into(&mut last_line.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn show(process: u32, line: &[u8]) {
    let shown = &line[..line.len().min(STDERR_LINE_BYTES_MAX)];
    tracing::debug!(process, "{}", String::from_utf8_lossy(shown));
}

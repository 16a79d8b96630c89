//! One trainer process: started in a group of its own, listened to, told things, and never left behind.

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use hatchery_common::trainer::{TrainerCommand, TrainerEvent};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use crate::nvidia::CUDA_ORDER;
use crate::stderr_log::StderrLog;

/// Longest line of stdout that is taken for an event.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of a line that is no event, when it is shown among the output.
const STRAY_LINE_BYTES_MAX: usize = 1024;
/// Commands that may wait for a trainer that does not read.
const COMMANDS_MAX: usize = 16;
/// How long the pipes of an ended trainer are still read.
const DRAIN: Duration = Duration::from_secs(5);
const STDERR_BUFFER_BYTES: usize = 64 * 1024;

/// What comes from a trainer.
#[derive(Debug)]
pub enum Heard {
    /// It said something.
    Event(TrainerEvent),
    /// It is gone, and so is everything that it started; nothing more will come.
    Exited(ExitStatus),
}

/// A running trainer. Dropping it kills it and everything that it started.
#[derive(Debug)]
pub struct TrainerProcess {
    child: Child,
    group: Pid,
    lines: Lines<BufReader<ChildStdout>>,
    commands: mpsc::Sender<TrainerCommand>,
    stderr: JoinHandle<()>,
    log: StderrLog,
    exited: Option<ExitStatus>,
}

impl TrainerProcess {
    /// Starts `program train --attempt ORDER`; its stderr goes to `log`, and `grew` is called when it did.
    pub fn start(
        program: &Path,
        order: &Path,
        log: &StderrLog,
        grew: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg("train")
            .arg("--attempt")
            .arg(order)
            .env(CUDA_ORDER.0, CUDA_ORDER.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three were asked to be pipes");
        };
        let id = child.id().expect("it was not waited for yet");
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(write_commands(stdin, receiver));
        let stderr = tokio::spawn(keep_stderr(stderr, log.clone(), grew));
        Ok(Self {
            child,
            group: Pid::from_raw(id as i32).expect("a process id is not 0"),
            lines: Lines::new(BufReader::new(stdout)),
            commands,
            stderr,
            log: log.clone(),
            exited: None,
        })
    }

    /// The process id, which is the group's too.
    pub fn id(&self) -> u32 {
        self.group.as_raw_pid() as u32
    }

    /// Passes a command on. One that a trainer does not read is lost: it has its own deadline, and signals.
    pub fn tell(&self, command: TrainerCommand) {
        if self.commands.try_send(command).is_err() {
            tracing::debug!(process = self.id(), "the trainer does not read its commands");
        }
    }

    /// Asks it to write a checkpoint and end.
    pub fn terminate(&self) {
        self.tell(TrainerCommand::Stop);
        if self.exited.is_none() {
            // Only itself: what it started is its own to end. The only error is that it is gone already.
            let _gone = kill_process(self.group, Signal::TERM);
        }
    }

    /// Ends it and everything that it started.
    pub fn kill(&self) {
        if self.exited.is_none() {
            // The only error is that it is gone already.
            let _gone = kill_process_group(self.group, Signal::KILL);
        }
    }

    /// Waits for what comes next. Can be dropped and called again without losing anything.
    pub async fn hear(&mut self) -> Heard {
        loop {
            let line = if let Some(status) = self.exited {
                let Ok(Ok(Some(line))) = timeout(DRAIN, self.lines.next()).await else {
                    // The log is whole before the end is known.
                    let _late = timeout(DRAIN, &mut self.stderr).await;
                    return Heard::Exited(status);
                };
                line
            } else {
                tokio::select! {
                    biased;
                    Ok(Some(line)) = self.lines.next() => line,
                    status = self.child.wait() => {
                        // What it started must not outlive it, nor keep its pipes open.
                        self.kill();
                        self.exited = Some(status.unwrap_or_default());
                        continue;
                    }
                }
            };
            match serde_json::from_slice(&line) {
                Ok(event) => return Heard::Event(event),
                Err(_) => self.keep_stray(&line),
            }
        }
    }

    /// Something other than the trainer's own code wrote to stdout: people see it among the rest.
    fn keep_stray(&self, line: &[u8]) {
        let shown = &line[..line.len().min(STRAY_LINE_BYTES_MAX)];
        if let Err(error) = self.log.append(&[b"[stdout] ", shown, b"\n"].concat()) {
            tracing::warn!(%error, "cannot keep a trainer's output");
        }
    }
}

impl Drop for TrainerProcess {
    fn drop(&mut self) {
        self.kill();
        self.stderr.abort();
    }
}

async fn write_commands(mut stdin: ChildStdin, mut commands: mpsc::Receiver<TrainerCommand>) {
    while let Some(command) = commands.recv().await {
        let mut line = serde_json::to_vec(&command).expect("a command is always JSON");
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn keep_stderr(mut stderr: impl AsyncRead + Unpin, log: StderrLog, grew: impl Fn()) {
    let mut buffer = vec![0; STDERR_BUFFER_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        // A full disk costs the output, not the run; the pipe must be read on either way.
        match log.append(&buffer[..count]) {
            Ok(()) => grew(),
            Err(error) => tracing::warn!(%error, "cannot keep a trainer's output"),
        }
    }
}

/// Lines of at most [`LINE_BYTES_MAX`]; what is longer is cut there.
#[derive(Debug)]
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, line: Vec::new() }
    }

    /// The next line without its end; None at the end. Can be dropped and called again without losing anything.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(Some(std::mem::take(&mut self.line)).filter(|line| !line.is_empty()));
            }
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..newline.unwrap_or(bytes.len())];
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = newline.map_or(bytes.len(), |at| at + 1);
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let text = format!("one\n{long}\n\nlast");
        let mut lines = Lines::new(BufReader::new(text.as_bytes()));
        let mut lengths = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [3, LINE_BYTES_MAX, 0, 4]);
    }
}

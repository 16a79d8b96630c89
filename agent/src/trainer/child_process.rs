//! A child process that is spoken to in lines: started in a group of its own, told things, heard, and never left behind.

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Serialize;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::timeout,
};

/// What makes CUDA count the GPUs as the driver does, by their place on the PCI bus: set for every trainer.
pub(crate) const CUDA_ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
/// How long the pipes of an ended process are still read.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// How much is taken of and for a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Longest line of stdout, in bytes; what is longer is cut there.
    pub(crate) line_bytes_max: usize,
    /// Commands that may wait for a process that does not read.
    pub(crate) commands_max: usize,
}

/// What comes from a process.
#[derive(Debug)]
pub(crate) enum Said {
    /// A line of stdout, without its end.
    Line(Vec<u8>),
    /// It is gone, and so is everything that it started; nothing more will come.
    Exited(ExitStatus),
}

/// A running process that takes each command as a line of JSON. Dropping it kills it and everything that it started.
#[derive(Debug)]
pub(crate) struct ChildProcess<C> {
    child: Child,
    group: Pid,
    lines: Lines<BufReader<ChildStdout>>,
    commands: mpsc::Sender<C>,
    exited: Option<ExitStatus>,
}

impl<C: Serialize + Send + 'static> ChildProcess<C> {
    /// Starts `program`; gives its stderr too, which must be read on to its end.
    pub(crate) fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
        bounds: Bounds,
    ) -> io::Result<(Self, ChildStderr)> {
        let mut child = Command::new(program)
            .args(arguments)
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
        let (commands, receiver) = mpsc::channel(bounds.commands_max);
        tokio::spawn(write_commands(stdin, receiver));
        let process = Self {
            child,
            group: Pid::from_raw(id as i32).expect("a process id is not 0"),
            lines: Lines::new(BufReader::new(stdout), bounds.line_bytes_max),
            commands,
            exited: None,
        };
        Ok((process, stderr))
    }

    /// The process id, which is the group's too.
    pub(crate) fn id(&self) -> u32 {
        self.group.as_raw_pid() as u32
    }

    /// Where commands go in; one that finds no room is not read by the process.
    pub(crate) fn commands(&self) -> &mpsc::Sender<C> {
        &self.commands
    }

    /// Sends it a SIGTERM.
    pub(crate) fn terminate(&self) {
        if self.exited.is_none() {
            // Only itself: what it started is its own to end. The only error is that it is gone already.
            let _gone = kill_process(self.group, Signal::TERM);
        }
    }

    /// Waits for what comes next. Can be dropped and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Said {
        if self.exited.is_none() {
            tokio::select! {
                biased;
                Ok(Some(line)) = self.lines.next() => return Said::Line(line),
                status = self.child.wait() => {
                    // What it started must not outlive it, nor keep its pipes open.
                    self.kill();
                    self.exited = Some(status.unwrap_or_default());
                }
            }
        }
        match timeout(DRAIN, self.lines.next()).await {
            Ok(Ok(Some(line))) => Said::Line(line),
            _ => Said::Exited(self.exited.unwrap_or_default()),
        }
    }
}

impl<C> ChildProcess<C> {
    /// Ends it and everything that it started.
    pub(crate) fn kill(&self) {
        if self.exited.is_none() {
            // The only error is that it is gone already.
            let _gone = kill_process_group(self.group, Signal::KILL);
        }
    }
}

impl<C> Drop for ChildProcess<C> {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn write_commands<C: Serialize>(mut stdin: ChildStdin, mut commands: mpsc::Receiver<C>) {
    while let Some(command) = commands.recv().await {
        let mut line = serde_json::to_vec(&command).expect("a command is always JSON");
        line.push(b'\n');
        if stdin.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Lines of a bounded length; what is longer is cut there.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    line_bytes_max: usize,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R, line_bytes_max: usize) -> Self {
        Self { reader, line: Vec::new(), line_bytes_max }
    }

    /// The next line without its end; None at the end. Can be dropped and called again without losing anything.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(Some(std::mem::take(&mut self.line)).filter(|line| !line.is_empty()));
            }
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..newline.unwrap_or(bytes.len())];
            let room = self.line_bytes_max - self.line.len();
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
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let long = "x".repeat(30_000);
        let text = format!("one\n{long}\n\nlast");
        let mut lines = Lines::new(BufReader::new(text.as_bytes()), 10_000);
        let mut lengths = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [3, 10_000, 0, 4]);
    }
}

//! A command that a test types, started and gone with it.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where `cargo build` has put a binary, or an example by `examples/NAME`.
pub fn binary(name: &str) -> PathBuf {
    hatchery_test_support::binary(name)
        .unwrap_or_else(|error| panic!("{error}: run the tests with `cargo xtask test`"))
}

/// The trainer that needs no libtorch.
pub(crate) fn fake_trainer() -> PathBuf {
    binary("examples/fake-trainer")
}

/// A child process whose output is read line by line, and that is killed when the test lets go of it.
pub struct Process {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `command` in a process group of its own.
    pub fn start(mut command: Command) -> Self {
        use std::os::unix::process::CommandExt;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = lines(child.stdout.take().expect("stdout is piped"));
        let stderr = lines(child.stderr.take().expect("stderr is piped"));
        Self { child, stdout, stderr, seen: Vec::new() }
    }

    /// The next line of stdout; none at its end.
    pub fn next_line(&mut self) -> Option<String> {
        next(&self.stdout, "stdout")
    }

    /// Reads stderr until a line contains `text`, and gives that line.
    pub fn wait_for_stderr(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.stderr.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                    panic!("stderr never said {text:?}; it said:\n{}", self.seen.join("\n"))
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("a child that was not waited for can be signalled");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "process {} does not end", self.child.id());
            // There is no portable wait with a deadline; what ends is the child, not this pause.
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that is left of stderr, after the process has ended.
    pub fn rest_of_stderr(&mut self) -> String {
        let mut lines = std::mem::take(&mut self.seen);
        while let Ok(line) = self.stderr.recv_timeout(PATIENCE) {
            lines.push(line);
        }
        lines.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            while let Ok(line) = self.stderr.recv_timeout(Duration::from_millis(100)) {
                self.seen.push(line);
            }
            eprintln!("--- stderr of process {} ---\n{}", self.child.id(), self.seen.join("\n"));
        }
    }
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { break };
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

fn next(receiver: &Receiver<String>, what: &str) -> Option<String> {
    match receiver.recv_timeout(PATIENCE) {
        Ok(line) => Some(line),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("nothing on {what} for {PATIENCE:?}"),
    }
}

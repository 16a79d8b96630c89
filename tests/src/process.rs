//! One process of the system, started for a test and gone with it.

use std::{
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The longest that a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Where `cargo build` has put a binary: beside this program, or beside the folder of this test.
pub fn binary(name: &str) -> PathBuf {
    built(
        Path::new(name),
        "run the tests with `cargo xtask test`, or first `cargo build -p hatchery-cli -p hatchery-trainer`",
    )
}

/// The trainer that needs no libtorch.
pub(crate) fn fake_trainer() -> PathBuf {
    let how = "run `cargo xtask test`, or first `cargo build -p hatchery-agent --example fake-trainer`";
    built(&Path::new("examples").join("fake-trainer"), how)
}

fn built(name: &Path, how: &str) -> PathBuf {
    let program = env::current_exe().expect("a running program has a path");
    let beside = program.parent().expect("programs lie in folders");
    let profile = if beside.ends_with("deps") { beside.parent() } else { Some(beside) };
    let path = profile.expect("tests run from target/PROFILE/deps").join(name);
    assert!(path.is_file(), "{} is not built: {how}", path.display());
    path
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

    /// Kills it as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
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
        // The trainers of a killed agent end by themselves; whatever shares the group ends here.
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

//! A process that is started, watched and ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Interrupt;

/// How long it may take to end when asked; after that its whole process group is killed.
const STOP_WAIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// So much of a log is shown when something went wrong.
const LINES_SHOWN: usize = 15;

/// A running process whose output goes to a file, so that it can outlive this program. It is ended when this is dropped.
pub struct Daemon {
    name: String,
    log: PathBuf,
    /// Where its own output begins in the log.
    log_start: usize,
    /// So much of its output was looked through for lines.
    seen: usize,
    child: Option<Child>,
    stop_wait: Duration,
}

impl Daemon {
    /// Starts a command in a group of its own, so that Ctrl-C in the terminal does not reach it before it was seen here.
    /// What it prints is added to the file `log`.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        Self::start_on(name, command.stdin(Stdio::null()).process_group(0), log)
    }

    /// The same for one that ends when its stdin does.
    pub fn start_with_open_stdin(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        Self::start_on(name, command.stdin(Stdio::piped()).process_group(0), log)
    }

    /// The same in this program's group: Ctrl-C ends it too.
    pub fn start_in_our_group(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        Self::start_on(name, command.stdin(Stdio::null()), log)
    }

    fn start_on(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        let log_start = file.metadata()?.len() as usize;
        command.stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        let name = name.to_owned();
        Ok(Self { name, log, log_start, seen: 0, child: Some(child), stop_wait: STOP_WAIT })
    }

    /// Kills it at its end, without asking first.
    #[must_use]
    pub fn killed_at_end(mut self) -> Self {
        self.stop_wait = Duration::ZERO;
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// Waits until it writes a line that contains `text`, behind the one that was waited for last; gives that line. An
    /// error if it ends before, or takes longer.
    pub fn wait_for_line(&mut self, text: &str, within: Duration, interrupt: &Interrupt) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            // Before the look, so that its last words are looked at.
            let has_ended = self.has_ended();
            let output = self.output();
            // A line without its end may be half a line.
            for line in output.split_inclusive('\n').skip(self.seen).filter(|line| line.ends_with('\n')) {
                self.seen += 1;
                if line.contains(text) {
                    return Ok(line.trim_end().to_owned());
                }
            }
            interrupt.check()?;
            if has_ended {
                self.check()?;
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not say {text:?} within {within:?}; it said:\n{}",
                    self.name,
                    self.last_lines()
                );
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended ({status}); it said:\n{}", self.name, self.last_lines());
        }
        Ok(())
    }

    /// Waits for its end, but no longer than this.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Sends a signal to the process alone; it may have ended already.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal).ok();
        }
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }

    fn last_lines(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }

    /// Lets it run on.
    pub fn keep(mut self) {
        self.child = None;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let pid = Pid::from_child(child);
        // An error here means that it is gone, which is what is wanted.
        if !self.stop_wait.is_zero() {
            let deadline = Instant::now() + self.stop_wait;
            kill_process(pid, Signal::TERM).ok();
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(LOOK_EVERY);
            }
        }
        // Where it has a group of its own, that ends with it.
        kill_process_group(pid, Signal::KILL).ok();
        child.kill().ok();
        child.wait().ok();
        if thread::panicking() {
            eprintln!("--- {} said ---\n{}", self.name, self.output());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn shell(script: &str, folder: &tempfile::TempDir) -> Daemon {
        Daemon::start("test", Command::new("sh").args(["-c", script]), folder.path().join("log")).unwrap()
    }

    fn is_running(pid: u32) -> bool {
        Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
    }

    #[test]
    fn it_is_heard_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = shell("echo starting; echo ready at 127.0.0.1:1 >&2; exec sleep 60", &folder);
        assert_eq!(
            daemon.wait_for_line("ready at ", LONG, &Interrupt::default()).unwrap(),
            "ready at 127.0.0.1:1"
        );
        let pid = daemon.pid();
        assert!(is_running(pid));
        drop(daemon);
        assert!(!is_running(pid));
    }

    #[test]
    fn one_that_does_not_listen_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = shell("trap '' TERM; sleep 60 & echo child $!; wait; sleep 60", &folder);
        daemon.stop_wait = Duration::from_millis(200);
        let line = daemon.wait_for_line("child ", LONG, &Interrupt::default()).unwrap();
        let child = line.trim_start_matches("child ").parse().unwrap();
        assert!(is_running(child));
        drop(daemon);
        // The child is adopted by init, which takes a moment to bury it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(child) && !is_zombie(child) {
            assert!(Instant::now() < deadline, "the child survives");
            std::thread::yield_now();
        }
    }

    fn is_zombie(pid: u32) -> bool {
        let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().starts_with('Z')
    }

    #[test]
    fn one_that_ends_early_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = shell("echo no room >&2; exit 3", &folder);
        let message = daemon.wait_for_line("ready", LONG, &Interrupt::default()).unwrap_err().to_string();
        assert!(message.contains("has ended") && message.contains("no room"), "{message}");
    }
}

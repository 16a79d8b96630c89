//! A process that is started, watched and ended.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{GLANCE, Interrupt};

/// How long it may take to say that it is ready.
const READY_WAIT: Duration = Duration::from_mins(1);
/// How long it may take to end when asked; after that its whole process group is killed.
const STOP_WAIT: Duration = Duration::from_secs(15);
/// So much of a log is shown when something went wrong.
const LOG_LINES_SHOWN: usize = 15;

/// A process in a group of its own, so that Ctrl-C in the terminal does not reach it before it was seen here.
/// It is ended when this is dropped.
pub struct Daemon {
    name: &'static str,
    log: PathBuf,
    child: Option<Child>,
    stop_wait: Duration,
}

impl Daemon {
    /// Starts a command; what it prints goes to `log`, a file, so that it can outlive this program.
    pub fn start(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        Self::start_on(name, command.stdin(Stdio::null()), log)
    }

    /// The same for one that ends when its stdin does.
    pub fn start_with_open_stdin(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        Self::start_on(name, command.stdin(Stdio::piped()), log)
    }

    fn start_on(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, log, child: Some(child), stop_wait: STOP_WAIT })
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

    /// Waits until it prints a line that begins with `start`; returns the rest of the line.
    pub fn wait_for_line(&mut self, start: &str, interrupt: &Interrupt) -> Result<String> {
        let deadline = Instant::now() + READY_WAIT;
        loop {
            let printed = fs::read_to_string(&self.log).unwrap_or_default();
            // A line without its end may be half a line.
            let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return Ok(rest.trim().to_owned());
            }
            interrupt.check()?;
            self.check()?;
            if Instant::now() > deadline {
                bail!(
                    "the {} does not say {start:?} within {READY_WAIT:?}; it said:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("the {} has ended ({status}); it said:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let printed = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = printed.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
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
        let deadline = Instant::now() + self.stop_wait;
        // An error here means that it is gone, which is what is wanted.
        kill_process(pid, Signal::TERM).ok();
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
        kill_process_group(pid, Signal::KILL).ok();
        child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(daemon.wait_for_line("ready at ", &Interrupt::default()).unwrap(), "127.0.0.1:1");
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
        let child = daemon.wait_for_line("child ", &Interrupt::default()).unwrap().parse().unwrap();
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
        let message = daemon.wait_for_line("ready", &Interrupt::default()).unwrap_err().to_string();
        assert!(message.contains("has ended") && message.contains("no room"), "{message}");
    }
}

//! A process of the fleet that is killed and started again many times; what it writes is kept in one file.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running process.
pub(super) struct Daemon {
    child: Child,
    log: PathBuf,
    /// Where its own output begins in the log.
    log_start: u64,
}

impl Daemon {
    /// Starts `command`; what it writes is added to the file `log`. It stays in this process group, so that Ctrl-C in a
    /// terminal ends it too.
    pub(super) fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let file: File = OpenOptions::new().append(true).create(true).open(log)?;
        let log_start = file.metadata()?.len();
        let child =
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn().map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start {command:?}: {error}"))
            })?;
        Ok(Self { child, log: log.to_owned(), log_start })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub(super) fn output(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let own = bytes.get(self.log_start as usize..).unwrap_or_default();
        String::from_utf8_lossy(own).into_owned()
    }

    /// The line that contains `text`, once it is written; none if the process ends before, or takes longer.
    pub(super) fn wait_for_line(&mut self, text: &str, within: Duration) -> Option<String> {
        let until = Instant::now() + within;
        loop {
            let over = self.has_ended() || Instant::now() >= until;
            // A line is looked for only up to its end.
            let output = self.output();
            let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                return Some(line.to_owned());
            }
            if over {
                return None;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Waits for its end, but no longer than this.
    pub(super) fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Sends a signal to the process alone; it may have ended already.
    pub(super) fn signal(&self, signal: Signal) {
        let _ended = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Ends it as a power cut would.
    pub(super) fn kill(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The trainers of an agent end by themselves.
        self.kill();
    }
}

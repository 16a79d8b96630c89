//! An agent's machine.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use hatchery_test_support::{Daemon, processes_with};
use rustix::process::{Pid, Signal};

use super::proxy::Proxy;
use crate::process::PATIENCE;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What an agent loses when it loses its disk, its credentials left out.
const AGENT_FOLDERS: [&str; 4] = ["blobs", "checkpoints", "corpora", "attempts"];

pub struct Member {
    pub name: String,
    /// Its `HATCHERY_HOME`.
    pub home: PathBuf,
    /// Between it and the coordinator.
    pub proxy: Proxy,
    pub(super) daemon: Mutex<Option<Daemon>>,
}

impl Member {
    /// Kills the agent as a power cut would; its trainer sees the end of its stdin.
    pub fn kill(&self) {
        if let Some(mut daemon) = lock(&self.daemon).take() {
            daemon.kill();
        }
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(daemon) = lock(&self.daemon).as_ref() {
            daemon.signal(signal);
        }
    }

    /// Waits until the agent, as it was started last, writes a line with one of `texts`.
    pub fn wait_for_line(&self, texts: &[&str]) -> io::Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let output = lock(&self.daemon).as_ref().map(Daemon::output).unwrap_or_default();
            if let Some(line) = output.lines().find(|line| texts.iter().any(|text| line.contains(text))) {
                return Ok(line.to_owned());
            }
            if Instant::now() >= until {
                return Err(io::Error::other(format!(
                    "{} never wrote any of {texts:?}; it wrote:\n{output}",
                    self.name
                )));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the agent has ended by itself; whether it has.
    pub fn wait(&self, within: Duration) -> bool {
        lock(&self.daemon).as_mut().is_none_or(|daemon| daemon.wait(within).is_some())
    }

    /// The trainers that run for it.
    pub fn trainers(&self) -> Vec<Pid> {
        let home = self.home.display().to_string();
        let pids = processes_with(&["fake-trainer", "train", &home]);
        pids.into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()
    }

    /// Removes all that an agent keeps, but for its credentials: its disk was replaced. It must not be running.
    pub fn lose_disk(&self) -> io::Result<()> {
        for folder in AGENT_FOLDERS {
            match fs::remove_dir_all(self.home.join("agent").join(folder)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Ctrl-C and its like: noted, so that what was started is ended in order.

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often one who waits looks around.
pub const GLANCE: Duration = Duration::from_millis(50);
/// How long a command may take to end after Ctrl-C.
const END_WAIT: Duration = Duration::from_secs(5);

/// Whether somebody wants the work to end.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP are noted here and do nothing else.
    pub fn listen() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            signal_hook::flag::register(signal.as_raw(), Arc::clone(&interrupt.0))
                .context("cannot listen for Ctrl-C")?;
        }
        Ok(interrupt)
    }

    /// An error once the work is to end.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Runs a command with this terminal as its own; it is ended too when the work is to end.
    pub fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let mut kill_at: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                self.check()?;
                return Ok(status);
            }
            match kill_at {
                None if self.check().is_err() => {
                    // It may have ended by itself already: a Ctrl-C of the terminal reaches it as well.
                    kill_process(Pid::from_child(&child), Signal::TERM).ok();
                    kill_at = Some(Instant::now() + END_WAIT);
                }
                Some(deadline) if Instant::now() > deadline => child.kill()?,
                _ => {}
            }
            std::thread::sleep(GLANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_ends_the_command_that_runs() {
        let interrupt = Interrupt::default();
        assert!(interrupt.run(&mut Command::new("true")).unwrap().success());
        interrupt.0.store(true, Ordering::Relaxed);
        let started = Instant::now();
        let outcome = interrupt.run(Command::new("sleep").arg("60"));
        assert_eq!(outcome.unwrap_err().to_string(), "interrupted");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

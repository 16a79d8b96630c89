//! What may interrupt a run: the agent, a signal, the end of the lease.

use std::{
    io::{BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use hatchery_common::{time::BootTime, trainer::TrainerCommand};

use crate::ffi;

/// Longest line that is read from the agent.
const LINE_BYTES_MAX: u64 = 1 << 16;
const NEVER: u64 = u64::MAX;

/// Why a run stops before its last step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// It was told to.
    Stop,
    /// The lease ran out.
    LeaseExpired,
}

/// Shared between the run and whoever may interrupt it; clones are the same control.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    lease_until: AtomicU64,
}

impl Control {
    /// Nothing interrupts, but the end of the lease if there is one.
    pub fn new(lease_until: Option<BootTime>) -> Self {
        let lease_until = AtomicU64::new(lease_until.map_or(NEVER, |until| until.0));
        Self(Arc::new(Shared { stop: AtomicBool::new(false), lease_until }))
    }

    /// Does as the agent says.
    pub fn obey(&self, command: &TrainerCommand) {
        match command {
            TrainerCommand::Lease { until } => self.0.lease_until.store(until.0, Ordering::Relaxed),
            TrainerCommand::Stop => self.0.stop.store(true, Ordering::Relaxed),
        }
    }

    /// What interrupts at time `now`, if anything does.
    pub fn interrupt(&self, now: BootTime) -> Option<Interrupt> {
        if self.0.stop.load(Ordering::Relaxed) || ffi::was_signalled() {
            Some(Interrupt::Stop)
        } else if now.0 >= self.0.lease_until.load(Ordering::Relaxed) {
            Some(Interrupt::LeaseExpired)
        } else {
            None
        }
    }

    /// Obeys the lines of `input` on a thread of its own; the end of `input` stops.
    pub fn listen(&self, mut input: impl BufRead + Send + 'static) {
        let control = self.clone();
        thread::spawn(move || {
            let mut line = Vec::new();
            while input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|read| read > 0)
            {
                match serde_json::from_slice(&line) {
                    Ok(command) => control.obey(&command),
                    // A newer agent may know more commands than this trainer does.
                    Err(error) => eprintln!("ignored a line on stdin that is not a command: {error}"),
                }
                line.clear();
            }
            control.obey(&TrainerCommand::Stop);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_out_and_can_be_extended() {
        let control = Control::new(Some(BootTime(100)));
        assert_eq!(control.interrupt(BootTime(99)), None);
        assert_eq!(control.interrupt(BootTime(100)), Some(Interrupt::LeaseExpired));
        control.obey(&TrainerCommand::Lease { until: BootTime(200) });
        assert_eq!(control.interrupt(BootTime(199)), None);
        control.obey(&TrainerCommand::Stop);
        assert_eq!(control.interrupt(BootTime(0)), Some(Interrupt::Stop));
        assert_eq!(Control::new(None).interrupt(BootTime(NEVER - 1)), None);
    }
}

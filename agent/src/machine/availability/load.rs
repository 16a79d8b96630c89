//! How much of the processor programs other than the agent's own use.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// Between two looks so far apart lies no load but a sleep of the machine.
const LOOKS_APART_MAX: Duration = Duration::from_mins(1);

/// Measures from one look to the next.
#[derive(Default)]
pub(crate) struct LoadMeter {
    last: Option<(System, Instant)>,
}

impl fmt::Debug for LoadMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadMeter").finish_non_exhaustive()
    }
}

impl LoadMeter {
    /// The part of all cores that others used since the last look, 0 to 1. None: there was none, or it is too near or too
    /// long ago. Takes milliseconds.
    pub(crate) fn measure(&mut self) -> Result<Option<f64>, String> {
        let since = self.last.as_ref().map(|(_, at)| at.elapsed());
        if since.is_some_and(|since| since < MINIMUM_CPU_UPDATE_INTERVAL) {
            return Ok(None);
        }
        if self.last.is_none() {
            let system = System::new().map_err(|error| error.to_string())?;
            self.last = Some((system, Instant::now()));
        }
        let Some((system, at)) = &mut self.last else { return Ok(None) };
        system.refresh_cpu_usage();
        let kind = ProcessRefreshKind::nothing().with_cpu().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        *at = Instant::now();
        let cores = system.cpus().len();
        if cores == 0 {
            return Err("the system does not report its processor load".to_owned());
        }
        let own = Pid::from_u32(std::process::id());
        let used = own_usage(system, own) / cores as f64;
        let others = (f64::from(system.global_cpu_usage()) - used) / 100.0;
        Ok(since.filter(|since| *since <= LOOKS_APART_MAX).map(|_| others.clamp(0.0, 1.0)))
    }
}

/// What `own` and all that it started use, in hundredths of a core.
fn own_usage(system: &System, own: Pid) -> f64 {
    let parents: BTreeMap<Pid, Pid> =
        system.processes().iter().filter_map(|(id, process)| Some((*id, process.parent()?))).collect();
    let is_ours = |id: Pid| {
        let mut above = Some(id);
        // As many steps as there are processes: ids are given anew, so that a line of them may lead in a circle.
        let mut line = std::iter::from_fn(|| {
            let id = above?;
            above = parents.get(&id).copied();
            Some(id)
        });
        line.by_ref().take(parents.len() + 1).any(|id| id == own)
    };
    let ours = system.processes().iter().filter(|(id, _)| is_ours(**id));
    ours.map(|(_, process)| f64::from(process.cpu_usage())).sum()
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        thread,
    };

    use super::*;

    #[test]
    fn the_first_look_tells_nothing_and_what_was_started_here_does_not_count() {
        let mut meter = LoadMeter::default();
        assert_eq!(meter.measure(), Ok(None));
        assert_eq!(meter.measure(), Ok(None), "too soon");
        // It spins for as long as its parent holds its stdin.
        let mut child = Command::new("sh")
            .args(["-c", "(while :; do :; done) & read line; kill $!"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(3 * MINIMUM_CPU_UPDATE_INTERVAL);
        meter.measure().unwrap().unwrap();
        thread::sleep(3 * MINIMUM_CPU_UPDATE_INTERVAL);
        assert!(meter.measure().unwrap().is_some_and(|load| (0.0..=1.0).contains(&load)));
        let (system, _) = meter.last.as_ref().unwrap();
        let own = own_usage(system, Pid::from_u32(std::process::id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(own > 1.0, "a child of a child is one of ours, and it spins: {own}");
    }
}

//! Schedules, what they are measured by, and the simple contenders: whoever comes first gets a device that is
//! free.

use serde::Serialize;

use crate::cases::Case;

/// Who runs where and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Schedule {
    pub(crate) runs: Vec<Run>,
}

/// One attempt. Jobs and devices are named by their place in the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Run {
    pub(crate) job: usize,
    pub(crate) device: usize,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
}

/// What a schedule is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Measures {
    /// From submission to end, the mean over the jobs.
    pub(crate) completion_ms: f64,
    /// From the start of the case to the end of its last job.
    pub(crate) makespan_ms: f64,
}

impl Schedule {
    pub(crate) fn measures(&self, case: &Case) -> Measures {
        let mut ends_ms = vec![0; case.jobs.len()];
        for run in &self.runs {
            ends_ms[run.job] = run.end_ms.max(ends_ms[run.job]);
        }
        let waited_ms: u64 = ends_ms.iter().zip(&case.jobs).map(|(end, job)| end - job.submitted_ms).sum();
        Measures {
            completion_ms: waited_ms as f64 / case.jobs.len() as f64,
            makespan_ms: ends_ms.into_iter().max().unwrap_or(0) as f64,
        }
    }
}

/// Each job in order of submission to the first free suitable device, in fleet order.
pub(crate) fn fifo(case: &Case) -> Schedule {
    first_come(case, |_| 0.0)
}

/// Each job in order of submission to the fastest free suitable device, by calibration.
pub(crate) fn greedy(case: &Case) -> Schedule {
    first_come(case, |device| -case.devices[device].known_steps_per_sec)
}

/// Whenever a device is free, the first job that it suits gets one; of several free devices that of the least
/// `rank`, of equal ones the first. A job that no free device suits does not hold up those behind it.
fn first_come(case: &Case, rank: impl Fn(usize) -> f64) -> Schedule {
    let mut schedule = Schedule::default();
    let mut free_at_ms = vec![0; case.devices.len()];
    let mut waiting: Vec<usize> = (0..case.jobs.len()).collect();
    let mut now_ms = 0;
    loop {
        waiting.retain(|&job| {
            if case.jobs[job].submitted_ms > now_ms {
                return true;
            }
            let free = (0..case.devices.len()).filter(|&device| free_at_ms[device] <= now_ms);
            let suitable =
                free.filter_map(|device| case.durations_ms[job][device].map(|duration| (device, duration)));
            let Some((device, duration_ms)) = suitable.min_by(|a, b| rank(a.0).total_cmp(&rank(b.0))) else {
                return true;
            };
            free_at_ms[device] = now_ms + duration_ms;
            schedule.runs.push(Run { job, device, start_ms: now_ms, end_ms: free_at_ms[device] });
            false
        });
        let submissions = waiting.iter().map(|&job| case.jobs[job].submitted_ms);
        let Some(next_ms) = submissions.chain(free_at_ms.iter().copied()).filter(|at| *at > now_ms).min()
        else {
            return schedule;
        };
        now_ms = next_ms;
    }
}

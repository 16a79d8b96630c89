//! One case, looked at: what it asks for, and who runs where and when under each contender.

use std::fmt;

use serde::Serialize;

use crate::{
    cases::{Case, CaseDevice},
    contenders::{Measures, Schedule},
};

const CHART_WIDTH: usize = 64;
/// One for each job; those beyond share the last.
const MARKS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A case and the schedules that contenders made of it.
pub(crate) struct Chart<'a> {
    pub(crate) case: &'a Case,
    pub(crate) schedules: Vec<(&'static str, Schedule)>,
}

#[derive(Serialize)]
struct ContenderJson<'a> {
    contender: &'a str,
    #[serde(flatten)]
    measures: Measures,
    #[serde(flatten)]
    schedule: &'a Schedule,
}

#[derive(Serialize)]
struct ChartJson<'a> {
    #[serde(flatten)]
    case: &'a Case,
    contenders: Vec<ContenderJson<'a>>,
}

impl Serialize for Chart<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let contenders = self.schedules.iter().map(|(contender, schedule)| ContenderJson {
            contender,
            measures: schedule.measures(self.case),
            schedule,
        });
        ChartJson { case: self.case, contenders: contenders.collect() }.serialize(serializer)
    }
}

impl fmt::Display for Chart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_case(f)?;
        for (contender, schedule) in &self.schedules {
            let Measures { completion_ms, makespan_ms } = schedule.measures(self.case);
            let (mean, last) = (completion_ms / 1000.0, makespan_ms / 1000.0);
            writeln!(f, "\n{contender}: mean completion {mean:.1} s, last end {last:.1} s")?;
            // To a scale of its own: beside a schedule a hundred times longer there would be nothing to see.
            let whole_ms = makespan_ms.max(1.0);
            for (index, device) in self.case.devices.iter().enumerate() {
                write_row(f, index, device, schedule, whole_ms)?;
            }
        }
        Ok(())
    }
}

impl Chart<'_> {
    fn write_case(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { name, devices, jobs, durations_ms } = self.case;
        writeln!(f, "{name}: seconds that each job takes on each device\n")?;
        write!(f, "{:>4}{:>9}{:>12}  {:10}", "job", "steps", "submitted", "wishes")?;
        devices.iter().enumerate().try_for_each(|(index, on)| write!(f, "{:>12}", label(index, on)))?;
        writeln!(f)?;
        for (index, job) in jobs.iter().enumerate() {
            let kinds: Vec<_> = job.kinds.iter().map(|kind| kind.name()).collect();
            let submitted_secs = job.submitted_ms as f64 / 1000.0;
            write!(f, "{index:>4}{:>9}{submitted_secs:>12.1}  {:10}", job.steps, kinds.join(","))?;
            for duration_ms in &durations_ms[index] {
                let secs = duration_ms.map_or("-".to_owned(), |ms| format!("{:.1}", ms as f64 / 1000.0));
                write!(f, "{secs:>12}")?;
            }
            writeln!(f)?;
        }
        for (index, device) in devices.iter().enumerate() {
            let CaseDevice { known_steps_per_sec, true_steps_per_sec, .. } = device;
            let label = label(index, device);
            writeln!(
                f,
                "{label:>37}: calibrated to {known_steps_per_sec:.3} steps/s, makes {true_steps_per_sec:.3}"
            )?;
        }
        Ok(())
    }
}

fn label(index: usize, device: &CaseDevice) -> String {
    format!("{index}:{}", device.kind)
}

/// The runs of one device, as a bar of the whole and as numbers.
fn write_row(
    f: &mut fmt::Formatter<'_>,
    index: usize,
    device: &CaseDevice,
    schedule: &Schedule,
    whole_ms: f64,
) -> fmt::Result {
    let mut runs: Vec<_> = schedule.runs.iter().filter(|run| run.device == index).collect();
    runs.sort_unstable_by_key(|run| run.start_ms);
    let column = |ms: u64| (ms as f64 / whole_ms * CHART_WIDTH as f64) as usize;
    let mut bar = [b'.'; CHART_WIDTH];
    for run in &runs {
        let first = column(run.start_ms).min(CHART_WIDTH - 1);
        let end = column(run.end_ms).clamp(first + 1, CHART_WIDTH);
        bar[first..end].fill(MARKS[run.job.min(MARKS.len() - 1)]);
    }
    write!(f, "  {:8}{}", label(index, device), String::from_utf8_lossy(&bar))?;
    for run in runs {
        let [start, end] = [run.start_ms, run.end_ms].map(|ms| ms as f64 / 1000.0);
        write!(f, "  {}: {start:.1}-{end:.1}", run.job)?;
    }
    writeln!(f)
}

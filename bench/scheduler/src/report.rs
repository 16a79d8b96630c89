//! What was found, as tables and as JSON.

use std::fmt;

use serde::Serialize;

use crate::{
    cases::CaseName,
    comparison::{AIM_RATIO, Beside, Compared, Group, Measure},
    speed::Timing,
};

/// What one plan may take: from nothing, and after one change.
const AIM_MS: [f64; 2] = [1000.0, 50.0];

#[derive(Serialize)]
pub(crate) struct Report {
    /// Families, and then families together.
    pub(crate) quality: Vec<Group>,
    /// The first from nothing, the others after one change.
    pub(crate) speed: Vec<Timing>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.quality.is_empty() {
            self.write_quality(f, Measure::Completion, "Mean time from submission to end")?;
            self.write_quality(f, Measure::Makespan, "Time to the end of the last job")?;
            self.write_aims(f)?;
        }
        if !self.speed.is_empty() {
            self.write_speed(f)?;
        }
        Ok(())
    }
}

impl Report {
    fn write_quality(&self, f: &mut fmt::Formatter<'_>, measure: Measure, what: &str) -> fmt::Result {
        writeln!(
            f,
            "{what}, divided by the optimum's; cases in which FIFO does better, and the worst of them\n"
        )?;
        writeln!(f, "{:50}  {:42}  {:28}  fifo", "", "hatchery", "greedy")?;
        write!(f, "{:36}{:>6}{:>8}", "family", "cases", "optima")?;
        write!(f, "  {:>6}{:>8}{:>6}{:>8}{:>7}{:>7}", "mean", "worst", "case", "in 5 %", ">fifo", "case")?;
        writeln!(
            f,
            "  {:>6}{:>8}{:>8}{:>6}  {:>6}{:>8}",
            "mean", "worst", "in 5 %", ">fifo", "mean", "worst"
        )?;
        for group in &self.quality {
            let Compared { optima, hatchery, greedy, fifo, .. } = group.by(measure);
            let case = |name: Option<CaseName>| match name {
                Some(name) if group.is_family => name.number.to_string(),
                _ => "-".to_owned(),
            };
            write!(f, "{:36}{:>6}{optima:>8}", group.name, group.cases)?;
            write!(f, "  {:>6}{:>8}", Ratio(hatchery.ratio_mean), Ratio(hatchery.ratio_worst))?;
            write!(f, "{:>6}{:>8}", case(hatchery.worst), Share(hatchery.within_aim))?;
            write!(f, "{:>7}{:>7}", hatchery.worse_than_fifo, case(hatchery.worst_beside_fifo))?;
            write!(f, "  {:>6}{:>8}", Ratio(greedy.ratio_mean), Ratio(greedy.ratio_worst))?;
            write!(f, "{:>8}{:>6}", Share(greedy.within_aim), greedy.worse_than_fifo)?;
            writeln!(f, "  {:>6}{:>8}", Ratio(fifo.ratio_mean), Ratio(fifo.ratio_worst))?;
        }
        writeln!(f)
    }

    /// What the families come to together, and the aims; and what the least mean costs in the makespan.
    fn write_aims(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |ratio: f64| format!("{:.1} %", 100.0 * (ratio - 1.0));
        let above = |beside: &Beside| beside.ratio_mean.map_or("-".to_owned(), percent);
        writeln!(f, "{:36}{:>6}  above the optimum    worse than FIFO      least mean itself", "", "")?;
        write!(f, "{:36}{:>6}  {:>8}{:>11}", "", "cases", "mean", "last end")?;
        writeln!(f, "{:>10}{:>11}{:>15}{:>8}", "mean", "last end", "last end", ">fifo")?;
        for group in self.quality.iter().filter(|group| !group.is_family) {
            let [mean, last] = Measure::ALL.map(|measure| &group.by(measure).hatchery);
            write!(f, "{:36}{:>6}  {:>8}{:>11}", group.name, group.cases, above(mean), above(last))?;
            write!(f, "{:>10}{:>11}", mean.worse_than_fifo, last.worse_than_fifo)?;
            let least = &group.makespan.least_mean;
            writeln!(f, "{:>15}{:>8}", above(least), least.worse_than_fifo)?;
        }
        let aim = percent(AIM_RATIO);
        writeln!(f, "{:36}{:>6}  {aim:>8}{:>11}{:>10}{:>11}\n", "aim", "", "", 0, 0)
    }

    fn write_speed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:26}{:>8}{:>9}", "one plan after", "queued", "granted")?;
        writeln!(f, "{:>12}{:>12}{:>10}", "median ms", "worst ms", "aim ms")?;
        for (index, timing) in self.speed.iter().enumerate() {
            let Timing { after, queued, granted, median_ms, worst_ms } = timing;
            let aim_ms = AIM_MS[index.min(1)];
            write!(f, "{after:26}{queued:>8}{granted:>9}")?;
            writeln!(f, "{median_ms:>12.1}{worst_ms:>12.1}{aim_ms:>10.0}")?;
        }
        Ok(())
    }
}

/// A ratio with three decimals, or with one where it is large.
struct Ratio(Option<f64>);

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.pad("-"),
            Some(ratio) if ratio < 10.0 => f.pad(&format!("{ratio:.3}")),
            Some(ratio) => f.pad(&format!("{ratio:.1}")),
        }
    }
}

/// A share in percent.
struct Share(Option<f64>);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        f.pad(&text)
    }
}

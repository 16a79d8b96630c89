//! What came of it, as tables and as JSON.

use std::fmt::{self, Write as _};

use console::{Alignment, pad_str};
use serde::Serialize;

use super::transfer::Run;

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Nominal Mbit/s of an ordinary link, and what one TCP stream carries over it.
    pub(super) rate_mbit: f64,
    pub(super) goodput_mbit: f64,
    pub(super) cases: Vec<Row>,
    pub(super) scenarios: Vec<Outcome>,
    /// What was left out, and why.
    pub(super) left_out: Vec<String>,
}

/// A case, measured several times with one contender.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) case: String,
    pub(super) contender: &'static str,
    pub(super) repeats: usize,
    pub(super) floor_secs: f64,
    pub(super) last_median: f64,
    pub(super) last_worst: f64,
    pub(super) mean_median: f64,
    pub(super) source_copies: f64,
    pub(super) processor_secs_per_gb: f64,
    pub(super) idle_share: f64,
}

impl Row {
    /// Sums up at least one run.
    pub(super) fn of(case: String, contender: &'static str, floor_secs: f64, runs: &[Run]) -> Self {
        let all = |run: &Run| run.secs_of(|_| true);
        let each = |figure: &dyn Fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<f64>>();
        let last = each(&|run| largest(&all(run)) / floor_secs);
        Self {
            case,
            contender,
            repeats: runs.len(),
            floor_secs,
            last_median: median(&last),
            last_worst: largest(&last),
            mean_median: median(&each(&|run| mean(&all(run)) / floor_secs)),
            source_copies: median(&each(&|run| run.source_bytes as f64 / run.bytes as f64)),
            processor_secs_per_gb: median(&each(&Run::processor_secs_per_gb)),
            idle_share: median(&each(&|run| run.idle_share)),
        }
    }
}

/// A scenario, with its figures by name: `others last / floor`, `1.06`.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) scenario: String,
    pub(super) contender: &'static str,
    pub(super) figures: Vec<(&'static str, f64)>,
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let half = values.len() / 2;
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The value that a share of all values do not exceed; NaN of nothing.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let rank = (share * values.len() as f64).ceil() as usize;
    sorted(values).get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// The largest; NaN of nothing.
pub(super) fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// The mean; NaN of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rate_mbit > 0.0 {
            writeln!(
                formatter,
                "links of {:.0} Mbit/s each way; one TCP stream carries {:.1} Mbit/s of payload, which the floor counts with",
                self.rate_mbit, self.goodput_mbit
            )?;
        }
        if !self.cases.is_empty() {
            let head = [
                "case",
                "contender",
                "runs",
                "floor s",
                "last/floor",
                "worst",
                "mean/floor",
                "source/F",
                "CPU s/GB",
                "idle",
            ];
            let cells = |row: &Row| {
                vec![
                    row.case.clone(),
                    row.contender.to_owned(),
                    row.repeats.to_string(),
                    format!("{:.2}", row.floor_secs),
                    format!("{:.3}", row.last_median),
                    format!("{:.3}", row.last_worst),
                    format!("{:.3}", row.mean_median),
                    format!("{:.2}", row.source_copies),
                    format!("{:.2}", row.processor_secs_per_gb),
                    format!("{:.0} %", row.idle_share * 100.0),
                ]
            };
            formatter.write_str(&table(&head, &self.cases.iter().map(cells).collect::<Vec<_>>()))?;
        }
        if !self.scenarios.is_empty() {
            let cells = |outcome: &Outcome| {
                let figures = outcome.figures.iter().map(|(name, value)| format!("{name} {value:.3}"));
                vec![
                    outcome.scenario.clone(),
                    outcome.contender.to_owned(),
                    figures.collect::<Vec<_>>().join("  "),
                ]
            };
            writeln!(formatter)?;
            let rows: Vec<_> = self.scenarios.iter().map(cells).collect();
            formatter.write_str(&table(&["scenario", "contender", "figures"], &rows))?;
        }
        for line in &self.left_out {
            writeln!(formatter, "left out: {line}")?;
        }
        Ok(())
    }
}

/// Columns that align: words to the left, figures to the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let is_figure = |column: usize| {
        rows.iter().all(|row| row[column].starts_with(|first: char| first.is_ascii_digit()) && column > 0)
    };
    let head = head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let side = if is_figure(column) { Alignment::Right } else { Alignment::Left };
            pad_str(cell, width(column), side, None)
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::Taken;

    fn run(secs: &[f64]) -> Run {
        Run {
            bytes: 1_000_000_000,
            secs: secs.iter().copied().map(Some).collect(),
            source_bytes: 1_100_000_000,
            source_processor: Taken::default(),
            processor: Taken { user_secs: 3.0, system_secs: 1.0 },
            idle_share: 0.5,
        }
    }

    #[test]
    fn rows_hold_medians_and_the_worst() {
        let row = Row::of(
            "N = 2".into(),
            "swarm",
            10.0,
            &[run(&[10.0, 11.0]), run(&[10.0, 15.0]), run(&[10.0, 12.0])],
        );
        assert_eq!((row.last_median, row.last_worst, row.repeats), (1.2, 1.5, 3));
        assert!((row.mean_median - 1.1).abs() < 1e-9 && (row.source_copies - 1.1).abs() < 1e-9);
        assert!((row.processor_secs_per_gb - 2.0).abs() < 1e-9);
    }

    #[test]
    fn orders_are_kept() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((quantile(&hundred, 0.99) - 99.0).abs() < 1e-9);
        assert!((quantile(&[7.0], 0.99) - 7.0).abs() < 1e-9);
        assert!(median(&[]).is_nan() && quantile(&[], 0.5).is_nan() && largest(&[]).is_nan());
    }

    #[test]
    fn columns_align() {
        let rows = [vec!["a".to_owned(), "1.5".to_owned()], vec!["long".to_owned(), "10.25".to_owned()]];
        assert_eq!(table(&["case", "n"], &rows), "case      n\na       1.5\nlong  10.25\n");
    }
}

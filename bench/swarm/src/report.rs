//! The tables.

use std::fmt;

use serde::Serialize;

use crate::{
    cases::{Case, Group},
    simulation::{Outcome, Policy, simulate},
    upkeep::Upkeep,
};

/// All that was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub cases: Vec<Row>,
    pub upkeep: Vec<Upkeep>,
}

/// What came of one case, over some seeds: the worst of each.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub case: String,
    pub receivers: usize,
    pub size_bytes: u64,
    pub groups: Vec<GroupRow>,
    /// Bytes out of the source by the size of the blob.
    pub source_copies: f64,
    /// Bytes that came and were there already, by all that came.
    pub duplicates_share: f64,
    /// Pieces that came and were wrong.
    pub refused: usize,
    /// Most children beyond a node's upload slots.
    pub slots_over: usize,
    /// Microseconds of processor time of the tracker for each node.
    pub tracker_us_per_node: f64,
}

/// How a case's receivers fared.
#[derive(Clone, Debug, Serialize)]
pub struct GroupRow {
    pub who: &'static str,
    pub floor_secs: f64,
    /// When the last one had everything, by the floor; none if one of them never had.
    pub last: Option<f64>,
    /// The mean of all, by the floor.
    pub mean: Option<f64>,
    /// The last one's under the other policies, in their order.
    pub others: Vec<Option<f64>>,
}

/// The policies beside Hatchery's.
pub const OTHERS: [(&str, Policy); 3] =
    [("star", Policy::Star), ("chain", Policy::Chain), ("random", Policy::Random)];

impl Row {
    /// Runs a case under so many seeds, and under the other policies if wanted.
    pub fn of(case: &Case, seeds: u64, with_others: bool) -> Self {
        let run = |policy| -> Vec<Outcome> { (0..seeds).map(|seed| simulate(case, policy, seed)).collect() };
        let outcomes = run(Policy::House);
        let others: Vec<Vec<Outcome>> =
            OTHERS.iter().filter(|_| with_others).map(|&(_, policy)| run(policy)).collect();
        let worst = |value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(value).fold(0.0, f64::max);
        let size = case.size_bytes as f64;
        let (receivers, count) = (case.nodes.len() - case.sources, f64::from(case.piece_count()));
        let group = |group: Group| GroupRow {
            who: group.name,
            floor_secs: group.floor_secs,
            last: worst_of(&outcomes, |outcome| outcome.last_secs(&group))
                .map(|secs| secs / group.floor_secs),
            mean: worst_of(&outcomes, |outcome| outcome.mean_secs(&group))
                .map(|secs| secs / group.floor_secs),
            others: (others.iter())
                .map(|outcomes| worst_of(outcomes, |outcome| outcome.last_secs(&group)))
                .map(|secs| secs.map(|secs| secs / group.floor_secs))
                .collect(),
        };
        Self {
            case: case.name.clone(),
            receivers,
            size_bytes: case.size_bytes,
            groups: case.groups().into_iter().map(group).collect(),
            source_copies: worst(&|outcome| outcome.sent_bytes[..case.sources].iter().sum::<f64>() / size),
            duplicates_share: worst(&|outcome| outcome.duplicates as f64 / (receivers as f64 * count)),
            refused: outcomes.iter().map(|outcome| outcome.refused).max().unwrap_or(0),
            slots_over: outcomes.iter().map(|outcome| outcome.slots_over_max).max().unwrap_or(0),
            tracker_us_per_node: worst(&|outcome| 1e6 * outcome.tracker_secs / case.nodes.len() as f64),
        }
    }
}

/// The worst, if there is one for each.
fn worst_of(outcomes: &[Outcome], value: impl Fn(&Outcome) -> Option<f64>) -> Option<f64> {
    outcomes.iter().map(value).try_fold(0.0, |worst: f64, value| value.map(|value| worst.max(value)))
}

impl Outcome {
    /// When the last of a group had everything.
    pub fn last_secs(&self, group: &Group) -> Option<f64> {
        let times = group.receivers.iter().map(|&node| self.done_secs[node]);
        times.reduce(|last, secs| Some(last?.max(secs?))).flatten()
    }

    /// When those of a group had everything, as a mean.
    pub fn mean_secs(&self, group: &Group) -> Option<f64> {
        let times = group.receivers.iter().map(|&node| self.done_secs[node]);
        let sum = times.reduce(|sum, secs| Some(sum? + secs?)).flatten();
        sum.map(|sum| sum / group.receivers.len() as f64)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::write_head(f)?;
        for row in &self.cases {
            row.write(f)?;
        }
        if !self.upkeep.is_empty() {
            write!(f, "\n{:36}{:>6}{:>12}", "tracker alone: a node", "N", "bytes/node")?;
            writeln!(f, "{:>12}{:>14}", "us/event", "plans/event")?;
        }
        for upkeep in &self.upkeep {
            for (at, (name, each_us, plans)) in upkeep.events.iter().enumerate() {
                write!(f, "{name:36}")?;
                match at {
                    0 => write!(f, "{:>6}{:>12.0}", upkeep.receivers, upkeep.bytes_per_node)?,
                    _ => write!(f, "{:18}", "")?,
                }
                writeln!(f, "{each_us:>12.1}{plans:>14.2}")?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn write_head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:36}{:>6}{:>5}  {:7}{:>8}", "", "", "", "", "")?;
        writeln!(f, "  {:14}  others, last/floor", "Hatchery")?;
        write!(f, "{:36}{:>6}{:>5}  {:7}{:>8}", "case", "N", "MB", "who", "floor s")?;
        write!(f, "  {:>6}  {:>6}", "last", "mean")?;
        for (name, _) in OTHERS {
            write!(f, "  {name:>6}")?;
        }
        writeln!(f, "  {:>8}  {:>5}  {:>5}  {:>9}", "source/F", "dup %", "wrong", "tracker us")
    }
}

impl Row {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, group) in self.groups.iter().enumerate() {
            let megabytes = self.size_bytes / 1_000_000;
            match at {
                0 => write!(f, "{:36}{:>6}{megabytes:>5}", self.case, self.receivers)?,
                _ => write!(f, "{:47}", "")?,
            }
            write!(f, "  {:7}{:>8.2}", group.who, group.floor_secs)?;
            write!(f, "  {:>6}  {:>6}", Ratio(group.last), Ratio(group.mean))?;
            for place in 0..OTHERS.len() {
                match group.others.get(place) {
                    Some(&other) => write!(f, "  {:>6}", Ratio(other))?,
                    None => write!(f, "  {:6}", "")?,
                }
            }
            if at == 0 {
                write!(f, "  {:>8.3}  {:>5.2}", self.source_copies, 100.0 * self.duplicates_share)?;
                write!(f, "  {:>5}  {:>10.1}", self.refused, self.tracker_us_per_node)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A ratio; a dash for what never came.
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

//! The contenders beside the optimum and beside FIFO, over many cases.

use serde::Serialize;

use crate::{
    cases::{CaseName, Family},
    contenders::Measures,
};

/// A mean over the optimum by so much at most is what the scheduler aims at.
pub(crate) const AIM_RATIO: f64 = 1.05;

/// The contenders that know no more than they are told, in the order of every list of them.
pub(crate) const CONTENDERS: [&str; 3] = ["hatchery", "greedy", "fifo"];
const FIFO: usize = 2;
/// Beside them stands the schedule of the least mean completion time, which need not end first.
const LEAST_MEAN: usize = 3;

/// What each contender and the optimum come to in one case.
pub(crate) struct Outcome {
    pub(crate) name: CaseName,
    pub(crate) contenders: [Measures; CONTENDERS.len()],
    /// What the schedule of the least mean completion time comes to, where it is known.
    pub(crate) least_mean: Option<Measures>,
    /// The least of each measure, where it is known.
    pub(crate) least_ms: [Option<f64>; Measure::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Completion,
    Makespan,
}

impl Outcome {
    fn taken_ms(&self, measure: Measure, contender: usize) -> Option<f64> {
        let measures = self.contenders.get(contender).copied();
        measures.or(self.least_mean.filter(|_| contender == LEAST_MEAN)).map(|taken| measure.of(taken))
    }
}

impl Measure {
    pub(crate) const ALL: [Self; 2] = [Self::Completion, Self::Makespan];

    pub(crate) const fn of(self, measures: Measures) -> f64 {
        match self {
            Self::Completion => measures.completion_ms,
            Self::Makespan => measures.makespan_ms,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// Whether it is one family, so that the number of a case says which it is.
    pub(crate) is_family: bool,
    pub(crate) cases: usize,
    pub(crate) completion: Compared,
    pub(crate) makespan: Compared,
}

/// The contenders by one measure.
#[derive(Serialize)]
pub(crate) struct Compared {
    /// Cases whose optimum is known.
    pub(crate) optima: usize,
    pub(crate) hatchery: Beside,
    pub(crate) greedy: Beside,
    pub(crate) fifo: Beside,
    /// The schedule of the least mean completion time.
    pub(crate) least_mean: Beside,
}

/// One contender beside the optimum and beside FIFO.
#[derive(Serialize)]
pub(crate) struct Beside {
    /// Mean over the cases of what it takes, divided by the optimum.
    pub(crate) ratio_mean: Option<f64>,
    /// The worst of these ratios, and its case.
    pub(crate) ratio_worst: Option<f64>,
    pub(crate) worst: Option<CaseName>,
    /// Share of the cases in which it is within the aim.
    pub(crate) within_aim: Option<f64>,
    /// Cases in which FIFO does better.
    pub(crate) worse_than_fifo: usize,
    /// What it takes divided by what FIFO takes, at the worst, and the case.
    pub(crate) ratio_to_fifo_worst: Option<f64>,
    pub(crate) worst_beside_fifo: Option<CaseName>,
}

/// One group for each family, and then the families together, by what the scheduler is told.
pub(crate) fn compare(outcomes: &[Outcome]) -> Vec<Group> {
    let families = Family::all();
    let families = families.iter().map(|family| {
        let of_family = outcomes.iter().filter(|one| one.name.family == *family);
        Group::new(family.to_string(), true, of_family.collect())
    });
    let together = [
        ("all at once", false, false),
        ("all with arrivals", true, false),
        ("all at once, with surprises", false, true),
        ("all with arrivals and surprises", true, true),
    ];
    let together = together.into_iter().map(|(name, arrivals, surprises)| {
        let is_in = |family: Family| (family.arrivals, family.surprises) == (arrivals, surprises);
        let those = outcomes.iter().filter(|one| is_in(one.name.family));
        Group::new(name.to_owned(), false, those.collect())
    });
    families.chain(together).filter(|group| group.cases > 0).collect()
}

impl Group {
    fn new(name: String, is_family: bool, outcomes: Vec<&Outcome>) -> Self {
        let [completion, makespan] = Measure::ALL.map(|measure| Compared::new(&outcomes, measure));
        Self { name, is_family, cases: outcomes.len(), completion, makespan }
    }

    pub(crate) fn by(&self, measure: Measure) -> &Compared {
        match measure {
            Measure::Completion => &self.completion,
            Measure::Makespan => &self.makespan,
        }
    }
}

impl Compared {
    fn new(outcomes: &[&Outcome], measure: Measure) -> Self {
        let is_known = |outcome: &&&Outcome| outcome.least_ms[measure as usize].is_some();
        let optima = outcomes.iter().filter(is_known).count();
        let [hatchery, greedy, fifo, least_mean] =
            [0, 1, FIFO, LEAST_MEAN].map(|which| Beside::new(outcomes, measure, which));
        Self { optima, hatchery, greedy, fifo, least_mean }
    }
}

impl Beside {
    fn new(outcomes: &[&Outcome], measure: Measure, contender: usize) -> Self {
        let to_optimum = |outcome: &&Outcome| {
            let least_ms = outcome.least_ms[measure as usize]?;
            Some((outcome.taken_ms(measure, contender)? / least_ms, outcome.name))
        };
        let to_fifo = |one: &&Outcome| {
            Some((one.taken_ms(measure, contender)? / one.taken_ms(measure, FIFO)?, one.name))
        };
        let to_optimum: Vec<_> = outcomes.iter().filter_map(to_optimum).collect();
        // Means of the same times in another order may differ in the last bits.
        let worse: Vec<_> =
            outcomes.iter().filter_map(to_fifo).filter(|(ratio, _)| *ratio > 1.0 + 1e-9).collect();
        let mean = |sum: f64| (!to_optimum.is_empty()).then(|| sum / to_optimum.len() as f64);
        let (ratio_worst, worst_case) = worst(&to_optimum).unzip();
        let (ratio_to_fifo_worst, worst_beside_fifo) = worst(&worse).unzip();
        Self {
            ratio_mean: mean(to_optimum.iter().map(|(ratio, _)| ratio).sum()),
            ratio_worst,
            worst: worst_case,
            within_aim: mean(to_optimum.iter().filter(|(ratio, _)| *ratio <= AIM_RATIO).count() as f64),
            worse_than_fifo: worse.len(),
            ratio_to_fifo_worst,
            worst_beside_fifo,
        }
    }
}

/// The first of the greatest ratio.
fn worst(ratios: &[(f64, CaseName)]) -> Option<(f64, CaseName)> {
    ratios.iter().copied().reduce(|worst, one| if one.0 > worst.0 { one } else { worst })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_shares_and_counts_are_those_of_the_cases() {
        let outcome = |case: &str, [hatchery, greedy, fifo]: [f64; 3], least_ms: Option<f64>| {
            let both = |ms| Measures { completion_ms: ms, makespan_ms: ms };
            let contenders = [both(hatchery), both(greedy), both(fifo)];
            let least_mean =
                least_ms.map(|completion_ms| Measures { completion_ms, makespan_ms: 2.0 * fifo });
            Outcome { name: case.parse().unwrap(), contenders, least_mean, least_ms: [least_ms, None] }
        };
        let outcomes = [
            outcome("triple/0", [10.0, 12.0, 20.0], Some(10.0)),
            outcome("triple/1", [30.0, 20.0, 24.0], Some(20.0)),
            outcome("triple/2", [30.0, 20.0, 20.0], None),
            outcome("random+arrivals/7", [1.0, 1.0, 1.0], Some(1.0)),
        ];
        let groups = compare(&outcomes);
        let names: Vec<_> = groups.iter().map(|group| (group.name.as_str(), group.cases)).collect();
        assert_eq!(
            names,
            [("triple", 3), ("random+arrivals", 1), ("all at once", 3), ("all with arrivals", 1)]
        );
        let Compared { optima, hatchery, greedy, fifo, least_mean } = &groups[0].completion;
        assert_eq!((*optima, groups[0].makespan.optima), (2, 0));
        assert_eq!(
            (hatchery.ratio_mean, hatchery.ratio_worst, hatchery.within_aim),
            (Some(1.25), Some(1.5), Some(0.5))
        );
        assert_eq!(hatchery.worst.unwrap().to_string(), "triple/1");
        assert_eq!((hatchery.worse_than_fifo, hatchery.ratio_to_fifo_worst), (2, Some(1.5)));
        assert_eq!(hatchery.worst_beside_fifo.unwrap().to_string(), "triple/2");
        assert_eq!((greedy.ratio_mean, greedy.worse_than_fifo), (Some(1.1), 0));
        assert_eq!((fifo.ratio_mean, fifo.worse_than_fifo, fifo.worst_beside_fifo), (Some(1.6), 0, None));
        assert_eq!((least_mean.ratio_worst, least_mean.worse_than_fifo), (Some(1.0), 0));
        let makespan = &groups[0].makespan;
        assert_eq!((makespan.hatchery.ratio_mean, makespan.least_mean.worse_than_fifo), (None, 2));
    }
}

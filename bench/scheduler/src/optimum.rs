//! The optimum, by one who knows all: every true duration, and every job that will come.
//!
//! Up to [`JOBS_SEARCHED_MAX`] jobs a search over all subsets finds the least mean completion time and the
//! least makespan, arrivals included. Of more jobs, all there at the start, the least mean completion time is
//! an assignment of least cost: a job that is the k-th from the end on its device adds k times its duration
//! to the sum.

use crate::{
    cases::Case,
    contenders::{Run, Schedule},
};

/// Most jobs that are searched: 3 to this power times devices.
pub(crate) const JOBS_SEARCHED_MAX: usize = 10;

/// The best schedules, where they can be computed.
#[derive(Default)]
pub(crate) struct Optimum {
    /// Of the least mean completion time.
    pub(crate) completion: Option<Schedule>,
    /// Of the least makespan.
    pub(crate) makespan: Option<Schedule>,
}

pub(crate) fn optimum(case: &Case) -> Optimum {
    if case.jobs.len() <= JOBS_SEARCHED_MAX {
        searched(case)
    } else if case.jobs.iter().all(|job| job.submitted_ms == 0) {
        Optimum { completion: Some(assigned(case)), makespan: None }
    } else {
        Optimum::default()
    }
}

/// Some jobs, as bits.
type Jobs = usize;

fn of_set(jobs: Jobs) -> impl Iterator<Item = usize> {
    (0..usize::BITS as usize).filter(move |job| jobs >> job & 1 > 0)
}

/// One order of some jobs on one device: when the last ends, and the sum of all ends. An order is worth
/// keeping as long as no other is better in both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    end_ms: u64,
    sum_ms: u64,
}

impl Line {
    fn then(self, case: &Case, job: usize, device: usize) -> Option<Self> {
        let duration_ms = case.durations_ms[job][device]?;
        let end_ms = self.end_ms.max(case.jobs[job].submitted_ms) + duration_ms;
        Some(Self { end_ms, sum_ms: self.sum_ms + end_ms })
    }
}

/// For each set of jobs, the lines on `device` that are worth keeping, ends ascending and sums descending;
/// none, if a job of the set cannot run there.
fn lines(case: &Case, device: usize) -> Vec<Vec<Line>> {
    let mut lines: Vec<Vec<Line>> = vec![vec![Line { end_ms: 0, sum_ms: 0 }]];
    for set in 1..1 << case.jobs.len() {
        let mut found: Vec<Line> = of_set(set)
            .flat_map(|last| {
                lines[set ^ 1 << last].iter().filter_map(move |line| line.then(case, last, device))
            })
            .collect();
        if of_set(set).any(|job| case.durations_ms[job][device].is_none()) {
            found.clear();
        }
        found.sort_unstable();
        let mut least_ms = u64::MAX;
        found.retain(|line| {
            let better = line.sum_ms < least_ms;
            least_ms = least_ms.min(line.sum_ms);
            better
        });
        lines.push(found);
    }
    lines
}

fn searched(case: &Case) -> Optimum {
    let lines: Vec<_> = (0..case.devices.len()).map(|device| lines(case, device)).collect();
    let least_sum = |lines: &[Line]| lines.last().map(|line| line.sum_ms);
    let least_end = |lines: &[Line]| lines.first().map(|line| line.end_ms);
    let schedule = |parts: Vec<Jobs>, wanted: fn(&[Line]) -> Option<&Line>| {
        let runs = parts.into_iter().enumerate().flat_map(|(device, set)| {
            let line = wanted(&lines[device][set]).expect("a part of the best has a line");
            runs(case, &lines[device], device, set, *line)
        });
        Schedule { runs: runs.collect() }
    };
    Optimum {
        completion: split(case, &lines, least_sum, |a, b| a + b).map(|parts| schedule(parts, <[Line]>::last)),
        makespan: split(case, &lines, least_end, u64::max).map(|parts| schedule(parts, <[Line]>::first)),
    }
}

/// Splits the jobs among the devices so that the costs of the parts, joined, are least.
fn split(
    case: &Case,
    lines: &[Vec<Vec<Line>>],
    cost: impl Fn(&[Line]) -> Option<u64>,
    join: impl Fn(u64, u64) -> u64,
) -> Option<Vec<Jobs>> {
    let sets = 1 << case.jobs.len();
    // The least cost of each set on the devices so far; and for each device, the part of each set that is
    // best put there.
    let mut least: Vec<Option<u64>> = vec![None; sets];
    least[0] = Some(0);
    let mut parts: Vec<Vec<Jobs>> = Vec::new();
    for lines in lines {
        let costs: Vec<Option<u64>> = lines.iter().map(|lines| cost(lines)).collect();
        let (mut better, mut chosen) = (vec![None; sets], vec![0; sets]);
        for set in 0..sets {
            let mut part = set;
            loop {
                if let (Some(here), Some(before)) = (costs[part], least[set ^ part]) {
                    let together = join(here, before);
                    if better[set].is_none_or(|best| together < best) {
                        (better[set], chosen[set]) = (Some(together), part);
                    }
                }
                if part == 0 {
                    break;
                }
                part = (part - 1) & set;
            }
        }
        least = better;
        parts.push(chosen);
    }
    least[sets - 1]?;
    let mut left = sets - 1;
    let mut split: Vec<Jobs> = parts
        .iter()
        .rev()
        .map(|chosen| {
            let part = chosen[left];
            left ^= part;
            part
        })
        .collect();
    split.reverse();
    Some(split)
}

/// The runs of `line`, found from its end to its start.
fn runs(case: &Case, lines: &[Vec<Line>], device: usize, set: Jobs, line: Line) -> Vec<Run> {
    let (mut set, mut line, mut runs) = (set, line, Vec::new());
    while set > 0 {
        let before =
            of_set(set).flat_map(|job| lines[set ^ 1 << job].iter().map(move |before| (job, *before)));
        let (job, before) = before
            .into_iter()
            .find(|(job, before)| before.then(case, *job, device) == Some(line))
            .expect("a line was made from one with a job less");
        let start_ms = before.end_ms.max(case.jobs[job].submitted_ms);
        runs.push(Run { job, device, start_ms, end_ms: line.end_ms });
        (set, line) = (set ^ 1 << job, before);
    }
    runs.reverse();
    runs
}

/// The schedule of the least mean completion time for jobs that are all there at the start.
fn assigned(case: &Case) -> Schedule {
    let jobs = case.jobs.len();
    // Dearer than any schedule, and small enough to be added up.
    let longest_ms = case.durations_ms.iter().flatten().flatten().max().copied().unwrap_or(0) as i64;
    let impossible = longest_ms * (jobs * jobs) as i64 + 1;
    let cost = |job: usize, place: usize| {
        let (device, from_end) = (place / jobs, place % jobs + 1);
        case.durations_ms[job][device].map_or(impossible, |duration_ms| duration_ms as i64 * from_end as i64)
    };
    let places = least_cost_assignment(jobs, jobs * case.devices.len(), cost);
    let mut by_place: Vec<(usize, usize)> = places.into_iter().zip(0..).collect();
    by_place.sort_unstable_by_key(|(place, _)| (place / jobs, jobs - place % jobs));
    let mut free_at_ms = vec![0; case.devices.len()];
    let runs = by_place.into_iter().map(|(place, job)| {
        let device = place / jobs;
        let start_ms = free_at_ms[device];
        free_at_ms[device] += case.durations_ms[job][device].expect("each job suits a device");
        Run { job, device, start_ms, end_ms: free_at_ms[device] }
    });
    Schedule { runs: runs.collect() }
}

/// The Hungarian method: a column of its own for each row, so that the sum of costs is least. There are at
/// least as many columns as rows.
fn least_cost_assignment(rows: usize, columns: usize, cost: impl Fn(usize, usize) -> i64) -> Vec<usize> {
    // Rows and columns count from 1 here; row 0 is the one to be placed, column 0 where its search starts.
    let (mut row_price, mut column_price) = (vec![0_i64; rows + 1], vec![0_i64; columns + 1]);
    let mut row_of = vec![0_usize; columns + 1];
    for row in 1..=rows {
        row_of[0] = row;
        let mut column = 0;
        let (mut slack, mut from) = (vec![i64::MAX; columns + 1], vec![0_usize; columns + 1]);
        let mut reached = vec![false; columns + 1];
        while row_of[column] != 0 {
            reached[column] = true;
            let here = row_of[column];
            let (mut least, mut next) = (i64::MAX, 0);
            for other in (1..=columns).filter(|other| !reached[*other]) {
                let reduced = cost(here - 1, other - 1) - row_price[here] - column_price[other];
                if reduced < slack[other] {
                    (slack[other], from[other]) = (reduced, column);
                }
                if slack[other] < least {
                    (least, next) = (slack[other], other);
                }
            }
            for other in 0..=columns {
                if reached[other] {
                    row_price[row_of[other]] += least;
                    column_price[other] -= least;
                } else {
                    slack[other] = slack[other].saturating_sub(least);
                }
            }
            column = next;
        }
        while column != 0 {
            row_of[column] = row_of[from[column]];
            column = from[column];
        }
    }
    let mut column_of = vec![0; rows];
    for column in (1..=columns).filter(|column| row_of[*column] != 0) {
        column_of[row_of[column] - 1] = column - 1;
    }
    column_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::Family;

    /// The least sum of ends and the least makespan, by every order of every split.
    fn by_force(case: &Case, left: Jobs, free_at_ms: &mut [u64], sum_ms: u64) -> (u64, u64) {
        if left == 0 {
            return (sum_ms, free_at_ms.iter().copied().max().unwrap());
        }
        let mut best = (u64::MAX, u64::MAX);
        for job in of_set(left) {
            for device in 0..free_at_ms.len() {
                let Some(duration_ms) = case.durations_ms[job][device] else { continue };
                let before = free_at_ms[device];
                free_at_ms[device] = before.max(case.jobs[job].submitted_ms) + duration_ms;
                let found = by_force(case, left ^ 1 << job, free_at_ms, sum_ms + free_at_ms[device]);
                best = (best.0.min(found.0), best.1.min(found.1));
                free_at_ms[device] = before;
            }
        }
        best
    }

    fn sum_ms(schedule: &Schedule) -> u64 {
        schedule.runs.iter().map(|run| run.end_ms).sum()
    }

    #[test]
    fn the_search_finds_what_force_finds() {
        let mut searched = 0;
        for family in Family::all() {
            let cases = (0..25).map(|number| family.case(number));
            for case in
                cases.filter(|case| case.jobs.len() <= 4 || case.jobs.len() == 5 && case.devices.len() < 4)
            {
                let all = (1 << case.jobs.len()) - 1;
                let (sum, makespan) = by_force(&case, all, &mut vec![0; case.devices.len()], 0);
                let found = optimum(&case);
                assert_eq!(sum_ms(&found.completion.unwrap()), sum, "{}", case.name);
                let end = found.makespan.unwrap().measures(&case).makespan_ms;
                assert!((end - makespan as f64).abs() < 0.5, "{}", case.name);
                searched += 1;
            }
        }
        assert!(searched > 200, "only {searched} cases are small enough");
    }

    #[test]
    fn the_assignment_finds_what_the_search_finds() {
        for family in Family::all().into_iter().filter(|family| !family.arrivals) {
            let cases = (0..12).map(|number| family.case(number));
            for case in cases.filter(|case| case.jobs.len() <= JOBS_SEARCHED_MAX) {
                let found = optimum(&case).completion.unwrap();
                assert_eq!(sum_ms(&assigned(&case)), sum_ms(&found), "{}", case.name);
            }
        }
    }
}

//! The schedule: which machine takes which tasks in which order. The world here is small integers and seconds.
//!
//! Tasks of the highest tier are placed first, those of the next behind them, and so on. Within a tier the aim is the
//! mean end of all tasks, each by its weight, and with a smaller share the end of the last one. Few tasks are placed by
//! local search from several starts, and never worse than first come, first served by either measure, nor than what was
//! meant a moment ago; many go, the shortest first, each to the machine where it ends first.

use std::cmp::Ordering;

/// What the end of the last task counts for, beside the mean end.
const MAKESPAN_SHARE: f64 = 0.25;
/// Beyond so many tasks, or tasks times machines, there is no search.
const SEARCH_TASKS_MAX: usize = 64;
const SEARCH_PAIRS_MAX: usize = 2048;
/// Times that the search looks at all moves.
const SEARCH_ROUNDS_MAX: usize = 100;
/// Times that what was found is taken as what was meant, to look once more.
const SETTLE_ROUNDS_MAX: usize = 8;
/// A gain smaller than this share is none.
const GAIN_SHARE_MIN: f64 = 1e-9;

/// A task for one of the machines.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Higher ones come first.
    pub(crate) tier: u64,
    /// What its end counts for in the mean.
    pub(crate) weight: f64,
    /// Which row of [`Problem::classes`].
    pub(crate) class: usize,
    pub(crate) steps: f64,
    /// Seconds before the first step on a machine that has not got what the task needs.
    pub(crate) fetch_secs: f64,
    /// The machines that have it, sorted.
    pub(crate) at_hand: Vec<usize>,
    /// Machines on which it takes so many seconds more than it should, sorted.
    pub(crate) slower: Vec<(usize, f64)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Problem {
    /// Seconds until each machine is free.
    pub(crate) free_in_secs: Vec<f64>,
    /// For each class of tasks, the seconds of a step on each machine; infinite where it cannot run.
    pub(crate) classes: Vec<Vec<f64>>,
    /// For each class, the least of them.
    pub(crate) least: Vec<f64>,
    /// The weight of the tasks that have begun: their ends are no matter of choice, and still there is no haste to end
    /// the last task long before them.
    pub(crate) weight_running: f64,
    /// In the order of their submission.
    pub(crate) tasks: Vec<Task>,
    /// The tasks of each machine as they were meant to be; may be short of some.
    pub(crate) intended: Vec<Vec<usize>>,
}

impl Problem {
    /// Seconds that a task keeps a machine; infinite where it cannot run.
    pub(crate) fn secs(&self, task: usize, machine: usize) -> f64 {
        let task = &self.tasks[task];
        let mut secs = task.steps * self.classes[task.class][machine];
        if task.at_hand.binary_search(&machine).is_err() {
            secs += task.fetch_secs;
        }
        if let Ok(index) = task.slower.binary_search_by_key(&machine, |(machine, _)| *machine) {
            secs += task.slower[index].1;
        }
        secs
    }

    /// The seconds of a task on every machine, into `row`.
    fn row(&self, task: usize, row: &mut [f64]) {
        let it = &self.tasks[task];
        for (secs, secs_per_step) in row.iter_mut().zip(&self.classes[it.class]) {
            *secs = it.steps * secs_per_step + it.fetch_secs;
        }
        for machine in it.exceptions() {
            row[machine] = self.secs(task, machine);
        }
    }

    /// The tasks of each machine, in their order.
    pub(crate) fn schedule(&self) -> Vec<Vec<usize>> {
        let mut tiers: Vec<u64> = self.tasks.iter().map(|task| task.tier).collect();
        tiers.sort_unstable_by(|a, b| b.cmp(a));
        tiers.dedup();
        let mut lines: Vec<Vec<usize>> = vec![Vec::new(); self.free_in_secs.len()];
        let mut free_in_secs = self.free_in_secs.clone();
        for tier in tiers {
            let tasks: Vec<usize> =
                (0..self.tasks.len()).filter(|task| self.tasks[*task].tier == tier).collect();
            for (machine, line) in self.place(&tasks, &free_in_secs).into_iter().enumerate() {
                free_in_secs[machine] += line.iter().map(|task| self.secs(*task, machine)).sum::<f64>();
                lines[machine].extend(line);
            }
        }
        lines
    }

    fn place(&self, tasks: &[usize], free_in_secs: &[f64]) -> Vec<Vec<usize>> {
        let machines = free_in_secs.len();
        if tasks.len() > SEARCH_TASKS_MAX || tasks.len() * machines > SEARCH_PAIRS_MAX {
            return self.shortest_first(tasks, free_in_secs);
        }
        Search::new(self, tasks, free_in_secs).best()
    }

    /// Each task, the shortest first, to the machine where it ends first.
    fn shortest_first(&self, tasks: &[usize], free_in_secs: &[f64]) -> Vec<Vec<usize>> {
        let mut free_in_secs = free_in_secs.to_vec();
        let mut lines: Vec<Vec<usize>> = vec![Vec::new(); free_in_secs.len()];
        let mut ends = vec![0.0; free_in_secs.len()];
        let length = |task: usize| {
            let it = &self.tasks[task];
            (it.steps * self.least[it.class]) / it.weight
        };
        let mut order: Vec<(f64, usize)> = tasks.iter().map(|task| (length(*task), *task)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, task) in order {
            self.ends(task, &free_in_secs, &mut ends);
            if let Some(machine) = least_of(&ends) {
                free_in_secs[machine] += self.secs(task, machine);
                lines[machine].push(task);
            }
        }
        lines
    }

    /// When a task would end on every machine, into `ends`.
    fn ends(&self, task: usize, free_in_secs: &[f64], ends: &mut [f64]) {
        let it = &self.tasks[task];
        for ((end, secs_per_step), free) in ends.iter_mut().zip(&self.classes[it.class]).zip(free_in_secs) {
            *end = it.steps * secs_per_step + it.fetch_secs + free;
        }
        for machine in it.exceptions() {
            ends[machine] = self.secs(task, machine) + free_in_secs[machine];
        }
    }
}

impl Task {
    /// The machines on which it takes another time than its class says.
    fn exceptions(&self) -> impl Iterator<Item = usize> {
        self.at_hand.iter().copied().chain(self.slower.iter().map(|(machine, _)| *machine))
    }

    /// Whether it takes the time that its class says on every machine.
    pub(crate) fn is_plain(&self) -> bool {
        self.at_hand.is_empty() && self.slower.is_empty()
    }
}

/// The place of the least number, if that is finite; of equal ones the first. Many are compared at once.
fn least_of(numbers: &[f64]) -> Option<usize> {
    const LANES: usize = 8;
    let mut lanes = [f64::INFINITY; LANES];
    let chunks = numbers.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f64::INFINITY, f64::min);
    for chunk in chunks {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane = if *number < *lane { *number } else { *lane };
        }
    }
    let least = lanes.into_iter().fold(rest, f64::min);
    // It is one of them, so nothing is below it or just beside it.
    if least.is_finite() { numbers.iter().position(|number| *number <= least) } else { None }
}

/// The first of the least numbers, infinite ones left out.
fn least(numbers: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best = (f64::INFINITY, None);
    for (index, number) in numbers.enumerate() {
        if number < best.0 {
            best = (number, Some(index));
        }
    }
    best.1
}

/// A tier of few tasks, with every number at hand.
struct Search<'a> {
    problem: &'a Problem,
    tasks: &'a [usize],
    weights: Vec<f64>,
    weight_running: f64,
    free_in_secs: &'a [f64],
    /// Seconds of each task on each machine, task by task.
    secs: Vec<f64>,
}

/// How good a placement is; less is better.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Score {
    /// The sum of the ends, by weight.
    sum: f64,
    /// The last end, of what has begun as well.
    makespan: f64,
    value: f64,
}

impl Score {
    fn is_within(self, other: Self) -> bool {
        let slack = 1.0 + GAIN_SHARE_MIN;
        self.sum <= other.sum * slack && self.makespan <= other.makespan * slack
    }
}

/// Which tasks, by their place in [`Search::tasks`], each machine takes, in order.
type Lines = Vec<Vec<usize>>;

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, tasks: &'a [usize], free_in_secs: &'a [f64]) -> Self {
        let mut secs = vec![0.0; tasks.len() * free_in_secs.len()];
        for (row, task) in secs.chunks_mut(free_in_secs.len().max(1)).zip(tasks) {
            problem.row(*task, row);
        }
        let weights = tasks.iter().map(|task| problem.tasks[*task].weight).collect();
        Self { problem, tasks, weights, weight_running: problem.weight_running, free_in_secs, secs }
    }

    fn secs(&self, task: usize, machine: usize) -> f64 {
        self.secs[task * self.free_in_secs.len() + machine]
    }

    fn best(&self) -> Vec<Vec<usize>> {
        let mut intended = self.intended();
        // What was found is what will be meant next time: until that finds nothing better either, there would be no rest.
        for _ in 0..SETTLE_ROUNDS_MAX {
            let found = self.best_beside(intended.as_ref());
            if intended.replace(found.clone()) == Some(found) {
                break;
            }
        }
        let lines = intended.unwrap_or_default();
        lines.into_iter().map(|line| line.into_iter().map(|task| self.tasks[task]).collect()).collect()
    }

    /// The best that is found from several starts, `intended` among them, and is no worse than that.
    fn best_beside(&self, intended: Option<&Lines>) -> Lines {
        let first_come = self.first_come();
        let bound = self.score(intended.unwrap_or(&first_come));
        let starts = [first_come, self.each_where_it_ends_first(), self.greedy_by_regret()];
        let found = intended.cloned().into_iter().chain(starts).map(|start| self.improved(start, bound));
        let mut best: Option<(bool, f64, Lines)> = None;
        for lines in found {
            let score = self.score(&lines);
            let one = (!score.is_within(bound), score.value, lines);
            let better = best
                .as_ref()
                .is_none_or(|best| one.0.cmp(&best.0).then(one.1.total_cmp(&best.1)) == Ordering::Less);
            if better {
                best = Some(one);
            }
        }
        best.map_or_else(Vec::new, |(_, _, lines)| lines)
    }

    /// As it was meant, if that says something of every task.
    fn intended(&self) -> Option<Lines> {
        let mut lines = vec![Vec::new(); self.free_in_secs.len()];
        let mut count = 0;
        for (machine, line) in self.problem.intended.iter().enumerate() {
            let ours = line.iter().filter_map(|task| self.tasks.binary_search(task).ok());
            lines[machine].extend(ours.filter(|task| self.secs(*task, machine).is_finite()));
            count += lines[machine].len();
        }
        (count == self.tasks.len()).then_some(lines)
    }

    /// As first come, first served: each, in the order of submission, on the machine that is free first.
    fn first_come(&self) -> Lines {
        let mut free = self.free_in_secs.to_vec();
        let mut lines = vec![Vec::new(); free.len()];
        for task in 0..self.tasks.len() {
            let can = |machine: usize| self.secs(task, machine).is_finite();
            let frees = free.iter().enumerate().map(|(m, free)| if can(m) { *free } else { f64::INFINITY });
            if let Some(machine) = least(frees) {
                free[machine] += self.secs(task, machine);
                lines[machine].push(task);
            }
        }
        lines
    }

    /// The shortest first, each where it ends first.
    fn each_where_it_ends_first(&self) -> Lines {
        let machines = 0..self.free_in_secs.len();
        let shortest =
            |task: usize| machines.clone().map(|m| self.secs(task, m)).fold(f64::INFINITY, f64::min);
        let mut order: Vec<(f64, usize)> =
            (0..self.tasks.len()).map(|task| (shortest(task) / self.weights[task], task)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut free = self.free_in_secs.to_vec();
        let mut lines = vec![Vec::new(); free.len()];
        for (_, task) in order {
            let ends = free.iter().enumerate().map(|(m, free)| free + self.secs(task, m));
            if let Some(machine) = least(ends) {
                free[machine] += self.secs(task, machine);
                lines[machine].push(task);
            }
        }
        lines
    }

    /// The task first that would lose most by its second best machine.
    fn greedy_by_regret(&self) -> Lines {
        let mut free = self.free_in_secs.to_vec();
        let mut lines = vec![Vec::new(); free.len()];
        let mut left: Vec<usize> = (0..self.tasks.len()).collect();
        while !left.is_empty() {
            let mut best: Option<(f64, usize, usize)> = None;
            for (index, task) in left.iter().enumerate() {
                let end = |m: usize| free[m] + self.secs(*task, m);
                let Some(first) = least((0..free.len()).map(end)) else { continue };
                let others = (0..free.len()).filter(|m| *m != first).map(end);
                let regret = others.fold(f64::INFINITY, f64::min) - end(first);
                if best.is_none_or(|best| regret > best.0) {
                    best = Some((regret, index, first));
                }
            }
            let Some((_, index, machine)) = best else { break };
            let task = left.remove(index);
            free[machine] += self.secs(task, machine);
            lines[machine].push(task);
        }
        lines
    }

    /// Local search: tasks move and change places while that makes things better.
    fn improved(&self, mut lines: Lines, bound: Score) -> Lines {
        for (machine, line) in lines.iter_mut().enumerate() {
            self.order(line, machine);
        }
        let machines = self.free_in_secs.len();
        let mut state = State::of(self, lines);
        for _ in 0..SEARCH_ROUNDS_MAX {
            let mut moved = false;
            for task in 0..self.tasks.len() {
                for to in 0..machines {
                    moved |= state.try_move(self, task, to, bound);
                }
                for other in 0..task {
                    moved |= state.try_swap(self, task, other, bound);
                }
            }
            if !moved {
                break;
            }
        }
        state.lines
    }

    /// The best order on one machine for the mean end: by seconds for each weight (Smith, 1956).
    fn order(&self, line: &mut [usize], machine: usize) {
        let key = |task: usize| self.secs(task, machine) / self.weights[task];
        line.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
    }

    /// The sum of the ends on one machine by weight, and the last of them.
    fn cost(&self, line: &[usize], machine: usize) -> (f64, f64) {
        let (mut at, mut sum) = (self.free_in_secs[machine], 0.0);
        for task in line {
            at += self.secs(*task, machine);
            sum += self.weights[*task] * at;
        }
        (sum, at)
    }

    fn score(&self, lines: &Lines) -> Score {
        let costs: Vec<(f64, f64)> = lines.iter().enumerate().map(|(m, line)| self.cost(line, m)).collect();
        self.score_of(&costs)
    }

    fn score_of(&self, costs: &[(f64, f64)]) -> Score {
        let sum: f64 = costs.iter().map(|(sum, _)| sum).sum();
        let makespan = costs.iter().map(|(_, last)| *last).fold(0.0, f64::max);
        // Tasks that have begun count too: else the last end would count for less with each task that begins, and a plan
        // made later would undo what this one meant.
        let weight = self.weight_running + self.weights.iter().sum::<f64>();
        Score { sum, makespan, value: sum + MAKESPAN_SHARE * weight * makespan }
    }
}

/// A placement that moves step by step.
struct State {
    lines: Lines,
    costs: Vec<(f64, f64)>,
    /// The machine of each task, if it has one.
    on: Vec<Option<usize>>,
    score: Score,
}

impl State {
    fn of(search: &Search<'_>, lines: Lines) -> Self {
        let costs: Vec<_> = lines.iter().enumerate().map(|(m, line)| search.cost(line, m)).collect();
        let mut on = vec![None; search.tasks.len()];
        for (machine, line) in lines.iter().enumerate() {
            for task in line {
                on[*task] = Some(machine);
            }
        }
        let score = search.score_of(&costs);
        Self { lines, costs, on, score }
    }

    fn try_move(&mut self, search: &Search<'_>, task: usize, to: usize, bound: Score) -> bool {
        let Some(from) = self.on[task] else { return false };
        if from == to || !search.secs(task, to).is_finite() {
            return false;
        }
        let less: Vec<usize> = self.lines[from].iter().copied().filter(|one| *one != task).collect();
        let mut more = self.lines[to].clone();
        more.push(task);
        self.try_lines(search, [(from, less), (to, more)], bound)
    }

    fn try_swap(&mut self, search: &Search<'_>, one: usize, other: usize, bound: Score) -> bool {
        let (Some(from), Some(to)) = (self.on[one], self.on[other]) else { return false };
        let possible = search.secs(one, to).is_finite() && search.secs(other, from).is_finite();
        if from == to || !possible {
            return false;
        }
        let with = |line: &[usize], out: usize, into: usize| -> Vec<usize> {
            line.iter().map(|task| if *task == out { into } else { *task }).collect()
        };
        let lines = [(from, with(&self.lines[from], one, other)), (to, with(&self.lines[to], other, one))];
        self.try_lines(search, lines, bound)
    }

    /// Takes the new lines of two machines if that is better, and no worse than the bound by either measure unless the
    /// placement is so already.
    fn try_lines(&mut self, search: &Search<'_>, lines: [(usize, Vec<usize>); 2], bound: Score) -> bool {
        let mut costs = self.costs.clone();
        let lines = lines.map(|(machine, mut line)| {
            search.order(&mut line, machine);
            costs[machine] = search.cost(&line, machine);
            (machine, line)
        });
        let score = search.score_of(&costs);
        let gains = score.value < self.score.value * (1.0 - GAIN_SHARE_MIN);
        if !gains || self.score.is_within(bound) && !score.is_within(bound) {
            return false;
        }
        for (machine, line) in lines {
            for task in &line {
                self.on[*task] = Some(machine);
            }
            self.lines[machine] = line;
        }
        (self.costs, self.score) = (costs, score);
        true
    }
}

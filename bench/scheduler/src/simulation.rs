//! A case, run by the real scheduler from its first submission to its last end.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use hatchery_common::{
    id::{Epoch, JobId, NodeId},
    trainer::{Ending, Progress},
};
use hatchery_scheduler::{JobPhase, Plan, assignment, violations};

use crate::{
    cases::Case,
    contenders::{Run, Schedule},
    world::{LEASE, World, since_start_ms},
};

/// Most plans in one case; a case that needs more does not come to an end.
const PLANS_MAX: usize = 100_000;
/// How long a trainer runs before it says how fast it is.
const FIRST_PROGRESS_MS: u64 = 10_000;
/// Reports of an attempt that are planned upon, evenly spread, beside the first progress.
const REPORTS: u64 = 8;

pub(crate) fn simulate(case: &Case) -> Result<Schedule> {
    let mut simulation = Simulation::new(case)?;
    simulation.run()?;
    let broken = violations(&simulation.world.cluster);
    ensure!(broken.is_empty(), "{}: the cluster breaks its own rules: {broken:?}", case.name);
    Ok(simulation.schedule)
}

struct Simulation<'a> {
    case: &'a Case,
    world: World,
    nodes: Vec<NodeId>,
    /// Jobs submitted so far, in order.
    jobs: Vec<JobId>,
    /// What runs, by job.
    attempts: BTreeMap<usize, Attempt>,
    schedule: Schedule,
    plans: usize,
}

/// An attempt as it truly is.
struct Attempt {
    epoch: Epoch,
    device: usize,
    start_ms: u64,
    start_step: u64,
    end_ms: u64,
    end_step: u64,
}

impl Attempt {
    fn step(&self, now_ms: u64) -> u64 {
        let (passed_ms, whole_ms) = (now_ms - self.start_ms, (self.end_ms - self.start_ms).max(1));
        let steps =
            u128::from(self.end_step - self.start_step) * u128::from(passed_ms) / u128::from(whole_ms);
        self.end_step.min(self.start_step + steps as u64)
    }

    /// When it first says how fast it is.
    fn first_progress_ms(&self) -> u64 {
        self.start_ms + FIRST_PROGRESS_MS.min((self.end_ms - self.start_ms) / REPORTS)
    }

    /// The next time after `now_ms` at which something is heard of it.
    fn next_event_ms(&self, now_ms: u64) -> u64 {
        let share = |n: u64| self.start_ms + (self.end_ms - self.start_ms) * n / REPORTS;
        let reports = (1..REPORTS).map(share).chain([self.first_progress_ms()]);
        reports.filter(|at| *at > now_ms).min().unwrap_or(self.end_ms)
    }

    fn progress(&self, now_ms: u64) -> Option<Progress> {
        let secs = (self.end_ms - self.start_ms) as f64 / 1000.0;
        let steps_per_sec = (self.end_step - self.start_step) as f64 / secs;
        let step = self.step(now_ms);
        (now_ms >= self.first_progress_ms()).then(|| Progress { step, steps_per_sec, ..Progress::default() })
    }
}

impl<'a> Simulation<'a> {
    fn new(case: &'a Case) -> Result<Self> {
        let mut world = World::new()?;
        let join = |device: &crate::cases::CaseDevice| world.join(device.kind, device.known_steps_per_sec);
        let nodes = case.devices.iter().map(join).collect::<Result<_>>()?;
        let (jobs, attempts, schedule) = (Vec::new(), BTreeMap::new(), Schedule::default());
        Ok(Self { case, world, nodes, jobs, attempts, schedule, plans: 0 })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            self.end_attempts()?;
            self.submit()?;
            let plan = self.plan()?;
            if self.is_over() {
                return Ok(());
            }
            let next_ms = self.next_event_ms(&plan).with_context(|| self.stuck(&plan))?;
            self.world.go_to(next_ms);
        }
    }

    fn is_over(&self) -> bool {
        let ended = |job| self.world.cluster.jobs[job].phase == JobPhase::Completed;
        self.jobs.len() == self.case.jobs.len() && self.jobs.iter().all(ended)
    }

    fn stuck(&self, plan: &Plan) -> String {
        let waits: Vec<_> = plan.waits.values().map(ToString::to_string).collect();
        format!("{}: nothing will ever happen again: {}", self.case.name, waits.join("; "))
    }

    fn next_event_ms(&self, plan: &Plan) -> Option<u64> {
        let now_ms = self.world.now_ms();
        let submission = self.case.jobs.get(self.jobs.len()).map(|job| job.submitted_ms);
        let heard = self.attempts.values().map(|attempt| attempt.next_event_ms(now_ms));
        // A lease's end is no event here: see LEASE.
        let lease_end = self.world.observed.started_at + LEASE;
        let wake = plan.wake_at.filter(|at| *at < lease_end).map(since_start_ms);
        heard.chain(submission).chain(wake).filter(|at| *at > now_ms).min()
    }

    fn submit(&mut self) -> Result<()> {
        while let Some(job) =
            self.case.jobs.get(self.jobs.len()).filter(|job| job.submitted_ms <= self.world.now_ms())
        {
            let id = self.world.submit(job.steps, job.kinds.clone())?;
            self.jobs.push(id);
        }
        Ok(())
    }

    fn end_attempts(&mut self) -> Result<()> {
        let now_ms = self.world.now_ms();
        let over = |attempt: &Attempt| attempt.end_ms <= now_ms;
        let over: Vec<_> =
            self.attempts.iter().filter(|(_, attempt)| over(attempt)).map(|(job, _)| *job).collect();
        over.into_iter().try_for_each(|job| self.end(job, Ending::Completed))
    }

    /// Ends the attempt at a job where it is now.
    fn end(&mut self, job: usize, ending: Ending) -> Result<()> {
        let Some(attempt) = self.attempts.get(&job) else {
            bail!("{}: job {job} does not run", self.case.name)
        };
        let step = attempt.step(self.world.now_ms());
        self.world.end(self.jobs[job], step, ending)?;
        self.follow();
        Ok(())
    }

    /// Plans until nothing more is to be done at this instant.
    fn plan(&mut self) -> Result<Plan> {
        loop {
            self.report();
            let plan = self.world.plan();
            self.world.apply(&plan.events);
            self.follow();
            self.plans += 1;
            ensure!(self.plans < PLANS_MAX, "{}: no end after {PLANS_MAX} plans", self.case.name);
            let stopping = self.told_to_stop();
            if stopping.is_empty() {
                return Ok(plan);
            }
            stopping.into_iter().try_for_each(|job| self.end(job, Ending::Stopped))?;
        }
    }

    fn report(&mut self) {
        let now_ms = self.world.now_ms();
        for (device, node) in self.nodes.iter().enumerate() {
            let attempt = self.attempts.iter().find(|(_, attempt)| attempt.device == device);
            let attempt = attempt.map(|(job, attempt)| (self.jobs[*job], attempt.progress(now_ms)));
            self.world.hear_of(*node, attempt);
        }
    }

    /// Starts what has a new lease, and drops what has none any more.
    fn follow(&mut self) {
        let now_ms = self.world.now_ms();
        let jobs = self.jobs.iter().map(|id| &self.world.cluster.jobs[id]);
        for (index, job) in jobs.enumerate() {
            let is_current = |attempt: &Attempt| job.lease.is_some() && attempt.epoch == job.epoch;
            if let Some(old) = self.attempts.remove(&index) {
                if is_current(&old) {
                    self.attempts.insert(index, old);
                    continue;
                }
                let Attempt { device, start_ms, .. } = old;
                self.schedule.runs.push(Run { job: index, device, start_ms, end_ms: now_ms });
            }
            let Some(lease) = &job.lease else { continue };
            let device = self.nodes.iter().position(|node| *node == lease.node);
            let device = device.expect("a lease is on a node of the fleet");
            let whole_ms = self.case.durations_ms[index][device].expect("a lease is on a device as wished");
            let (start_step, end_step) = (job.steps_done(), job.spec.train.raw().steps);
            let left_ms = u128::from(whole_ms) * u128::from(end_step - start_step);
            let end_ms = now_ms + left_ms.div_ceil(u128::from(end_step)) as u64;
            let attempt =
                Attempt { epoch: job.epoch, device, start_ms: now_ms, start_step, end_ms, end_step };
            self.attempts.insert(index, attempt);
        }
    }

    /// The jobs whose attempts are to stop at their next step.
    fn told_to_stop(&self) -> Vec<usize> {
        let assignments = self.nodes.iter().map(|node| assignment(&self.world.cluster, *node, LEASE));
        let attempts = assignments.flat_map(|assignment| assignment.attempts);
        let stopping = attempts.filter(|attempt| attempt.stop).map(|attempt| attempt.id.job);
        stopping.filter_map(|job| self.jobs.iter().position(|id| *id == job)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::Family,
        contenders::{fifo, greedy},
        optimum::optimum,
    };

    /// No device runs two jobs at once, and each job runs where it may, after its submission, until it is
    /// done.
    fn check(case: &Case, schedule: &Schedule, contender: &str) {
        let mut done = vec![0.0; case.jobs.len()];
        let mut runs = schedule.runs.clone();
        runs.sort_unstable_by_key(|run| (run.device, run.start_ms, run.end_ms));
        for pair in runs.windows(2) {
            let apart = pair[0].device != pair[1].device || pair[0].end_ms <= pair[1].start_ms;
            assert!(apart, "{}: {contender} runs {pair:?} at once", case.name);
        }
        for run in runs {
            let duration_ms = case.durations_ms[run.job][run.device];
            let duration_ms = duration_ms.expect("a job runs only where it wishes to");
            assert!(run.start_ms >= case.jobs[run.job].submitted_ms, "{}: {contender}: {run:?}", case.name);
            done[run.job] += (run.end_ms - run.start_ms) as f64 / duration_ms as f64;
        }
        assert!(
            done.iter().all(|done| *done > 0.9999),
            "{}: {contender} leaves jobs undone: {done:?}",
            case.name
        );
    }

    #[test]
    fn every_contender_runs_every_job_and_none_of_them_beats_the_optimum() {
        let mut known = 0;
        for case in Family::all().iter().flat_map(|family| (0..6).map(|number| family.case(number))) {
            check(&case, &simulate(&case).unwrap(), "hatchery");
            let simple = [fifo(&case), greedy(&case)];
            for schedule in &simple {
                check(&case, schedule, "a simple one");
            }
            let best = optimum(&case);
            for schedule in [&best.completion, &best.makespan].into_iter().flatten() {
                check(&case, schedule, "the optimum");
            }
            let Some(completion) = best.completion else { continue };
            for schedule in &simple {
                let (mine, least) = (schedule.measures(&case), completion.measures(&case));
                assert!(mine.completion_ms >= least.completion_ms, "{}", case.name);
                let makespan = best.makespan.as_ref().map(|makespan| makespan.measures(&case).makespan_ms);
                assert!(makespan.is_none_or(|least| mine.makespan_ms >= least), "{}", case.name);
            }
            known += 1;
        }
        assert!(known >= 144, "the optimum is known in {known} cases only");
    }

    #[test]
    fn a_case_is_found_again_by_its_name() {
        for family in Family::all() {
            let case = family.case(17);
            let again: crate::cases::CaseName = case.name.to_string().parse().unwrap();
            let again = again.family.case(again.number);
            assert_eq!(again.durations_ms, case.durations_ms);
            assert_eq!(simulate(&again).unwrap(), simulate(&case).unwrap());
        }
    }
}

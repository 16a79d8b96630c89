//! A run: a fleet, those who use it, two hands that hurt it, and at the end the checks.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    check::{self, Finding},
    clients::{self, is_terminal},
    dice::Dice,
    evidence::{Event, Evidence},
    faults::{self, Fault, TO_PROCESSES, TO_THE_NETWORK},
    history::{Records, Submission},
    recovery,
    site::{Site, SiteSettings},
};

/// Length of a lease. The shortest allowed is 2.
const LEASE_SECS: u64 = 3;
const AGENTS: usize = 3;
/// Jobs that wait or run at once at most.
const ACTIVE_JOBS_MAX: usize = 8;
const SUBMITTERS: u64 = 2;
/// Between two lines about how it goes.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Once all is well again, everything must have come to its end after this time. A job that failed often waits a minute.
const SETTLE_WITHIN: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// If replicas are still missing after so many looks, sessions are renewed: then nodes bring back what is lost.
const RENEW_AFTER_LOOKS: u64 = 12;
/// A hand that is slow gets so many times the time of the run to do each fault often enough.
const OVERTIME: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// How a run is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long the fleet is hurt.
    pub time: Duration,
    /// Decides what is done, to whom, and when.
    pub seed: u64,
    /// Fault points that are armed all the time: mutants.
    pub points: String,
    /// Only faults are done whose names have this in them: `killed`.
    pub only: String,
}

impl Plan {
    fn does(&self, fault: &Fault) -> bool {
        fault.name.contains(&self.only)
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub plan: Plan,
    /// What is left of it.
    pub evidence: Evidence,
    /// What must not be.
    pub findings: Vec<Finding>,
    /// Why the full disk was none of its own; none if it was.
    pub unmounted: Option<String>,
    /// How long it took from the last fault until everything was well.
    pub settled_in: Duration,
    /// Where everything lies that is worth a look; none if nothing was found.
    pub kept: Option<PathBuf>,
}

/// Runs, and tells `tell` now and then how it goes. An error means that the run itself could not be done.
pub fn run(plan: Plan, tell: &(dyn Fn(&str) + Sync)) -> io::Result<Report> {
    let mut dice = Dice::new(plan.seed);
    let settings = SiteSettings { lease_secs: LEASE_SECS, agents: AGENTS, points: plan.points.clone() };
    let mut site = Site::build(settings)?;
    let unmounted = site.disk.is_mounted().err().map(str::to_owned);
    if let Some(why) = &unmounted {
        tell(&format!(
            "no disk of its own can be mounted ({why}): the coordinator's limit stands in for a full one"
        ));
    }
    let hurt = hurt(&site, &plan, &mut dice, tell);
    let settled = hurt.and_then(|()| {
        tell("all is well again; waiting until every job has come to its end");
        settle(&site)
    });
    let gathered = settled.and_then(|settled_in| Ok((settled_in, Evidence::gather(&site)?)));
    let (settled_in, evidence) = gathered.inspect_err(|_| tell(&format!("see {}", site.keep().display())))?;
    let mut findings = check::all(&evidence);
    findings.extend(too_little_traffic(&evidence, &plan));
    let kept = (!findings.is_empty()).then(|| site.keep());
    Ok(Report { plan, evidence, findings, unmounted, settled_in, kept })
}

fn hurt(site: &Site, plan: &Plan, dice: &mut Dice, tell: &(dyn Fn(&str) + Sync)) -> io::Result<()> {
    let started = Instant::now();
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let now: Mutex<[&'static str; 2]> = Mutex::new(["", ""]);
    let hand = |index: usize, faults: &[Fault], mut dice: Dice| -> io::Result<()> {
        let lacks = |fault: &Fault| times_done(&site.history.records(), fault) < times_least(plan.time);
        loop {
            // Beyond its time it does only what was not done often enough.
            let is_late = || started.elapsed() >= plan.time;
            let mut deck: Vec<&Fault> =
                faults.iter().filter(|fault| plan.does(fault) && (!is_late() || lacks(fault))).collect();
            if deck.is_empty() {
                return Ok(());
            }
            dice.shuffle(&mut deck);
            for fault in deck {
                if started.elapsed() >= plan.time * OVERTIME || is_over() {
                    return Ok(());
                }
                if is_late() && !lacks(fault) {
                    continue;
                }
                now.lock().unwrap_or_else(PoisonError::into_inner)[index] = fault.name;
                fault.strike(site, &mut dice)?;
            }
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (0..SUBMITTERS)
            .map(|who| {
                let dice = dice.fork();
                scope.spawn(move || clients::submitter(site, dice, who, ACTIVE_JOBS_MAX, &is_over))
            })
            .collect();
        scope.spawn(|| clients::onlooker(site, &is_over));
        scope.spawn(|| {
            let mut told = Instant::now();
            while !is_over() {
                thread::sleep(LOOK_EVERY);
                if told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    let now = *now.lock().unwrap_or_else(PoisonError::into_inner);
                    tell(&progress(site, started.elapsed(), now));
                }
            }
        });
        let (first, second) = (dice.fork(), dice.fork());
        let network = scope.spawn(|| hand(1, &TO_THE_NETWORK, second));
        let processes = hand(0, &TO_PROCESSES, first);
        let network = joined(network.join());
        over.store(true, Ordering::Relaxed);
        // The people's last commands are to come to an end.
        let healed = faults::heal(site);
        let others: io::Result<()> = others.into_iter().try_for_each(|other| joined(other.join()));
        processes.and(network).and(healed).and(others)
    })
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn progress(site: &Site, elapsed: Duration, now: [&str; 2]) -> String {
    let records = site.history.records();
    let (mut jobs, mut ended, mut checkpoints) = (0, 0, 0);
    if let Some(seen) = records.sightings.last() {
        jobs = seen.jobs.len();
        ended = seen.jobs.values().filter(|job| is_terminal(&job.phase)).count();
        checkpoints = seen.jobs.values().filter(|job| job.checkpoint.is_some()).count();
    }
    let faults: u64 = records.faults.values().sum();
    format!(
        "{:>4} s  {jobs:>3} jobs, {ended:>3} ended, {checkpoints:>3} with checkpoints; {faults:>3} faults; now: {}, {}",
        elapsed.as_secs(),
        now[0],
        now[1]
    )
}

/// Waits until every job has ended, every agent is connected, and every replica is where it should be; how long that
/// took. What is not so after [`SETTLE_WITHIN`] is for the checks to find.
fn settle(site: &Site) -> io::Result<Duration> {
    faults::heal(site)?;
    let started = Instant::now();
    let mut looks = 0;
    while started.elapsed() < SETTLE_WITHIN {
        if clients::look(site, PATIENCE) && is_well(site) {
            break;
        }
        looks += 1;
        if looks % RENEW_AFTER_LOOKS == 0 {
            site.agents().iter().for_each(|member| member.proxy.reset_connections());
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(started.elapsed())
}

fn is_well(site: &Site) -> bool {
    let jobs_ended = site
        .history
        .records()
        .sightings
        .last()
        .is_some_and(|seen| seen.jobs.values().all(|job| is_terminal(&job.phase)));
    let all = |arguments: &[&str], is_well: &dyn Fn(&Value) -> bool| {
        let answer = site.ask(&[arguments, &["--output", "json"]].concat()).json();
        answer.as_ref().and_then(Value::as_array).is_some_and(|all| all.iter().all(is_well))
    };
    let is_ready = |replica: &Value| replica["state"]["state"] == "ready";
    jobs_ended
        && all(&["nodes"], &|node| node["state"] == "connected")
        && all(&["checkpoints"], &|one| {
            one["replicas"].as_array().is_some_and(|replicas| replicas.iter().all(is_ready))
        })
}

fn times_done(records: &Records, fault: &Fault) -> u64 {
    records.faults.get(fault.name).copied().unwrap_or(0)
}

/// How often each fault must have been done. Not every time there is somebody to do it to.
fn times_least(time: Duration) -> u64 {
    (time.as_secs() / 60).div_ceil(2)
}

/// What a run must have come to, so that its silence means something.
fn too_little_traffic(evidence: &Evidence, plan: &Plan) -> Vec<Finding> {
    let minutes = plan.time.as_secs() / 60;
    let mut findings = Vec::new();
    // What a run comes to in which only some faults are done depends on which.
    for figure in figures(evidence).into_iter().filter(|_| plan.only.is_empty()) {
        if figure.count < figure.least_a_minute * minutes {
            let text = format!(
                "{} {}; at least {} a minute make a run",
                figure.count, figure.name, figure.least_a_minute
            );
            findings.push(Finding { invariant: "traffic", text });
        }
    }
    for fault in TO_PROCESSES.iter().chain(&TO_THE_NETWORK).filter(|fault| plan.does(fault)) {
        let count = times_done(&evidence.records, fault);
        if count < times_least(plan.time) {
            findings
                .push(Finding { invariant: "traffic", text: format!("{}: only {count} times", fault.name) });
        }
    }
    findings
}

/// One figure of a run.
struct Figure {
    name: &'static str,
    count: u64,
    least_a_minute: u64,
}

fn figures(evidence: &Evidence) -> Vec<Figure> {
    let ended = |phase: &str| evidence.jobs.values().filter(|job| job["phase"] == phase).count() as u64;
    let events =
        |is: &dyn Fn(&Event) -> bool| evidence.events.iter().filter(|event| is(event)).count() as u64;
    let records = &evidence.records;
    let submissions =
        |is: &dyn Fn(&Submission) -> bool| records.submissions.iter().filter(|one| is(one)).count() as u64;
    let figure = |name, count, least_a_minute| Figure { name, count, least_a_minute };
    vec![
        figure("submissions answered OK", submissions(&|one| one.is_acknowledged()), 5),
        figure(
            "submissions refused or failed",
            submissions(&|one| one.code.is_some_and(|code| code != 0)),
            1,
        ),
        figure("submissions without an answer", submissions(&|one| one.code.is_none()), 0),
        figure("jobs completed", ended("completed"), 3),
        figure("jobs cancelled", ended("cancelled"), 0),
        figure("jobs held as poisoned", ended("poisoned"), 0),
        figure("jobs failed", ended("failed"), 0),
        figure("leases granted", events(&|event| event.kind == "lease_granted"), 5),
        figure("leases that ran out", events(&check::is_loss), 1),
        figure("checkpoints committed", evidence.checkpoints.len() as u64, 8),
        figure("of these late", events(&|event| event.change["late"] == true), 0),
        figure("late ones dropped", events(&|event| event.kind == "checkpoint_declined"), 0),
        figure("pauses", records.pauses, 0),
        figure("nodes drained", records.drains, 0),
        figure("devices handed over", events(&|event| event.change["why"]["why"] == "handed_over"), 0),
        figure("steps begun", evidence.steps.len() as u64, 300),
        figure("looks at all jobs", records.sightings.len() as u64, 10),
        figure("replicas hashed", evidence.replicas, 6),
        figure("blobs hashed", evidence.blobs.len() as u64, 10),
        figure("bits flipped", records.flipped.len() as u64 + records.replicas_flipped, 0),
        figure("blobs put aside as damaged", evidence.quarantined, 0),
        figure("times that the disk was full", records.disk_full_ms.len() as u64, 1),
        figure("answers of models", records.answers, 0),
    ]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "chaos for {} s, seed {}", self.plan.time.as_secs(), self.plan.seed)?;
        if let Some(why) = &self.unmounted {
            writeln!(f, "no disk of its own could be mounted: {why}")?;
        }
        for figure in figures(&self.evidence) {
            writeln!(f, "{:>8}  {}", figure.count, figure.name)?;
        }
        writeln!(f, "{:>8}  MiB of memory at most", self.evidence.records.memory_bytes_max >> 20)?;
        writeln!(f, "{:>8}  seconds from the last fault until all was well", self.settled_in.as_secs())?;
        for gaps in recovery::gaps(&self.evidence) {
            writeln!(f, "{gaps}")?;
        }
        for (name, count) in &self.evidence.records.faults {
            writeln!(f, "{count:>8}  {name}")?;
        }
        for (name, check) in check::CHECKS {
            writeln!(f, "{:>8}  {name}", if check(&self.evidence).is_empty() { "holds" } else { "BROKEN" })?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "logs, disks and steps are kept in {}", kept.display())?;
        }
        Ok(())
    }
}

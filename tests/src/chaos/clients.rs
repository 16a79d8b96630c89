//! Those who use the fleet while it is hurt: they submit, repeat themselves, contradict themselves, cancel, look and ask.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    dice::Dice,
    history::{SeenJob, Sighting, Submission, now_ms},
    site::{Site, Typed},
};

/// A person's patience with one command.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the jobs.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// The pause before a command is typed again.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How often one submission is tried.
const TRIES_MAX: u64 = 40;
/// A text must be long enough for the blocks of training and validation.
const FILLER: &str = "the dragon hatchling learns a little of every text that it reads\n";
const TEXT_KIB: usize = 4;
/// What a job writes that crashes on purpose.
pub const CRASH_WORDS: &str = "this job crashes on purpose";

/// What a job does.
#[derive(Clone, Debug)]
pub struct Work {
    /// What it is called.
    pub name: String,
    /// How long a step takes.
    pub step_ms: u64,
    /// How many there are.
    pub steps: u64,
    /// A checkpoint after each so many.
    pub checkpoint_every: u64,
    /// The model's width: at 16 each file of a checkpoint is one piece, at 32 the weights are several.
    pub width: u64,
    /// Whether nodes that only answer get its weights in bf16 and nothing else.
    pub sparing: bool,
    /// Whether its trainer crashes, wherever it runs.
    pub crashes: bool,
    /// Whether its text is one that no other job has.
    pub own_text: bool,
    /// Length of its text, about.
    pub text_kib: usize,
}

impl Work {
    /// The first job of a scenario: a few seconds of steps.
    pub fn steady(name: &str, steps: u64, checkpoint_every: u64) -> Self {
        let name = name.to_owned();
        Self {
            name,
            step_ms: 20,
            steps,
            checkpoint_every,
            width: 16,
            sparing: false,
            crashes: false,
            own_text: false,
            text_kib: TEXT_KIB,
        }
    }

    pub fn draw(dice: &mut Dice, number: u64) -> Self {
        let crashes = dice.one_in(14);
        Self {
            name: format!("{}-{number}", if crashes { "crashing" } else { "job" }),
            step_ms: dice.between(10, 40),
            steps: 10 * dice.between(2, 16),
            checkpoint_every: dice.between(10, 40),
            width: 16 * dice.between(1, 2),
            sparing: number.is_multiple_of(2),
            crashes,
            own_text: dice.one_in(3),
            text_kib: TEXT_KIB,
        }
    }

    /// Writes the text of the job, which is also what the fake trainer is to do.
    pub fn write_text(&self, folder: &Path) -> io::Result<PathBuf> {
        let path = folder.join(match (self.own_text, self.crashes) {
            (true, _) => format!("{}.txt", self.name),
            (false, true) => "crashing.txt".to_owned(),
            (false, false) => format!("steps-of-{}-ms.txt", self.step_ms),
        });
        if path.exists() {
            return Ok(path);
        }
        let crash = if self.crashes { format!("write {CRASH_WORDS}\ncrash-at 1\n") } else { String::new() };
        let own = if self.own_text { format!("own text of {}\n", self.name) } else { String::new() };
        let text = format!(
            "{crash}train {}\n{own}{}",
            self.step_ms,
            FILLER.repeat(self.text_kib * 1024 / FILLER.len())
        );
        // Nobody may read half of it.
        let unfinished = path.with_extension("part");
        fs::write(&unfinished, text)?;
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// The arguments of `hatchery` that submit it.
    pub fn arguments(&self, text: &Path, request: &str) -> Vec<String> {
        let sets = [
            format!("train.steps={}", self.steps),
            format!("train.checkpoint_every={}", self.checkpoint_every),
            "model.n_layer=1".to_owned(),
            format!("model.n_embd={}", self.width),
            "model.mlp_internal_dim_multiplier=8".to_owned(),
            "train.block=32".to_owned(),
            "train.batch=2".to_owned(),
        ];
        let fixed = ["submit", "--output", "json", "--replicate-to", "all", "--replicate-which", "last"];
        let mut arguments: Vec<String> = fixed.map(str::to_owned).to_vec();
        for (flag, value) in
            [("--request-id", request), ("--name", &self.name), ("--data", &text.display().to_string())]
        {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        if self.sparing {
            arguments.extend(["--replicate-weights", "bf16"].map(str::to_owned));
        }
        arguments.extend(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]));
        arguments
    }
}

/// Submits once through the proxy, and records what came of it.
pub fn submit_once(site: &Site, work: &Work, request: &str, patience: Duration) -> io::Result<Submission> {
    submit_by(site, work, request, |arguments| site.type_in(arguments, patience))
}

/// Submits once past the proxy, and records what came of it.
pub fn submit_directly(site: &Site, work: &Work, request: &str) -> io::Result<Submission> {
    submit_by(site, work, request, |arguments| site.ask(arguments))
}

fn submit_by(
    site: &Site,
    work: &Work,
    request: &str,
    send: impl FnOnce(&[&str]) -> Typed,
) -> io::Result<Submission> {
    let arguments = work.arguments(&work.write_text(site.scratch())?, request);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begun = now_ms();
    let typed = send(&arguments);
    let job = typed.json().and_then(|job| Some(job["id"].as_str()?.to_owned()));
    let Typed { code, stderr: said, .. } = typed;
    let submission = Submission {
        request: request.to_owned(),
        body: work.name.clone(),
        brings_text: work.own_text,
        code,
        job,
        said,
        time_ms: (begun, now_ms()),
    };
    site.history.records().submissions.push(submission.clone());
    Ok(submission)
}

/// Submits until it is answered OK; the job. None if that takes too long, or `over` says that it is over.
pub fn submit(
    site: &Site,
    work: &Work,
    request: &str,
    over: &dyn Fn() -> bool,
) -> io::Result<Option<String>> {
    for _ in 0..TRIES_MAX {
        let submission = submit_once(site, work, request, PATIENCE)?;
        if submission.is_acknowledged() {
            return Ok(submission.job);
        }
        if over() {
            break;
        }
        thread::sleep(AGAIN_AFTER);
    }
    Ok(None)
}

/// Submits job after job until it is over, and does with some of them what people do.
pub fn submitter(
    site: &Site,
    mut dice: Dice,
    who: u64,
    most_active: usize,
    over: &dyn Fn() -> bool,
) -> io::Result<()> {
    let mut number = 0;
    while !over() {
        let active = site
            .history
            .records()
            .sightings
            .last()
            .map_or(0, |seen| seen.jobs.values().filter(|job| !is_terminal(&job.phase)).count());
        if active >= most_active {
            thread::sleep(LOOK_EVERY);
            continue;
        }
        number += 1;
        let work = Work::draw(&mut dice, 1000 * who + number);
        let request = dice.uuid();
        let Some(job) = submit(site, &work, &request, over)? else { continue };
        match dice.between(0, 8) {
            0 => drop(submit_once(site, &work, &request, PATIENCE)?),
            1 => {
                let other = Work { name: format!("{}-changed", work.name), ..work };
                submit_once(site, &other, &request, PATIENCE)?;
            }
            2 => {
                thread::sleep(Duration::from_millis(dice.between(0, 3000)));
                let typed = site.type_in(&["cancel", &job, "--output", "json"], PATIENCE);
                if typed.code == Some(0) {
                    site.history.records().cancelled.push(job);
                }
            }
            3 => {
                let ask = ["generate", "latest", "--prompt", "The ", "--max-bytes", "8", "--output", "json"];
                if site.type_in(&ask, PATIENCE).code == Some(0) {
                    site.history.records().answers += 1;
                }
            }
            4 => {
                thread::sleep(Duration::from_millis(dice.between(0, 2000)));
                if site.type_in(&["pause", &job], PATIENCE).code == Some(0) {
                    site.history.records().pauses += 1;
                }
                thread::sleep(Duration::from_millis(dice.between(0, 2000)));
                // Whether the pause was taken or not is not always known; nothing may stay paused.
                until_done(|| site.type_in(&["resume", &job], PATIENCE));
            }
            5 => {
                thread::sleep(Duration::from_millis(dice.between(0, 2000)));
                site.type_in(&["requeue", &job], PATIENCE);
            }
            6 => {
                let priority = dice.between(0, 100).to_string();
                site.type_in(&["job", &job, "--priority", &priority], PATIENCE);
            }
            7 if dice.one_in(2) => {
                let agents = site.agents();
                let node = agents[dice.between(0, agents.len() as u64 - 1) as usize].name.as_str();
                if site.type_in(&["node", node, "--drain"], PATIENCE).code == Some(0) {
                    site.history.records().drains += 1;
                }
                thread::sleep(Duration::from_millis(dice.between(0, 3000)));
                until_done(|| site.type_in(&["node", node, "--open"], PATIENCE));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Types it again until there is an answer that another try would not change.
fn until_done(mut type_in: impl FnMut() -> Typed) {
    for _ in 0..TRIES_MAX {
        let said = type_in();
        // Refused: it has ended.
        if said.code == Some(0) || said.stderr.contains("has already") || said.stderr.contains("cannot be") {
            return;
        }
        thread::sleep(AGAIN_AFTER);
    }
}

/// Looks at all jobs, again and again until it is over.
pub fn onlooker(site: &Site, over: &dyn Fn() -> bool) {
    while !over() {
        look(site, PATIENCE);
        thread::sleep(LOOK_EVERY);
    }
}

/// Looks at all jobs once; whether an answer came.
pub fn look(site: &Site, patience: Duration) -> bool {
    let begun = now_ms();
    let answer = site.type_in(&["jobs", "--output", "json"], patience).json();
    let memory_bytes = site.coordinator_memory_bytes().unwrap_or(0);
    let mut records = site.history.records();
    records.memory_bytes_max = records.memory_bytes_max.max(memory_bytes);
    let Some(jobs) = answer.as_ref().and_then(Value::as_array) else { return false };
    let jobs = jobs.iter().filter_map(seen_job).collect();
    records.sightings.push(Sighting { time_ms: (begun, now_ms()), jobs });
    true
}

fn seen_job(job: &Value) -> Option<(String, SeenJob)> {
    let seen = SeenJob {
        phase: job["phase"].as_str()?.to_owned(),
        epoch: job["epoch"].as_u64()?,
        checkpoint_step: job["checkpoint_step"].as_u64()?,
        checkpoint: job["checkpoint"].as_str().map(str::to_owned),
    };
    Some((job["id"].as_str()?.to_owned(), seen))
}

/// Whether somebody was told that there is no room.
pub fn tells_of_a_full_disk(said: &str) -> bool {
    ["too full", "is full", "no space left", "no room"].iter().any(|words| said.contains(words))
}

/// Whether nothing comes after this phase.
pub fn is_terminal(phase: &str) -> bool {
    ["completed", "cancelled", "failed", "poisoned"].contains(&phase)
}

//! What must hold, whatever happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::SystemTime,
};

use anyhow::{Result, bail, ensure};
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    checkpoint::OPTIMIZER_FILE,
    id::{BlobId, CheckpointId, Epoch, JobId},
    node::NodeMode,
    time::BootTime,
};
use hatchery_coordinator::store::{SqliteStore, Store};
use hatchery_fake_trainer::Moments;
use hatchery_scheduler::{HandOver, JobPhase, What};
use serde_json::Value;

use crate::{
    clock,
    history::lock,
    plan::AGENTS,
    world::{World, host},
};

/// A run in which less happened says nothing.
const STEPS_MIN: u64 = 40;
const CHECKPOINTS_MIN: usize = 4;

/// Whether clock and randomness are the simulated ones, down to the C library.
pub(crate) fn simulated_functions_are_in_place() -> Result<()> {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    ensure!(
        Some(wall) == clock::wall(),
        "the wall clock is not the simulated one; the simulation runs on Linux"
    );
    let boot = clock::boot().unwrap_or_default().as_millis() as u64;
    ensure!(BootTime::now() == BootTime(boot), "the boot clock is not the simulated one");
    Ok(())
}

/// I7: what an agent takes for acknowledged is durable.
pub(crate) fn acknowledged_checkpoints(world: &World) {
    for number in 1..=AGENTS {
        let attempts = world.folder.join(host(number)).join("attempts");
        for entry in fs::read_dir(attempts).into_iter().flatten().flatten() {
            let Ok(text) = fs::read(entry.path().join("committed.json")) else { continue };
            let named = serde_json::from_slice::<Value>(&text).ok();
            let id =
                named.as_ref().and_then(|value| value["checkpoint"].as_str()?.parse::<CheckpointId>().ok());
            let mut history = lock(&world.history);
            if !id.is_some_and(|id| history.cluster.checkpoints.contains_key(&id)) {
                history.problem(format!(
                    "I7: machine {number} was told that {id:?} is committed, and it is not"
                ));
            }
        }
    }
}

/// Liveness: nothing goes wrong any more, and still not everything is over.
pub(crate) fn what_is_unfinished(world: &World) {
    let mut history = lock(&world.history);
    let jobs: Vec<String> = history
        .cluster
        .jobs
        .values()
        .filter(|job| !job.phase.is_terminal())
        .map(|job| format!("job {} is {}", job.id.short(), job.phase.name()))
        .collect();
    let running = history.lives.iter().filter(|life| life.ended.is_none()).count();
    history.problem(format!("liveness: not over in time: {jobs:?}, and {running} trainers still run"));
}

/// All that can be said at the end, when nothing runs any more.
pub(crate) fn at_the_end(world: &World) {
    if let Err(error) =
        state_is_what_was_committed(world).and_then(|()| checkpoints_are_whole_and_true(world))
    {
        lock(&world.history).problem(error.to_string());
    }
    let problems = [broken_epochs(world), ended_twice(world), unwished(world), disturbed(world)];
    for problem in problems.into_iter().flatten() {
        lock(&world.history).problem(problem);
    }
    if let Err(error) = enough_happened(world) {
        lock(&world.history).problem(error.to_string());
    }
}

/// I1: what was acknowledged is there when the store is opened anew, and so is all else.
fn state_is_what_was_committed(world: &World) -> Result<()> {
    let loaded = SqliteStore::open(&world.folder.join("coordinator/hatchery.db"))?.load()?;
    let history = lock(&world.history);
    for job in history.acknowledged.values().flatten() {
        ensure!(loaded.jobs.contains_key(job), "I1: job {} was acknowledged and is lost", job.short());
    }
    for (request, jobs) in &history.acknowledged {
        let made = loaded.requests.get(request).map(|(_, job)| *job);
        ensure!(made == jobs.first().copied(), "I2: request {request} is not filed with its job");
    }
    ensure!(loaded == history.cluster, "I1: the store holds something else than what was committed");
    Ok(())
}

/// I3 and I7: a committed checkpoint is whole, and was written under the epoch that it was committed under.
fn checkpoints_are_whole_and_true(world: &World) -> Result<()> {
    let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
    let blobs = BlobStore::open(&world.folder.join("coordinator/blobs"), limits)?;
    let history = lock(&world.history);
    for (id, committed) in &history.cluster.checkpoints {
        let manifest = &committed.manifest;
        for file in &manifest.files {
            let bytes = match read(&blobs, file.blob) {
                Ok(bytes) => bytes,
                Err(error) => bail!("I7: checkpoint {} is committed, and {}: {error}", id.short(), file.name),
            };
            ensure!(
                bytes.len() as u64 == file.size_bytes,
                "I7: {} of checkpoint {} has another size",
                file.name,
                id.short()
            );
            if file.name == OPTIMIZER_FILE {
                let by: Moments = serde_json::from_slice(&bytes)?;
                let attempt = manifest.attempt();
                ensure!(
                    (by.attempt, by.step) == (attempt, manifest.step),
                    "I3: checkpoint {} counts for {attempt} {}, but was written by {by:?}",
                    id.short(),
                    manifest.step,
                );
            }
        }
    }
    Ok(())
}

fn read(blobs: &BlobStore, id: BlobId) -> Result<Vec<u8>> {
    let reader = blobs.reader(id)?;
    let pieces = (0..reader.manifest().piece_count()).map(|index| reader.read_piece(index));
    Ok(pieces.collect::<Result<Vec<_>, _>>()?.concat())
}

/// I3: epochs only grow, and only the current one has effects, but for a late checkpoint that is further than all others.
fn broken_epochs(world: &World) -> Vec<String> {
    let mut epochs: BTreeMap<JobId, (Epoch, bool)> = BTreeMap::new();
    let mut reached: BTreeMap<JobId, u64> = BTreeMap::new();
    let mut problems = Vec::new();
    for (at, event) in &lock(&world.history).commits {
        match &event.what {
            What::LeaseGranted { job, epoch, .. } => {
                let (current, is_leased) = epochs.entry(*job).or_default();
                if *epoch <= *current || *is_leased {
                    problems.push(format!("I3: job {} got epoch {epoch} after {current}", job.short()));
                }
                (*current, *is_leased) = (*epoch, true);
            }
            What::LeaseEnded { job, epoch, .. } => {
                let (current, is_leased) = epochs.entry(*job).or_default();
                if epoch != current || !*is_leased {
                    problems.push(format!("I3: epoch {epoch} of job {} ended under {current}", job.short()));
                }
                *is_leased = false;
            }
            What::CheckpointCommitted { manifest, late, .. } => {
                let current = epochs.get(&manifest.job).copied().unwrap_or_default();
                let was_leased = manifest.epoch <= current.0 && current != (manifest.epoch, true);
                let before = reached.insert(manifest.job, manifest.step);
                if before.is_some_and(|before| before >= manifest.step)
                    || if *late { !was_leased } else { current != (manifest.epoch, true) }
                {
                    problems.push(format!(
                        "I3: at {at:?} a checkpoint of epoch {} of job {} was taken under {current:?}",
                        manifest.epoch,
                        manifest.job.short()
                    ));
                }
            }
            _ => {}
        }
    }
    problems
}

/// I4: a terminal phase is final.
fn ended_twice(world: &World) -> Vec<String> {
    let mut ended: BTreeMap<JobId, &JobPhase> = BTreeMap::new();
    let mut problems = Vec::new();
    let history = lock(&world.history);
    for (_, event) in &history.commits {
        let Some(job) = event.what.job() else { continue };
        let is_over = matches!(&event.what, What::JobEnded { .. } | What::LeaseGranted { .. });
        if let Some(phase) = ended.get(&job).filter(|_| is_over) {
            problems.push(format!(
                "I4: job {} was {} and then {}",
                job.short(),
                phase.name(),
                event.what.kind()
            ));
        }
        if let What::JobEnded { phase, .. } = &event.what {
            ended.insert(job, phase);
        }
    }
    problems
}

/// I4: nothing is granted to a paused job, nor on a node that was closed.
fn unwished(world: &World) -> Vec<String> {
    let (mut pausing, mut paused, mut closed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut problems = Vec::new();
    for (at, event) in &lock(&world.history).commits {
        match &event.what {
            What::JobPaused { job, .. } => drop(paused.insert(*job)),
            What::HandOverRequested { job, why: HandOver::Pause { .. }, .. } => drop(pausing.insert(*job)),
            What::HandOverRequested { job, .. } | What::CancelRequested { job, .. } => {
                pausing.remove(job);
            }
            What::LeaseEnded { job, .. } if pausing.remove(job) => drop(paused.insert(*job)),
            What::JobResumed { job, .. } => drop(paused.remove(job)),
            What::NodeModeChanged { node, mode: NodeMode::Open, .. } => drop(closed.remove(node)),
            What::NodeModeChanged { node, .. } => drop(closed.insert(*node)),
            What::LeaseGranted { job, lease, .. } if paused.contains(job) || closed.contains(&lease.node) => {
                problems.push(format!("I4: at {at:?} job {} was granted: {lease:?}", job.short()));
            }
            _ => {}
        }
    }
    problems
}

/// I5: where nothing happens but quick restarts of the coordinator, each job has one attempt, and its trainer comes to
/// its own end, or is stopped because the job was cancelled.
fn disturbed(world: &World) -> Vec<String> {
    if !world.is_quiet {
        return Vec::new();
    }
    let history = lock(&world.history);
    let disturbed = history.lives.iter().filter(|life| {
        let is_cancelled =
            history.cluster.jobs.get(&life.attempt.job).is_some_and(|job| job.phase == JobPhase::Cancelled);
        life.attempt.epoch != Epoch(1)
            || (!is_cancelled && life.ended.is_none_or(|(_, how)| how != "completed"))
    });
    disturbed
        .map(|life| {
            let (job, epoch) = (life.attempt.job.short(), life.attempt.epoch);
            format!("I5: a restart of the coordinator disturbed {job} under epoch {epoch}: {:?}", life.ended)
        })
        .collect()
}

fn enough_happened(world: &World) -> Result<()> {
    let history = lock(&world.history);
    let steps: u64 = history.lives.iter().map(|life| life.steps).sum();
    let checkpoints = history.cluster.checkpoints.len();
    ensure!(
        steps >= STEPS_MIN && checkpoints >= CHECKPOINTS_MIN,
        "too little happened: {steps} steps, {checkpoints} checkpoints"
    );
    Ok(())
}

/// Where a run keeps its files: in memory if the system offers that, for every commit is synced.
pub(crate) fn base_folder() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

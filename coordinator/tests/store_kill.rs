//! SIGKILL between every two statements.
//!
//! The test starts itself as a child that commits a fixed history and prints a line after each commit. Child number N
//! kills itself before its N-th statement. Whatever it left is opened again and compared with the history: everything
//! acknowledged is there (I1), nothing is there in part, and what was one commit further is whole.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "shared with the scheduler's own tests")]
#[path = "../../scheduler/tests/world/mod.rs"]
mod world;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hatchery_common::{device::Device, recipe::DeviceWishes, trainer::Ending};
use hatchery_coordinator::store::{SqliteStore, Store};
use hatchery_scheduler::{
    Cancel, Cluster, Command as _, CommitCheckpoint, EndAttempt, Event, RemoveNode, Submit, Submitted, What,
    violations,
};
use world::{World, checkpoint, name};

/// Tells the child its file and the number of statements that it may run.
const CHILD: &str = "HATCHERY_STORE_CHILD";
/// Fewer statements than this would be no history to speak of.
const STATEMENTS_MIN: usize = 60;
/// More than this, and the child does not come to an end.
const STATEMENTS_MAX: usize = 2000;

/// A node joins, a job runs, commits, loses its node, goes on, completes; another one is cancelled.
fn history() -> World {
    let mut world = World::new();
    world.join("cpu", &[(Device::CPU, Some(8e10))]);
    let job = world.submit(300, DeviceWishes::default());
    world.plan();
    let commit = |world: &mut World, step| {
        let (node, epoch) = (world.job(job).lease.as_ref().unwrap().node, world.job(job).epoch);
        let manifest = Box::new(checkpoint(world.job(job), epoch, step));
        world.ask(CommitCheckpoint { node, manifest, self_test: None }).unwrap();
        (node, epoch)
    };
    commit(&mut world, 100);
    world.advance(world::LEASE);
    world.join("gpu", &[(Device::cuda(0), Some(8e12))]);
    world.plan();
    assert_eq!(world.job(job).epoch.0, 2, "the job has moved");
    commit(&mut world, 200);
    let other = world.submit(10, DeviceWishes::default());
    let (node, epoch) = commit(&mut world, 300);
    let last_output = String::new();
    world.ask(EndAttempt { node, job, epoch, ending: Ending::Completed, last_output }).unwrap();
    world.plan();
    world.ask(Cancel { job: other, by: name("ann") }).unwrap();
    world.ask(RemoveNode { node, lease: world::LEASE }).unwrap();
    world
}

fn run_child(path: &Path, statements: usize) {
    fail::cfg("store::statement", &format!("{statements}*off->return(kill)")).unwrap();
    let mut store = SqliteStore::open(path).unwrap();
    for (number, batch) in history().batches.iter().enumerate() {
        store.commit(batch).unwrap();
        // libtest has left its own line open.
        println!("\nacknowledged {}", number + 1);
    }
    println!("\ncompleted");
}

/// Starts the child, and counts what it acknowledged; whether it came to its end.
fn child(path: &Path, statements: usize) -> (usize, bool) {
    let me = std::env::current_exe().unwrap();
    let output = Command::new(me)
        .args(["--exact", "every_acknowledged_commit_survives_sigkill", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{statements} {}", path.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let completed = text.lines().any(|line| line == "completed");
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(
        completed || killed,
        "neither killed nor complete: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    (text.lines().filter(|line| line.starts_with("acknowledged ")).count(), completed)
}

#[test]
fn every_acknowledged_commit_survives_sigkill() {
    if let Ok(order) = std::env::var(CHILD) {
        let (statements, path) = order.split_once(' ').unwrap();
        return run_child(&PathBuf::from(path), statements.parse().unwrap());
    }
    let world = history();
    let folder = tempfile::tempdir().unwrap();
    let mut ahead = 0;
    for statements in 0..STATEMENTS_MAX {
        let path = folder.path().join(format!("{statements}.db"));
        let (acknowledged, completed) = child(&path, statements);
        let mut store = SqliteStore::open(&path).unwrap();
        let (tables, stored) = (store.load().unwrap(), replay(&mut store));
        assert_eq!(tables, stored, "before statement {statements}: tables and events agree");
        assert_eq!(violations(&tables), [], "before statement {statements}");
        // Either exactly what was acknowledged, or one commit more whose acknowledgement was cut off.
        let expected = [acknowledged, acknowledged + 1].map(|count| after(&world.batches, count));
        assert!(
            expected.contains(&tables),
            "before statement {statements}: {acknowledged} were acknowledged"
        );
        ahead += usize::from(tables != expected[0]);
        go_on(&mut store, tables, &world);
        if completed {
            assert_eq!(acknowledged, world.batches.len());
            assert!(statements >= STATEMENTS_MIN, "only {statements} statements were run");
            assert!(ahead > 0, "no child was killed between a commit and its acknowledgement");
            return;
        }
    }
    panic!("the child was not done after {STATEMENTS_MAX} statements");
}

fn evolve(cluster: &mut Cluster, events: &[Event]) {
    for event in events {
        cluster.evolve(event);
    }
}

fn replay(store: &mut SqliteStore) -> Cluster {
    let mut cluster = Cluster::default();
    for event in store.events(0, usize::MAX).unwrap() {
        cluster.evolve(&event.event);
    }
    cluster
}

fn after(batches: &[Vec<Event>], count: usize) -> Cluster {
    let mut cluster = Cluster::default();
    for batch in batches.iter().take(count) {
        evolve(&mut cluster, batch);
    }
    cluster
}

/// The client asks again, as it does when it got no answer: I2, I3, I7. Then the rest of the history follows, and what
/// comes out is the same as if nobody had been killed.
fn go_on(store: &mut SqliteStore, mut cluster: Cluster, world: &World) {
    for event in world.batches.iter().flatten().take(cluster.last_event as usize) {
        match &event.what {
            What::JobSubmitted { job, request, body, spec, submitter, .. } => {
                let fresh = hatchery_common::id::JobId::random();
                let (request, body, spec, submitter) = (*request, *body, spec.clone(), submitter.clone());
                let again = Submit { request, job: fresh, body, spec, submitter };
                let decision = again.decide(&cluster, world.now).unwrap();
                assert_eq!(
                    (decision.events.len(), decision.outcome),
                    (0, Submitted { job: *job, duplicate: true })
                );
            }
            What::CheckpointCommitted { manifest, .. } => {
                assert_eq!(cluster.checkpoints[&manifest.id()].manifest, **manifest);
                assert!(manifest.epoch <= cluster.jobs[&manifest.job].epoch);
                let node = *cluster.nodes.keys().next().unwrap_or(&hatchery_common::id::NodeId::random());
                let again = CommitCheckpoint { node, manifest: manifest.clone(), self_test: None };
                assert_eq!(again.decide(&cluster, world.now).unwrap().events, []);
            }
            _ => {}
        }
    }
    let mut done = 0;
    for batch in &world.batches {
        done += batch.len() as u64;
        if done > cluster.last_event {
            store.commit(batch).unwrap();
            evolve(&mut cluster, batch);
        }
    }
    assert_eq!(store.load().unwrap(), world.cluster);
    assert_eq!(cluster, world.cluster);
}

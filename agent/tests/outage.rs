//! The coordinator is away, or the agent was cut off: what trained goes on where it may, and nothing that was made is lost.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use hatchery_common::trainer::Ending;
use support::{
    coordinator::Coordinator,
    node::{Node, attempt, ending, running, steps},
    runs, until,
};

const LEASE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn trainers_go_on_while_the_coordinator_is_down_and_their_checkpoints_come_after() {
    let mut coordinator = Coordinator::start().await;
    let mut node = Node::new();
    let (first, second) = (node.state.path().join("first"), node.state.path().join("second"));
    let script = format!(
        "checkpoint 10\nwait-file {}\ncheckpoint 20\ncheckpoint 30\nwait-file {}\ncheckpoint 40",
        first.display(),
        second.display()
    );
    let dataset = coordinator.dataset(&script);
    node.start(&coordinator);
    coordinator.assign(|assignment| {
        assignment.lease = LEASE;
        assignment.attempts = vec![attempt(dataset)];
    });
    coordinator.until("the first checkpoint is there", |notes| steps(notes) == [10] && running(notes)).await;
    let process = node.process().unwrap();
    let down = Instant::now();
    coordinator.go_down();
    until("several leases have passed", || down.elapsed() > 4 * LEASE).await;
    fs::write(&first, "").unwrap();
    let made = node.attempt_folder(1).join("checkpoints/step-000000030");
    until("checkpoints are made meanwhile", || made.exists()).await;
    coordinator.come_up().await;
    coordinator.until("all arrive, in their order", |notes| steps(notes) == [10, 20, 30]).await;
    assert!(runs(process), "the trainer was not disturbed");
    fs::write(&second, "").unwrap();
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    assert_eq!(steps(&coordinator.notes()), [10, 20, 30, 40]);
    node.leave().await;
}

/// A node whose trainer has stopped because the coordinator was away for too long, with a checkpoint that nobody has.
async fn stopped_by_an_outage() -> (Coordinator, Node) {
    let mut coordinator = Coordinator::start().await;
    let mut node = Node::new();
    node.outage_secs_max = 0;
    node.start(&coordinator);
    let dataset = coordinator.dataset("progress 5\nwait");
    coordinator.assign(|assignment| {
        assignment.lease = LEASE;
        assignment.attempts = vec![attempt(dataset)];
    });
    coordinator.until("it runs", running).await;
    let process = node.process().unwrap();
    coordinator.go_down();
    until("its trainer is gone", || !runs(process)).await;
    let made = node.attempt_folder(1).join("checkpoints/step-000000006");
    until("it has written a checkpoint", || made.exists()).await;
    // The job is another node's when the coordinator is back.
    coordinator.assign(|assignment| assignment.attempts.clear());
    (coordinator, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_made_before_it_lost_its_lease_is_offered_when_it_is_back() {
    let (mut coordinator, mut node) = stopped_by_an_outage().await;
    coordinator.come_up().await;
    coordinator.until("it is brought", |notes| steps(notes) == [6]).await;
    let folder = node.attempt_folder(1);
    until("the attempt is forgotten then", || !folder.exists()).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_offered_also_by_an_agent_that_was_started_again() {
    let (mut coordinator, mut node) = stopped_by_an_outage().await;
    node.crash().await;
    coordinator.come_up().await;
    node.start(&coordinator);
    coordinator.until("it is brought", |notes| steps(notes) == [6]).await;
    let folder = node.attempt_folder(1);
    until("the attempt is forgotten then", || !folder.exists()).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wanted_is_dropped_and_nothing_is_sent() {
    let (mut coordinator, mut node) = stopped_by_an_outage().await;
    coordinator.fence();
    coordinator.come_up().await;
    let folder = node.attempt_folder(1);
    until("the attempt is forgotten", || !folder.exists()).await;
    assert!(steps(&coordinator.notes()).is_empty());
    let [dataset] = &coordinator.blobs.list()[..] else { panic!("{:?}", coordinator.blobs.list()) };
    assert_eq!(dataset.id, coordinator.blobs.put_bytes(b"progress 5\nwait").unwrap());
    node.leave().await;
}

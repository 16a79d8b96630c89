//! What answers on a node for a job: the newest that has proved that it can, and until then the one before.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::fs;

use hatchery_common::{
    blob::{BlobLimits, BlobStore, PieceManifest},
    id::CheckpointId,
    session::ReplicaState,
    trainer::Ending,
};
use support::{
    coordinator::{Coordinator, Notes},
    node::{JOB, Node, attempt, ending, ready},
    until,
};

/// A coordinator with two checkpoints of one job, made by a first node.
async fn with_two() -> (Coordinator, [CheckpointId; 2]) {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("checkpoint 10\ncheckpoint 20");
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    coordinator.assign(|assignment| assignment.attempts.clear());
    node.leave().await;
    let ids = [0, 1].map(|index| coordinator.notes().commits[index].id());
    assert!(
        ids.iter().all(|id| coordinator.notes().self_tests.contains_key(id)),
        "each says what it answers"
    );
    (coordinator, ids)
}

fn wish(coordinator: &Coordinator, held: &[CheckpointId], active: CheckpointId) {
    coordinator.assign(|assignment| {
        assignment.checkpoints = held.to_vec();
        assignment.active = [(JOB, active)].into();
    });
}

fn active(notes: &Notes) -> Vec<CheckpointId> {
    let active = notes.report.replicas.iter().filter(|replica| replica.active);
    active.map(|replica| replica.checkpoint).collect()
}

fn failure(notes: &Notes, id: CheckpointId) -> Option<&str> {
    match notes.replica(id)? {
        ReplicaState::Failed { why } => Some(why),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_answers_otherwise_than_where_it_was_made_is_not_activated() {
    let (coordinator, [first, second]) = with_two().await;
    let mut node = Node::started(&coordinator);
    wish(&coordinator, &[first], first);
    coordinator.until("the first is active", |notes| active(notes) == [first]).await;

    let right = coordinator.notes().self_tests[&second].clone();
    coordinator.note(|notes| {
        let wrong = notes.self_tests.get_mut(&second).unwrap();
        wrong.answer[7] ^= 1;
    });
    wish(&coordinator, &[second], second);
    let told = |notes: &Notes| failure(notes, second).is_some_and(|why| why.contains("self-test differs"));
    coordinator.until("the second is refused", told).await;
    assert_eq!(active(&coordinator.notes()), [first], "the old one stays, though nobody wishes it any more");
    let file = node.state.path().join("active.json");
    assert!(fs::read_to_string(&file).unwrap().contains(&first.to_string()));

    // Also when the agent is started again.
    node.crash().await;
    node.start(&coordinator);
    let again = |notes: &Notes| ready(notes, first) && active(notes) == [first] && told(notes);
    coordinator.until("the first answers again", again).await;

    coordinator.note(|notes| drop(notes.self_tests.insert(second, right)));
    coordinator.until("the second is active", |notes| active(notes) == [second]).await;
    assert!(fs::read_to_string(&file).unwrap().contains(&second.to_string()));
    coordinator.assign(|assignment| assignment.active.clear());
    coordinator.until("nothing answers", |notes| ready(notes, second) && active(notes).is_empty()).await;
    until("that is written down", || fs::read_to_string(&file).unwrap() == "{}").await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_budget_a_node_takes_no_more_and_lets_go_of_what_nobody_wishes() {
    let (coordinator, [first, second]) = with_two().await;
    let size_bytes = coordinator.notes().commits[0].size_bytes();
    let mut node = Node { blob_bytes_max: size_bytes + size_bytes / 20, ..Node::new() };
    node.start(&coordinator);
    wish(&coordinator, &[first], first);
    coordinator.until("it holds the first", |notes| active(notes) == [first]).await;
    wish(&coordinator, &[first, second], first);
    let refused = |notes: &Notes| failure(notes, second).is_some_and(|why| why.contains("is full"));
    coordinator.until("it says why it does not take the second", refused).await;
    // Room is short: what was let go goes at once, and not after a minute.
    coordinator.assign(|assignment| {
        assignment.checkpoints = vec![second];
        assignment.active.clear();
    });
    coordinator.until("it holds the second", |notes| ready(notes, second)).await;
    assert!(coordinator.notes().replica(first).is_none());
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_and_given_up_takes_no_room_from_what_is_wished() {
    let (coordinator, [first, second]) = with_two().await;
    let size_bytes = coordinator.notes().commits[0].size_bytes();
    let mut node = Node { blob_bytes_max: 4 << 20, ..Node::new() };
    // A transfer as long as all that there may be, of something that nobody wishes any more.
    let limits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };
    let store = BlobStore::open(&node.state.path().join("blobs"), limits).unwrap();
    let unfinished = PieceManifest::of_bytes(&vec![1; 4 << 20]);
    let place = node.state.path().join("blobs").join("partial");
    drop(store.writer(unfinished).unwrap());
    drop(store);
    assert!(fs::read_dir(&place).unwrap().count() > 0 && size_bytes < 2 << 20);
    node.start(&coordinator);
    // Something else that is wished fails again and again, so the node is never at rest.
    coordinator.note(|notes| notes.self_tests.get_mut(&second).unwrap().answer[7] ^= 1);
    wish(&coordinator, &[second, first], first);
    coordinator.until("the first is active", |notes| active(notes) == [first]).await;
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_comes_no_faster_than_it_may() {
    let (coordinator, [first, _]) = with_two().await;
    let size_bytes = coordinator.notes().commits[0].size_bytes();
    let mut node = Node::started(&coordinator);
    let begun = std::time::Instant::now();
    coordinator.assign(|assignment| {
        assignment.checkpoints = vec![first];
        assignment.bytes_per_sec_max = [(first, size_bytes)].into();
    });
    coordinator.until("it holds it", |notes| ready(notes, first)).await;
    let took = begun.elapsed().as_secs_f64();
    assert!(took > 0.7, "a second's worth came in {took} s");
    node.leave().await;
}

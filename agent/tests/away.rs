//! A machine whose owner comes and goes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hatchery_agent::{AgentSettings, run_on};
use hatchery_common::{
    availability::AwayReason,
    generate::{GenerationOrder, SamplingParams, StopStrings},
    id::{Epoch, RequestId},
    session::{AnswerPart, AssignedAttempt, CoordinatorMessage, ReplicaState},
    trainer::{AttemptOrder, Ending},
};
use support::{
    PATIENCE,
    coordinator::{Coordinator, Notes},
    fake_trainer,
    inhabited::{Inhabited, Owner},
    node::{JOB, attempt, attempt_id, ending, running, steps},
    runs, until,
};
use tokio::{sync::oneshot, task::JoinHandle};

struct Node {
    state: tempfile::TempDir,
    owner: Owner,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Node {
    fn start(coordinator: &Coordinator) -> Self {
        let (state, owner) = (tempfile::tempdir().unwrap(), Owner::default());
        let settings = AgentSettings {
            state: state.path().to_owned(),
            calibrate: false,
            free_disk_bytes_min: 0,
            availability: Owner::policy(),
            ..AgentSettings::default()
        };
        let platform = Arc::new(Inhabited::new(fake_trainer(), owner.clone()));
        let (stop, stopped) = oneshot::channel();
        let credentials = coordinator.credentials();
        let running = tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            run_on(platform, settings, credentials, shutdown).await.unwrap();
        });
        Self { state, owner, stop, running }
    }

    async fn leave(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it leaves").unwrap();
    }

    fn attempt_folder(&self, epoch: u64) -> PathBuf {
        self.state.path().join("attempts").join(format!("{JOB}-{epoch}"))
    }

    fn order(&self, epoch: u64) -> AttemptOrder {
        let text = std::fs::read(self.attempt_folder(epoch).join("order.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// The trainer of the first attempt.
    fn process(&self) -> u32 {
        let text = std::fs::read(self.attempt_folder(1).join("process.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["id"].as_u64().unwrap() as u32
    }
}

fn is_away(notes: &Notes) -> bool {
    notes.report.away.is_some_and(|away| away.reason == AwayReason::OwnerActive)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_has_the_machine_back_through_a_checkpoint_and_it_answers_all_the_same() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("progress 5\nwait");
    let node = Node::start(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it runs", running).await;
    let notes = coordinator.notes().hellos[0].notes.clone();
    assert!(
        notes.iter().any(|note| note.starts_with("availability: ")),
        "what is not seen is said: {notes:?}"
    );
    node.owner.is_there(true);
    coordinator.until("it stops", |notes| ending(notes) == Some(&Ending::NodeAway) && is_away(notes)).await;
    assert_eq!(steps(&coordinator.notes()), [6]);

    let parent = coordinator.notes().commits[0].id();
    coordinator.assign(|assignment| {
        let again = AssignedAttempt { id: attempt_id(2), resume_from: Some(parent), ..attempt(dataset) };
        (assignment.attempts, assignment.checkpoints) = (vec![again], vec![parent]);
    });
    let ready = |notes: &Notes| matches!(notes.replica(parent), Some(ReplicaState::Ready { .. }));
    coordinator.until("it fetches and tests", ready).await;
    let order = GenerationOrder {
        checkpoint: parent,
        prompt: b"To be".to_vec(),
        max_bytes: 4,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    };
    coordinator.say(CoordinatorMessage::Generation { request: RequestId::random(), order }).await;
    let answered = |notes: &Notes| matches!(notes.parts.last(), Some(AnswerPart::Finished(_)));
    coordinator.until("it answers", answered).await;
    let sequence = coordinator.notes().report.sequence;
    coordinator.until("it reports on", |notes| notes.report.sequence > sequence + 2).await;
    assert!(is_away(&coordinator.notes()));
    assert_eq!(coordinator.notes().attempt(0), None, "nothing starts");
    assert!(!node.attempt_folder(2).exists());

    node.owner.is_there(false);
    coordinator
        .until("the next one runs", |notes| running(notes) && notes.attempt(0).unwrap().id.epoch == Epoch(2))
        .await;
    assert_eq!(coordinator.notes().report.away, None);
    assert!(node.order(2).resume_from.unwrap().ends_with(parent.to_string()));
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_does_not_wait_for_the_coordinator() {
    let mut coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("progress 5\nwait");
    let node = Node::start(&coordinator);
    // Long enough that it is not the lease which ends it.
    coordinator.assign(|assignment| {
        (assignment.lease, assignment.attempts) = (Duration::from_mins(10), vec![attempt(dataset)]);
    });
    coordinator.until("it runs", running).await;
    let process = node.process();
    coordinator.go_down();
    node.owner.is_there(true);
    until("the trainer ends", || !runs(process)).await;
    coordinator.come_up().await;
    coordinator.until("its end is told", |notes| ending(notes) == Some(&Ending::NodeAway)).await;
    assert_eq!(steps(&coordinator.notes()), [6], "with its checkpoint");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_report_has_the_figures_of_its_moment() {
    let coordinator = Coordinator::start().await;
    let node = Node::start(&coordinator);
    for free in [9 << 30, 1 << 30] {
        node.owner.leaves_free(free);
        coordinator.until("it says so", |notes| notes.report.metrics.disk_free_bytes == Some(free)).await;
    }
    assert!(coordinator.notes().inventories.is_empty(), "that is no news of what the machine is");
    node.leave().await;
}

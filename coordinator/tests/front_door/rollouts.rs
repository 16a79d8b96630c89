//! Rollouts: wished, reported, taken back.

use futures::StreamExt as _;
use hatchery_common::{
    generate::{GenerationPart, SamplingParams, StopStrings},
    id::CheckpointId,
    recipe::NodeSelector,
    self_test::{SELF_TEST_BYTES, SelfTest},
    session::{ReplicaReport, ReplicaState},
};
use hatchery_proto::client::{CallError, GenerateCall, PushCall};
use hatchery_scheduler::limits::ROLLOUTS_KEPT;

use crate::{
    agent::{Agent, Session},
    fixture::{Fixture, checkpoint, name, soon},
    state::{events, load, replayed},
};

fn replica(checkpoint: CheckpointId, active: bool) -> ReplicaReport {
    ReplicaReport {
        checkpoint,
        state: ReplicaState::Ready { self_test_ms: 1.0 },
        active,
        serving_only: false,
    }
}

/// Which checkpoint answers when the job is asked, and where.
async fn who_answers(
    fixture: &Fixture,
    job: &str,
    node: Option<&str>,
) -> Result<(String, CheckpointId), CallError> {
    let call = GenerateCall {
        checkpoint: job.to_owned(),
        node: node.map(str::to_owned),
        prompt: b"to be".to_vec(),
        max_bytes: 8,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    };
    let mut answer = soon(fixture.fleet().await.generate(&call)).await?;
    match soon(answer.next()).await.unwrap()? {
        GenerationPart::Chosen { node_name, checkpoint, .. } => Ok((node_name.to_string(), checkpoint)),
        other => panic!("{other:?}"),
    }
}

async fn push(fixture: &Fixture, checkpoint: CheckpointId, to: NodeSelector) {
    let checkpoint = checkpoint.to_string();
    let call = PushCall { checkpoint, to, activate: true, bytes_per_sec_max: Some(1 << 20) };
    soon(fixture.fleet().await.push(&call)).await.unwrap();
}

async fn until_active(session: &mut Session, id: CheckpointId) {
    session.assignment(|assignment| assignment.active.values().eq([&id])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_answered_for_by_what_is_active_and_a_rollback_changes_that() {
    let fixture = Fixture::start().await;
    let ada = Agent::join(&fixture, "ada").await;
    let mut on_ada = ada.session().await;
    let job = fixture.submit().await;
    let attempt = on_ada.attempt().await;
    let first = ada.commit(&job, &attempt, 5, None).await.unwrap();
    let second = ada.commit(&job, &attempt, 10, None).await.unwrap();
    let bob = Agent::join(&fixture, "bob").await;
    let mut on_bob = bob.session().await;
    until_active(&mut on_bob, second).await;

    let error = who_answers(&fixture, "demo", None).await.unwrap_err();
    assert!(error.to_string().contains("is not ready on any connected node"), "{error}");
    on_bob.report(vec![], vec![replica(first, true), replica(second, false)]).await;
    let answered = who_answers(&fixture, "demo", None).await.unwrap();
    assert_eq!(answered, ("bob".to_owned(), first), "the old one answers until the new one is active");
    on_ada.report(vec![], vec![replica(second, true)]).await;
    let answered = who_answers(&fixture, "demo", None).await.unwrap();
    assert_eq!(answered, ("ada".to_owned(), second), "a node that is where it should be comes first");
    assert_eq!(who_answers(&fixture, "demo:latest", Some("bob")).await.unwrap().1, second, "one by its name");

    let places = async |id: CheckpointId| {
        let shown = soon(fixture.fleet().await.checkpoint(&id.to_string())).await.unwrap();
        shown.replicas.iter().map(|one| (one.node_name.to_string(), one.to_be_active)).collect::<Vec<_>>()
    };
    push(&fixture, first, NodeSelector::All).await;
    assert!(places(first).await.iter().all(|(_, to_be_active)| *to_be_active));
    assert!(places(second).await.iter().all(|(_, to_be_active)| !to_be_active));
    until_active(&mut on_bob, first).await;
    on_bob.report(vec![], vec![replica(first, true)]).await;
    let answered = who_answers(&fixture, "demo", None).await.unwrap();
    assert_eq!(answered, ("bob".to_owned(), first));
    let fleet = fixture.fleet().await;
    let rollouts = soon(fleet.rollouts(false)).await.unwrap();
    assert_eq!(rollouts.len(), 2, "the push and the job's own policy: {rollouts:?}");
    let pushed = &rollouts[0];
    assert_eq!(
        (pushed.checkpoint, pushed.step, pushed.nodes, pushed.ready, pushed.active),
        (first, 5, 2, 1, 1)
    );
    assert_eq!((pushed.to.as_str(), pushed.bytes_per_sec_max), ("all nodes", Some(1 << 20)));
    let policy = &rollouts[1];
    assert_eq!((policy.id, policy.by.as_ref(), policy.checkpoint), (None, None, second));
    let shown = soon(fleet.node("bob")).await.unwrap();
    assert_eq!(shown.active.iter().map(|one| (one.checkpoint, one.step)).collect::<Vec<_>>(), [(first, 5)]);

    let withdrawn = soon(fleet.roll_back("demo", &NodeSelector::All)).await.unwrap();
    assert_eq!(withdrawn.rollout.checkpoint, first);
    let now: Vec<_> = withdrawn.active.iter().map(|one| (one.node_name.as_str(), one.checkpoint)).collect();
    assert_eq!(now.len(), 2);
    assert!(now.iter().all(|(_, checkpoint)| *checkpoint == Some(second)), "{now:?}");
    until_active(&mut on_bob, second).await;
    assert_eq!(soon(fleet.rollouts(false)).await.unwrap().len(), 1);
    assert_eq!(soon(fleet.rollouts(true)).await.unwrap().len(), 2);
    let error = soon(fleet.roll_back("demo", &NodeSelector::All)).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Refused(why) if why.contains("push CHECKPOINT --activate")),
        "{error:?}"
    );
    let again = soon(fleet.withdraw(&withdrawn.rollout.id.unwrap().to_string()[..8], &NodeSelector::All))
        .await
        .unwrap();
    assert_eq!(again.rollout.id, withdrawn.rollout.id, "twice is as good as once");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_stay_bounded_however_often_something_is_pushed_and_taken_back() {
    const PUSHES: usize = 3 * ROLLOUTS_KEPT;
    let mut fixture = Fixture::start().await;
    let ada = Agent::join(&fixture, "ada").await;
    let mut on_ada = ada.session().await;
    let job = fixture.submit().await;
    let attempt = on_ada.attempt().await;
    let first = ada.commit(&job, &attempt, 5, None).await.unwrap();
    let second = ada.commit(&job, &attempt, 10, None).await.unwrap();
    for index in 0..PUSHES {
        push(&fixture, [first, second][index % 2], NodeSelector::All).await;
    }
    let fleet = fixture.fleet().await;
    let shown = soon(fleet.rollouts(true)).await.unwrap();
    assert_eq!(shown.len(), ROLLOUTS_KEPT + 1, "and the job's own policy");
    assert!(shown.iter().all(|rollout| rollout.withdrawn_at.is_none()));
    // As often as is promised a rollback leads to what was pushed before, and then to the policy's.
    for index in (0..ROLLOUTS_KEPT).rev() {
        let back = soon(fleet.roll_back("demo", &NodeSelector::All)).await.unwrap();
        assert_eq!(back.rollout.checkpoint, [first, second][index % 2]);
        let active = back.active[0].checkpoint.unwrap();
        assert_eq!(active, if index > 0 { [first, second][(index - 1) % 2] } else { second });
    }
    soon(fleet.roll_back("demo", &NodeSelector::All)).await.unwrap_err();
    push(&fixture, first, NodeSelector::All).await;
    let last = soon(fleet.roll_back("demo", &NodeSelector::All)).await.unwrap().rollout.id;
    let shown = soon(fleet.rollouts(true)).await.unwrap();
    assert_eq!(
        (shown.len(), shown[0].id),
        (ROLLOUTS_KEPT + 1, last),
        "the oldest has made room for the newest"
    );

    fixture.restart().await;
    assert_eq!(soon(fixture.fleet().await.rollouts(true)).await.unwrap(), shown);
    fixture.stop().await;
    let state = fixture.state();
    assert_eq!(replayed(&events(&state)), load(&state), "events replayed are the tables");
    let forgotten = events(&state).iter().filter(|event| event.what.kind() == "rollout_forgotten").count();
    assert_eq!(forgotten, PUSHES + 1 - ROLLOUTS_KEPT);
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_are_listed_however_long_the_sets_of_their_nodes_are() {
    let fixture = Fixture::start().await;
    let ada = Agent::join(&fixture, "ada").await;
    let mut on_ada = ada.session().await;
    let job = fixture.submit().await;
    let attempt = on_ada.attempt().await;
    let first = ada.commit(&job, &attempt, 5, None).await.unwrap();
    let long = |which: usize| {
        let label = |index: usize| (name(&format!("{which:0>30}-{index:0>30}")), name(&"v".repeat(60)));
        NodeSelector::Labels((0..64).map(label).collect())
    };
    push(&fixture, first, long(0)).await;
    let fleet = fixture.fleet().await;
    let id = soon(fleet.rollouts(false)).await.unwrap()[0].id.unwrap().to_string();
    for which in 1..=10 {
        soon(fleet.withdraw(&id, &long(which))).await.unwrap();
    }
    let to = soon(fleet.rollouts(false)).await.unwrap()[0].to.clone();
    assert!(to.contains(" and 56 more but nodes with ") && to.ends_with(" and 2 more"), "{to}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_checkpoint_answers_where_it_was_made_outlives_a_restart() {
    let mut fixture = Fixture::start().await;
    let mut ada = Agent::join(&fixture, "ada").await;
    let mut session = ada.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let manifest = checkpoint(&ada.blobs, &job, attempt.id.epoch, 5, None);
    ada.put(&manifest).await;
    let log_probabilities = vec![-1.0 / 3.0; SELF_TEST_BYTES];
    let self_test = SelfTest { answer: b"sixteen bytes ok".to_vec(), log_probabilities, serving: None };
    let wrong = SelfTest { answer: b"too few".to_vec(), ..self_test.clone() };
    let error = soon(ada.client.commit_checkpoint(&manifest, Some(wrong))).await.unwrap_err();
    assert!(error.to_string().contains("self_test.answer"), "{error}");
    let id = soon(ada.client.commit_checkpoint(&manifest, Some(self_test.clone()))).await.unwrap();
    drop(session);
    fixture.restart().await;
    ada.move_to(&fixture).await;
    assert_eq!(soon(ada.client.checkpoint_manifest(id)).await.unwrap(), (manifest, Some(self_test)));
}

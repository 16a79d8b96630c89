//! Leases: they run out when a node is not heard from, end at a goodbye, and outlive a restart of the coordinator.

use hatchery_common::{
    id::Epoch,
    session::{AgentMessage, AttemptPhase},
    time::BootTime,
    view::NodeState,
};

use crate::{
    agent::{Agent, report_of},
    fixture::{Fixture, soon},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_attempt_and_the_next_goes_on_from_the_checkpoint() {
    let fixture = Fixture::start_with(|settings| settings.lease_secs = 2).await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    session.report(vec![report_of(&attempt, AttemptPhase::Running)], vec![]).await;
    let checkpoint = agent.commit(&job, &attempt, 10, None).await.unwrap();
    let heard = BootTime::now();
    session.report(vec![], vec![]).await;

    // Nothing is said any more, though the connection stands.
    let waiting = fixture.job_when(job.id, |job| job.phase.name() == "queued").await;
    let waited = BootTime::now().since(heard);
    assert!(waited.as_millis() >= 2000, "it was given away after {waited:?}");
    assert!(waiting.failures.is_empty(), "a lost node is not the job's fault");
    session.report(vec![], vec![]).await;
    let next = session.assignment(|now| now.attempts.iter().any(|one| one.id.epoch == Epoch(2))).await;
    assert_eq!(next.attempts[0].resume_from, Some(checkpoint));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_coordinator_keeps_the_lease() {
    let mut fixture = Fixture::start_with(|settings| settings.lease_secs = 5).await;
    let mut agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    session.report(vec![report_of(&attempt, AttemptPhase::Running)], vec![]).await;

    fixture.restart().await;
    assert_eq!(soon(fixture.fleet().await.node("box")).await.unwrap().state, NodeState::Unknown);
    let kept = fixture.job_when(job.id, |_| true).await;
    assert_eq!((kept.phase.name(), kept.epoch), ("running", Epoch(1)));
    agent.move_to(&fixture).await;
    let mut session = agent.session().await;
    assert_eq!(session.attempt().await, attempt, "the same attempt goes on");
    session.report(vec![report_of(&attempt, AttemptPhase::Running)], vec![]).await;
    agent.commit(&job, &attempt, 10, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_ends_leases_at_once() {
    let fixture = Fixture::start_with(|settings| settings.lease_secs = 3600).await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    session.attempt().await;
    session.send(AgentMessage::Goodbye).await;
    let waiting = fixture.job_when(job.id, |job| job.phase.name() == "queued").await;
    assert_eq!(waiting.epoch, Epoch(1), "it does not go back to the node that leaves");
    assert_eq!(soon(fixture.fleet().await.node("box")).await.unwrap().state, NodeState::Disconnected);
    let mut session = agent.session().await;
    assert_eq!(session.attempt().await.id.epoch, Epoch(2));
}

//! Nodes whose owners take them back for a while.

use hatchery_common::{
    availability::{Away, AwayReason, LocalTime},
    id::Epoch,
    session::AttemptPhase,
    time::Timestamp,
    trainer::Ending,
};

use crate::{
    agent::{Agent, ended, report_of},
    fixture::{Fixture, soon},
};

const AWAY: Away = Away { reason: AwayReason::OwnerActive, until: None };

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_its_owners_hands_over_and_is_given_work_when_it_is_back() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let agent = Agent::join(&fixture, "workstation").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let running = || vec![report_of(&attempt, AttemptPhase::Running)];
    session.report(running(), vec![]).await;
    session.report_away(Some(AWAY), running()).await;
    let stops = session.assignment(|now| now.attempts.iter().any(|attempt| attempt.stop)).await;
    assert_eq!(stops.attempts[0].id.epoch, attempt.id.epoch);
    assert_eq!(soon(fleet.node("workstation")).await.unwrap().away, Some(AWAY));
    let stopping = fixture.job_when(job.id, |job| job.why.is_some()).await;
    assert_eq!(
        stopping.why.as_deref(),
        Some("stopping after a checkpoint: its node is away: its owner is using it")
    );

    let checkpoint = agent.commit(&job, &attempt, 10, None).await.unwrap();
    session.report_away(Some(AWAY), vec![ended(&attempt, Ending::NodeAway)]).await;
    let waiting = fixture.job_when(job.id, |job| job.phase.name() == "queued").await;
    assert!(waiting.failures.is_empty(), "nobody is to blame");
    assert_eq!(
        waiting.why.as_deref(),
        Some("waiting: workstation, which could run this, is away: its owner is using it")
    );
    let placement = soon(fleet.placement(&job.id.to_string())).await.unwrap();
    let candidate = &placement.candidates[0];
    assert_eq!(
        (candidate.verdict.name(), candidate.why.as_str(), candidate.start_in_ms),
        ("node_away", "away: its owner is using it", None)
    );
    assert_eq!(placement.why, waiting.why);

    session.report_away(None, vec![]).await;
    let next = session.assignment(|now| now.attempts.iter().any(|attempt| !attempt.stop)).await;
    assert_eq!((next.attempts[0].id.epoch, next.attempts[0].resume_from), (Epoch(2), Some(checkpoint)));
    assert_eq!(soon(fleet.node("workstation")).await.unwrap().away, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_elsewhere_and_a_restarted_coordinator_asks_before_it_grants() {
    let mut fixture = Fixture::start().await;
    let mut agent = Agent::join(&fixture, "workstation").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    // The coordinator hears of nothing but the end: the agent has not waited for it.
    let until = LocalTime { at: Timestamp::now(), utc_offset_secs: 3600 };
    let outside = Away { reason: AwayReason::OutsideHours, until: Some(until) };
    session.report_away(Some(outside), vec![ended(&attempt, Ending::NodeAway)]).await;
    let waiting = fixture.job_when(job.id, |job| job.phase.name() == "queued").await;
    assert!(waiting.why.unwrap().contains("is away: outside its hours, until "));

    fixture.restart().await;
    agent.move_to(&fixture).await;
    let mut session = agent.dial().await;
    session.report_away(Some(outside), vec![]).await;
    let waiting =
        fixture.job_when(job.id, |job| job.why.as_ref().is_some_and(|why| why.contains("away"))).await;
    assert_eq!(waiting.epoch, Epoch(1), "it is not given to whoever has only just dialled");

    let other = Agent::join(&fixture, "server").await;
    let mut elsewhere = other.session().await;
    assert_eq!(elsewhere.attempt().await.id.epoch, Epoch(2));
    assert!(fixture.job_when(job.id, |job| job.phase.name() == "running").await.failures.is_empty());
}

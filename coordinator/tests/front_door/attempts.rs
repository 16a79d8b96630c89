//! A job's way through an agent's session: assignment, checkpoint, end; and what is fenced off.

use futures::StreamExt as _;
use hatchery_common::{
    id::{AttemptId, Epoch, JobId},
    session::{AgentMessage, AttemptPhase, ReplicaReport, ReplicaState},
    trainer::{Ending, FailureCause, LossPoint, Metrics, Progress, Validation},
    view::NodeState,
};
use hatchery_proto::{client::CallError, v1};
use tonic::Code;

use crate::{
    agent::{Agent, ended, inventory, report_of},
    fixture::{Fixture, STEPS, checkpoint, soon, soon_failed, soon_when},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_from_assignment_to_completion() {
    let mut fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    assert_eq!(session.assignment(|_| true).await.attempts, []);
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    assert_eq!((attempt.id.job, attempt.id.epoch, attempt.resume_from), (job.id, Epoch(1), None));
    assert_eq!(attempt.spec, job.spec);
    let manifest = soon(agent.client.dataset_manifest(job.spec.dataset)).await.unwrap();
    assert_eq!(manifest.files().len(), 1);

    let mut running = report_of(&attempt, AttemptPhase::Running);
    running.progress =
        Some(Progress { step: 7, train_loss: 3.25, steps_per_sec: 9.5, ..Progress::default() });
    running.validation = Some(Validation { step: 5, loss: 3.5, ..Validation::default() });
    running.running_on = Some("cpu, f32".into());
    session.report(vec![running.clone()], vec![]).await;
    let seen = fixture.job_when(job.id, |job| job.progress.is_some()).await;
    assert_eq!(seen.phase.name(), "running");
    assert_eq!((seen.node.unwrap().as_str(), seen.activity.as_deref()), ("box", Some("running")));
    assert_eq!((seen.progress, seen.validation), (running.progress, running.validation));

    let first = agent.commit(&job, &attempt, 10, None).await.unwrap();
    assert_eq!(
        agent.commit(&job, &attempt, 10, None).await.unwrap(),
        first,
        "a repeated commit is the same one"
    );
    assert_eq!(soon(agent.client.checkpoint_manifest(first)).await.unwrap().0.step, 10);
    let assigned = session.assignment(|assignment| !assignment.checkpoints.is_empty()).await;
    assert_eq!(assigned.checkpoints, [first]);

    let last = agent.commit(&job, &attempt, STEPS, Some(first)).await.unwrap();
    session.report_blindly(vec![ended(&attempt, Ending::Completed)]).await;
    session.report_blindly(vec![ended(&attempt, Ending::Completed)]).await;
    let done = fixture.job_when(job.id, |job| job.phase.is_terminal()).await;
    assert_eq!((done.phase.name(), done.checkpoint, done.checkpoint_step), ("completed", Some(last), STEPS));
    assert_eq!(done.metrics.train_loss, Some(2.0));
    assert_eq!(done.progress, running.progress, "the last figures stay");
    let idle = session.assignment(|assignment| assignment.attempts.is_empty()).await;
    assert_eq!(idle.checkpoints, [first, last]);

    let state = ReplicaState::Ready { self_test_ms: 3.5 };
    let ready = ReplicaReport { checkpoint: last, state, active: true, serving_only: false };
    session.report(vec![], vec![ready.clone()]).await;
    let fleet = fixture.fleet().await;
    let shown = soon(fleet.checkpoint("latest")).await.unwrap();
    assert_eq!((shown.id, shown.job_name.as_str()), (last, "demo"));
    assert_eq!(shown.replicas[0].state, Some(ready.state));
    let node = soon(fleet.node("box")).await.unwrap();
    assert_eq!((node.state, node.replicas_ready, node.replicas_wanted), (NodeState::Connected, 1, 2));
    assert_eq!(node.inventory, inventory());

    fixture.restart().await;
    let fleet = fixture.fleet().await;
    let again = soon(fleet.job("demo")).await.unwrap();
    assert_eq!((again.phase.name(), again.checkpoint), ("completed", Some(last)));
    assert_eq!(again.node.unwrap().as_str(), "box", "where it ran is still known");
    assert_eq!(soon(fleet.checkpoints(None)).await.unwrap().len(), 2);
    assert_eq!(soon(fleet.node("box")).await.unwrap().state, NodeState::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_checkpoint_has_a_name_and_an_early_end_is_a_completion_with_its_reason() {
    let mut fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let fleet = fixture.fleet().await;
    let error = soon(fleet.checkpoint("demo:best")).await.unwrap_err().to_string();
    assert!(error.contains("no checkpoint of the job demo was validated"), "{error}");
    let validated = |step, loss, best| Metrics {
        validation_loss: Some(loss),
        validation_step: Some(step),
        best: Some(best),
        ..Metrics::default()
    };
    let best = LossPoint { step: 5, loss: 1.5 };
    let good = agent.commit_with(&job, &attempt, 5, validated(5, 1.5, best)).await;
    let metrics = Metrics { early_stop: Some(1), ..validated(10, 1.75, best) };
    let last = agent.commit_with(&job, &attempt, 10, metrics).await;
    session.report_blindly(vec![ended(&attempt, Ending::Completed)]).await;
    let done = fixture.job_when(job.id, |job| job.phase.is_terminal()).await;
    assert_eq!((done.phase.name(), done.checkpoint, done.best), ("completed", Some(last), Some(good)));
    assert_eq!(done.why.as_deref(), Some("no improvement in 1 validation since the best, 1.5000 at step 5"));

    fixture.restart().await;
    let fleet = fixture.fleet().await;
    for (given, id) in
        [("best", good), ("demo:best", good), ("demo:latest", last), ("latest", last), ("demo", last)]
    {
        let found = soon(fleet.checkpoint(given)).await.unwrap();
        assert_eq!((found.id, found.is_best), (id, id == good), "{given}");
    }
    let error = soon(fleet.checkpoint("demo:worst")).await.unwrap_err().to_string();
    assert!(error.contains("`demo:best` and `demo:latest`"), "{error}");
    assert_eq!(soon(fleet.job("demo")).await.unwrap().why, done.why, "and it stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_the_lease_counts() {
    let fixture = Fixture::start().await;
    let (one, two) = (Agent::join(&fixture, "one").await, Agent::join(&fixture, "two").await);
    let mut session = one.session().await;
    session.report(vec![], vec![]).await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let mut other = two.session().await;
    other.report(vec![], vec![]).await;

    // Another node, and another epoch: neither commits, neither ends the attempt.
    let manifest = checkpoint(&two.blobs, &job, attempt.id.epoch, 10, None);
    two.put(&manifest).await;
    let error = soon(two.client.commit_checkpoint(&manifest, None)).await.unwrap_err();
    let CallError::Refused(message) = &error else { panic!("{error:?}") };
    assert!(message.contains("has no lease"), "{message}");
    let manifest = checkpoint(&one.blobs, &job, Epoch(7), 10, None);
    one.put(&manifest).await;
    let error = soon(one.client.commit_checkpoint(&manifest, None)).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(text) if text.contains("epoch 7")), "{error:?}");
    other.report(vec![ended(&attempt, Ending::Completed)], vec![]).await;
    let mut stale = ended(&attempt, Ending::Completed);
    stale.id.epoch = Epoch(7);
    session.report(vec![stale], vec![]).await;
    assert_eq!(fixture.job_when(job.id, |_| true).await.phase.name(), "running");
    let logs = AgentMessage::LogLines { attempt: attempt.id, offset: 0, text: b"forged\n".to_vec() };
    other.send(logs).await;
    other.report(vec![], vec![]).await;
    let mut logs = soon(fixture.fleet().await.logs("demo", false)).await.unwrap();
    assert!(soon(logs.next()).await.is_none(), "another node's lines are not taken");

    // A commit without its blobs.
    let manifest = checkpoint(&one.blobs, &job, attempt.id.epoch, 11, None);
    let error = soon(one.client.commit_checkpoint(&manifest, None)).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(text) if text.contains("4 of the 4 blobs")), "{error:?}");

    // The attempt fails; the job comes back with the next epoch, and the old one is over for good.
    let failed = Ending::Failed { cause: FailureCause::Crashed, message: "signal 9".into() };
    session.report_blindly(vec![ended(&attempt, failed)]).await;
    let job = fixture.job_when(job.id, |job| job.epoch == Epoch(2) && job.phase.name() == "running").await;
    assert_eq!(job.failures.len(), 1);
    assert!(job.failures[0].message.contains("the last line"), "{:?}", job.failures[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_counts_if_it_is_further() {
    let fixture = Fixture::start().await;
    let (one, two) = (Agent::join(&fixture, "one").await, Agent::join(&fixture, "two").await);
    let mut session = one.session().await;
    session.report(vec![], vec![]).await;
    let job = fixture.submit().await;
    let old = session.attempt().await;
    let failed = Ending::Failed { cause: FailureCause::Crashed, message: "signal 9".into() };
    session.report_blindly(vec![ended(&old, failed)]).await;
    let job = fixture.job_when(job.id, |job| job.epoch == Epoch(2) && job.phase.name() == "running").await;
    let next = session.assignment(|now| now.attempts.iter().any(|one| one.id.epoch == Epoch(2))).await;

    let offer = |agent: &Agent, epoch: u64, step: u64| {
        let (client, attempt) = (agent.client.clone(), AttemptId { job: job.id, epoch: Epoch(epoch) });
        async move { soon(client.offer_checkpoint(attempt, step)).await.unwrap() }
    };
    assert_eq!(offer(&one, 1, 10).await, Ok(()));
    let late = one.commit(&job, &old, 10, None).await.unwrap();
    assert_eq!(fixture.job_when(job.id, |job| job.checkpoint_step == 10).await.checkpoint, Some(late));
    assert_eq!(offer(&one, 1, 10).await, Ok(()), "it is taken already, and the same again is an answer");
    assert!(offer(&two, 1, 20).await.unwrap_err().contains("has no lease"), "that was another node's");
    one.commit(&job, &next.attempts[0], 20, None).await.unwrap();
    assert_eq!(offer(&one, 1, 15).await, Err("the newest checkpoint is of step 20".to_owned()));
    let error = one.commit(&job, &old, 15, None).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(text) if text.contains("must be above 20")), "{error:?}");

    let unknown = AttemptId { job: JobId::random(), epoch: Epoch(1) };
    let unknown = soon(one.client.offer_checkpoint(unknown, 1)).await;
    assert!(matches!(unknown, Err(CallError::NotFound(_))), "{unknown:?}");

    // The history tells both, also when the coordinator is started again.
    let mut fixture = fixture;
    fixture.restart().await;
    let id = job.id.to_string();
    let events = soon(fixture.fleet().await.events(0, false, Some(&id))).await.unwrap();
    let said: Vec<String> = soon(events.map(|event| event.unwrap().text).collect()).await;
    let tells = |text: &str| said.iter().any(|line| line.contains(text));
    assert!(tells("at step 10, delivered late by attempt 1"), "{said:#?}");
    assert!(
        tells("attempt 1 of demo") && tells("on one delivered a checkpoint of step 15 too late"),
        "{said:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_through_its_agent() {
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    assert!(!attempt.stop);
    let fleet = fixture.fleet().await;
    assert_eq!(soon(fleet.cancel("demo")).await.unwrap().phase.name(), "cancelling");
    session.assignment(|assignment| assignment.attempts.iter().any(|attempt| attempt.stop)).await;
    session.report_blindly(vec![ended(&attempt, Ending::Stopped)]).await;
    assert_eq!(fixture.job_when(job.id, |job| job.phase.is_terminal()).await.phase.name(), "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_kept_once_and_followed() {
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let lines = |offset, text: &str| AgentMessage::LogLines {
        attempt: attempt.id,
        offset,
        text: text.as_bytes().to_vec(),
    };
    session.send(lines(0, "one\ntwo\nth")).await;
    session.send(lines(4, "two\nthree\n")).await;
    session.report(vec![], vec![]).await;
    let fleet = fixture.fleet().await;
    let mut kept = soon(fleet.logs("demo", false)).await.unwrap();
    assert_eq!(soon_when(&mut kept, |_| true).await, (Epoch(1), b"one\ntwo\nthree\n".to_vec()));
    assert!(soon(kept.next()).await.is_none());

    let mut followed = soon(fleet.logs("demo", true)).await.unwrap();
    soon_when(&mut followed, |_| true).await;
    session.send(lines(14, "four\nfi")).await;
    assert_eq!(soon_when(&mut followed, |_| true).await.1, b"four\n");
    session
        .report_blindly(vec![ended(
            &attempt,
            Ending::Failed { cause: FailureCause::BadInput, message: "no".into() },
        )])
        .await;
    assert_eq!(soon_when(&mut followed, |_| true).await.1, b"fi", "the end of a line that never ended");
    assert!(soon(followed.next()).await.is_none(), "the job has ended");
    assert_eq!(fixture.job_when(job.id, |_| true).await.phase.name(), "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_session_ends_the_older_and_a_session_begins_with_hello() {
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut older = agent.session().await;
    let mut newer = agent.session().await;
    let error = soon_failed(&mut older.incoming).await;
    assert!(error.to_string().contains("newer session"), "{error}");
    newer.report(vec![], vec![]).await;
    assert_eq!(soon(fixture.fleet().await.status()).await.unwrap().nodes_connected, 1);

    let mut rude = agent.raw_session().await.unwrap();
    rude.send(AgentMessage::Goodbye).await;
    let error = soon_failed(&mut rude.incoming).await;
    assert!(error.to_string().contains("begins with Hello"), "{error}");
    newer.report(vec![], vec![]).await;
    newer.send(AgentMessage::Hello(Box::new(inventory()))).await;
    assert!(soon_failed(&mut newer.incoming).await.to_string().contains("Hello must come only once"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_does_not_fit_is_told_by_field() {
    use hatchery_net::transport::{Profile, connect};
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let config = agent.credentials.client_config().unwrap();
    let channel = soon(connect(&agent.credentials.addresses, config, Profile::Control)).await.unwrap();
    let mut raw = v1::agents_client::AgentsClient::new(channel);
    for manifest in [&b"{}"[..], b"", b"[1"] {
        let request = v1::CommitCheckpointRequest { manifest: manifest.to_vec(), self_test: None };
        let status = soon(raw.commit_checkpoint(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("manifest: "), "{}", status.message());
    }
}

//! Asking models: the way to a node that holds one, and back.

use futures::StreamExt as _;
use hatchery_common::{
    device::Device,
    generate::{
        FinishReason, GenerationFinished, GenerationOrder, GenerationPart, RawSamplingParams, SamplingParams,
        StopStrings,
    },
    id::{CheckpointId, RequestId},
    session::{AgentMessage, AnswerPart, CoordinatorMessage, ReplicaReport, ReplicaState},
};
use hatchery_proto::client::{CallError, GenerateCall};

use crate::{
    agent::{Agent, Session},
    fixture::{Fixture, soon, soon_failed, soon_when},
};

fn call(node: Option<&str>) -> GenerateCall {
    GenerateCall {
        checkpoint: "latest".into(),
        node: node.map(str::to_owned),
        prompt: b"to be".to_vec(),
        max_bytes: 8,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    }
}

fn ready(checkpoint: CheckpointId, self_test_ms: f64) -> Vec<ReplicaReport> {
    vec![ReplicaReport {
        checkpoint,
        state: ReplicaState::Ready { self_test_ms },
        active: false,
        serving_only: false,
    }]
}

async fn order(session: &mut Session) -> (RequestId, GenerationOrder) {
    loop {
        if let CoordinatorMessage::Generation { request, order } = session.next().await {
            return (request, order);
        }
    }
}

async fn say(session: &Session, request: RequestId, part: AnswerPart) {
    session.send(AgentMessage::Generation { request, part }).await;
}

/// A fleet of two: `slow` trains, `fast` does not; both hold the one checkpoint.
async fn fleet_of_two() -> (Fixture, Session, Session, CheckpointId) {
    let fixture = Fixture::start().await;
    let slow_agent = Agent::join(&fixture, "slow").await;
    let mut slow = slow_agent.session().await;
    let job = fixture.submit().await;
    let attempt = slow.attempt().await;
    let checkpoint = slow_agent.commit(&job, &attempt, 10, None).await.unwrap();
    let fast = Agent::join(&fixture, "fast").await.session().await;
    (fixture, slow, fast, checkpoint)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_is_asked_first_and_streams_its_answer() {
    let (fixture, mut slow, mut fast, checkpoint) = fleet_of_two().await;
    let fleet = fixture.fleet().await;
    let Err(error) = soon(fleet.generate(&call(None))).await else { panic!("nobody holds it yet") };
    let CallError::Refused(message) = &error else { panic!("{error:?}") };
    assert!(message.contains("not ready on any connected node"), "{message}");
    assert!(message.contains("fast does not hold it"), "{message}");

    slow.report(vec![], ready(checkpoint, 1.0)).await;
    let Err(error) = soon(fleet.generate(&call(Some("fast")))).await else { panic!("it does not hold it") };
    assert!(error.to_string().contains("not ready on fast"), "{error}");
    fast.report(vec![], ready(checkpoint, 9.0)).await;

    // The trainer's node would be faster, but it trains.
    let sampling = SamplingParams::new(RawSamplingParams {
        top_p: Some(0.9),
        min_p: Some(0.1),
        repetition_penalty: 1.5,
        ..RawSamplingParams::default()
    })
    .unwrap();
    let stop = StopStrings::new(vec![b"\n".to_vec(), vec![0xff]]).unwrap();
    let asked = GenerateCall { sampling, stop: stop.clone(), ..call(None) };
    let mut answer = soon(fleet.generate(&asked)).await.unwrap();
    let (request, order) = order(&mut fast).await;
    let prompt = b"to be".to_vec();
    assert_eq!(order, GenerationOrder { checkpoint, prompt, max_bytes: 8, sampling, stop });
    let chosen = soon_when(&mut answer, |_| true).await;
    assert!(matches!(&chosen, GenerationPart::Chosen { node_name, .. } if node_name.as_str() == "fast"));
    // Another node cannot put in a word.
    say(&slow, request, AnswerPart::Text(b"lies".to_vec())).await;
    slow.report(vec![], ready(checkpoint, 1.0)).await;
    for byte in b" or not" {
        say(&fast, request, AnswerPart::Text(vec![*byte])).await;
        assert_eq!(soon_when(&mut answer, |_| true).await, GenerationPart::Text { bytes: vec![*byte] });
    }
    let figures = GenerationFinished {
        latency_ms: 12.5,
        first_byte_ms: 2.0,
        bytes: 7,
        loaded: true,
        finish_reason: FinishReason::StopString,
        device: Some(Device::cuda(1)),
    };
    say(&fast, request, AnswerPart::Finished(figures)).await;
    assert_eq!(soon_when(&mut answer, |_| true).await, GenerationPart::Finished(figures));
    assert!(soon(answer.next()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_leaves_a_node_that_fails_and_a_node_that_leaves() {
    let (fixture, mut slow, mut fast, checkpoint) = fleet_of_two().await;
    fast.report(vec![], ready(checkpoint, 9.0)).await;
    slow.report(vec![], ready(checkpoint, 1.0)).await;
    let fleet = fixture.fleet().await;

    let answer = soon(fleet.generate(&call(Some("fast")))).await.unwrap();
    let (request, _) = order(&mut fast).await;
    drop(answer);
    loop {
        if let CoordinatorMessage::GenerationCancelled { request: cancelled } = fast.next().await {
            assert_eq!(cancelled, request);
            break;
        }
    }

    let mut answer = soon(fleet.generate(&call(Some("slow")))).await.unwrap();
    let (request, _) = order(&mut slow).await;
    say(&slow, request, AnswerPart::Failed("no memory".into())).await;
    let error = soon_failed(&mut answer).await;
    assert!(error.to_string().contains("node slow could not answer: no memory"), "{error}");

    let mut answer = soon(fleet.generate(&call(None))).await.unwrap();
    order(&mut fast).await;
    drop(fast);
    let error = soon_failed(&mut answer).await;
    assert!(error.to_string().contains("node fast disconnected"), "{error}");

    let mut wrong = call(None);
    wrong.max_bytes = 0;
    let Err(error) = soon(fleet.generate(&wrong)).await else { panic!("nothing is asked") };
    assert!(error.to_string().starts_with("max_bytes: "), "{error}");
}

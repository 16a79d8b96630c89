//! Conversion between messages and domain types: round trips through encoded bytes, and what is refused and how.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::fmt::Debug;

use hatchery_common::{
    access::Certificate,
    checkpoint::CheckpointManifest,
    digest::Digest,
    field::FieldError,
    generate::{GenerationFinished, GenerationOrder, GenerationPart, SamplingParams, StopStrings},
    id::{AttemptId, CheckpointId, Epoch, JobId, RequestId},
    node::Inventory,
    recipe::{NodeSelector, Reader},
    self_test::SelfTest,
    session::{
        ATTEMPTS_MAX, AgentMessage, AssignedAttempt, Assignment, AttemptPhase, AttemptReport,
        CoordinatorMessage, Report,
    },
    trainer::{Ending, FailureCause},
    view::{CheckpointView, EventView, JobView, NodeView},
};
use hatchery_proto::{convert, v1};
use proptest::{prelude::*, strategy::ValueTree};
use prost::Message;
use support::arbitrary;

/// Through the message's bytes and back.
fn round_trip<D, W>(domain: D)
where
    D: Clone + PartialEq + Debug + TryFrom<W, Error = FieldError>,
    W: From<D> + Message + Default,
{
    let bytes = W::from(domain.clone()).encode_to_vec();
    assert_eq!(D::try_from(W::decode(bytes.as_slice()).unwrap()).unwrap(), domain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_job_spec_survives_and_its_digest_is_that_of_its_bytes(spec in arbitrary::job_spec()) {
        let message = v1::JobSpec::from(spec.clone());
        let digest = Digest::of(&message.json);
        assert_eq!(convert::job_spec(Some(message), Reader::Coordinator), Ok((digest, spec)));
    }

    #[test]
    fn a_job_survives(job in arbitrary::job_view()) {
        round_trip::<_, v1::Job>(job);
    }

    #[test]
    fn a_node_survives(node in arbitrary::node_view()) {
        round_trip::<_, v1::Node>(node);
    }

    #[test]
    fn an_inventory_survives(inventory in arbitrary::inventory()) {
        round_trip::<_, v1::Inventory>(inventory);
    }

    #[test]
    fn a_report_survives(report in arbitrary::report()) {
        round_trip::<_, v1::Report>(report);
    }

    #[test]
    fn an_assignment_survives(assignment in arbitrary::assignment()) {
        round_trip::<_, v1::Assignment>(assignment);
    }

    #[test]
    fn a_rollout_survives(rollout in arbitrary::rollouts::rollout_view()) {
        round_trip::<_, v1::Rollout>(rollout);
    }

    #[test]
    fn a_self_test_survives(self_test in arbitrary::rollouts::self_test()) {
        round_trip::<_, v1::SelfTest>(self_test);
    }

    #[test]
    fn a_checkpoint_survives_with_its_id(checkpoint in arbitrary::checkpoints::checkpoint_view()) {
        round_trip::<_, v1::Checkpoint>(checkpoint);
    }

    #[test]
    fn both_directions_of_a_session_survive(
        from_agent in arbitrary::agent_message(),
        from_coordinator in arbitrary::coordinator_message(),
    ) {
        round_trip::<_, v1::SessionRequest>(from_agent);
        round_trip::<_, v1::SessionResponse>(from_coordinator);
    }

    /// Whatever the bytes are: a message or an error, and never a panic.
    #[test]
    fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        fn read<D: TryFrom<W, Error = FieldError>, W: Message + Default>(bytes: &[u8]) {
            if let Ok(message) = W::decode(bytes) {
                let _ = D::try_from(message);
            }
        }
        read::<JobView, v1::Job>(&bytes);
        read::<NodeView, v1::Node>(&bytes);
        read::<AgentMessage, v1::SessionRequest>(&bytes);
        read::<CoordinatorMessage, v1::SessionResponse>(&bytes);
        let _ = convert::dataset_manifest(&bytes);
        let _ = convert::checkpoint_manifest(&bytes);
    }
}

/// One value of a strategy, the same each time.
fn sample<T: Debug>(strategy: impl Strategy<Value = T>) -> T {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    strategy.new_tree(&mut runner).unwrap().current()
}

/// What `D` says to a message that `spoil` has changed.
fn error_of<D, W>(domain: D, spoil: impl FnOnce(&mut W)) -> String
where
    D: TryFrom<W, Error = FieldError> + Debug,
    W: From<D>,
{
    let mut message = W::from(domain);
    spoil(&mut message);
    D::try_from(message).unwrap_err().to_string()
}

const fn attempt_id() -> AttemptId {
    AttemptId { job: JobId::from_bytes([1; 16]), epoch: Epoch(1) }
}

#[test]
fn errors_name_the_field_by_its_path() {
    let spec = || sample(arbitrary::job_spec());
    let assignment = || Assignment {
        attempts: vec![AssignedAttempt {
            id: attempt_id(),
            spec: spec(),
            device: hatchery_common::device::Device::CPU,
            resume_from: None,
            stop: false,
        }],
        ..Assignment::default()
    };
    let cases = [
        (
            NodeSelector::try_from(v1::NodeSelector { set: None }).unwrap_err().to_string(),
            "set: is missing, or unknown to this version",
        ),
        (
            error_of::<Assignment, v1::Assignment>(assignment(), |assignment| {
                assignment.attempts[0].device = "gpu".into();
            }),
            "attempts.0.device: `gpu` is not one of cuda:N, mps, cpu",
        ),
        (
            error_of::<AgentMessage, v1::SessionRequest>(AgentMessage::Goodbye, |request| {
                request.message = None;
            }),
            "message: is missing",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.starts_with(expected), "{message:?} does not start with {expected:?}");
    }
}

/// The message of a spec's JSON after a change to it.
fn changed(message: v1::JobSpec, change: impl FnOnce(&mut serde_json::Value)) -> v1::JobSpec {
    let mut value = serde_json::from_slice(&message.json).unwrap();
    change(&mut value);
    let json = serde_json::to_vec(&value).unwrap();
    v1::JobSpec { digest: Digest::of(&json).as_bytes().to_vec(), json }
}

#[test]
fn a_spec_is_whole_or_refused() {
    let spec = || v1::JobSpec::from(sample(arbitrary::job_spec()));
    let said = |spec| convert::job_spec(spec, Reader::Coordinator).unwrap_err().to_string();
    assert!(said(None).starts_with("spec: is missing"));
    assert!(
        said(Some(v1::JobSpec { json: vec![b'{'; 9], ..spec() })).starts_with("spec.digest: is not that")
    );
    assert!(
        said(Some(v1::JobSpec { digest: vec![1], ..spec() })).starts_with("spec.digest: must be 32 bytes")
    );
    for (key, value, expected) in [
        ("/train/lr", 11.into(), "spec.train.lr: must be above 0 and at most 10, not 11"),
        ("/dataset", "12".into(), "spec.dataset: must be 32 bytes, not 1"),
        ("/model", serde_json::json!({ "n_layer": 0 }), "spec.model.n_layer: must be from 1 to 256, not 0"),
        (
            "/devices/labels",
            serde_json::json!({ "room": "up stairs" }),
            "spec.devices.labels.room: \"up stairs\"",
        ),
        ("/replicate/which", "some".into(), "this coordinator does not know `some` for `replicate.which`"),
    ] {
        let said = said(Some(changed(spec(), |spec| *spec.pointer_mut(key).unwrap() = value)));
        assert!(said.starts_with(expected), "{said:?} does not start with {expected:?}");
    }
}

#[test]
fn a_spec_that_an_agent_cannot_read_costs_the_other_attempts_nothing() {
    let attempt = |number| AssignedAttempt {
        id: AttemptId { job: JobId::from_bytes([number; 16]), epoch: Epoch(number.into()) },
        spec: sample(arbitrary::job_spec()),
        device: hatchery_common::device::Device::CPU,
        resume_from: None,
        stop: false,
    };
    let assignment =
        Assignment { attempts: vec![attempt(1), attempt(2), attempt(3)], ..Assignment::default() };
    let mut message = v1::Assignment::from(assignment);
    let spoil = |attempt: &mut v1::AssignedAttempt, key: &str, value: serde_json::Value| {
        attempt.spec = attempt.spec.take().map(|spec| changed(spec, |spec| spec["train"][key] = value));
    };
    spoil(&mut message.attempts[0], "label_smoothing", 0.1.into());
    spoil(&mut message.attempts[2], "steps", 0.into());
    let read = Assignment::try_from(message).unwrap();
    assert_eq!(read.attempts, [attempt(2)]);
    let [first, third] = &read.unreadable[..] else { panic!("{:?}", read.unreadable) };
    assert_eq!(first.id, AttemptId { job: JobId::from_bytes([1; 16]), epoch: Epoch(1) });
    assert!(first.why.starts_with("this agent does not know `train.label_smoothing`: it is of version "));
    assert_eq!(third.why, "spec.train.steps: must be from 1 to 1000000000, not 0");
}

#[test]
fn a_job_with_a_newer_key_is_shown_and_says_so() {
    let view = sample(arbitrary::job_view());
    let mut message = v1::Job::from(view.clone());
    message.spec = message.spec.map(|spec| changed(spec, |spec| spec["colour"] = "red".into()));
    let mut read = JobView::try_from(message).unwrap();
    let why = std::mem::take(&mut read.unread);
    assert_eq!((read, why.len()), (view, 1));
    assert!(why[0].starts_with("this hatchery does not know `colour`: it is of version "), "{why:?}");
}

#[test]
fn unknown_enum_values_are_errors_that_name_the_number() {
    let job = || JobView {
        failures: vec![hatchery_common::job::Failure {
            epoch: Epoch(1),
            node: sample(arbitrary::name()),
            device: hatchery_common::device::Device::CPU,
            cause: FailureCause::Crashed,
            message: "it is gone".into(),
            at: hatchery_common::time::Timestamp(1),
        }],
        ..sample(arbitrary::job_view())
    };
    let unknown = "has the value 99, unknown to this version";
    let cases = [
        (
            error_of::<JobView, v1::Job>(job(), |job| job.failures[0].cause = 99),
            format!("failures.0.cause: {unknown}"),
        ),
        (convert::scope(99).unwrap_err().to_string(), format!("scope: {unknown}")),
        (convert::scope(0).unwrap_err().to_string(), "scope: is missing".to_owned()),
        (
            Certificate::try_from(v1::Certificate { id: "0".repeat(32), scope: -1, ..Default::default() })
                .unwrap_err()
                .to_string(),
            "scope: has the value -1, unknown to this version".to_owned(),
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(message, expected);
    }
}

#[test]
fn lists_and_texts_have_limits() {
    let attempt = || AttemptReport {
        id: attempt_id(),
        phase: AttemptPhase::Starting,
        progress: None,
        validation: None,
        running_on: None,
    };
    let report = Report { attempts: vec![attempt(); ATTEMPTS_MAX + 1], ..Report::default() };
    let error = Report::try_from(v1::Report::from(report)).unwrap_err();
    assert_eq!(error.to_string(), "attempts: has 163 entries, more than the limit of 162");

    let inventory = Inventory { notes: vec![String::new(); 65], ..Inventory::default() };
    let error = Inventory::try_from(v1::Inventory::from(inventory)).unwrap_err();
    assert_eq!(error.to_string(), "notes: has 65 entries, more than the limit of 64");

    let lines = AgentMessage::LogLines { attempt: attempt_id(), offset: 0, text: vec![b'x'; (64 << 10) + 1] };
    let error = AgentMessage::try_from(v1::SessionRequest::from(lines)).unwrap_err();
    assert_eq!(error.to_string(), "log_lines.text: has 65537 bytes, more than the limit of 65536");

    let error = convert::certificate_request("x".repeat(16_385)).unwrap_err();
    assert_eq!(error.to_string(), "certificate_request_pem: has 16385 bytes, more than the limit of 16384");

    let many = (0..65).map(|n| (format!("key{n}"), "x".to_owned())).collect();
    let error = convert::labels("labels", &many).unwrap_err();
    assert_eq!(error.to_string(), "labels: has 65 entries, more than the limit of 64");

    assert_eq!(
        convert::dataset_manifest(&vec![b' '; (32 << 20) + 1]).unwrap_err().to_string(),
        "manifest: has 33554433 bytes, more than the limit of 33554432"
    );
}

#[test]
fn output_that_is_too_long_is_cut_where_it_matters_least() {
    let long = |edge: &str| format!("{edge}{}{edge}", "ä".repeat(convert::OUTPUT_BYTES_MAX));
    let report = AttemptReport {
        id: attempt_id(),
        phase: AttemptPhase::Ended {
            ending: Ending::Failed { cause: FailureCause::Crashed, message: long("reason") },
            last_output: long("last line"),
        },
        progress: None,
        validation: None,
        running_on: None,
    };
    let report = AttemptReport::try_from(v1::AttemptReport::from(report)).unwrap();
    let AttemptPhase::Ended { ending: Ending::Failed { message, .. }, last_output } = report.phase else {
        panic!("another phase");
    };
    assert!(message.starts_with("reason") && message.len() <= convert::OUTPUT_BYTES_MAX);
    assert!(last_output.ends_with("last line") && last_output.len() <= convert::OUTPUT_BYTES_MAX);
}

#[test]
fn figures_that_cannot_be_are_refused() {
    let mut progress = v1::Progress { steps_per_sec: f64::INFINITY, ..Default::default() };
    let error = hatchery_common::trainer::Progress::try_from(progress).unwrap_err();
    assert_eq!(error.to_string(), "steps_per_sec: must be a finite number of at least 0, not inf");
    progress.steps_per_sec = 1.0;
    progress.train_loss = f64::NAN;
    let error = hatchery_common::trainer::Progress::try_from(progress).unwrap_err();
    assert_eq!(error.to_string(), "train_loss: must be a finite number, not NaN");
    let point = v1::PositionLoss { from: 1, to: 2, loss: f64::INFINITY };
    let validation = v1::Validation { step: 1, loss: 1.0, by_position: vec![point] };
    let error = hatchery_common::trainer::Validation::try_from(validation).unwrap_err();
    assert_eq!(error.to_string(), "by_position.0.loss: must be a finite number, not inf");
    let best = Some(v1::LossPoint { step: 1, loss: f64::NAN });
    let error =
        hatchery_common::trainer::Metrics::try_from(v1::Metrics { best, ..Default::default() }).unwrap_err();
    assert_eq!(error.to_string(), "best.loss: must be a finite number, not NaN");
    let calibration = v1::Calibration { device: "cpu".into(), steps_per_sec: 1.0, ..Default::default() };
    let error = hatchery_common::trainer::Calibration::try_from(calibration).unwrap_err();
    assert_eq!(error.to_string(), "flops_per_sec: must be a finite number above 0, not 0");
}

#[test]
fn what_a_newer_agent_says_of_its_gpu_ends_nothing() {
    let gpu = v1::GpuReading { busy_percent: Some(101), slowed_by: 99, ..Default::default() };
    let progress = v1::Progress { steps_per_sec: 1.0, gpu: Some(gpu), ..Default::default() };
    let reading = hatchery_common::trainer::Progress::try_from(progress).unwrap().gpu.unwrap();
    assert_eq!((reading.busy_percent, reading.slowed_by), (Some(100), None));
}

#[test]
fn an_order_s_limits_hold_at_the_border() {
    let (request, checkpoint) = (RequestId::from_bytes([2; 16]), CheckpointId(Digest::of(b"")));
    let order = GenerationOrder {
        checkpoint,
        prompt: vec![],
        max_bytes: 1,
        sampling: SamplingParams::default(),
        stop: StopStrings::default(),
    };
    let wrong = |spoil: &dyn Fn(&mut v1::Generation)| {
        let message = CoordinatorMessage::Generation { request, order: order.clone() };
        error_of::<CoordinatorMessage, v1::SessionResponse>(message, |response| {
            let Some(v1::session_response::Message::Generation(generation)) = &mut response.message else {
                panic!("it is an order")
            };
            spoil(generation);
        })
    };
    let sampling =
        |spoil: fn(&mut v1::Sampling)| wrong(&|generation| spoil(generation.sampling.as_mut().unwrap()));
    let cases = [
        (sampling(|sampling| sampling.top_p = Some(0.0)), "top_p: must be above 0 and at most 1, not 0"),
        (sampling(|sampling| sampling.min_p = Some(f64::NAN)), "min_p: must be from 0 to 1, not NaN"),
        (sampling(|sampling| sampling.repetition_penalty = Some(0.5)), "repetition_penalty: must be from 1"),
        (sampling(|sampling| sampling.temperature = Some(1001.0)), "temperature: must be above 0"),
    ];
    for (said, expected) in cases {
        assert!(said.starts_with(&format!("generation.sampling.{expected}")), "{said}");
    }
    let said = wrong(&|generation| generation.stop = vec![b"x".to_vec(), vec![]]);
    assert_eq!(said, "generation.stop.1: its length must be from 1 to 256, not 0");
    let said = wrong(&|generation| generation.stop = vec![b"x".to_vec(); 17]);
    assert_eq!(said, "generation.stop: must be at most 16 strings, not 17");
    let finished = v1::GenerationFinished { finish_reason: 9, ..Default::default() };
    let error = GenerationFinished::try_from(finished).unwrap_err().to_string();
    assert_eq!(error, "finish_reason: has the value 9, unknown to this version");
    let finished =
        v1::GenerationFinished { device: Some("tpu:0".into()), finish_reason: 1, ..Default::default() };
    let error = GenerationFinished::try_from(finished).unwrap_err().to_string();
    assert!(error.starts_with("device: "), "{error}");
}

#[test]
fn a_checkpoint_is_what_its_id_says() {
    let view = sample(arbitrary::checkpoints::checkpoint_view());
    let id = view.id;
    let wrong = |spoil: &dyn Fn(&mut v1::Checkpoint)| {
        error_of::<CheckpointView, v1::Checkpoint>(view.clone(), |checkpoint| spoil(checkpoint))
    };
    let other = "0".repeat(64);
    assert_eq!(
        wrong(&|checkpoint| checkpoint.id.clone_from(&other)),
        format!("id: `{other}` does not match its manifest, {id}")
    );
    assert_eq!(wrong(&|checkpoint| checkpoint.manifest.push(b' ')), "manifest: is not in its canonical form");
    assert!(wrong(&|checkpoint| checkpoint.manifest.truncate(9)).contains("is not a checkpoint manifest"));

    let mut manifest: CheckpointManifest = view.manifest.clone();
    manifest.files.swap(0, 1);
    let bytes = convert::checkpoint_manifest_bytes(&manifest);
    assert!(
        convert::checkpoint_manifest(&bytes).unwrap_err().to_string().starts_with("manifest.files: must be")
    );
}

#[test]
fn a_self_test_has_one_of_the_weights_for_serving_and_no_more() {
    let mut self_test = v1::SelfTest::from(sample(arbitrary::rollouts::self_test()));
    let lone = v1::SelfTest { serving: None, ..self_test.clone() };
    self_test.serving = Some(Box::new(lone.clone()));
    assert!(SelfTest::try_from(self_test.clone()).is_ok());
    let nested = v1::SelfTest { serving: Some(Box::new(self_test.clone())), ..self_test.clone() };
    let error = SelfTest::try_from(nested).unwrap_err().to_string();
    assert_eq!(error, "serving.serving: must be absent");
    let short = v1::SelfTest { answer: vec![1], ..lone };
    self_test.serving = Some(Box::new(short));
    assert_eq!(SelfTest::try_from(self_test).unwrap_err().field, "serving.answer");
}

#[test]
fn an_event_s_change_is_json() {
    let event = v1::Event { change_json: "{".into(), ..Default::default() };
    assert!(EventView::try_from(event).unwrap_err().to_string().starts_with("change_json: is not JSON"));
    let part = v1::GenerateResponse { part: None };
    assert_eq!(GenerationPart::try_from(part).unwrap_err().field, "part");
}

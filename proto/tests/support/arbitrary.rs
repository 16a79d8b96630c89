//! Any value of the domain's large types.

#[path = "arbitrary/checkpoints.rs"]
pub(crate) mod checkpoints;
#[path = "arbitrary/peers.rs"]
mod peers;
#[path = "arbitrary/rollouts.rs"]
pub(crate) mod rollouts;

use std::time::Duration;

use hatchery_common::{
    availability::{Away, AwayReason, LocalTime},
    device::Device,
    digest::Digest,
    generate::{
        FinishReason, GenerationFinished, GenerationOrder, RawSamplingParams, SamplingParams, StopStrings,
    },
    id::{AttemptId, CertificateId, CheckpointId, DatasetId, Epoch, JobId, Name, NodeId, RequestId},
    job::{Failure, JobPhase},
    model::{ModelConfig, RawModelConfig},
    node::{Inventory, NodeDevice, NodeMetrics, NodeMode, TrainerState},
    recipe::{DeviceWishes, JobSpec, Labels, Recipe, StartFrom, StartHow, TrainSpec},
    session::{
        AgentMessage, AnswerPart, AssignedAttempt, Assignment, AttemptPhase, AttemptReport,
        CoordinatorMessage, ReplicaReport, ReplicaState, Report,
    },
    time::Timestamp,
    trainer::{
        Calibration, Ending, FailureCause, GpuReading, LossPoint, Metrics, PositionLoss, Progress, Slowdown,
        Validation,
    },
    view::{ActiveView, JobView, NodeState, NodeView, RunningView, WaitingView},
};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
};

use peers::{blob_id, fetch_plan, peers_view, swarm_report, trouble};

pub(crate) fn job_id() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId::from_bytes)
}

fn attempt_id() -> impl Strategy<Value = AttemptId> {
    (job_id(), any::<u64>()).prop_map(|(job, epoch)| AttemptId { job, epoch: Epoch(epoch) })
}

pub(crate) fn node_id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 16]>().prop_map(NodeId::from_bytes)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

pub(crate) fn checkpoint_id() -> impl Strategy<Value = CheckpointId> {
    digest().prop_map(CheckpointId)
}

pub(crate) fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}".prop_map(|text| Name::new("name", &text).unwrap())
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map(name(), name(), 0..4)
}

pub(crate) fn device() -> impl Strategy<Value = Device> {
    prop_oneof![Just(Device::CPU), Just(Device::MPS), (0..=Device::INDEX_MAX).prop_map(Device::cuda)]
}

/// Any finite number of at least 0.
fn amount() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0..1e12, f64::MIN_POSITIVE..1e-300]
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |number| number.is_finite())
}

pub(crate) fn text() -> impl Strategy<Value = String> {
    ".{0,40}"
}

pub(crate) fn model() -> impl Strategy<Value = ModelConfig> {
    (1..=256u32, 1..=8u32, 1..=64u32, 1..=64u32, 256..=1024u32, 0.0..0.99f64).prop_map(
        |(n_layer, n_head, width, multiplier, vocab_size, dropout)| {
            ModelConfig::new(RawModelConfig {
                n_layer,
                n_embd: n_head * width,
                dropout,
                n_head,
                mlp_internal_dim_multiplier: 2 * multiplier,
                vocab_size,
            })
            .unwrap()
        },
    )
}

/// A job of any shape that a recipe's text can ask for; the keys themselves are tested where they are defined.
pub(crate) fn job_spec() -> impl Strategy<Value = JobSpec> {
    let numbers = (1e-9..10.0f64, 0..=i64::MAX as u64, 1..=TrainSpec::STEPS_MAX, 0..=100u8);
    let start = (checkpoint_id(), select(vec![StartHow::Continue, StartHow::FineTune]))
        .prop_map(|(checkpoint, how)| StartFrom { checkpoint, how });
    (name(), digest(), model(), numbers, labels(), option::of(start)).prop_map(
        |(name, dataset, model, (lr, seed, steps, priority), labels, start_from)| {
            let settings = [
                format!("train.lr={lr:?}"),
                format!("train.seed={seed}"),
                format!("train.steps={steps}"),
                format!("queue.priority={priority}"),
            ];
            let job = Recipe::parse(None, "", &settings).unwrap().job(DatasetId(dataset), &name);
            let devices = DeviceWishes { labels, ..DeviceWishes::default() };
            JobSpec { model, devices, start_from, ..job }
        },
    )
}

fn progress() -> impl Strategy<Value = Progress> {
    let gpu = option::of(gpu_reading());
    (any::<u64>(), finite(), option::of(finite()), amount(), any::<u64>(), option::of(amount()), gpu)
        .prop_map(|(step, train_loss, first_loss, steps_per_sec, memory_bytes, power_watts, gpu)| Progress {
            step,
            train_loss,
            first_loss,
            steps_per_sec,
            memory_bytes,
            power_watts,
            gpu,
        })
}

fn gpu_reading() -> impl Strategy<Value = GpuReading> {
    let slowed_by = option::of(select(Slowdown::ALL.to_vec()));
    let figures = (option::of(0u32..=100), option::of(any::<u64>()), option::of(any::<u32>()), slowed_by);
    figures.prop_map(|(busy_percent, memory_bytes, temperature_celsius, slowed_by)| GpuReading {
        busy_percent,
        memory_bytes,
        temperature_celsius,
        slowed_by,
    })
}

fn validation() -> impl Strategy<Value = Validation> {
    let position =
        (any::<u32>(), any::<u32>(), finite()).prop_map(|(from, to, loss)| PositionLoss { from, to, loss });
    (any::<u64>(), finite(), vec(position, 0..4)).prop_map(|(step, loss, by_position)| Validation {
        step,
        loss,
        by_position,
    })
}

fn metrics() -> impl Strategy<Value = Metrics> {
    let point = (any::<u64>(), finite()).prop_map(|(step, loss)| LossPoint { step, loss });
    let losses = (option::of(finite()), option::of(finite()), option::of(finite()));
    (losses, option::of(any::<u64>()), option::of(point), option::of(any::<u32>())).prop_map(
        |((first_loss, train_loss, validation_loss), validation_step, best, early_stop)| Metrics {
            first_loss,
            train_loss,
            validation_loss,
            validation_step,
            best,
            early_stop,
        },
    )
}

fn cause() -> impl Strategy<Value = FailureCause> {
    select(vec![
        FailureCause::Crashed,
        FailureCause::OutOfMemory,
        FailureCause::BadInput,
        FailureCause::NotANumber,
        FailureCause::Unavailable,
        FailureCause::Storage,
        FailureCause::Outdated,
    ])
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Completed),
        Just(Ending::Stopped),
        Just(Ending::LeaseExpired),
        Just(Ending::NodeAway),
        (cause(), text()).prop_map(|(cause, message)| Ending::Failed { cause, message }),
    ]
}

fn attempt_report() -> impl Strategy<Value = AttemptReport> {
    let phase = prop_oneof![
        any::<(u64, u64)>()
            .prop_map(|(done_bytes, total_bytes)| AttemptPhase::Fetching { done_bytes, total_bytes }),
        Just(AttemptPhase::Starting),
        Just(AttemptPhase::Running),
        Just(AttemptPhase::Stopping),
        (ending(), text()).prop_map(|(ending, last_output)| AttemptPhase::Ended { ending, last_output }),
    ];
    (attempt_id(), phase, option::of(progress()), option::of(validation()), option::of(text())).prop_map(
        |(id, phase, progress, validation, running_on)| AttemptReport {
            id,
            phase,
            progress,
            validation,
            running_on,
        },
    )
}

fn replica_state() -> impl Strategy<Value = ReplicaState> {
    prop_oneof![
        any::<(u64, u64)>()
            .prop_map(|(done_bytes, total_bytes)| ReplicaState::Fetching { done_bytes, total_bytes }),
        amount().prop_map(|self_test_ms| ReplicaState::Ready { self_test_ms }),
        text().prop_map(|why| ReplicaState::Failed { why }),
    ]
}

pub(crate) fn report() -> impl Strategy<Value = Report> {
    let replica = (checkpoint_id(), replica_state(), any::<(bool, bool)>()).prop_map(
        |(checkpoint, state, (active, serving_only))| ReplicaReport {
            checkpoint,
            state,
            active,
            serving_only,
        },
    );
    let seen = (vec(attempt_report(), 0..4), vec(replica, 0..4), node_metrics());
    (any::<u64>(), seen, any::<bool>(), option::of(away())).prop_map(
        |(sequence, (attempts, replicas, metrics), leaving, away)| Report {
            sequence,
            attempts,
            replicas,
            metrics,
            leaving,
            away,
        },
    )
}

fn node_metrics() -> impl Strategy<Value = NodeMetrics> {
    let figures = (option::of(any::<u64>()), option::of(finite()));
    figures.prop_map(|(disk_free_bytes, temperature_celsius)| NodeMetrics {
        disk_free_bytes,
        temperature_celsius,
        ..NodeMetrics::default()
    })
}

fn away() -> impl Strategy<Value = Away> {
    let until = (any::<u64>(), -93_600..=93_600)
        .prop_map(|(at, utc_offset_secs)| LocalTime { at: Timestamp(at), utc_offset_secs });
    (select(AwayReason::ALL.to_vec()), option::of(until)).prop_map(|(reason, until)| Away { reason, until })
}

pub(crate) fn assignment() -> impl Strategy<Value = Assignment> {
    let attempt = (attempt_id(), job_spec(), device(), option::of(checkpoint_id()), any::<bool>()).prop_map(
        |(id, spec, device, resume_from, stop)| AssignedAttempt { id, spec, device, resume_from, stop },
    );
    let active = btree_map(job_id(), checkpoint_id(), 0..4);
    let rates = btree_map(checkpoint_id(), any::<u64>(), 0..4);
    (any::<u32>(), vec(attempt, 0..3), vec(checkpoint_id(), 0..4), active, rates).prop_map(
        |(lease_ms, attempts, checkpoints, active, bytes_per_sec_max)| Assignment {
            lease: Duration::from_millis(lease_ms.into()),
            attempts,
            unreadable: Vec::new(),
            checkpoints,
            active,
            bytes_per_sec_max,
        },
    )
}

fn node_device() -> impl Strategy<Value = NodeDevice> {
    let calibration = (device(), 1e-6..1e6f64, 1.0..1e18f64, any::<u32>()).prop_map(
        |(device, steps_per_sec, flops_per_sec, version)| Calibration {
            device,
            steps_per_sec,
            flops_per_sec,
            version,
        },
    );
    (device(), text(), any::<u64>(), any::<bool>(), option::of(text()), option::of(calibration)).prop_map(
        |(device, name, memory_bytes, bf16, driver, calibration)| NodeDevice {
            device,
            name,
            memory_bytes,
            bf16,
            driver,
            power_watts_max: Some(memory_bytes as f64),
            calibration,
        },
    )
}

pub(crate) fn inventory() -> impl Strategy<Value = Inventory> {
    let trainer = prop_oneof![
        (text(), text()).prop_map(|(version, libtorch)| TrainerState::Ready { version, libtorch }),
        text().prop_map(|why| TrainerState::Missing { why }),
    ];
    let texts = (text(), text(), text(), text(), text());
    let numbers = any::<(u32, u64, u64)>();
    (texts, numbers, trainer, vec(node_device(), 0..4), vec(text(), 0..4)).prop_map(
        |(texts, numbers, trainer, devices, notes)| Inventory {
            hostname: texts.0,
            os: texts.1,
            architecture: texts.2,
            cpu_model: texts.3,
            agent_version: texts.4,
            cores: numbers.0,
            memory_bytes: numbers.1,
            disk_bytes: numbers.2,
            trainer,
            devices,
            notes,
        },
    )
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn phase_and_why() -> impl Strategy<Value = (JobPhase, Option<String>)> {
    let plain = [
        JobPhase::Queued,
        JobPhase::Running,
        JobPhase::Paused,
        JobPhase::Cancelling,
        JobPhase::Completed,
        JobPhase::Cancelled,
    ];
    prop_oneof![
        (select(plain.to_vec()), option::of(text())),
        text().prop_map(|why| (JobPhase::Failed { why: why.clone() }, Some(why))),
        text().prop_map(|why| (JobPhase::Poisoned { why: why.clone() }, Some(why))),
    ]
}

pub(crate) fn job_view() -> impl Strategy<Value = JobView> {
    let failure = (any::<u64>(), name(), device(), cause(), text(), time()).prop_map(
        |(epoch, node, device, cause, message, at)| Failure {
            epoch: Epoch(epoch),
            node,
            device,
            cause,
            message,
            at,
        },
    );
    let what = (job_id(), job_spec(), name(), time(), phase_and_why());
    let attempt = (any::<u64>(), option::of(name()), option::of(device()), option::of(time()));
    let words = (option::of(time()), option::of(text()), option::of(text()));
    let figures = (option::of(progress()), option::of(validation()), option::of(checkpoint_id()));
    let rest = (any::<u64>(), metrics(), vec(failure, 0..3), option::of(checkpoint_id()));
    (what, attempt, words, figures, rest).prop_map(|(what, attempt, words, figures, rest)| JobView {
        id: what.0,
        spec: what.1,
        unread: Vec::new(),
        submitter: what.2,
        submitted_at: what.3,
        phase: what.4.0,
        why: what.4.1,
        epoch: Epoch(attempt.0),
        node: attempt.1,
        device: attempt.2,
        started_at: attempt.3,
        ended_at: words.0,
        activity: words.1,
        running_on: words.2,
        progress: figures.0,
        validation: figures.1,
        checkpoint: figures.2,
        checkpoint_step: rest.0,
        metrics: rest.1,
        failures: rest.2,
        best: rest.3,
    })
}

pub(crate) fn node_view() -> impl Strategy<Value = NodeView> {
    let running = (device(), job_id(), name(), option::of(progress()))
        .prop_map(|(device, job, job_name, progress)| RunningView { device, job, job_name, progress });
    let waiting = (device(), job_id(), name(), any::<(u64, u64)>()).prop_map(
        |(device, job, job_name, (start_in_ms, end_in_ms))| WaitingView {
            device,
            job,
            job_name,
            start_in_ms,
            end_in_ms,
        },
    );
    let mode = select(vec![NodeMode::Open, NodeMode::Cordoned, NodeMode::Draining]);
    let state = select(vec![NodeState::Connected, NodeState::Disconnected, NodeState::Unknown]);
    let head = (node_id(), name(), labels(), inventory(), time());
    let active = (job_id(), name(), checkpoint_id(), any::<u64>())
        .prop_map(|(job, job_name, checkpoint, step)| ActiveView { job, job_name, checkpoint, step });
    let away = (option::of(away()), option::of(peers_view()));
    let work = (vec(running, 0..3), (mode, away), (vec(waiting, 0..3), vec(active, 0..3)));
    let heard = (option::of(any::<u64>()), option::of(node_metrics()));
    (head, state, heard, work, any::<(u32, u32)>()).prop_map(
        |(
            head,
            state,
            (last_heard_ms_ago, metrics),
            (running, (mode, (away, peers)), (waiting, active)),
            replicas,
        )| {
            NodeView {
                id: head.0,
                name: head.1,
                labels: head.2,
                inventory: head.3,
                joined_at: head.4,
                state,
                last_heard_ms_ago,
                metrics,
                running,
                replicas_ready: replicas.0,
                replicas_wanted: replicas.1,
                mode,
                away,
                waiting,
                active,
                peers,
            }
        },
    )
}

fn finished() -> impl Strategy<Value = GenerationFinished> {
    let finish_reason = select(vec![FinishReason::MaxBytes, FinishReason::StopString]);
    (amount(), amount(), any::<u32>(), any::<bool>(), finish_reason, option::of(device())).prop_map(
        |(latency_ms, first_byte_ms, bytes, loaded, finish_reason, device)| GenerationFinished {
            latency_ms,
            first_byte_ms,
            bytes,
            loaded,
            finish_reason,
            device,
        },
    )
}

fn request_id() -> impl Strategy<Value = RequestId> {
    any::<[u8; 16]>().prop_map(RequestId::from_bytes)
}

pub(crate) fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let part = prop_oneof![
        vec(any::<u8>(), 0..64).prop_map(AnswerPart::Text),
        finished().prop_map(AnswerPart::Finished),
        text().prop_map(AnswerPart::Failed),
    ];
    prop_oneof![
        inventory().prop_map(|inventory| AgentMessage::Hello(Box::new(inventory))),
        report().prop_map(AgentMessage::Report),
        inventory().prop_map(|inventory| AgentMessage::Inventory(Box::new(inventory))),
        (attempt_id(), any::<u64>(), vec(any::<u8>(), 0..64))
            .prop_map(|(attempt, offset, text)| AgentMessage::LogLines { attempt, offset, text }),
        (request_id(), part).prop_map(|(request, part)| AgentMessage::Generation { request, part }),
        Just(AgentMessage::Goodbye),
        swarm_report().prop_map(AgentMessage::Swarm),
        (blob_id(), trouble()).prop_map(|(blob, trouble)| AgentMessage::PeerTrouble { blob, trouble }),
    ]
}

pub(crate) fn coordinator_message() -> impl Strategy<Value = CoordinatorMessage> {
    let sampling = (
        0.01..=1000.0f64,
        option::of(1..=u32::MAX),
        option::of(0.01..=1.0f64),
        option::of(0.0..=1.0f64),
        1.0..=1000.0f64,
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, repetition_penalty, seed, greedy)| {
            let raw =
                RawSamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, seed, greedy };
            SamplingParams::new(raw).unwrap()
        });
    let stop = vec(vec(any::<u8>(), 1..=StopStrings::BYTES_MAX), 0..=StopStrings::COUNT_MAX)
        .prop_map(|strings| StopStrings::new(strings).unwrap());
    let order = (checkpoint_id(), vec(any::<u8>(), 0..64), 1..=65_536u32, sampling, stop).prop_map(
        |(checkpoint, prompt, max_bytes, sampling, stop)| GenerationOrder {
            checkpoint,
            prompt,
            max_bytes,
            sampling,
            stop,
        },
    );
    let certificate = any::<[u8; 16]>().prop_map(CertificateId::from_bytes);
    prop_oneof![
        fetch_plan().prop_map(CoordinatorMessage::FetchPlan),
        vec(certificate, 0..3).prop_map(CoordinatorMessage::Revoked),
        (name(), any::<u32>()).prop_map(|(name, every_ms)| CoordinatorMessage::Welcome {
            name,
            report_every: Duration::from_millis(every_ms.into()),
        }),
        assignment().prop_map(CoordinatorMessage::Assignment),
        any::<u64>().prop_map(|sequence| CoordinatorMessage::ReportReceived { sequence }),
        (request_id(), order).prop_map(|(request, order)| CoordinatorMessage::Generation { request, order }),
        request_id().prop_map(|request| CoordinatorMessage::GenerationCancelled { request }),
    ]
}

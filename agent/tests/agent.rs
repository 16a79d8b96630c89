//! The whole agent against a coordinator over real TLS, with a trainer that only speaks the contract.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use hatchery_agent::{AgentSettings, run};
use hatchery_common::{
    device::Device,
    digest::Digest,
    generate::{
        FinishReason, GenerationFinished, GenerationOrder, RawSamplingParams, SamplingParams, StopStrings,
    },
    id::{AttemptId, CheckpointId, DatasetId, Epoch, JobId, RequestId},
    node::{Inventory, TrainerState},
    session::{AnswerPart, AssignedAttempt, AttemptPhase, CoordinatorMessage, ReplicaState},
    trainer::{Ending, FailureCause},
};
use support::{
    coordinator::{Coordinator, Notes},
    node::{JOB, Node, attempt, attempt_id, ending, ready, running, steps, with_checkpoint},
    runs, until,
};

fn order(checkpoint: CheckpointId, max_bytes: u32) -> GenerationOrder {
    GenerationOrder {
        checkpoint,
        prompt: b"To be".to_vec(),
        max_bytes,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    }
}

async fn ask(coordinator: &Coordinator, checkpoint: CheckpointId, max_bytes: u32) {
    let order = order(checkpoint, max_bytes);
    coordinator.say(CoordinatorMessage::Generation { request: RequestId::random(), order }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_runs_its_checkpoints_arrive_and_the_model_answers() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("progress 1\ncheckpoint 10\nwrite hello\nprogress 15\ncheckpoint 20");
    let mut node = Node::started(&coordinator);
    coordinator.until("it says hello", |notes| !notes.hellos.is_empty()).await;
    {
        let notes = coordinator.notes();
        let inventory = &notes.hellos[0];
        assert!(matches!(&inventory.trainer, TrainerState::Ready { libtorch, .. } if libtorch == "2.11.0"));
        assert_eq!(inventory.devices.len(), 1);
        assert!(inventory.devices[0].memory_bytes > 0 && inventory.cores > 0 && inventory.disk_bytes > 0);
    }
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    coordinator.until("its output arrives", |notes| notes.output == b"hello\n").await;
    let newest = {
        let notes = coordinator.notes();
        assert_eq!(steps(&notes), [10, 20], "in their order, and before the end is told");
        let report = notes.attempt(0).unwrap();
        assert_eq!(report.progress.unwrap().step, 15);
        assert_eq!(report.running_on.as_deref(), Some("cpu, f32"));
        let newest = &notes.commits[1];
        assert!(newest.files.iter().all(|file| coordinator.blobs.has(file.blob)));
        assert_eq!((newest.dataset, newest.epoch, newest.parent), (dataset, Epoch(1), None));
        newest.id()
    };

    coordinator.assign(|assignment| {
        assignment.attempts.clear();
        assignment.checkpoints = vec![newest];
    });
    coordinator.until("it holds the checkpoint", |notes| ready(notes, newest)).await;
    let folder = node.attempt_folder(1);
    until("the attempt's folder is removed", || !folder.exists()).await;
    for _ in 0..2 {
        ask(&coordinator, newest, 100).await;
    }
    let finished =
        |notes: &Notes| notes.parts.iter().filter(|part| matches!(part, AnswerPart::Finished(_))).count();
    coordinator.until("it answers twice", |notes| finished(notes) == 2).await;
    {
        let notes = coordinator.notes();
        let text: usize = notes
            .parts
            .iter()
            .map(|part| if let AnswerPart::Text(bytes) = part { bytes.len() } else { 0 })
            .sum();
        assert_eq!(text, 200);
        assert!(notes.parts.len() > 4, "an answer comes as it is made");
        let Some(AnswerPart::Finished(figures)) = notes.parts.last() else { panic!("{:?}", notes.parts) };
        assert!(!figures.loaded && figures.bytes == 100 && figures.latency_ms >= figures.first_byte_ms);
    }
    node.leave().await;
    assert_eq!(coordinator.notes().goodbyes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_trains_as_many_jobs_at_once_as_it_is_divided_between() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("wait");
    let mut node = Node { cpu_trainers: 2, ..Node::new() };
    node.start(&coordinator);
    coordinator.until("it says hello", |notes| !notes.hellos.is_empty()).await;
    let memory_bytes = {
        let hello = &coordinator.notes().hellos[0];
        let devices: Vec<Device> = hello.devices.iter().map(|found| found.device).collect();
        assert_eq!(devices, [Device::CPU, Device::cpu(1)]);
        assert!(hello.devices.iter().all(|found| found.memory_bytes == hello.memory_bytes / 2));
        hello.memory_bytes
    };
    assert!(memory_bytes > 0);
    let other = AssignedAttempt {
        id: AttemptId { job: JobId::from_bytes([4; 16]), epoch: Epoch(1) },
        device: Device::cpu(1),
        ..attempt(dataset)
    };
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset), other]);
    let both = |notes: &Notes| {
        notes.report.attempts.iter().filter(|attempt| attempt.phase == AttemptPhase::Running).count() == 2
    };
    coordinator.until("both run", both).await;
    let cores = std::thread::available_parallelism().unwrap().get() as u32;
    assert_eq!(node.order(1).threads, (cores / 2).max(1), "the cores are divided");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_coordinator_stops_no_trainer_and_loses_no_checkpoint() {
    let mut coordinator = Coordinator::start().await;
    let mut node = Node::new();
    let (first, second) = (node.state.path().join("first"), node.state.path().join("second"));
    let script = format!("wait-file {}\ncheckpoint 10\nwait-file {}", first.display(), second.display());
    let dataset = coordinator.dataset(&script);
    node.start(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it runs", running).await;
    let process = node.process().unwrap();
    coordinator.go_down();
    fs::write(&first, "").unwrap();
    let made = node.attempt_folder(1).join("checkpoints/step-000000010");
    until("a checkpoint is made meanwhile", || made.exists()).await;
    coordinator.come_up().await;
    coordinator.until("the checkpoint arrives", |notes| steps(notes) == [10]).await;
    coordinator.until("it is here again", |notes| notes.hellos.len() == 2 && running(notes)).await;
    assert_eq!(node.process(), Some(process), "it is the same trainer");
    fs::write(&second, "").unwrap();
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_agent_ends_its_trainer_before_the_lease_ends() {
    for (script, steps_delivered) in [("wait", vec![1]), ("deaf\nwait", vec![])] {
        let coordinator = Coordinator::start().await;
        let dataset = coordinator.dataset(script);
        let mut node = Node::started(&coordinator);
        let lease = Duration::from_secs(2);
        coordinator.assign(|assignment| {
            assignment.lease = lease;
            assignment.attempts = vec![attempt(dataset)];
        });
        coordinator.until("it runs", running).await;
        until("its process is noted", || node.process().is_some()).await;
        let process = node.process().unwrap();
        // The last answered report was sent at this time or before.
        coordinator.answer_reports(false);
        let cut_off = Instant::now();
        until("its trainer is gone", || !runs(process)).await;
        let took = cut_off.elapsed();
        assert!(took < lease, "{script:?}: the trainer ended {took:?} after the last answer");
        coordinator.answer_reports(true);
        coordinator.until("its end is told", |notes| ending(notes) == Some(&Ending::LeaseExpired)).await;
        assert_eq!(steps(&coordinator.notes()), steps_delivered, "{script:?}");
        node.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_and_leaving_go_through_a_checkpoint() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("progress 5\nwait");
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it runs", running).await;
    coordinator.assign(|assignment| assignment.attempts[0].stop = true);
    coordinator.until("it stops", |notes| ending(notes) == Some(&Ending::Stopped)).await;
    assert_eq!(steps(&coordinator.notes()), [6]);

    let parent = coordinator.notes().commits[0].id();
    coordinator.assign(|assignment| {
        let again = AssignedAttempt { id: attempt_id(2), resume_from: Some(parent), ..attempt(dataset) };
        assignment.attempts = vec![again];
    });
    coordinator
        .until("the next one runs", |notes| running(notes) && notes.attempt(0).unwrap().id.epoch == Epoch(2))
        .await;
    assert!(node.order(2).resume_from.unwrap().ends_with(parent.to_string()));
    node.leave().await;
    let notes = coordinator.notes();
    assert_eq!((ending(&notes), notes.goodbyes), (Some(&Ending::Stopped), 1));
    assert_eq!((notes.commits[1].parent, notes.commits[1].epoch), (Some(parent), Epoch(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_with_their_cause_and_last_output() {
    let coordinator = Coordinator::start().await;
    let mut node = Node::started(&coordinator);
    let failure = |notes: &Notes| match &notes.attempt(0)?.phase {
        AttemptPhase::Ended { ending: Ending::Failed { cause, message }, last_output } => {
            Some((*cause, message.clone(), last_output.clone()))
        }
        _ => None,
    };
    let dataset = coordinator.dataset("write CUDA error: an illegal memory access was encountered\ncrash");
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it crashes", |notes| failure(notes).is_some()).await;
    let (cause, message, last_output) = failure(&coordinator.notes()).unwrap();
    assert_eq!(cause, FailureCause::Crashed);
    assert!(message.contains("signal 6"), "{message}");
    assert!(last_output.contains("illegal memory access"), "{last_output}");

    let unknown = DatasetId(Digest::of(b"nothing"));
    coordinator.assign(|assignment| {
        assignment.attempts = vec![AssignedAttempt { id: attempt_id(2), ..attempt(unknown) }];
    });
    coordinator
        .until("the dataset is missed", |notes| {
            failure(notes).is_some_and(|(cause, ..)| cause == FailureCause::BadInput)
        })
        .await;
    let (_, message, _) = failure(&coordinator.notes()).unwrap();
    assert!(message.contains("no such dataset"), "{message}");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_attempt_ends_without_its_checkpoints() {
    let coordinator = Coordinator::start().await;
    coordinator.fence();
    let dataset = coordinator.dataset("checkpoint 10");
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    assert!(coordinator.notes().commits.is_empty());
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_started_again_goes_on_under_the_same_epoch() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("checkpoint 10\ncheckpoint 20\nwait");
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("two checkpoints are there", |notes| steps(notes) == [10, 20] && running(notes)).await;
    let (process, newest) = (node.process().unwrap(), coordinator.notes().commits[1].id());
    let note = node.attempt_folder(1).join("committed.json");
    let noted = || serde_json::from_slice::<serde_json::Value>(&fs::read(&note).ok()?).ok();
    until("the last one is noted", || noted().is_some_and(|noted| noted["step"] == 20)).await;
    node.crash().await;
    until("its trainer is gone", || !runs(process)).await;
    node.start(&coordinator);
    coordinator.until("it runs again", |notes| notes.hellos.len() == 2 && running(notes)).await;
    assert!(node.order(1).resume_from.unwrap().ends_with(newest.to_string()));
    node.leave().await;
    assert_eq!(steps(&coordinator.notes()), [10, 20, 21]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_attempt_committed_may_be_kept_no_longer_when_it_is_taken_up_again() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("checkpoint 10\ncheckpoint 20\nwait");
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("two checkpoints are there", |notes| steps(notes) == [10, 20] && running(notes)).await;
    let ids = [0, 1].map(|index| coordinator.notes().commits[index].id());
    let note = node.attempt_folder(1).join("committed.json");
    until("it is noted", || fs::read_to_string(&note).is_ok_and(|text| text.contains(&ids[1].to_string())))
        .await;
    node.crash().await;
    let held = node.state.path().join("checkpoints").join(ids[1].to_string());
    fs::remove_dir_all(held).unwrap();
    coordinator.note(|notes| notes.commits.retain(|manifest| manifest.id() == ids[0]));
    coordinator.assign(|assignment| assignment.attempts[0].resume_from = Some(ids[0]));
    node.start(&coordinator);
    coordinator.until("it runs again", |notes| notes.hellos.len() == 2 && running(notes)).await;
    assert!(node.order(1).resume_from.unwrap().ends_with(ids[0].to_string()));
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_delivered_before_a_crash_is_gone_on_from_and_delivered_after() {
    let mut coordinator = Coordinator::start().await;
    let mut node = Node::new();
    let go = node.state.path().join("go");
    let dataset = coordinator.dataset(&format!("wait-file {}\ncheckpoint 10\nwait", go.display()));
    node.start(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    coordinator.until("it runs", running).await;
    coordinator.go_down();
    fs::write(&go, "").unwrap();
    let made = node.attempt_folder(1).join("checkpoints/step-000000010");
    until("a checkpoint is made meanwhile", || made.exists()).await;
    node.crash().await;
    coordinator.come_up().await;
    node.start(&coordinator);
    coordinator.until("it runs again", |notes| running(notes) && steps(notes) == [10]).await;
    assert_eq!(node.order(1).resume_from, Some(made));
    node.leave().await;
    assert_eq!(steps(&coordinator.notes()), [10, 11]);
}

/// Changes one bit in the middle of every file that holds these bytes.
fn flip_a_bit(folder: &Path, content: &[u8]) -> usize {
    let mut flipped = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            flipped += flip_a_bit(&path, content);
        } else if fs::read(&path).unwrap() == content {
            let mut permissions = path.metadata().unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
            fs::set_permissions(&path, permissions).unwrap();
            let mut damaged = content.to_vec();
            damaged[content.len() / 2] ^= 1;
            fs::write(&path, damaged).unwrap();
            flipped += 1;
        }
    }
    flipped
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_and_fetched_again() {
    let (coordinator, id) = with_checkpoint().await;
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it holds the checkpoint", |notes| ready(notes, id)).await;
    node.leave().await;
    let model = node.state.path().join(format!("checkpoints/{id}/model.safetensors"));
    let content = fs::read(&model).unwrap();
    // Folder and store share the bytes, so one change is in both.
    assert_eq!(flip_a_bit(&node.state.path().join("blobs"), &content), 1);
    assert!(fs::read(&model).unwrap() != content);

    node.start(&coordinator);
    coordinator.until("it says hello", |notes| notes.hellos.len() == 3).await;
    coordinator.until("it holds the checkpoint again", |notes| ready(notes, id)).await;
    assert!(fs::read(&model).unwrap() == content, "it is whole again");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_trainer_holds_and_answers() {
    let (coordinator, id) = with_checkpoint().await;
    let mut node = Node { trainer: "/nowhere/hatchery-trainer".into(), ..Node::new() };
    node.start(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it holds the checkpoint", |notes| ready(notes, id)).await;
    {
        let notes = coordinator.notes();
        let inventory = notes.hellos.last().unwrap();
        let TrainerState::Missing { why } = &inventory.trainer else { panic!("{:?}", inventory.trainer) };
        assert!(why.contains("/nowhere/hatchery-trainer"), "{why}");
        assert!(inventory.devices.is_empty());
    }
    ask(&coordinator, id, 10).await;
    coordinator
        .until("it answers", |notes| matches!(notes.parts.last(), Some(AnswerPart::Finished(_))))
        .await;
    let unknown = CheckpointId(Digest::of(b"another"));
    ask(&coordinator, unknown, 10).await;
    coordinator
        .until("it says that it does not hold another", |notes| {
            matches!(notes.parts.last(), Some(AnswerPart::Failed(why)) if why.contains("does not hold"))
        })
        .await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_measured_once_and_only_when_no_trainer_runs() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("wait");
    let mut node = Node { calibrate: true, ..Node::new() };
    coordinator.assign(|assignment| assignment.attempts = vec![attempt(dataset)]);
    node.start(&coordinator);
    coordinator.until("it runs", running).await;
    assert!(coordinator.notes().inventories.is_empty(), "the device is in use");
    coordinator.assign(|assignment| assignment.attempts[0].stop = true);
    coordinator.until("it is measured then", |notes| !notes.inventories.is_empty()).await;
    let speed =
        |inventory: &Inventory| inventory.devices[0].calibration.as_ref().map(|found| found.steps_per_sec);
    assert_eq!(speed(&coordinator.notes().inventories[0]), Some(12.5));
    node.leave().await;
    coordinator.assign(|assignment| assignment.attempts.clear());
    node.start(&coordinator);
    coordinator.until("it says hello again", |notes| notes.hellos.len() == 2).await;
    assert_eq!(speed(&coordinator.notes().hellos[1]), Some(12.5), "the measurement was kept");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_nobody_waits_for_is_broken_off() {
    let (coordinator, id) = with_checkpoint().await;
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it holds the checkpoint", |notes| ready(notes, id)).await;
    let request = RequestId::random();
    let order = GenerationOrder { prompt: vec![], ..order(id, hatchery_common::generate::NEW_BYTES_MAX) };
    coordinator.say(CoordinatorMessage::Generation { request, order }).await;
    coordinator.until("it answers", |notes| notes.parts.len() > 3).await;
    coordinator.say(CoordinatorMessage::GenerationCancelled { request }).await;
    // The next one is served, and the first never finishes.
    ask(&coordinator, id, 5).await;
    let finished = |notes: &Notes| matches!(notes.parts.last(), Some(AnswerPart::Finished(figures)) if figures.bytes == 5);
    coordinator.until("the other answer ends", finished).await;
    node.leave().await;
    let ends = |part: &&AnswerPart| matches!(part, AnswerPart::Finished(_) | AnswerPart::Failed(_));
    assert_eq!(coordinator.notes().parts.iter().filter(ends).count(), 1);
}

/// The whole answer to `order`, which is the only one that is asked now.
async fn answer(coordinator: &Coordinator, order: GenerationOrder) -> (Vec<u8>, GenerationFinished) {
    let asked_before = coordinator.notes().parts.len();
    coordinator.say(CoordinatorMessage::Generation { request: RequestId::random(), order }).await;
    let finished =
        |notes: &Notes| notes.parts[asked_before..].iter().any(|part| !matches!(part, AnswerPart::Text(_)));
    coordinator.until("the answer ends", finished).await;
    let mut text = Vec::new();
    for part in &coordinator.notes().parts[asked_before..] {
        match part {
            AnswerPart::Text(bytes) => text.extend(bytes),
            AnswerPart::Finished(figures) => return (text, *figures),
            AnswerPart::Failed(why) => panic!("{why}"),
        }
    }
    panic!("the answer has no end")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_made_as_the_order_says() {
    let (coordinator, id) = with_checkpoint().await;
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it holds the checkpoint", |notes| ready(notes, id)).await;

    let (whole, figures) = answer(&coordinator, order(id, 60)).await;
    assert_eq!((whole.len(), figures.finish_reason), (60, FinishReason::MaxBytes));
    let string = whole[20..24].to_vec();
    let stop = StopStrings::new(vec![b"never there".to_vec(), string.clone()]).unwrap();
    let (stopped, figures) = answer(&coordinator, GenerationOrder { stop, ..order(id, 60) }).await;
    let first = whole.windows(string.len()).position(|window| window == string).unwrap();
    assert_eq!(stopped, whole[..first]);
    assert_eq!((figures.bytes as usize, figures.finish_reason), (first, FinishReason::StopString));

    let seed = RawSamplingParams { seed: 3, ..RawSamplingParams::default() };
    let varied = [
        seed,
        RawSamplingParams { temperature: 0.5, ..seed },
        RawSamplingParams { top_p: Some(0.5), ..seed },
        RawSamplingParams { min_p: Some(0.97), ..seed },
        RawSamplingParams { repetition_penalty: 900.0, ..seed },
    ];
    let mut answers = Vec::new();
    for raw in varied {
        let sampling = SamplingParams::new(raw).unwrap();
        let order = || GenerationOrder { sampling, ..order(id, 60) };
        let (text, _) = answer(&coordinator, order()).await;
        assert_eq!(answer(&coordinator, order()).await.0, text, "{raw:?}");
        assert!(!answers.contains(&text), "{raw:?} changes nothing");
        answers.push(text);
    }
    // The penalty also falls on what stands in the prompt.
    let sampling =
        SamplingParams::new(RawSamplingParams { repetition_penalty: 1000.0, greedy: true, ..seed }).unwrap();
    let prompt = [b"To be".as_slice(), &(0..=254).collect::<Vec<u8>>()[..]].concat();
    let (last, _) = answer(&coordinator, GenerationOrder { sampling, prompt, ..order(id, 1) }).await;
    assert!(!(191..=254).contains(&last[0]), "{last:?} is among the last 64 bytes of the prompt");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_do_not_share_a_folder() {
    let coordinator = Coordinator::start().await;
    let mut node = Node::started(&coordinator);
    coordinator.until("it says hello", |notes| !notes.hellos.is_empty()).await;
    let settings = AgentSettings { state: node.state.path().to_owned(), ..AgentSettings::default() };
    let refused = run(settings, coordinator.credentials(), std::future::pending()).await.unwrap_err();
    assert!(refused.to_string().contains("in use by process"), "{refused}");
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_failure_with_its_figures() {
    let (coordinator, id) = with_checkpoint().await;
    let dataset = coordinator.dataset("wait");
    let mut node = Node { free_disk_bytes_min: 1 << 60, ..Node::new() };
    coordinator.assign(|assignment| {
        assignment.attempts = vec![attempt(dataset)];
        assignment.checkpoints = vec![id];
    });
    node.start(&coordinator);
    let told = |notes: &Notes| match (ending(notes), notes.replica(id)) {
        (
            Some(Ending::Failed { cause: FailureCause::Storage, message }),
            Some(ReplicaState::Failed { why }),
        ) => Some([message.clone(), why.clone()]),
        _ => None,
    };
    coordinator.until("both fail", |notes| notes.hellos.len() == 2 && told(notes).is_some()).await;
    for message in told(&coordinator.notes()).unwrap() {
        assert!(message.contains("too full") && message.contains("must stay free"), "{message}");
    }
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_recipe_is_newer_is_refused_and_another_runs() {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("progress 1");
    let other = AttemptId { job: JobId::from_bytes([9; 16]), epoch: Epoch(1) };
    let newer = AssignedAttempt { id: other, ..attempt(dataset) };
    coordinator.make_newer(other.job);
    let mut node = Node::started(&coordinator);
    coordinator.until("it says hello", |notes| !notes.hellos.is_empty()).await;
    coordinator.assign(|assignment| assignment.attempts = vec![newer.clone(), attempt(dataset)]);
    let ending_of = |notes: &Notes, job| {
        let found = notes.report.attempts.iter().find(|report| report.id.job == job)?;
        match &found.phase {
            AttemptPhase::Ended { ending, .. } => Some(ending.clone()),
            _ => None,
        }
    };
    coordinator
        .until("both have ended", |notes| [JOB, other.job].iter().all(|job| ending_of(notes, *job).is_some()))
        .await;
    {
        let notes = coordinator.notes();
        assert_eq!(ending_of(&notes, JOB), Some(Ending::Completed));
        let Some(Ending::Failed { cause, message }) = ending_of(&notes, other.job) else {
            panic!("it failed")
        };
        assert_eq!(cause, FailureCause::Outdated);
        assert!(
            message.starts_with("this agent does not know `train.label_smoothing`: it is of version "),
            "{message}"
        );
        assert_eq!(notes.hellos.len(), 1, "the session stood all the while");
    }
    coordinator.assign(|assignment| assignment.attempts.clear());
    coordinator.until("both are forgotten", |notes| notes.report.attempts.is_empty()).await;
    node.leave().await;
}

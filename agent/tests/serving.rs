//! Checkpoints of which a node that only answers gets the weights in bf16 and nothing else.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{collections::BTreeSet, fs};

use hatchery_bdh::{Generation, Model, SamplingParams, Window};
use hatchery_common::{
    checkpoint::{
        CONFIG_FILE, CheckpointManifest, MODEL_FILE, OPTIMIZER_FILE, ReplicaForm, SERVING_FILE, TRAINING_FILE,
    },
    generate::{GenerationOrder, StopStrings},
    id::{BlobId, CheckpointId, DatasetId, RequestId},
    recipe::ReplicaWeights,
    session::{AnswerPart, AssignedAttempt, CoordinatorMessage, ReplicaState, Report},
    trainer::Ending,
};
use support::{
    coordinator::{Coordinator, Notes},
    node::{Node, attempt, attempt_id, ending, ready, steps},
    until,
};

/// An attempt at a job whose replicas are in bf16.
fn sparing(dataset: DatasetId) -> AssignedAttempt {
    let mut attempt = attempt(dataset);
    attempt.spec.replicate.weights = ReplicaWeights::Bf16;
    attempt
}

/// A coordinator with one checkpoint of such a job, and the node that made it, which has left.
async fn with_checkpoint(script: &str) -> (Coordinator, Node, CheckpointManifest) {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset(script);
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.attempts = vec![sparing(dataset)]);
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    coordinator.assign(|assignment| assignment.attempts.clear());
    node.leave().await;
    let manifest = coordinator.notes().commits[0].clone();
    (coordinator, node, manifest)
}

fn names(node: &Node, id: CheckpointId) -> BTreeSet<String> {
    let entries = fs::read_dir(node.state.path().join("checkpoints").join(id.to_string())).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What a node has as the file that answers.
fn weights(node: &Node, id: CheckpointId) -> Vec<u8> {
    fs::read(node.state.path().join("checkpoints").join(id.to_string()).join(MODEL_FILE)).unwrap()
}

/// The bytes of the blobs that a node keeps.
fn kept_bytes(node: &Node) -> u64 {
    let mut bytes = 0;
    for shard in fs::read_dir(node.state.path().join("blobs")).unwrap() {
        let shard = shard.unwrap();
        if shard.file_name().len() == 2 {
            let files = fs::read_dir(shard.path()).unwrap().map(|file| file.unwrap().path());
            let data = files.filter(|path| path.extension().is_some_and(|kind| kind == "data"));
            bytes += data.map(|path| path.metadata().unwrap().len()).sum::<u64>();
        }
    }
    bytes
}

fn blob(manifest: &CheckpointManifest, name: &str) -> BlobId {
    manifest.file(name).unwrap().blob
}

fn contents(coordinator: &Coordinator, blob: BlobId) -> Vec<u8> {
    let reader = coordinator.blobs.reader(blob).unwrap();
    (0..reader.manifest().piece_count()).flat_map(|index| reader.read_piece(index).unwrap()).collect()
}

fn form(notes: &Notes, id: CheckpointId) -> Option<ReplicaForm> {
    let replica = notes.report.replicas.iter().find(|replica| replica.checkpoint == id)?;
    let is_ready = matches!(replica.state, ReplicaState::Ready { .. });
    is_ready.then_some(if replica.serving_only { ReplicaForm::ServingOnly } else { ReplicaForm::Whole })
}

fn serves(notes: &Notes, id: CheckpointId) -> bool {
    form(notes, id) == Some(ReplicaForm::ServingOnly)
}

/// What the node answers.
async fn answer(coordinator: &Coordinator, checkpoint: CheckpointId) -> Vec<u8> {
    coordinator.note(|notes| notes.parts.clear());
    let order = GenerationOrder {
        checkpoint,
        prompt: b"To be".to_vec(),
        max_bytes: 40,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    };
    coordinator.say(CoordinatorMessage::Generation { request: RequestId::random(), order }).await;
    let is_over = |notes: &Notes| notes.parts.iter().any(|part| !matches!(part, AnswerPart::Text(_)));
    coordinator.until("it answers", is_over).await;
    let notes = coordinator.notes();
    assert!(matches!(notes.parts.last(), Some(AnswerPart::Finished(_))), "{:?}", notes.parts);
    let text = notes.parts.iter().filter_map(|part| match part {
        AnswerPart::Text(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    text.collect::<Vec<_>>().concat()
}

/// What the weights in the coordinator's blob `weights` answer.
fn expected(coordinator: &Coordinator, manifest: &CheckpointManifest, weights: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in [(CONFIG_FILE, CONFIG_FILE), (MODEL_FILE, weights)] {
        fs::write(folder.path().join(name), contents(coordinator, blob(manifest, file))).unwrap();
    }
    let model = Model::load(folder.path()).unwrap();
    let engine = hatchery_bdh::Engine::new(model.into(), Window::Default).unwrap();
    Generation::new(engine, b"To be", &SamplingParams::greedy(), 40).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_only_answers_gets_a_sixth_tries_it_and_answers() {
    let (coordinator, maker, manifest) = with_checkpoint("checkpoint 10").await;
    let id = manifest.id();
    let all = [CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE, SERVING_FILE];
    assert!(manifest.files.iter().map(|file| file.name.as_str()).eq(all));
    assert!(all.iter().all(|name| coordinator.blobs.has(blob(&manifest, name))), "the coordinator has all");
    assert!(all.iter().all(|name| names(&maker, id).contains(*name)), "and so has who made it");

    let mut node = Node::started(&coordinator);
    let right = coordinator.notes().self_tests[&id].clone();
    coordinator.note(|notes| {
        let self_test = notes.self_tests.get_mut(&id).unwrap();
        self_test.serving.as_mut().unwrap().log_probabilities[9] -= 0.01;
    });
    coordinator.assign(|assignment| {
        assignment.checkpoints = vec![id];
        assignment.active = [(manifest.job, id)].into();
    });
    let told = |notes: &Notes| match notes.replica(id) {
        Some(ReplicaState::Failed { why }) => why.contains("self-test differs"),
        _ => false,
    };
    coordinator.until("it is held against what was answered in bf16", told).await;
    coordinator.note(|notes| drop(notes.self_tests.insert(id, right)));
    coordinator.until("it answers there", |notes| serves(notes, id)).await;

    let own = BTreeSet::from([CONFIG_FILE, MODEL_FILE, "manifest.json"].map(str::to_owned));
    assert_eq!(names(&node, id), own);
    assert_eq!(weights(&node, id), contents(&coordinator, blob(&manifest, SERVING_FILE)));
    // A trainer's optimizer has twice the bytes of the weights; this one's are a few words.
    let (bytes, model_bytes) = (kept_bytes(&node), manifest.file(MODEL_FILE).unwrap().size_bytes);
    assert_eq!(bytes, manifest.bytes_in(ReplicaForm::ServingOnly));
    assert!(6 * bytes < 3 * model_bytes + 6 * 1024, "{bytes} of {model_bytes}");
    assert_eq!(answer(&coordinator, id).await, expected(&coordinator, &manifest, SERVING_FILE));

    // Also when the agent is started again, and what was begun of more is cleared.
    node.crash().await;
    let folder = node.state.path().join("checkpoints").join(id.to_string());
    fs::write(folder.join(OPTIMIZER_FILE), contents(&coordinator, blob(&manifest, OPTIMIZER_FILE))).unwrap();
    coordinator.note(|notes| notes.report = Report::default());
    node.start(&coordinator);
    coordinator.until("it answers again", |notes| serves(notes, id)).await;
    assert_eq!(names(&node, id), own);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_from_it_gets_the_rest() {
    let (coordinator, _, manifest) = with_checkpoint("checkpoint 10").await;
    let id = manifest.id();
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it answers there", |notes| serves(notes, id)).await;
    assert_eq!(answer(&coordinator, id).await, expected(&coordinator, &manifest, SERVING_FILE));

    let dataset = coordinator.dataset("checkpoint 10\ncheckpoint 20");
    let next = AssignedAttempt { id: attempt_id(2), resume_from: Some(id), ..sparing(dataset) };
    coordinator.assign(|assignment| assignment.attempts = vec![next]);
    coordinator.until("it goes on", |notes| ending(notes) == Some(&Ending::Completed)).await;
    assert!(node.order(2).resume_from.unwrap().ends_with(id.to_string()));
    assert_eq!(steps(&coordinator.notes()), [10, 20]);
    coordinator.until("it has all of it", |notes| form(notes, id) == Some(ReplicaForm::Whole)).await;
    assert!(manifest.files.iter().all(|file| names(&node, id).contains(&file.name)));
    assert_eq!(weights(&node, id), contents(&coordinator, blob(&manifest, MODEL_FILE)));
    assert_eq!(answer(&coordinator, id).await, expected(&coordinator, &manifest, MODEL_FILE));

    // It stays whole, and is held against what the whole one answered.
    node.leave().await;
    coordinator.assign(|assignment| assignment.attempts.clear());
    coordinator.note(|notes| notes.report = Report::default());
    node.start(&coordinator);
    coordinator.until("it answers again", |notes| form(notes, id) == Some(ReplicaForm::Whole)).await;
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_coordinator_has_lost_comes_from_who_has_it() {
    let (coordinator, mut maker, manifest) = with_checkpoint("checkpoint 10").await;
    let id = manifest.id();
    let mut node = Node::started(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![id]);
    coordinator.until("it answers there", |notes| serves(notes, id)).await;
    node.leave().await;

    for name in [SERVING_FILE, OPTIMIZER_FILE] {
        assert!(coordinator.blobs.remove(blob(&manifest, name)).unwrap());
    }
    coordinator.note(|notes| notes.report = Report::default());
    node.start(&coordinator);
    until("it brings what it has", || coordinator.blobs.has(blob(&manifest, SERVING_FILE))).await;
    coordinator.until("it answers again", |notes| serves(notes, id)).await;
    assert!(!coordinator.blobs.has(blob(&manifest, OPTIMIZER_FILE)), "it never had that");
    node.leave().await;
    maker.start(&coordinator);
    until("who has it brings it", || coordinator.blobs.has(blob(&manifest, OPTIMIZER_FILE))).await;
    maker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_have_no_place_in_bf16_go_out_whole() {
    let (coordinator, mut maker, manifest) = with_checkpoint("spoil\ncheckpoint 10").await;
    assert!(manifest.files.iter().map(|file| file.name.as_str()).eq(CheckpointManifest::FILES));
    let output = String::from_utf8(coordinator.notes().output.clone()).unwrap();
    assert!(output.contains("is replicated in full, not in bf16") && output.contains("is NaN"), "{output}");
    maker.start(&coordinator);
    coordinator.assign(|assignment| assignment.checkpoints = vec![manifest.id()]);
    let told = |notes: &Notes| matches!(notes.replica(manifest.id()), Some(ReplicaState::Failed { .. }));
    coordinator.until("it does not answer", told).await;
    assert!(!ready(&coordinator.notes(), manifest.id()));
    maker.leave().await;
}

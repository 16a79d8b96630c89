//! An attempt as the agent runs it: the real binary, an order, events and commands.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod house;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hatchery_common::{
    checkpoint::{CheckpointManifest, MODEL_FILE, OPTIMIZER_FILE},
    device::Device,
    model::{ModelConfig, RawModelConfig},
    recipe::{Precision, RawTrainSpec, TrainSpec},
    time::BootTime,
    trainer::{AttemptOrder, Ending, FailureCause, TrainerCommand, TrainerEvent},
};
use hatchery_trainer::checkpoint::{read_cursor, read_model, read_training};
use house::{Attempt, complete, order, small_train};

/// A recipe that only an interruption ends.
fn endless() -> RawTrainSpec {
    RawTrainSpec { steps: 1_000_000, ..small_train() }
}

/// A way to end a run before its last step.
type Interrupt = fn(&mut Attempt);

/// Runs `order` to its end, which must be a failure with exit code 1.
fn failure(order: &AttemptOrder) -> (FailureCause, String) {
    let (_, ending, code) = Attempt::start(order).finish();
    assert_eq!(code, 1);
    match ending {
        Ending::Failed { cause, message } => (cause, message),
        other => panic!("it ended as {other:?}"),
    }
}

fn assert_same_state(one: &Path, other: &Path) {
    for file in [MODEL_FILE, OPTIMIZER_FILE] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(one) == read(other), "{file} of {} and {} differ", one.display(), other.display());
    }
}

#[test]
fn a_run_tells_its_whole_story_and_learns() {
    let folder = tempfile::tempdir().unwrap();
    let mut order = order(
        folder.path(),
        RawTrainSpec {
            steps: 150,
            batch: 8,
            block: 32,
            lr: 3e-3,
            checkpoint_every: 100,
            validate_every: 75,
            ..small_train()
        },
    );
    order.model = ModelConfig::new(RawModelConfig { n_embd: 32, ..order.model.raw().clone() }).unwrap();
    let (events, ending, code) = Attempt::start(&order).finish();
    assert_eq!((ending, code), (Ending::Completed, 0));

    let started = TrainerEvent::Started {
        step: 0,
        device: Device::CPU,
        precision: Precision::F32,
        libtorch: "2.11.0".into(),
    };
    assert_eq!(events[0], started);
    let (mut progress, mut validations, mut checkpoints) = (Vec::new(), Vec::new(), Vec::new());
    for event in events.into_iter().skip(1) {
        match event {
            TrainerEvent::Progress(found) => progress.push(found),
            TrainerEvent::Validation(found) => validations.push(found),
            TrainerEvent::Checkpoint { folder, step, metrics } => checkpoints.push((folder, step, metrics)),
            other => panic!("{other:?} in between"),
        }
    }
    let (first, last) = (progress.first().unwrap(), progress.last().unwrap());
    assert_eq!((first.step, last.step), (1, 150));
    assert!((first.train_loss - 256f64.ln()).abs() < 0.2, "an untrained model knows nothing: {first:?}");
    assert_eq!(last.first_loss, Some(first.train_loss));
    assert!(last.train_loss < 3.3 && last.steps_per_sec > 0.0 && last.memory_bytes > 1 << 20, "{last:?}");
    assert_eq!(validations.iter().map(|found| found.step).collect::<Vec<_>>(), [75, 150]);
    assert!(validations[1].loss < validations[0].loss && validations[1].loss < 3.4, "{validations:?}");

    let names: Vec<_> =
        checkpoints.iter().map(|(folder, ..)| folder.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-000000100", "step-000000150"]);
    let (folder, step, metrics) = checkpoints.last().unwrap();
    assert_eq!((*step, metrics.validation_loss), (150, Some(validations[1].loss)));
    let found = read_model(folder).unwrap();
    assert_eq!((&found.config, found.trained_block), (&order.model, Some(32)));
    let (_, cursor) = read_training(folder, &found.config, tch::Device::Cpu).unwrap();
    assert_eq!((cursor.step, cursor.corpus_bytes, cursor.train), (150, 200_000, order.train));
    assert_eq!(cursor.metrics, *metrics);
}

#[test]
fn interrupted_and_resumed_is_uninterrupted_to_the_bit() {
    let stop: Interrupt = |attempt| attempt.send(&TrainerCommand::Stop);
    let signal: Interrupt = |attempt| {
        let status = Command::new("kill").args(["-TERM", &attempt.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    for interrupt in [stop, signal] {
        let folder = tempfile::tempdir().unwrap();
        let mut attempt = Attempt::start(&order(&folder.path().join("one"), endless()));
        attempt.wait_for_progress();
        interrupt(&mut attempt); // at whatever step it is by then
        let checkpoint = attempt.wait_for_checkpoint();
        let (_, ending, code) = attempt.finish();
        assert_eq!((ending, code), (Ending::Stopped, 0));
        assert_goes_on_as_if_uninterrupted(folder.path(), checkpoint);
    }

    let folder = tempfile::tempdir().unwrap();
    let often = RawTrainSpec { checkpoint_every: 9, ..endless() };
    let mut attempt = Attempt::start(&order(&folder.path().join("one"), often));
    let checkpoint = attempt.wait_for_checkpoint();
    attempt.kill();
    assert_goes_on_as_if_uninterrupted(folder.path(), checkpoint);
}

/// Goes on from `checkpoint` for some steps, and makes as many in one go: the state must be the same.
fn assert_goes_on_as_if_uninterrupted(folder: &Path, checkpoint: PathBuf) {
    let steps = read_cursor(&checkpoint).unwrap().step + 12;
    // Validations on one side only: reading draws nothing that training would miss.
    let resumed = AttemptOrder {
        resume_from: Some(checkpoint),
        ..order(&folder.join("one"), RawTrainSpec { steps, validate_every: 5, ..small_train() })
    };
    let resumed = complete(&resumed);
    let mut whole = order(&folder.join("other"), RawTrainSpec { steps, ..small_train() });
    assert_same_state(&resumed, &complete(&whole));

    // Going on from the last step is done at once, and says so.
    whole.resume_from = Some(resumed);
    let (events, ending, _) = Attempt::start(&whole).finish();
    assert!(
        matches!(events.as_slice(), [TrainerEvent::Started { step, .. }] if *step == steps),
        "{events:?}"
    );
    assert_eq!(ending, Ending::Completed);
}

#[test]
fn a_kill_leaves_no_folder_of_a_final_name_that_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let order = order(folder.path(), RawTrainSpec { checkpoint_every: 1, ..endless() });
    for round in 0..6 {
        let mut attempt = Attempt::start(&order);
        for _ in 0..=round {
            attempt.wait_for_checkpoint();
        }
        attempt.kill(); // the next one is being written
        let names = fs::read_dir(&order.checkpoints).unwrap().map(|entry| entry.unwrap().path());
        for checkpoint in names.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.')) {
            assert!(CheckpointManifest::FILES.iter().all(|file| checkpoint.join(file).is_file()));
            let found = read_model(&checkpoint).unwrap();
            read_training(&checkpoint, &found.config, tch::Device::Cpu).unwrap();
        }
    }
}

#[test]
fn the_end_of_the_lease_stops_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let begun = BootTime::now();
    let mut order = order(folder.path(), endless());
    order.lease_until = Some(begun + Duration::from_mins(10));
    let mut attempt = Attempt::start(&order);
    attempt.wait_for_progress();
    let until = BootTime::now() + Duration::from_millis(300);
    attempt.send(&TrainerCommand::Lease { until });
    let (events, ending, code) = attempt.finish();
    assert!(BootTime::now() >= until);
    assert_eq!((ending, code), (Ending::LeaseExpired, 0));
    assert!(matches!(events.last(), Some(TrainerEvent::Checkpoint { .. })), "{:?}", events.last());

    // A lease that has run out before the first step: nothing is done, nothing written.
    order.lease_until = Some(begun);
    let (events, ending, _) = Attempt::start(&order).finish();
    assert_eq!((events.len(), ending), (1, Ending::LeaseExpired));
}

#[test]
fn the_agents_end_stops_with_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut attempt = Attempt::start(&order(folder.path(), endless()));
    attempt.wait_for_progress();
    attempt.close_stdin();
    let checkpoint = attempt.wait_for_checkpoint();
    assert_eq!(attempt.finish().1, Ending::Stopped);
    read_model(&checkpoint).unwrap();
}

#[test]
fn a_loss_that_is_no_number_fails_and_saves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Weights that are multiplied by 1 - 10 * 10 at each step are infinite after twenty.
    let train =
        RawTrainSpec { lr: 10.0, weight_decay: 10.0, checkpoint_every: 30, steps: 60, ..small_train() };
    let order = order(folder.path(), train);
    let (cause, message) = failure(&order);
    assert_eq!(cause, FailureCause::NotANumber);
    assert!(message.contains("not a number") && message.contains("train.lr"), "{message}");
    assert_eq!(fs::read_dir(&order.checkpoints).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_trained_is_refused_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let good = order(folder.path(), small_train());

    let small = folder.path().join("small.txt");
    fs::write(&small, "too little").unwrap();
    let (cause, message) = failure(&AttemptOrder { corpus: small.clone(), ..good.clone() });
    assert_eq!(cause, FailureCause::BadInput);
    assert!(message.contains("10 bytes") && message.contains("block + 1 = 17"), "{message}");
    fs::write(&small, "").unwrap();
    let (cause, message) = failure(&AttemptOrder { corpus: small, ..good.clone() });
    assert!(cause == FailureCause::BadInput && message.contains("0 bytes"), "{message}");
    let missing = folder.path().join("gone.txt");
    let (cause, message) = failure(&AttemptOrder { corpus: missing, ..good.clone() });
    assert!(cause == FailureCause::BadInput && message.contains("gone.txt"), "{message}");

    let device = Device::cuda(Device::INDEX_MAX);
    let (cause, message) = failure(&AttemptOrder { device, ..good.clone() });
    assert_eq!(cause, FailureCause::Unavailable);
    assert!(message.contains("cuda:63") && message.contains("hatchery-trainer doctor"), "{message}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (cause, message) = failure(&AttemptOrder { checkpoints: file.join("below"), ..good.clone() });
    assert!(cause == FailureCause::Storage && message.contains("below"), "{message}");

    // The scores of one block of 131,072 tokens take 137 GB.
    let train = RawTrainSpec { batch: 1, block: 1 << 17, validation_share: 0.4, ..small_train() };
    let long = folder.path().join("long.txt");
    fs::write(&long, vec![b'a'; 400_000]).unwrap();
    let train = TrainSpec::new(train).unwrap();
    let (cause, message) = failure(&AttemptOrder { train, corpus: long, ..good.clone() });
    assert!(cause == FailureCause::OutOfMemory && message.contains("train.batch"), "{cause:?} {message}");

    let wrong = folder.path().join("wrong.json");
    fs::write(&wrong, "{\"job\":").unwrap();
    let (_, ending, code) = Attempt::start_file(&wrong).finish();
    assert!(
        matches!(&ending, Ending::Failed { cause: FailureCause::BadInput, message } if message.contains("wrong.json"))
    );
    assert_eq!(code, 1);
}

#[test]
fn a_checkpoint_of_something_else_is_not_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let good = order(folder.path(), RawTrainSpec { steps: 2, ..small_train() });
    let resume_from = Some(complete(&good));

    let model = ModelConfig::new(RawModelConfig { n_embd: 32, ..good.model.raw().clone() }).unwrap();
    let (cause, message) = failure(&AttemptOrder { model, resume_from: resume_from.clone(), ..good.clone() });
    assert!(cause == FailureCause::BadInput && message.contains("\"n_embd\":32"), "{message}");

    let corpus = folder.path().join("other.txt");
    fs::write(&corpus, vec![b'x'; 5000]).unwrap();
    let (cause, message) = failure(&AttemptOrder { corpus, resume_from, ..good });
    assert!(cause == FailureCause::BadInput && message.contains("200000 bytes"), "{message}");
    assert!(message.contains("5000"), "{message}");
}

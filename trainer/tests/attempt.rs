//! An attempt as the agent runs it: the real binary, an order, events and commands.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::{
    collections::BTreeSet,
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
    trainer::{AttemptOrder, Ending, FailureCause, LossPoint, PositionLoss, TrainerCommand, TrainerEvent},
};
use hatchery_trainer::checkpoint::{read_cursor, read_model, read_training};
use support::{Attempt, complete, order, small_train};

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
        slower_because: None,
    };
    assert_eq!(events[0], started);
    let (mut progress, mut validations, mut checkpoints) = (Vec::new(), Vec::new(), Vec::new());
    let mut curve = Vec::new();
    for event in events.into_iter().skip(1) {
        match event {
            TrainerEvent::Progress(found) => progress.push(found),
            TrainerEvent::TrainLoss(found) => curve.push(found),
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

    assert!(curve.iter().map(|point| point.step).eq((10..=150).step_by(10)), "{curve:?}");
    assert_eq!(curve.last().map(|point| point.loss), Some(last.train_loss));
    let by_position = &validations[1].by_position;
    assert_eq!(
        by_position.iter().map(|found| (found.from, found.to)).collect::<Vec<_>>(),
        [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)]
    );
    let bytes = |found: &PositionLoss| f64::from(found.to + 1 - found.from);
    let sum: f64 = by_position.iter().map(|found| found.loss * bytes(found)).sum();
    assert!((sum / 32.0 / validations[1].loss - 1.0).abs() < 1e-12, "{validations:?}");

    let names: Vec<_> =
        checkpoints.iter().map(|(folder, ..)| folder.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-000000100", "step-000000150"]);
    let (folder, step, metrics) = checkpoints.last().unwrap();
    assert_eq!((*step, metrics.own_validation_loss(150)), (150, Some(validations[1].loss)));
    assert_eq!(metrics.best, Some(LossPoint { step: 150, loss: validations[1].loss }));
    let found = read_model(folder).unwrap();
    assert_eq!((&found.config, found.trained_block), (&order.model, Some(32)));
    let cursor = read_training(folder, tch::Device::Cpu).unwrap().cursor;
    assert_eq!((cursor.step, cursor.corpus_bytes, cursor.train), (150, 200_000, order.train));
    assert_eq!((cursor.metrics, cursor.curve.training), (*metrics, curve));
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

/// A run by `train` that is stopped and gone on with until it completes, up to `interruptions` times: the points of its
/// curve and its validations, in the order told, the last checkpoint, and how often it was stopped.
fn told(folder: &Path, train: RawTrainSpec, interruptions: u32) -> (Vec<TrainerEvent>, PathBuf, u32) {
    let mut order = order(folder, train);
    let (mut all, mut reached) = (Vec::new(), 0);
    for round in 0.. {
        let mut attempt = Attempt::start(&order);
        let mut events = Vec::new();
        if round < interruptions {
            // The start, progress, and at most a few events more.
            events.extend((0..2 + round % 3).filter_map(|_| attempt.event()));
            attempt.send(&TrainerCommand::Stop);
        }
        let (rest, ending, _) = attempt.finish();
        for event in events.into_iter().chain(rest) {
            match event {
                TrainerEvent::Checkpoint { folder, .. } => order.resume_from = Some(folder),
                TrainerEvent::Progress(progress) => reached = progress.step,
                TrainerEvent::TrainLoss(_) | TrainerEvent::Validation(_) | TrainerEvent::EarlyStop { .. } => {
                    all.push(event);
                }
                _ => {}
            }
        }
        if ending == Ending::Completed {
            let checkpoint = order.resume_from.expect("the end makes a checkpoint");
            assert_eq!(reached, read_cursor(&checkpoint).unwrap().step, "the last progress is of the end");
            return (all, checkpoint, round);
        }
    }
    unreachable!("rounds have no end")
}

#[test]
fn interrupted_or_not_the_log_is_the_same_and_so_is_every_byte_of_the_checkpoint() {
    // Validations take longer than steps, so that some are cut short.
    let train = RawTrainSpec {
        steps: 400,
        lr: 0.03,
        validate_every: 7,
        validation_windows: 64,
        log_every: 13,
        ema_decay: 0.9,
        early_stop: 4,
        early_stop_min_change: 0.01,
        clip_norm: 1.0,
        ..small_train()
    };
    let folder = tempfile::tempdir().unwrap();
    let (whole_log, whole, _) = told(&folder.path().join("whole"), train.clone(), 0);
    let (cut_log, cut, stops) = told(&folder.path().join("cut"), train, 12);
    assert!(stops >= 3, "it was stopped {stops} times");
    assert_eq!(cut_log, whole_log);
    assert!(
        matches!(whole_log.last(), Some(TrainerEvent::EarlyStop { validations: 4, .. })),
        "{whole_log:?}"
    );
    for file in CheckpointManifest::FILES {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(&whole) == read(&cut), "{file}");
    }
    let cursor = read_cursor(&whole).unwrap();
    assert!(cursor.step < 400 && cursor.metrics.early_stop == Some(4), "{:?}", cursor.metrics);
    assert!(cursor.metrics.early_stop_reason().unwrap().contains("no improvement in 4 validations"));
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
            read_training(&checkpoint, tch::Device::Cpu).unwrap();
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
fn a_run_that_diverges_names_the_step_and_leaves_its_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let train =
        RawTrainSpec { lr: 10.0, weight_decay: 10.0, checkpoint_every: 4, steps: 60, ..small_train() };
    let order = order(folder.path(), train);
    let (events, ending, code) = Attempt::start(&order).finish();
    let Ending::Failed { cause: FailureCause::NotANumber, message } = ending else { panic!("{ending:?}") };
    assert_eq!(code, 1);
    let step = message.split_once("step ").expect("it names a step").1;
    let step: u64 = step[..step.find(' ').unwrap()].parse().unwrap();
    let told: Vec<_> = events
        .into_iter()
        .filter_map(|event| match event {
            TrainerEvent::Checkpoint { folder, step, .. } => Some((step, folder)),
            _ => None,
        })
        .collect();
    let (last, folder) = told.last().unwrap();
    assert!(*last < step && step <= last + 4 + 1, "{message}, and the last checkpoint is of step {last}");
    let found = read_training(folder, tch::Device::Cpu).unwrap();
    assert!(found.weights.all().iter().all(|weight| bool::try_from(weight.isfinite().all()).unwrap()));
    // What was written is what was told, and nothing half done is left.
    let written: BTreeSet<_> =
        fs::read_dir(&order.checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(written, told.into_iter().map(|(_, folder)| folder).collect());
}

#[test]
fn the_best_validation_makes_a_checkpoint_if_the_recipe_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let train =
        RawTrainSpec { steps: 60, lr: 0.02, validate_every: 6, checkpoint_best: true, ..small_train() };
    let (events, ending, _) = Attempt::start(&order(folder.path(), train)).finish();
    assert_eq!(ending, Ending::Completed);
    let (mut best, mut at_best, mut checkpoints) = (f64::INFINITY, vec![], vec![]);
    for event in events {
        match event {
            TrainerEvent::Validation(found) if found.loss < best || found.step == 60 => {
                best = best.min(found.loss);
                at_best.push(found.step);
            }
            TrainerEvent::Checkpoint { step, metrics, .. } => {
                assert_eq!(metrics.validation_step, Some(step), "its own step is validated");
                assert!(metrics.best.unwrap().loss <= metrics.validation_loss.unwrap());
                checkpoints.push(step);
            }
            _ => {}
        }
    }
    assert_eq!(checkpoints, at_best, "a checkpoint at each best one and at the last step");
    assert!(at_best.len() > 2, "{at_best:?}");
}

#[test]
fn the_running_mean_is_what_a_checkpoint_serves_and_what_is_validated() {
    let folder = tempfile::tempdir().unwrap();
    let train = RawTrainSpec { steps: 50, lr: 0.01, ema_decay: 0.95, ..small_train() };
    let with = complete(&order(&folder.path().join("with"), train.clone()));
    let without = RawTrainSpec { ema_decay: 0.0, ..train };
    let without = complete(&order(&folder.path().join("without"), without));
    let (with_mean, plain) =
        [&with, &without].map(|folder| read_training(folder, tch::Device::Cpu).unwrap()).into();
    let average = with_mean.average.unwrap();
    let served = read_model(&with).unwrap().weights;
    for (index, weight) in with_mean.weights.all().into_iter().enumerate() {
        assert!(weight.equal(plain.weights.all()[index]), "the mean does not change what is learned");
        assert!(served.all()[index].equal(average.all()[index]) && !served.all()[index].equal(weight));
    }
    assert!(plain.average.is_none());

    // The recipe may change its mind on the way: what goes on are the weights themselves, and a mean begins with them.
    let go_on = |from: &Path, ema_decay, into: &str| {
        let train = RawTrainSpec { steps: 60, lr: 0.01, ema_decay, ..small_train() };
        let order = order(&folder.path().join(into), train);
        complete(&AttemptOrder { resume_from: Some(from.to_owned()), ..order })
    };
    let read = |folder: &Path| fs::read(folder.join(MODEL_FILE)).unwrap();
    let plain_to_the_end = go_on(&without, 0.0, "plain");
    assert!(read(&go_on(&with, 0.0, "ended")) == read(&plain_to_the_end));
    let begun = read_training(&go_on(&without, 0.95, "begun"), tch::Device::Cpu).unwrap();
    let expected = read_model(&plain_to_the_end).unwrap().weights;
    for (index, weight) in begun.weights.all().into_iter().enumerate() {
        assert!(weight.equal(expected.all()[index]));
        assert!(!weight.equal(begun.average.as_ref().unwrap().all()[index]));
    }
    let [with_mean, plain] = [with_mean.cursor, plain.cursor].map(|cursor| cursor.metrics);
    assert_eq!(with_mean.train_loss, plain.train_loss);
    assert_ne!(with_mean.validation_loss, plain.validation_loss);
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

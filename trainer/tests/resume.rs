//! Interrupted and resumed is uninterrupted, bit for bit: a hundred times within one run.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::{collections::BTreeSet, path::Path};

use hatchery_common::{
    cursor::{LossCurve, Patience, TrainingCursor},
    recipe::{Precision, RawTrainSpec, Schedule, TrainSpec},
    trainer::Metrics,
};
use hatchery_trainer::{
    checkpoint::{Snapshot, TrainingFolder, read_training, write},
    data::{Corpus, Sampler},
    learner::Learner,
    rng::{Purpose, bits},
    weights::Weights,
};
use support::{corpus, small_model};
use tch::{Device, Tensor};

const STEPS: u64 = 160;

/// The bits of a run at its end: every loss, every weight, every moment, every running mean.
#[derive(PartialEq)]
struct Trace {
    losses: Vec<u32>,
    state: Vec<Vec<f32>>,
}

/// On so many threads: in bf16 it goes the way that a GPU's run goes.
#[derive(Clone, Copy, Debug)]
struct Machine {
    threads: i32,
    precision: Precision,
}

fn train(spec: &TrainSpec, machine: Machine, folder: &Path, interruptions: &BTreeSet<u64>) -> Trace {
    tch::set_num_threads(machine.threads);
    let corpus = Corpus::open(&corpus()).unwrap();
    let sampler = Sampler::new(spec, corpus.len()).unwrap();
    let start = |weights, moments| {
        Learner::new(small_model(), spec, weights, moments, Device::Cpu, machine.precision).unwrap()
    };
    let mut learner = start(Weights::start(&small_model(), spec.raw().seed).unwrap(), None);
    let mut losses = Vec::new();
    for step in 0..STEPS {
        if interruptions.contains(&step) {
            let cursor = TrainingCursor {
                version: 1,
                step,
                train: spec.clone(),
                corpus_bytes: corpus.len(),
                metrics: Metrics::default(),
                curve: LossCurve::default(),
                patience: Patience::default(),
                parent: None,
            };
            let written = write(folder, &Snapshot::take(&learner, cursor).unwrap()).unwrap();
            drop(learner);
            let found = read_training(&written.folder, Device::Cpu).unwrap();
            let TrainingFolder { weights, average, moments, cursor, .. } = found;
            assert_eq!((cursor.step, &cursor.train), (step, spec));
            learner = start(weights, Some(moments));
            assert_eq!(average.is_some(), spec.raw().ema_decay > 0.0);
            if let Some(average) = average {
                learner.go_on_with_average(average).unwrap();
            }
        }
        let batch = corpus.batch(&sampler.starts(step), sampler.block(), Device::Cpu).unwrap();
        losses.push((f64::try_from(learner.step(step, &batch).unwrap()).unwrap() as f32).to_bits());
    }
    let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
    let weights = learner.model().weights().all().into_iter();
    let moments = learner.optimizer().moments().iter().flat_map(|m| [&m.exp_avg, &m.exp_avg_sq]);
    let average = learner.average().into_iter().flat_map(Weights::all);
    Trace { losses, state: weights.chain(moments).chain(average).map(numbers).collect() }
}

#[test]
fn a_hundred_interruptions_change_no_bit() {
    let machine = |threads, precision| Machine { threads, precision };
    let recipes = [
        (machine(1, Precision::F32), Schedule::Cosine, 1.0, 0.0),
        (machine(2, Precision::F32), Schedule::Wsd, 0.0, 0.98),
        (machine(2, Precision::Bf16), Schedule::Cosine, 1.0, 0.98),
    ];
    for (machine, schedule, clip_norm, ema_decay) in recipes {
        let spec = TrainSpec::new(RawTrainSpec {
            steps: STEPS,
            batch: 5,
            block: 16,
            schedule,
            warmup_steps: 20,
            clip_norm,
            ema_decay,
            seed: 77,
            ..Default::default()
        })
        .unwrap();
        let mut interruptions = BTreeSet::new();
        for draw in 0.. {
            if interruptions.len() == 100 {
                break;
            }
            interruptions.insert(1 + bits(9, Purpose::Windows, machine.threads as u64, draw) % (STEPS - 1));
        }
        let folder = tempfile::tempdir().unwrap();
        let whole = train(&spec, machine, folder.path(), &BTreeSet::new());
        let cut = train(&spec, machine, folder.path(), &interruptions);
        assert!(whole == cut, "{machine:?}, {schedule:?}");
        let fell = |from: usize| {
            whole.losses[from..from + 10].iter().map(|loss| f32::from_bits(*loss)).sum::<f32>() / 10.0
        };
        assert!(fell(STEPS as usize - 10) < fell(0) - 0.5, "it learns: {} to {}", fell(0), fell(150));
    }
}

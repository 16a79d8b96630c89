//! Another kind of device goes on where one has stopped: the same samples, dropout and state, and losses that differ by
//! rounding. The two kinds here are f32 by the fast path and f64 by the fused one, as on a GPU: other numbers, and other code
//! that makes them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::path::Path;

use hatchery_common::{
    cursor::{LossCurve, Patience, TrainingCursor},
    recipe::{Precision, RawTrainSpec, Schedule, TrainSpec},
    trainer::Metrics,
};
use hatchery_trainer::{
    checkpoint::{Snapshot, TrainingFolder, read_training, write},
    data::{Corpus, Sampler},
    dropout::Dropout,
    learner::Learner,
    optimizer::Moments,
    weights::Weights,
};
use support::{corpus, small_model};
use tch::{Device, Kind, Tensor};

const STEPS: u64 = 60;
/// The most that a loss may differ from that of a run which stays on one kind, as a share of it.
const TOLERANCE: f64 = 1e-5;

fn spec() -> TrainSpec {
    TrainSpec::new(RawTrainSpec {
        steps: STEPS,
        batch: 4,
        block: 16,
        schedule: Schedule::Cosine,
        warmup_steps: 5,
        clip_norm: 1.0,
        ema_decay: 0.9,
        seed: 5,
        ..Default::default()
    })
    .unwrap()
}

/// A learner in numbers of `kind`, from f32 state.
fn learner(
    kind: Kind,
    weights: &Weights,
    average: Option<&Weights>,
    moments: Option<Vec<Moments>>,
) -> Learner {
    let moments = moments.map(|moments| {
        let convert =
            |m: Moments| Moments { exp_avg: m.exp_avg.to_kind(kind), exp_avg_sq: m.exp_avg_sq.to_kind(kind) };
        moments.into_iter().map(convert).collect()
    });
    let weights = weights.to_kind(kind).unwrap();
    let mut learner =
        Learner::new(small_model(), &spec(), weights, moments, Device::Cpu, Precision::F32).unwrap();
    if let Some(average) = average {
        learner.go_on_with_average(average.to_kind(kind).unwrap()).unwrap();
    }
    learner
}

/// Weights, running means and moments as f32.
fn state(learner: &Learner) -> Vec<Vec<f32>> {
    let moments = learner.optimizer().moments().iter().flat_map(|m| [&m.exp_avg, &m.exp_avg_sq]);
    let tensors = learner.model().weights().all().into_iter();
    let tensors = tensors.chain(learner.average().unwrap().all()).chain(moments);
    let numbers =
        |tensor: &Tensor| Vec::try_from(tensor.detach().to_kind(Kind::Float).flatten(0, -1)).unwrap();
    tensors.map(numbers).collect()
}

/// Trains through a checkpoint at each step where `kind_at` changes; gives each step's loss and its batch.
fn train(folder: &Path, kind_at: impl Fn(u64) -> Kind) -> Vec<(f64, Vec<i64>)> {
    tch::set_num_threads(1);
    let corpus = Corpus::open(&corpus()).unwrap();
    let sampler = Sampler::new(&spec(), corpus.len()).unwrap();
    let mut kind = kind_at(0);
    let mut one = learner(kind, &Weights::start(&small_model(), 5).unwrap(), None, None);
    let mut told = Vec::new();
    for step in 0..STEPS {
        if kind_at(step) != kind {
            kind = kind_at(step);
            let cursor = TrainingCursor {
                version: 1,
                step,
                train: spec(),
                corpus_bytes: corpus.len(),
                metrics: Metrics::default(),
                curve: LossCurve::default(),
                patience: Patience::default(),
                parent: None,
            };
            let written = write(folder, &Snapshot::take(&one, cursor).unwrap()).unwrap();
            let found = read_training(&written.folder, Device::Cpu).unwrap();
            let TrainingFolder { weights, average, moments, .. } = found;
            let other = learner(kind, &weights, average.as_ref(), Some(moments));
            assert!(state(&one) == state(&other), "what a checkpoint holds is taken over exactly");
            one = other;
        }
        let batch = corpus.batch(&sampler.starts(step), sampler.block(), Device::Cpu).unwrap();
        let bytes = Vec::try_from(batch.tokens.flatten(0, -1)).unwrap();
        told.push((f64::try_from(one.step(step, &batch).unwrap()).unwrap(), bytes));
    }
    assert_eq!(one.model().weights().embed.kind(), kind);
    told
}

#[test]
fn a_run_may_change_its_kind_of_device_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let f32_only = train(folder.path(), |_| Kind::Float);
    let f64_only = train(folder.path(), |_| Kind::Double);
    let switched = train(folder.path(), |step| if step / 20 == 1 { Kind::Double } else { Kind::Float });
    assert!(f32_only[..20] == switched[..20], "before the first change nothing differs");
    let mut worst: f64 = 0.0;
    for (step, (found, batch)) in switched.iter().enumerate() {
        for (expected, other_batch) in [&f32_only[step], &f64_only[step]] {
            assert!(batch == other_batch, "step {step} has the same samples");
            worst = worst.max((found / expected - 1.0).abs());
        }
    }
    println!("losses differ by {worst:.1e} at most");
    assert!(worst <= TOLERANCE, "losses differ by {worst:e}");
    let (first, last) = (switched[0].0, switched[STEPS as usize - 1].0);
    assert!(last < first - 0.3, "it learns: {first} to {last}");
}

#[test]
fn dropout_is_the_same_on_every_kind() {
    for step in 0..5 {
        let dropout = Dropout::new(0.1, 5, step).unwrap();
        for layer in 0..2 {
            let mask = |kind| dropout.mask(layer, [2, 4, 16, 64], kind, Device::Cpu).unwrap();
            let [kept, expected] = [Kind::Float, Kind::Double].map(|kind| mask(kind).not_equal(0.0));
            assert!(kept.equal(&expected));
        }
    }
}

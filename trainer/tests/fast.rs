//! The fast path against the plain one: f64, random shapes, dropout on.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use hatchery_common::{
    model::{ModelConfig, RawModelConfig},
    recipe::Precision,
};
use hatchery_trainer::{
    data::Batch,
    dropout::Dropout,
    fast::{Fast, Number},
    model::{Model, Pass},
    rng::{Purpose, below, bits},
    weights::Weights,
};
use proptest::{prelude::*, test_runner::RngSeed};
use tch::{Device, Kind, Tensor};

/// The norm of the difference against the norm of `expected`.
fn norm_error(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    let difference = found.to_kind(Kind::Double) - &expected;
    f64::try_from(difference.norm()).unwrap() / f64::try_from(expected.norm()).unwrap()
}

#[derive(Clone, Debug)]
struct Case {
    model: RawModelConfig,
    batch: i64,
    tokens: i64,
    threads: usize,
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (1u32..=3, 1u32..=3, 1u32..=5, 1u32..=4, prop_oneof![Just(0.0), Just(0.1), Just(0.5)]);
    (shape, 1i64..=4, 2i64..=150, 1usize..=3, 0u64..1000).prop_map(
        |((layers, heads, width, multiplier, dropout), batch, tokens, threads, seed)| {
            let model = RawModelConfig {
                n_layer: layers,
                n_embd: 8 * width * heads,
                n_head: heads,
                mlp_internal_dim_multiplier: 2 * multiplier,
                dropout,
                ..Default::default()
            };
            Case { model, batch, tokens, threads, seed }
        },
    )
}

/// Start weights ten times as large as those of a run: far from the line through zero that the norms start on.
fn weights(config: &ModelConfig, seed: u64, kind: Kind) -> Weights {
    let start = Weights::start(config, seed).unwrap();
    let mut all = start.all().into_iter().map(|weight| weight.to_kind(kind) * 10.0);
    Weights::each(config, |_, _| Ok::<_, ()>(all.next().unwrap())).unwrap()
}

fn errors<N: Number>(case: &Case) -> Vec<f64> {
    tch::set_num_threads(1);
    let config = ModelConfig::new(case.model.clone()).unwrap();
    // Not from libtorch's generator: it is one for the whole process, and other tests run beside this one.
    let byte = |which, place| below(256, bits(case.seed, Purpose::Windows, which, place)) as i64;
    let bytes = |which| {
        let bytes: Vec<i64> =
            (0..(case.batch * case.tokens) as u64).map(|place| byte(which, place)).collect();
        Tensor::from_slice(&bytes).view([case.batch, case.tokens])
    };
    let batch = Batch { tokens: bytes(0), targets: bytes(1) };
    let dropout = Dropout::new(config.dropout(), case.seed, 7);

    let exact = Model::new(
        config.clone(),
        weights(&config, case.seed, Kind::Double),
        Device::Cpu,
        Precision::F32,
        case.tokens as usize,
    )
    .unwrap();
    let loss = exact.loss(&batch.tokens, &batch.targets, Pass::Training(dropout)).unwrap();
    let expected = Tensor::run_backward(&[&loss], &exact.weights().all(), false, false);

    let mut fast = Fast::<N>::new(&config, case.tokens as usize, case.threads).unwrap();
    let own = weights(&config, case.seed, N::KIND);
    let (first_loss, _) = fast.loss_and_gradients(&own, &batch, dropout).unwrap();
    // Again: nothing of the first pass may be left in the buffers.
    let (found_loss, found) = fast.loss_and_gradients(&own, &batch, dropout).unwrap();
    assert_eq!(first_loss.to_bits(), found_loss.to_bits());
    let loss = f64::try_from(&loss).unwrap();
    let mut errors = vec![(found_loss / loss - 1.0).abs()];
    errors.extend(found.iter().zip(&expected).map(|(found, expected)| norm_error(found, expected)));
    errors
}

proptest! {
    // A fixed seed: one case in about two thousand is so badly conditioned that both ways, each right to the last bits,
    // differ by a little more than 1e-12.
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(3),
        ..ProptestConfig::default()
    })]

    #[test]
    fn gradients_by_hand_are_autograds_in_f64(case in case()) {
        for error in errors::<f64>(&case) {
            prop_assert!(error <= 1e-12, "{error:e}");
        }
    }

    #[test]
    fn gradients_in_f32_are_those_in_f64_to_rounding(case in case()) {
        for error in errors::<f32>(&case) {
            // In a model of a few neurons one that changes sides of its relu shows; the golden figures hold 1e-4.
            prop_assert!(error <= 5e-3, "{error:e}");
        }
    }
}

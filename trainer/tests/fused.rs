//! The fused path against the plain one: random shapes, dropout on; with libtorch's operations, and with the text of the
//! GPU's kernels, which runs here on a CPU.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::rc::Rc;

use hatchery_common::{
    model::{ModelConfig, RawModelConfig},
    recipe::Precision,
};
use hatchery_trainer::{
    data::Batch,
    dropout::Dropout,
    fused::Fused,
    model::{Model, Pass},
    rng::{Purpose, below, bits},
    weights::Weights,
};
use hatchery_trainer_shim::kernels::{Kernels, Rows, Variant};
use proptest::{prelude::*, test_runner::RngSeed};
use tch::{Device, Kind, Tensor};

#[derive(Clone, Debug)]
struct Case {
    model: RawModelConfig,
    batch: i64,
    tokens: i64,
    seed: u64,
}

/// Heads of 2, 4, .. neurons: with and without room for the wide kernels.
fn case() -> impl Strategy<Value = Case> {
    let shape = (1u32..=3, 1u32..=3, 1u32..=3, 1u32..=4, prop_oneof![Just(0.0), Just(0.1), Just(0.5)]);
    (shape, 1i64..=3, 2i64..=40, 0u64..1000).prop_map(
        |((layers, heads, width, multiplier, dropout), batch, tokens, seed)| {
            let model = RawModelConfig {
                n_layer: layers,
                n_embd: 8 * width * heads,
                n_head: heads,
                mlp_internal_dim_multiplier: 2 * multiplier,
                dropout,
                ..Default::default()
            };
            Case { model, batch, tokens, seed }
        },
    )
}

/// Start weights ten times as large as those of a run: far from the line through zero that the norms start on.
fn weights(config: &ModelConfig, seed: u64, kind: Kind) -> Weights {
    let start = Weights::start(config, seed).unwrap();
    let mut all = start.all().into_iter().map(|weight| weight.to_kind(kind) * 10.0);
    Weights::each(config, |_, _| Ok::<_, ()>(all.next().unwrap())).unwrap()
}

fn norm_error(found: &Tensor, expected: &Tensor) -> f64 {
    let expected = expected.to_kind(Kind::Double);
    let difference = found.to_kind(Kind::Double) - &expected;
    f64::try_from(difference.norm()).unwrap() / f64::try_from(expected.norm()).unwrap()
}

/// Which way a case goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Autograd,
    /// By hand, with libtorch's operations.
    Operations,
    /// By hand, with the kernels.
    Kernels,
}

/// The errors of the loss and of each gradient, against autograd's in f64.
fn errors(case: &Case, way: Way, kind: Kind, precision: Precision) -> Vec<f64> {
    tch::set_num_threads(1);
    let config = ModelConfig::new(case.model.clone()).unwrap();
    let byte = |which, place| below(256, bits(case.seed, Purpose::Windows, which, place)) as i64;
    let bytes = |which| {
        let bytes: Vec<i64> =
            (0..(case.batch * case.tokens) as u64).map(|place| byte(which, place)).collect();
        Tensor::from_slice(&bytes).view([case.batch, case.tokens])
    };
    let batch = Batch { tokens: bytes(0), targets: bytes(1) };
    let dropout = Dropout::new(config.dropout(), case.seed, 7);
    let tokens = case.tokens as usize;
    let autograd = |kind, precision| {
        let weights = weights(&config, case.seed, kind);
        let model = Model::new(config.clone(), weights, Device::Cpu, precision, tokens).unwrap();
        let loss = model.loss(&batch.tokens, &batch.targets, Pass::Training(dropout)).unwrap();
        let gradients = Tensor::run_backward(&[&loss], &model.weights().all(), false, false);
        (loss.detach(), gradients)
    };
    let (loss, expected) = autograd(Kind::Double, Precision::F32);
    let (found_loss, found) = if way == Way::Autograd {
        autograd(kind, precision)
    } else {
        // More room than the case takes: phases are those of the first positions.
        let mut fused = Fused::new(&config, kind, Device::Cpu, precision, tokens + 3).unwrap();
        if way == Way::Kernels {
            let operands = if precision == Precision::Bf16 { Kind::BFloat16 } else { kind };
            let variant = Variant::new(operands, config.neurons_per_head() as i64).unwrap();
            fused = fused.with_kernels(Rc::new(Kernels::emulated(variant))).unwrap();
        }
        let own = weights(&config, case.seed, kind);
        fused.loss_and_gradients(&own, &batch, dropout).unwrap()
    };
    for (found, weight) in found.iter().zip(&expected) {
        assert_eq!((found.size(), found.kind()), (weight.size(), kind));
    }
    let loss = f64::try_from(&loss).unwrap();
    let mut errors = vec![(f64::try_from(&found_loss).unwrap() / loss - 1.0).abs()];
    errors.extend(found.iter().zip(&expected).map(|(found, expected)| norm_error(found, expected)));
    errors
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 32,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn gradients_by_hand_are_autograds_in_f64(case in case()) {
        for error in errors(&case, Way::Operations, Kind::Double, Precision::F32) {
            prop_assert!(error <= 1e-11, "{error:e}");
        }
    }

    #[test]
    fn the_kernels_compute_in_f32_what_autograd_does_in_f64(case in case()) {
        for error in errors(&case, Way::Kernels, Kind::Float, Precision::F32) {
            // In a model of a few neurons one that changes sides of its relu shows.
            prop_assert!(error <= 5e-3, "{error:e}");
        }
    }

    #[test]
    fn in_bf16_operations_and_kernels_are_as_near_as_autograd_is(case in case()) {
        let autograd = errors(&case, Way::Autograd, Kind::Float, Precision::Bf16);
        for way in [Way::Operations, Way::Kernels] {
            let by_hand = errors(&case, way, Kind::Float, Precision::Bf16);
            for (by_hand, autograd) in by_hand.iter().zip(&autograd) {
                // Both round to 8 bits, in other places.
                prop_assert!(*by_hand <= 2.0 * autograd + 0.02, "{way:?}: {by_hand:e} beside {autograd:e}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_noticed_in_the_loss() {
    let raw = RawModelConfig { n_layer: 1, n_embd: 8, n_head: 1, ..Default::default() };
    let config = ModelConfig::new(raw).unwrap();
    let bytes = Tensor::arange(12, (Kind::Int64, Device::Cpu)).view([2, 6]);
    let batch = Batch { tokens: bytes.shallow_clone(), targets: bytes };
    for which in 0..5 {
        let own = weights(&config, 1, Kind::Float);
        let _ = own.all()[which].view(-1).get(2).fill_(f64::NAN);
        let kernels = Kernels::emulated(Variant::new(Kind::Float, config.neurons_per_head() as i64).unwrap());
        let fused = Fused::new(&config, Kind::Float, Device::Cpu, Precision::F32, 6).unwrap();
        let mut told = Vec::new();
        told.push(fused.loss_and_gradients(&own, &batch, None).unwrap().0);
        let fused = fused.with_kernels(Rc::new(kernels)).unwrap();
        told.push(fused.loss_and_gradients(&own, &batch, None).unwrap().0);
        let is_nan = |loss: &Tensor| f64::try_from(loss).unwrap().is_nan();
        assert!(told.iter().all(is_nan), "weight {which}: {told:?}");
    }
}

#[test]
fn before_a_run_the_kernels_are_found_to_agree() {
    let raw = RawModelConfig { n_layer: 6, n_embd: 24, n_head: 2, ..Default::default() };
    let config = ModelConfig::new(raw).unwrap();
    let neurons = config.neurons_per_head() as i64;
    let own = Weights::start(&config, 4).unwrap();
    let batch = Batch::from_windows(&[0; 9], 1, Device::Cpu).unwrap();
    for (precision, operands, other) in
        [(Precision::F32, Kind::Float, Kind::BFloat16), (Precision::Bf16, Kind::BFloat16, Kind::Float)]
    {
        let checked = |kernels: Kernels| {
            let fused = Fused::new(&config, Kind::Float, Device::Cpu, precision, 64).unwrap();
            fused.with_checked_kernels(Rc::new(kernels)).unwrap()
        };
        let right = checked(Kernels::emulated(Variant::new(operands, neurons).unwrap()));
        assert!(right.has_kernels(), "{precision:?}: {:?}", right.no_kernels());
        // Kernels for other numbers than these cannot be right, and the run goes on without.
        let wrong = checked(Kernels::emulated(Variant::new(other, neurons).unwrap()));
        assert!(!wrong.has_kernels() && wrong.no_kernels().unwrap().contains("the kernels"));
        assert!(wrong.loss_and_gradients(&own, &batch, None).is_ok());
    }
}

#[test]
fn each_operation_is_timed_both_ways() {
    let raw = RawModelConfig { n_layer: 1, n_embd: 24, n_head: 2, ..Default::default() };
    let config = ModelConfig::new(raw).unwrap();
    let neurons = config.neurons_per_head() as i64;
    for (precision, operands) in [(Precision::F32, Kind::Float), (Precision::Bf16, Kind::BFloat16)] {
        let kernels = Rc::new(Kernels::emulated(Variant::new(operands, neurons).unwrap()));
        let fused = Fused::new(&config, Kind::Float, Device::Cpu, precision, 8).unwrap();
        let measured = fused.with_kernels(kernels).unwrap().measure(2, 1, &|| ()).unwrap();
        assert_eq!(measured.operations.len(), 14);
        for timed in measured.operations {
            assert!(timed.bytes > 0 && timed.kernels_secs > Some(0.0), "{timed:?}");
            assert!(timed.operations_secs > Some(0.0), "{timed:?}");
        }
    }
}

#[test]
fn the_kernels_drop_what_the_loops_drop_to_the_last_neuron() {
    const SIZE: [usize; 4] = [3, 4, 20, 512];
    let [heads, sequences, tokens, neurons] = SIZE.map(|size| size as i64);
    let rows = Rows { heads, of_head: sequences * tokens, tokens };
    let kernels = Kernels::emulated(Variant::new(Kind::Float, neurons).unwrap());
    let ones = Tensor::ones([heads, rows.of_head, neurons], (Kind::Float, Device::Cpu));
    for probability in [0.1, 0.5, 0.9] {
        let dropout = Dropout::new(probability, 5, 11).unwrap().from_sequence(6);
        let mut gated = ones.zeros_like();
        kernels.gate(rows, &ones, &ones, &mut gated, dropout.for_kernels(2)).unwrap();
        assert_eq!(gated, dropout.mask(2, SIZE, Kind::Float, Device::Cpu).unwrap(), "{probability}");
    }
}

#[test]
fn a_kernel_is_given_nothing_that_does_not_fit() {
    let kernels = Kernels::emulated(Variant::new(Kind::Float, 8).unwrap());
    let rows = Rows { heads: 1, of_head: 3, tokens: 3 };
    let floats = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let turn = floats(&[3, 4, 2]);
    let refusal = |q: &Tensor, turn: &Tensor| {
        let mut r = floats(&[1, 3, 8]);
        kernels.rope(rows, q, turn, &mut r).unwrap_err().to_string()
    };
    assert!(refusal(&floats(&[1, 2, 8]), &turn).contains("argument 0"));
    assert!(refusal(&floats(&[1, 3, 8]).to_kind(Kind::Double), &turn).contains("argument 0"));
    assert!(refusal(&floats(&[1, 8, 3]).transpose(1, 2), &turn).contains("argument 0"));
    assert!(refusal(&floats(&[1, 3, 8]), &floats(&[2, 4, 2])).contains("argument 1"));
    // Half a chunk of the wide kernels.
    assert!(refusal(&floats(&[1, 3, 4]), &turn).contains("4 neurons"));
    assert_eq!(Variant::new(Kind::Double, 8), None);
    assert_eq!(Variant::new(Kind::Float, 7), None);
    assert_eq!(Variant::new(Kind::BFloat16, 6), Some(Variant { is_bf16: true, pairs: 1 }));
}

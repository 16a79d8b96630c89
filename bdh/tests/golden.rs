//! The engine against the figures of the public reference implementation.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use hatchery_bdh::{Engine, Generation, RawSamplingParams, SamplingParams, Window};
use support::{Reference, relative_difference};

/// Of the largest logit; observed: at most 7e-7. Both sides compute in f32, in another order.
const TOLERANCE: f64 = 2e-6;

fn greedy() -> SamplingParams {
    SamplingParams::new(RawSamplingParams { greedy: true, ..Default::default() }).unwrap()
}

#[test]
fn logits_of_every_position_equal_the_reference() {
    for name in Reference::NAMES {
        let reference = Reference::read(name);
        let model = reference.model(None);
        let shape = reference.tensors["tokens"].shape.clone();
        let (sequences, length, vocabulary) = (shape[1], shape[2], 256);
        let tokens = reference.tensors["tokens"].to_bytes();
        let expected = reference.tensors["logits"].to_f32();
        for sequence in 0..sequences {
            let tokens = &tokens[sequence * length..][..length];
            let expected = &expected[sequence * length * vocabulary..][..length * vocabulary];
            let mut engine = Engine::new(model.clone(), Window::None).unwrap();
            let mut actual = Vec::new();
            for token in tokens {
                actual.extend_from_slice(engine.step(*token));
            }
            let difference = relative_difference(&actual, expected);
            assert!(difference < TOLERANCE, "{name}, sequence {sequence}: {difference:e}");

            let mut engine = Engine::new(model.clone(), Window::None).unwrap();
            assert_eq!(engine.prefill(tokens), &actual[(length - 1) * vocabulary..]);
        }
    }
}

#[test]
fn the_greedy_continuation_equals_the_reference() {
    for name in Reference::NAMES {
        let reference = Reference::read(name);
        let prompt = reference.tensors["prompt"].to_bytes();
        let expected = reference.tensors["greedy"].to_bytes();
        let new_bytes = expected.len() - prompt.len();
        let engine = Engine::new(reference.model(None), Window::Default).unwrap();
        let answer: Vec<u8> = Generation::new(engine, &prompt, &greedy(), new_bytes).collect();
        assert_eq!(answer, expected[prompt.len()..], "{name}");
    }
}

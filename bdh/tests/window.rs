//! What the window does to a stream, and what it costs.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::sync::Arc;

use hatchery_bdh::{Engine, Model, Window};
use support::{random_bytes, random_weights, shape};

#[test]
fn the_default_is_half_the_trained_block_and_none_without_one() {
    let config = shape(2, 16, 2, 4);
    let weights = random_weights(&config, 1, 0.05);
    let trained = support::model(&config, &weights, Some("32"));
    let unknown = support::model(&config, &weights, None);
    assert_eq!(trained.trained_block(), Some(32));
    assert_eq!(unknown.trained_block(), None);

    let bytes = random_bytes(2, 200);
    let logits = |model: &Arc<Model>, window, count: usize| {
        Engine::new(model.clone(), window).unwrap().prefill(&bytes[..count]).to_vec()
    };
    let chunks = Window::Chunks { bytes: 16 };
    assert_eq!(logits(&trained, Window::Default, 200), logits(&trained, chunks, 200));
    assert_eq!(logits(&unknown, Window::Default, 200), logits(&unknown, Window::None, 200));
    assert_eq!(logits(&trained, Window::None, 200), logits(&unknown, Window::None, 200));
    // Up to the trained block everything is seen, to the bit in the first chunk; after it, the two part.
    assert_eq!(logits(&trained, Window::Default, 16), logits(&trained, Window::None, 16));
    let (windowed, whole) = (logits(&trained, Window::Default, 32), logits(&trained, Window::None, 32));
    assert!(support::relative_difference(&windowed, &whole) < 1e-5);
    let (windowed, whole) = (logits(&trained, Window::Default, 33), logits(&trained, Window::None, 33));
    assert!(support::relative_difference(&windowed, &whole) > 1e-4);
}

#[test]
fn the_state_keeps_its_size() {
    // The size of the run that the project is measured by, in two layers.
    let config = shape(2, 128, 4, 64);
    let model = support::model(&config, &random_weights(&config, 1, 0.02), Some("256"));
    let sum_bytes = 2 * 4 * config.neurons_per_head() * config.width() * size_of::<f32>();
    for window in [Window::None, Window::Default, Window::Chunks { bytes: 64 }] {
        let mut engine = Engine::new(model.clone(), window).unwrap();
        let first = engine.state_bytes();
        assert!(first <= 2 * sum_bytes + (1 << 20), "{window:?}: {first}");
        for _ in 0..3 {
            engine.prefill(&random_bytes(3, 100));
            assert_eq!(engine.state_bytes(), first);
        }
    }
}

#[test]
fn what_is_older_than_the_window_is_forgotten() {
    // With one layer nothing is passed on from before the window, so two pasts end in the same logits.
    let config = shape(1, 16, 2, 4);
    let model = support::model(&config, &random_weights(&config, 1, 0.05), Some("32"));
    let after_past = |seed, window| {
        let mut engine = Engine::new(model.clone(), window).unwrap();
        engine.prefill(&random_bytes(seed, 64));
        engine.prefill(&random_bytes(9, 32)).to_vec()
    };
    assert_eq!(after_past(1, Window::Default), after_past(2, Window::Default));
    assert_ne!(after_past(1, Window::None), after_past(2, Window::None));
}

#[test]
fn a_clone_goes_its_own_way() {
    let config = shape(2, 16, 2, 4);
    let model = support::model(&config, &random_weights(&config, 1, 0.05), Some("32"));
    let mut engine = Engine::new(model, Window::Default).unwrap();
    engine.prefill(b"To be, or not");
    let mut fork = engine.clone();
    let expected = engine.step(b'!').to_vec();
    fork.step(b'?');
    assert_ne!(fork.logits(), expected);
    assert_eq!(fork.position(), engine.position());
}

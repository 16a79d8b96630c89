//! bf16 beside f32.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::sync::Arc;

use hatchery_bdh::{Engine, Model, Precision, SamplingParams, Session, SessionError, Window, step_all};
use hatchery_common::model::ModelConfig;
use support::{folder, random_bytes, random_weights, relative_difference, shape, weight_file};

fn models(config: &ModelConfig) -> [Arc<Model>; 2] {
    let folder = folder(
        &serde_json::to_string(config).unwrap(),
        &weight_file(&random_weights(config, 1, 0.05), Some("64")),
    );
    [Precision::F32, Precision::Bf16]
        .map(|precision| Arc::new(Model::load_in(folder.path(), precision).unwrap()))
}

#[test]
fn bf16_takes_half_the_memory_and_stays_close() {
    let [wide, narrow] = models(&shape(4, 64, 4, 16));
    assert_eq!((wide.precision(), narrow.precision()), (Precision::F32, Precision::Bf16));
    assert_eq!(wide.identity(), narrow.identity());
    for window in [Window::Default, Window::None] {
        let [mut wide, mut narrow] =
            [&wide, &narrow].map(|model| Engine::new(model.clone(), window).unwrap());
        assert!(narrow.state_bytes() * 10 < wide.state_bytes() * 6);
        for byte in random_bytes(2, 400) {
            let expected = wide.step(byte).to_vec();
            let difference = relative_difference(narrow.step(byte), &expected);
            // Of the largest logit. Random weights, which cancel out much, are the worst case.
            assert!(difference < 0.1, "{window:?}: {difference}");
        }
    }
}

#[test]
fn blocks_and_batches_do_not_change_a_bit_of_bf16() {
    let [_, model] = models(&shape(2, 60, 3, 7));
    let bytes = random_bytes(3, 200);
    for window in [Window::Default, Window::None, Window::Chunks { bytes: 7 }] {
        let engine = Engine::new(model.clone(), window).unwrap();
        let [mut stepped, mut fed, mut other] = std::array::from_fn(|_| engine.clone());
        for byte in &bytes {
            stepped.step(*byte);
        }
        fed.prefill(&bytes[..190]);
        other.prefill(&bytes[..50]);
        for byte in &bytes[190..] {
            step_all(&mut [(&mut other, b'x'), (&mut fed, *byte)]);
        }
        assert_eq!(stepped.logits(), fed.logits(), "{window:?}");
    }
}

#[test]
fn a_session_comes_back_in_its_own_precision() {
    let [wide, narrow] = models(&shape(2, 16, 2, 4));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let engine = Engine::new(narrow.clone(), Window::Default).unwrap();
    let mut session = Session::new(engine, &SamplingParams::default());
    session.feed(b"To be, or not");
    session.save(&path).unwrap();
    let mut taken_up = Session::load(&path, narrow).unwrap();
    assert_eq!(
        (0..50).map(|_| session.next_byte()).collect::<Vec<_>>(),
        (0..50).map(|_| taken_up.next_byte()).collect::<Vec<_>>()
    );
    let error = Session::load(&path, wide).err().unwrap();
    assert!(matches!(error, SessionError::OtherPrecision { .. }), "{error}");
    assert!(error.to_string().contains("bf16"), "{error}");
}

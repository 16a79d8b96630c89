//! Several streams in one pass over the weights, and streams that have come far.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::{fs, sync::Arc};

use hatchery_bdh::{Engine, Model, SamplingParams, Session, Window, step_all};
use proptest::prelude::*;
use support::{random_bytes, random_weights, relative_difference, shape};

fn small_model() -> Arc<Model> {
    let config = shape(2, 16, 2, 4);
    support::model(&config, &random_weights(&config, 1, 0.3), Some("32"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_that_step_together_are_as_if_alone(
        prompts in proptest::collection::vec((0..80_usize, 0..3_u8), 0..40),
        steps in 1..30_u8,
    ) {
        let model = small_model();
        let mut together: Vec<Engine> = prompts
            .iter()
            .enumerate()
            .map(|(index, (length, window))| {
                let window = [Window::Default, Window::None, Window::Chunks { bytes: 5 }][usize::from(*window)];
                let mut engine = Engine::new(model.clone(), window).unwrap();
                engine.prefill(&random_bytes(index as u64, *length));
                engine
            })
            .collect();
        let mut alone = together.clone();
        for step in 0..steps {
            let byte = |index: usize| (index as u8).wrapping_mul(31) ^ step;
            let mut pairs: Vec<_> =
                together.iter_mut().enumerate().map(|(index, engine)| (engine, byte(index))).collect();
            step_all(&mut pairs);
            for (index, engine) in alone.iter_mut().enumerate() {
                engine.step(byte(index));
            }
            for (together, alone) in together.iter().zip(&alone) {
                prop_assert_eq!(together.logits(), alone.logits());
                prop_assert_eq!(together.position(), alone.position());
            }
        }
    }
}

#[test]
#[should_panic(expected = "of one model")]
fn streams_of_two_models_do_not_step_together() {
    let engine = || Engine::new(small_model(), Window::Default).unwrap();
    step_all(&mut [(&mut engine(), 1), (&mut engine(), 2)]);
}

/// A session that has read nothing, but stands at `position`: a saved one whose header is changed.
fn session_at(model: &Arc<Model>, position: u64) -> Session {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let engine = Engine::new(model.clone(), Window::Default).unwrap();
    Session::new(engine, &SamplingParams::default()).save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let header_bytes = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&whole[16..16 + header_bytes]).unwrap();
    header["position"] = position.into();
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = whole[..12].to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.extend(&whole[16 + header_bytes..whole.len() - 32]);
    bytes.extend(blake3::hash(&bytes).as_bytes());
    fs::write(&path, bytes).unwrap();
    Session::load(&path, model.clone()).unwrap()
}

#[test]
fn an_endless_stream_stays_exact() {
    // Only how far two bytes are apart matters: the same text gives the same logits wherever it stands. The window's
    // chunks are of 16 bytes.
    let model = small_model();
    let text = random_bytes(5, 48);
    let logits_at = |position| {
        let mut session = session_at(&model, position);
        session.feed(&text);
        assert_eq!(session.position(), position + 48);
        session.engine().logits().to_vec()
    };
    let expected = logits_at(0);
    for position in [1600, 10_000_000, (1 << 32) - 16, (1 << 32) + 16, 1 << 40, 1 << 60] {
        let difference = relative_difference(&logits_at(position), &expected);
        assert!(difference < 5e-6, "{position}: {difference:e}");
    }
}

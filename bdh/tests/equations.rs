//! The engine against the published equations, written down naively in f64: all pairs of positions, no state.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use hatchery_bdh::{Engine, Window};
use hatchery_common::model::{ModelConfig, RawModelConfig};
use proptest::prelude::*;
use support::{Tensor, random_bytes, random_weights, relative_difference};

/// Of the largest logit; observed: at most 5e-6 over a thousand shapes.
const TOLERANCE: f64 = 2e-5;

/// x @ matrix, whose `columns` lie next to each other.
fn multiply(x: &[f64], matrix: &[f32], columns: usize) -> Vec<f64> {
    (0..columns)
        .map(|column| {
            x.iter().zip(matrix[column..].iter().step_by(columns)).map(|(x, w)| x * f64::from(*w)).sum()
        })
        .collect()
}

fn norm(x: &[f64]) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    x.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect()
}

fn relu(x: Vec<f64>) -> Vec<f64> {
    x.into_iter().map(|x| x.max(0.0)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn rope(q: &[f64], position: usize) -> Vec<f64> {
    let turned = |i: usize| {
        let frequency = 65_536_f64.powf(-((i / 2 * 2) as f64) / q.len() as f64) / std::f64::consts::TAU;
        let (sine, cosine) = ((position as f64 * frequency).fract() * std::f64::consts::TAU).sin_cos();
        if i.is_multiple_of(2) { q[i] * cosine - q[i + 1] * sine } else { q[i] * cosine + q[i - 1] * sine }
    };
    (0..q.len()).map(turned).collect()
}

/// Logits of every position. A position sees those before it, from the start of the chunk before its own on.
fn naive_logits(config: &ModelConfig, weights: &[Tensor], tokens: &[u8], chunk: Option<usize>) -> Vec<f64> {
    let [embed, encoder, encoder_v, decoder, lm_head]: [Vec<f32>; 5] =
        std::array::from_fn(|index| weights[index].to_f32());
    let (width, neurons) = (config.width(), config.neurons_per_head());
    let mut stream: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| {
            let row = &embed[usize::from(*token) * width..][..width];
            norm(&row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
        })
        .collect();
    for _ in 0..config.layers() {
        let mut next = vec![vec![0.0; width]; tokens.len()];
        for head in 0..config.heads() {
            let encoder = &encoder[head * width * neurons..][..width * neurons];
            let encoder_v = &encoder_v[head * width * neurons..][..width * neurons];
            let decoder = &decoder[head * neurons * width..][..neurons * width];
            let q: Vec<_> = stream.iter().map(|x| relu(multiply(x, encoder, neurons))).collect();
            let r: Vec<_> = q.iter().enumerate().map(|(position, q)| rope(q, position)).collect();
            for position in 0..tokens.len() {
                let oldest = chunk.map_or(0, |chunk| (position / chunk).saturating_sub(1) * chunk);
                let mut attention = vec![0.0; width];
                for before in oldest..position {
                    let score = dot(&r[position], &r[before]);
                    for (sum, x) in attention.iter_mut().zip(&stream[before]) {
                        *sum += score * x;
                    }
                }
                let gates = relu(multiply(&norm(&attention), encoder_v, neurons));
                let gated: Vec<f64> = gates.iter().zip(&q[position]).map(|(gate, q)| gate * q).collect();
                for (sum, y) in next[position].iter_mut().zip(multiply(&gated, decoder, width)) {
                    *sum += y;
                }
            }
        }
        for (x, y) in stream.iter_mut().zip(next) {
            *x = norm(&x.iter().zip(norm(&y)).map(|(x, y)| x + y).collect::<Vec<_>>());
        }
    }
    stream.iter().flat_map(|x| multiply(x, &lm_head, config.vocabulary())).collect()
}

fn shapes() -> impl Strategy<Value = ModelConfig> {
    (1..4_u32, 1..4_u32, 4..20_u32, 1..9_u32, prop_oneof![Just(256_u32), 257..300_u32]).prop_map(
        |(n_layer, n_head, head_width, multiplier, vocab_size)| {
            ModelConfig::new(RawModelConfig {
                n_layer,
                n_embd: n_head * head_width,
                n_head,
                // Neurons per head = head_width * multiplier must be even.
                mlp_internal_dim_multiplier: multiplier * (1 + head_width % 2),
                dropout: 0.0,
                vocab_size,
            })
            .unwrap()
        },
    )
}

/// Bytes of a text, and of a window's chunk. The longer ones outgrow what a state keeps byte by byte.
fn lengths() -> impl Strategy<Value = (usize, Option<usize>)> {
    prop_oneof![
        3 => (1..50_usize, proptest::option::of(1..20_usize)),
        1 => (150..600_usize, proptest::option::of(100..300_usize)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engine_and_equations_agree(
        config in shapes(),
        seed: u64,
        (length, chunk) in lengths(),
        cuts in proptest::collection::vec(0..600_usize, 0..4),
    ) {
        let weights = random_weights(&config, seed, 0.05);
        let model = support::model(&config, &weights, None);
        let tokens = random_bytes(seed ^ 1, length);
        let window = chunk.map_or(Window::None, |chunk| Window::Chunks { bytes: chunk as u32 });

        let mut engine = Engine::new(model, window).unwrap();
        let fresh = engine.clone();
        let mut actual = Vec::new();
        for token in &tokens {
            actual.extend_from_slice(engine.step(*token));
        }
        let expected = naive_logits(&config, &weights, &tokens, chunk);
        let difference = relative_difference(&actual, &expected);
        prop_assert!(difference < TOLERANCE, "{difference:e}");

        // However the bytes are cut up, the logits after the last are the same to the bit.
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        let mut engine = fresh;
        for cut in cuts.windows(2) {
            engine.prefill(&tokens[cut[0]..cut[1]]);
        }
        prop_assert_eq!(engine.position(), length as u64);
        prop_assert_eq!(engine.logits(), &actual[(length - 1) * config.vocabulary()..]);
    }
}

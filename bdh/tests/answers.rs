//! Sampling, answers, text.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::sync::Arc;

use hatchery_bdh::{
    Engine, Generation, Model, RawSamplingParams, Sampler, SamplingParams, StopStrings, Utf8Stream, Window,
    random_at,
};
use hatchery_common::model::{ModelConfig, RawModelConfig};
use proptest::prelude::*;
use support::{Tensor, random_weights, shape};

fn params(raw: RawSamplingParams) -> SamplingParams {
    SamplingParams::new(raw).unwrap()
}

/// 256 logits: those given, and far below them the rest.
fn logits(given: &[f32]) -> Vec<f32> {
    let mut logits = vec![-1000.0; 256];
    logits[..given.len()].copy_from_slice(given);
    logits
}

fn counts(raw: RawSamplingParams, logits: &[f32], draws: usize) -> [usize; 256] {
    let mut sampler = Sampler::new(&params(raw));
    let mut counts = [0; 256];
    for _ in 0..draws {
        counts[usize::from(sampler.choose(logits).unwrap())] += 1;
    }
    counts
}

/// Sum over the bytes of (seen - expected)^2 / expected.
fn chi_square(counts: &[usize], shares: &[f64]) -> f64 {
    let draws = counts.iter().sum::<usize>() as f64;
    let terms = counts.iter().zip(shares);
    terms.map(|(count, share)| (*count as f64 - share * draws).powi(2) / (share * draws)).sum()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[test]
fn wrong_parameters_are_refused_by_name() {
    let fine = RawSamplingParams::default();
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = SamplingParams::new(RawSamplingParams { temperature, ..fine }).unwrap_err();
        assert_eq!(error.field, "temperature");
        assert!(error.problem.contains("greedy"), "{error}");
    }
    let error = SamplingParams::new(RawSamplingParams { top_k: Some(0), ..fine }).unwrap_err();
    assert_eq!(error.field, "top_k");
    for top_p in [0.0, -0.5, 1.1, f64::NAN] {
        let error = SamplingParams::new(RawSamplingParams { top_p: Some(top_p), ..fine }).unwrap_err();
        assert_eq!(error.field, "top_p");
    }
    for min_p in [-0.1, 1.1, f64::NAN] {
        let error = SamplingParams::new(RawSamplingParams { min_p: Some(min_p), ..fine }).unwrap_err();
        assert_eq!(error.field, "min_p");
    }
    for repetition_penalty in [0.9, 0.0, f64::INFINITY, f64::NAN] {
        let error = SamplingParams::new(RawSamplingParams { repetition_penalty, ..fine }).unwrap_err();
        assert_eq!(error.field, "repetition_penalty");
    }
    let error = serde_json::from_str::<SamplingParams>(r#"{"temprature": 1}"#).unwrap_err().to_string();
    assert!(error.contains("temprature"), "{error}");
}

#[test]
fn random_numbers_are_those_of_splitmix64() {
    // The published sequence from seed 1234567, upper 53 bits.
    let published: [u64; 3] =
        [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
    for (draw, expected) in published.into_iter().enumerate() {
        let fraction = (expected >> 11) as f64 / (1_u64 << 53) as f64;
        assert!((random_at(1_234_567, draw as u64) - fraction).abs() < f64::EPSILON);
    }
}

#[test]
fn draws_follow_the_distribution() {
    let given = [0.0, 1.0, -1.0, 0.5, 2.0, -2.0];
    for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 3.0)] {
        let raw = RawSamplingParams { temperature, seed, ..Default::default() };
        let counts = counts(raw, &logits(&given), 20_000);
        assert_eq!(counts[given.len()..].iter().sum::<usize>(), 0);
        // 5 degrees of freedom: above 25.7 once in 10,000 times.
        let chi_square = chi_square(&counts[..given.len()], &softmax(&given, temperature));
        assert!(chi_square < 25.7, "seed {seed}: {chi_square}");
    }
}

#[test]
fn top_k_and_top_p_bound_what_can_be_chosen() {
    let given = [0.0, 3.0, 1.0, 2.0];
    let raw = RawSamplingParams { top_k: Some(2), ..Default::default() };
    let seen = counts(raw, &logits(&given), 10_000);
    assert_eq!(seen.iter().filter(|count| **count > 0).count(), 2);
    // 1 degree of freedom: above 15.1 once in 10,000 times.
    assert!(chi_square(&[seen[1], seen[3]], &softmax(&[3.0, 2.0], 1.0)) < 15.1);

    // Shares 0.64, 0.24, 0.09, 0.03.
    for (top_p, kept) in [(0.1, 1), (0.63, 1), (0.66, 2), (0.9, 3), (1.0, 4)] {
        let raw = RawSamplingParams { top_p: Some(top_p), ..Default::default() };
        let seen = counts(raw, &logits(&given), 10_000);
        assert_eq!(seen.iter().filter(|count| **count > 0).count(), kept, "top_p {top_p}");
    }
    // More than there are is all there are.
    let raw = RawSamplingParams { top_k: Some(1000), temperature: 1000.0, ..Default::default() };
    assert!(counts(raw, &[0.0; 256], 10_000).iter().all(|count| *count > 0));
}

#[test]
fn min_p_drops_what_is_far_less_likely_than_the_likeliest() {
    // Shares of the likeliest: 1, 0.37, 0.135, 0.05.
    let given = [0.0, 3.0, 1.0, 2.0];
    for (min_p, kept) in [(1.0, 1), (0.4, 1), (0.36, 2), (0.13, 3), (0.04, 4)] {
        let raw = RawSamplingParams { min_p: Some(min_p), ..Default::default() };
        let seen = counts(raw, &logits(&given), 10_000);
        assert_eq!(seen.iter().filter(|count| **count > 0).count(), kept, "min_p {min_p}");
    }
    let raw = RawSamplingParams { min_p: Some(0.36), ..Default::default() };
    let seen = counts(raw, &logits(&given), 10_000);
    assert!(chi_square(&[seen[1], seen[3]], &softmax(&[3.0, 2.0], 1.0)) < 15.1);
    let nothing_dropped = RawSamplingParams { min_p: Some(0.0), temperature: 1000.0, ..Default::default() };
    assert!(counts(nothing_dropped, &[0.0; 256], 10_000).iter().all(|count| *count > 0));
}

#[test]
fn the_repetition_penalty_falls_on_bytes_seen_lately() {
    let raw = RawSamplingParams { repetition_penalty: 2.0, greedy: true, ..Default::default() };
    let mut sampler = Sampler::new(&params(raw));
    // The likeliest, once seen, is halved; then the next is, and after that the first is ahead again.
    let choices: Vec<u8> = (0..3).map(|_| sampler.choose(&logits(&[4.0, 3.0, 1.0])).unwrap()).collect();
    assert_eq!(choices, [0, 1, 0]);
    // Negative logits are doubled, once however often a byte was seen.
    let mut sampler = Sampler::new(&params(raw));
    sampler.see(&[0, 0, 0]);
    assert_eq!(sampler.choose(&logits(&[-1.0, -2.1, -3.0])), Some(0));
    assert_eq!(sampler.choose(&logits(&[-1.0, -1.9, -3.0])), Some(1));
    // What is further back than the window is forgotten.
    let mut sampler = Sampler::new(&params(raw));
    sampler.see(&[0]);
    sampler.see(&[9; SamplingParams::REPETITION_WINDOW - 1]);
    assert_eq!(sampler.clone().choose(&logits(&[4.0, 3.0])), Some(1));
    sampler.see(&[9]);
    assert_eq!(sampler.choose(&logits(&[4.0, 3.0])), Some(0));
}

#[test]
fn greedy_takes_the_lowest_of_the_likeliest_and_cold_comes_to_the_same() {
    let mut tied = vec![0.0; 300];
    tied[7] = 1.0;
    tied[200] = 1.0;
    tied[280] = 5.0; // A token that is no byte.
    let greedy = RawSamplingParams { greedy: true, ..Default::default() };
    assert_eq!(counts(greedy, &tied, 100)[7], 100);
    tied[7] = 1.0 + 1e-6;
    for temperature in [1e-9, f64::MIN_POSITIVE] {
        let cold = RawSamplingParams { temperature, ..Default::default() };
        assert_eq!(counts(cold, &tied, 100)[7], 100);
    }
    let one = RawSamplingParams { top_k: Some(1), ..Default::default() };
    assert_eq!(counts(one, &tied, 100)[7], 100);
    assert_eq!(Sampler::new(&params(greedy)).choose(&[-0.0; 256]), Some(0));
}

#[test]
fn logits_that_are_no_numbers_give_nothing() {
    let mut sampler = Sampler::new(&SamplingParams::default());
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = [0.0; 256];
        logits[9] = wrong;
        assert_eq!(sampler.choose(&logits), None);
    }
    assert_eq!(sampler.choose(&[0.0; 255]), None);
}

fn engine(model: &Arc<Model>) -> Engine {
    Engine::new(model.clone(), Window::Default).unwrap()
}

fn small_model() -> Arc<Model> {
    let config = shape(2, 16, 2, 4);
    support::model(&config, &random_weights(&config, 1, 0.5), Some("32"))
}

#[test]
fn the_same_seed_gives_the_same_answer_and_another_another() {
    let model = small_model();
    let answer = |seed| -> Vec<u8> {
        let params = params(RawSamplingParams { seed, ..Default::default() });
        Generation::new(engine(&model), b"To be", &params, 60).collect()
    };
    assert_eq!(answer(5).len(), 60);
    assert_eq!(answer(5), answer(5));
    assert_ne!(answer(5), answer(6));
}

#[test]
fn an_empty_prompt_is_a_line_feed_or_goes_on() {
    let model = small_model();
    let answer = |engine: Engine, prompt: &[u8]| -> Vec<u8> {
        Generation::new(engine, prompt, &SamplingParams::default(), 20).collect()
    };
    assert_eq!(answer(engine(&model), b""), answer(engine(&model), b"\n"));
    let mut begun = engine(&model);
    begun.prefill(b"To be");
    assert_eq!(answer(begun, b""), answer(engine(&model), b"To be"));
    assert_eq!(Generation::new(engine(&model), b"x", &SamplingParams::default(), 0).next(), None);
}

#[test]
fn tokens_beyond_the_bytes_are_never_chosen() {
    let config =
        ModelConfig::new(RawModelConfig { vocab_size: 300, ..shape(1, 16, 2, 4).raw().clone() }).unwrap();
    let model = support::model(&config, &random_weights(&config, 1, 0.5), None);
    assert_eq!(engine(&model).step(b'x').len(), 300);
    let generation = Generation::new(engine(&model), b"x", &SamplingParams::default(), 500);
    assert_eq!(generation.count(), 500);
}

#[test]
fn weights_that_overflow_end_the_answer() {
    let config = shape(1, 16, 2, 4);
    let mut weights = random_weights(&config, 1, 0.05);
    let huge = vec![3e38; 16 * 256];
    weights[4] = Tensor::f32("lm_head", vec![16, 256], &huge);
    let model = support::model(&config, &weights, None);
    let mut generation = Generation::new(engine(&model), b"x", &SamplingParams::default(), 5);
    assert_eq!(generation.next(), None);
    assert!(generation.is_broken());
    assert_eq!(generation.next(), None);
}

fn stops(strings: &[&[u8]]) -> StopStrings {
    StopStrings::new(strings.iter().map(|string| string.to_vec()).collect()).unwrap()
}

#[test]
fn wrong_stop_strings_are_refused() {
    let refused = |strings: Vec<Vec<u8>>| StopStrings::new(strings).unwrap_err().to_string();
    assert!(refused(vec![b"x".to_vec(); StopStrings::COUNT_MAX + 1]).contains("at most 16"));
    assert!(refused(vec![b"x".to_vec(), Vec::new()]).contains("stop.1: its length"));
    assert!(refused(vec![vec![b'x'; StopStrings::BYTES_MAX + 1]]).contains("256"));
}

#[test]
fn an_answer_ends_before_the_first_stop_string_in_it() {
    let model = small_model();
    let generation = || Generation::new(engine(&model), b"To be", &SamplingParams::default(), 60);
    let whole: Vec<u8> = generation().collect();
    for (start, end) in [(0, 1), (10, 13), (57, 60), (20, 60)] {
        // One string that is there, one that begins like it and goes on otherwise, one that comes later.
        let stop = &whole[start..end];
        let decoy = [stop, &[!whole[end % 60], 1, 2]].concat();
        let mut stopped = generation().with_stops(stops(&[&decoy, stop, &whole[58..]]));
        let answer: Vec<u8> = stopped.by_ref().collect();
        let first = whole.windows(stop.len()).position(|window| window == stop).unwrap();
        assert_eq!(answer, whole[..first.min(58)], "{start}..{end}");
        assert!(stopped.is_stopped() && !stopped.is_broken());
        assert_eq!(stopped.next(), None);
    }
    // A start of a stop string at the very end is given after all.
    let unfinished = [&whole[50..], b"more"].concat();
    let mut generation = generation().with_stops(stops(&[&unfinished]));
    assert_eq!(generation.by_ref().collect::<Vec<_>>(), whole);
    assert!(!generation.is_stopped());
}

#[test]
fn text_waits_for_whole_characters() {
    let mut stream = Utf8Stream::new();
    assert_eq!(stream.push(b"caf\xc3"), "caf");
    assert_eq!(stream.push(b"\xa9 \xf0\x9f"), "é ");
    assert_eq!(stream.push(b"\x90"), "");
    assert_eq!(stream.push(b"\xa3\xff"), "🐣\u{fffd}");
    assert_eq!(stream.push(b"\xe2\x82"), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streamed_text_is_the_text(
        bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0xe2_u8), Just(0x82), Just(0xac), Just(0xf0), Just(0x9f)],
            0..40,
        ),
        cuts in proptest::collection::vec(0..40_usize, 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut stream = Utf8Stream::new();
        let mut text: String = cuts.windows(2).map(|cut| stream.push(&bytes[cut[0]..cut[1]])).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}

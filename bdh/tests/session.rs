//! Sessions: put away, taken up, forked; and files that are none.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::{fs, sync::Arc};

use hatchery_bdh::{
    Engine, Generation, Model, RawSamplingParams, SamplingParams, Session, SessionError, StopStrings, Window,
};
use proptest::prelude::*;
use support::{random_bytes, random_weights, shape};
use tempfile::TempDir;

fn model(seed: u64) -> Arc<Model> {
    let config = shape(2, 16, 2, 4);
    support::model(&config, &random_weights(&config, seed, 0.3), Some("24"))
}

fn session(model: &Arc<Model>, window: Window, raw: RawSamplingParams) -> Session {
    Session::new(Engine::new(model.clone(), window).unwrap(), &SamplingParams::new(raw).unwrap())
}

/// The session as it comes back from a file.
fn put_away(session: &Session, model: &Arc<Model>) -> Session {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    session.save(&path).unwrap();
    Session::load(&path, model.clone()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_interrupted_answer_is_the_same(
        seed in any::<u64>(),
        prompt_len in 0..60_usize,
        before in 0..40_usize,
        after in 1..40_usize,
        window in prop_oneof![
            Just(Window::Default), Just(Window::None), (1..20_u32).prop_map(|bytes| Window::Chunks { bytes }),
        ],
        greedy in any::<bool>(),
        penalty in prop_oneof![Just(1.0), 1.0..3.0_f64],
        temperature in 0.1..3.0_f64,
    ) {
        let model = model(1);
        let raw = RawSamplingParams {
            seed, greedy, temperature, repetition_penalty: penalty, top_p: Some(0.95), ..Default::default()
        };
        let prompt = random_bytes(seed, prompt_len);
        let mut whole = Generation::resume(session(&model, window, raw), &prompt, before + after);
        let expected: Vec<u8> = whole.by_ref().collect();

        let mut first = Generation::resume(session(&model, window, raw), &prompt, before);
        let mut answer: Vec<u8> = first.by_ref().collect();
        let taken_up = put_away(&first.into_session(), &model);
        let mut fork = Generation::resume(taken_up.clone(), b"", after);
        let mut second = Generation::resume(taken_up, b"", after);
        answer.extend(second.by_ref());
        prop_assert_eq!(&answer, &expected);
        prop_assert_eq!(fork.by_ref().collect::<Vec<_>>(), &expected[before..]);

        let (whole, second) = (whole.into_session(), second.into_session());
        prop_assert_eq!(whole.position(), second.position());
        prop_assert_eq!(whole.pending(), second.pending());
        prop_assert_eq!(whole.sampler(), second.sampler());
        prop_assert_eq!(whole.engine().logits(), second.engine().logits());
    }

    #[test]
    fn an_answer_that_another_began_goes_on_as_it_would_have_there(
        seed in any::<u64>(),
        prompt_len in 0..40_usize,
        max_bytes in 1..30_usize,
        stop in (0..30_usize, 1..4_usize),
        greedy in any::<bool>(),
        penalty in prop_oneof![Just(1.0), 1.0..3.0_f64],
    ) {
        let model = model(1);
        let raw = RawSamplingParams { seed, greedy, repetition_penalty: penalty, ..Default::default() };
        let prompt = random_bytes(seed, prompt_len);
        let begin = || {
            let mut session = session(&model, Window::Default, raw);
            session.feed(&prompt);
            session
        };
        let unstopped: Vec<u8> = Generation::resume(begin(), b"", max_bytes).collect();
        let string = unstopped.iter().skip(stop.0).take(stop.1).copied().collect::<Vec<_>>();
        let stops = StopStrings::new(if string.is_empty() { vec![] } else { vec![string] }).unwrap();
        let mut whole = Generation::resume(begin(), b"", max_bytes).with_stops(stops.clone());
        let given: Vec<u8> = whole.by_ref().collect();

        for told in 0..=given.len() {
            let mut session = begin();
            session.follow(&given[..told]);
            let mut rest = Generation::resume(session, b"", max_bytes - told).with_stops(stops.clone());
            prop_assert_eq!(rest.by_ref().collect::<Vec<_>>(), &given[told..]);
            prop_assert_eq!(rest.is_stopped(), whole.is_stopped());
            if told < max_bytes {
                prop_assert_eq!(rest.session().sampler(), whole.session().sampler());
            }
        }
    }
}

#[test]
fn a_dialogue_goes_on_where_it_was_and_forks_go_their_own_way() {
    let model = model(1);
    let mut uninterrupted = session(&model, Window::Default, RawSamplingParams::default());
    let mut taken_up = uninterrupted.clone();
    for turn in [&b"To be"[..], b", or not", b" to be?"] {
        uninterrupted.feed(turn);
        taken_up.feed(turn);
        for _ in 0..20 {
            assert_eq!(uninterrupted.next_byte(), taken_up.next_byte());
        }
        taken_up = put_away(&taken_up, &model);
    }
    let mut fork = taken_up.clone();
    fork.feed(b"!");
    taken_up.feed(b"?");
    assert_eq!(fork.position(), taken_up.position());
    assert_ne!(fork.engine().logits(), taken_up.engine().logits());
    // Other parameters begin with the first draw of their seed and know what was seen.
    let seen = taken_up.sampler().clone();
    let greedy = SamplingParams::new(RawSamplingParams { greedy: true, ..Default::default() }).unwrap();
    let other = taken_up.with_params(&greedy);
    assert_eq!((other.sampler().draws(), other.sampler().params()), (0, &greedy));
    assert_eq!(
        other.sampler().clone().with_params(seen.params()),
        seen.with_params(&SamplingParams::default())
    );
}

#[test]
fn a_state_is_of_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let (ours, other) = (model(1), model(2));
    assert_eq!(ours.identity(), model(1).identity());
    let mut session = session(&ours, Window::Default, RawSamplingParams::default());
    session.feed(b"To be");
    session.save(&path).unwrap();
    let error = Session::load(&path, other).unwrap_err();
    assert!(matches!(error, SessionError::OtherModel { .. }), "{error}");
    assert!(error.to_string().contains(&ours.identity().short()), "{error}");
    // Another shape of equally many numbers is another model too.
    let config = shape(3, 16, 2, 4);
    let deeper = support::model(&config, &random_weights(&config, 1, 0.3), Some("24"));
    assert!(matches!(Session::load(&path, deeper), Err(SessionError::OtherModel { .. })));
}

#[test]
fn a_session_is_replaced_whole_and_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let model = model(1);
    let mut session = session(&model, Window::Default, RawSamplingParams::default());
    for _ in 0..2 {
        session.feed(b"To be");
        session.save(&path).unwrap();
        assert_eq!(Session::load(&path, model.clone()).unwrap().position(), session.position());
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = session.save(&folder.path().join("nowhere/session")).unwrap_err();
    assert!(error.is_missing(), "{error}");
    let error = Session::load(&folder.path().join("nowhere"), model.clone()).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    let error = Session::load(folder.path(), model).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

/// A saved session and the model that it is of.
fn saved() -> (TempDir, Vec<u8>, Arc<Model>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("session");
    let model = model(1);
    let mut session = session(&model, Window::Default, RawSamplingParams::default());
    session.feed(b"To be, or not to be");
    session.next_byte().unwrap();
    session.save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    (folder, bytes, model)
}

#[test]
fn a_file_that_is_cut_longer_or_flipped_is_refused() {
    let (folder, whole, model) = saved();
    let path = folder.path().join("other");
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Session::load(&path, model.clone()).unwrap_err().to_string()
    };
    for length in (0..400).chain((400..whole.len()).step_by(997)).chain([whole.len() - 1]) {
        let message = refused(&whole[..length]);
        assert!(message.contains("not a complete session file"), "cut at {length}: {message}");
    }
    assert!(refused(&[&whole[..], &[0]].concat()).contains("should have"));
    for place in (0..400).chain((400..whole.len()).step_by(97)).chain([whole.len() - 1]) {
        for bit in [0, 6] {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << bit;
            assert!(refused(&flipped).contains("other"), "bit {bit} of byte {place}");
        }
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    assert!(refused(&newer).contains("form 2"));
    let mut absurd = whole;
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refused(&absurd).contains("header claims 4294967295"));
}

/// What is done to a header.
type Change<'a> = &'a dyn Fn(&mut serde_json::Value);

#[test]
fn a_hostile_header_is_refused_though_its_checksum_fits() {
    let (folder, whole, model) = saved();
    let path = folder.path().join("other");
    let header_bytes = u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[16..16 + header_bytes]).unwrap();
    let numbers = &whole[16 + header_bytes..whole.len() - 32];
    let load = |change: Change| {
        let mut header = header.clone();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = whole[..12].to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        bytes.extend(numbers);
        bytes.extend(blake3::hash(&bytes).as_bytes());
        fs::write(&path, bytes).unwrap();
        Session::load(&path, model.clone())
    };
    assert!(load(&|_| {}).is_ok());
    let cases: [(Change, &str); 8] = [
        (&|header| header["position"] = u64::MAX.into(), "position"),
        (&|header| header["chunk_bytes"] = 0.into(), "chunk_bytes"),
        (&|header| header["chunk_bytes"] = 100.into(), "should have"),
        (&|header| header["pending"] = 256.into(), "header is invalid"),
        (&|header| header["sampler"]["draws"] = 100.into(), "sampler.draws"),
        (&|header| header["sampler"]["seen"] = vec![1; 65].into(), "seen.length"),
        (&|header| header["sampler"]["params"]["temperature"] = (-1).into(), "temperature"),
        (&|header| header["more"] = 1.into(), "unknown field"),
    ];
    for (change, part) in cases {
        let message = load(change).err().unwrap().to_string();
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

//! Many answers at once by libtorch: the same words as the processor's engine finds, whoever else is answered.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::Stdio,
    rc::Rc,
    sync::Arc,
};

use hatchery_bdh::{
    Engine, Generation, Model, RawSamplingParams, SamplingParams, StopStrings, Window, random_at,
};
use hatchery_common::{
    answerer::{AnswererCommand, AnswererEvent},
    generate::{FinishReason, GenerationOrder},
    id::RequestId,
    model::{ModelConfig, RawModelConfig},
    recipe::Precision,
};
use hatchery_trainer::{
    batching::{Batcher, End},
    checkpoint::read_model,
    device,
    recurrent::Recurrent,
    weights::Weights,
};
use hatchery_trainer_shim::kernels::{Kernels, Variant};
use support::{corpus, text};
use tch::Kind;

/// A model that has learned something of a text, with blocks of 16 bytes: chunks of 8.
fn checkpoint(folder: &Path) -> PathBuf {
    let out = folder.join("run");
    let settings = [
        "model.n_layer=2",
        "model.n_embd=16",
        "model.n_head=2",
        "model.mlp_internal_dim_multiplier=8",
        "train.steps=60",
        "train.batch=4",
        "train.block=16",
        "train.lr=0.01",
        "train.checkpoint_every=60",
        "train.validate_every=60",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let data = corpus();
    let arguments = ["train", "--data", text(&data), "--out", text(&out), "--device", "cpu"];
    let output = support::output(&[&arguments, &settings[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out.join("step-000000060")
}

fn order(prompt: &[u8], max_bytes: u32, raw: RawSamplingParams, stop: &[&str]) -> GenerationOrder {
    GenerationOrder {
        checkpoint: "7".repeat(64).parse().unwrap(),
        prompt: prompt.to_vec(),
        max_bytes,
        sampling: SamplingParams::new(raw).unwrap(),
        stop: StopStrings::new(stop.iter().map(|stop| stop.as_bytes().to_vec()).collect()).unwrap(),
    }
}

/// What the processor's engine answers.
fn expected(model: &Arc<Model>, order: &GenerationOrder) -> (Vec<u8>, FinishReason) {
    let engine = Engine::new(model.clone(), Window::Default).unwrap();
    let mut generation = Generation::new(engine, &order.prompt, &order.sampling, order.max_bytes as usize)
        .with_stops(order.stop.clone());
    let bytes = generation.by_ref().collect();
    (bytes, if generation.is_stopped() { FinishReason::StopString } else { FinishReason::MaxBytes })
}

/// Questions of many kinds: empty and long, greedy and by chance, with strings that end them.
fn orders() -> Vec<GenerationOrder> {
    let text = std::fs::read(corpus()).unwrap();
    let of = |seed| RawSamplingParams { seed, ..Default::default() };
    let greedy = RawSamplingParams { greedy: true, repetition_penalty: 1.2, ..Default::default() };
    let top = RawSamplingParams { top_k: Some(5), temperature: 0.7, ..of(3) };
    vec![
        order(b"", 30, of(1), &[]),
        order(b"To be", 1, of(2), &[]),
        order(&text[1000..1100], 60, greedy, &[]),
        order(&text[..8], 50, top, &["e", "th"]),
        order(&text[300..307], 40, of(5), &["no such thing"]),
        order(&text[2000..2016], 25, of(6), &["a"]),
    ]
}

#[test]
fn logits_are_those_of_the_processors_engine_over_many_windows() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let model = Arc::new(Model::load(&checkpoint).unwrap());
    let found = read_model(&checkpoint).unwrap();
    let mut many: Vec<(Recurrent, f32)> = Vec::new();
    for (precision, kind, most) in
        [(Precision::F32, Kind::Float, 1e-4), (Precision::Bf16, Kind::BFloat16, 0.1)]
    {
        for has_kernels in [false, true] {
            let cpu = tch::Device::Cpu;
            let mut one = Recurrent::new(&found.config, &found.weights, cpu, precision, 8, 3).unwrap();
            if has_kernels {
                let variant = Variant::new(kind, found.config.neurons_per_head() as i64).unwrap();
                let kernels = Rc::new(Kernels::emulated(variant));
                assert_eq!(one.use_kernels_if_right(&kernels).unwrap(), Ok(()));
            }
            many.push((one, most));
        }
    }
    let mut engines = vec![Engine::new(model, Window::Default).unwrap(); 2];
    let mut position = 0;
    let near = |found: &[f32], expected: &[f32], share: f32| {
        let most = expected.iter().fold(0_f32, |most, logit| most.max(logit.abs()));
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0_f32, f32::max);
        assert!(apart <= share * most, "{apart} of {most}");
    };
    // Streams 1 and 2 side by side, in parts of all lengths; stream 0 stays out of it.
    for part in [8_usize, 3, 5, 1, 1, 6, 8, 8, 2, 6, 7, 1, 4, 4] {
        assert!(part <= many[0].0.bytes_at_once(position));
        let byte = |stream: u64, index| (random_at(stream, position + index) * 128.0) as u8;
        let bytes: Vec<Vec<u8>> =
            (0..2).map(|stream| (0..part as u64).map(|index| byte(stream, index)).collect()).collect();
        let expected = engines.iter_mut().zip(&bytes).map(|(engine, bytes)| engine.prefill(bytes));
        let expected: Vec<&[f32]> = expected.collect();
        for (many, most) in &mut many {
            let logits = many.feed(1, &[position; 2], &bytes.concat()).unwrap();
            logits
                .chunks_exact(256)
                .zip(&expected)
                .for_each(|(found, expected)| near(found, expected, *most));
        }
        position += part as u64;
    }
    // A stream goes where it is copied, and forgets what it is told to.
    let mut engine = Engine::new(engines[0].model().clone(), Window::Default).unwrap();
    let fresh = engine.step(b'x');
    for (many, most) in &mut many {
        many.copy(1, 0).unwrap();
        let both = many.feed(0, &[position; 2], b"xx").unwrap();
        near(&both[..256], &both[256..], 1e-5);
        many.clear(2).unwrap();
        near(&many.feed(2, &[0], b"x").unwrap(), fresh, *most);
    }
}

/// Shapes that no preset has: odd numbers of pairs, chunks of a byte, streams far apart.
#[test]
fn kernels_and_operations_agree_at_every_shape_and_position() {
    for (heads, width, multiplier, chunk, positions) in [
        (3, 6, 5, 1, vec![0, 7, 1 << 33]),
        (1, 8, 9, 3, vec![5]),
        (2, 10, 8, 4, vec![0, 4_294_967_294, 3, 17, 17]),
        (4, 8, 12, 7, vec![1 << 40, 2]),
    ] {
        let config = ModelConfig::new(RawModelConfig {
            n_layer: 2,
            n_embd: width * heads,
            n_head: heads,
            mlp_internal_dim_multiplier: multiplier * 2,
            ..Default::default()
        })
        .unwrap();
        let weights = Weights::start(&config, 3).unwrap();
        let engine = |has_kernels| {
            let cpu = tch::Device::Cpu;
            let streams = positions.len() + 1;
            let mut engine = Recurrent::new(&config, &weights, cpu, Precision::F32, chunk, streams).unwrap();
            if has_kernels {
                let variant = Variant::new(Kind::Float, config.neurons_per_head() as i64).unwrap();
                engine.use_kernels(&Rc::new(Kernels::emulated(variant))).unwrap();
            }
            engine
        };
        let mut engines = [engine(false), engine(true)];
        let mut at = positions.clone();
        for round in 0..4 * u64::from(chunk) {
            // Side by side as many bytes as all may have at once.
            let most = at.iter().map(|at| engines[0].bytes_at_once(*at)).min().unwrap();
            let count = 1 + round as usize % most;
            let bytes: Vec<u8> =
                (0..count * at.len()).map(|index| (random_at(round, index as u64) * 256.0) as u8).collect();
            let [plain, kernels] = engines.each_mut().map(|engine| engine.feed(1, &at, &bytes).unwrap());
            let most = plain.iter().fold(0_f32, |most, logit| most.max(logit.abs()));
            let apart = plain.iter().zip(&kernels).map(|(a, b)| (a - b).abs()).fold(0_f32, f32::max);
            assert!(apart <= 2e-4 * most, "{apart} of {most} at {at:?}, chunk {chunk}, round {round}");
            for at in &mut at {
                *at += count as u64;
            }
        }
    }
}

#[test]
fn answers_side_by_side_are_those_that_the_processor_gives_alone() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let model = Arc::new(Model::load(&checkpoint).unwrap());
    let cpu = device::find(Some(hatchery_common::device::Device::CPU)).unwrap();
    let mut batcher = Batcher::open(&checkpoint, &cpu, Precision::F32).unwrap();
    let pace = batcher.pace().unwrap();
    assert!(pace.is_sorted_by_key(|pace| pace.sequences) && pace.iter().all(|pace| pace.secs_per_step > 0.0));
    let orders = orders();
    let ids: Vec<RequestId> = (0..orders.len()).map(|_| RequestId::random()).collect();
    let mut texts: BTreeMap<RequestId, Vec<u8>> = BTreeMap::new();
    let mut ends = BTreeMap::new();
    let mut coming = ids.iter().zip(&orders);
    // One more joins at each step; one that nobody listens to goes in between.
    let left = RequestId::random();
    batcher.begin(left, order(b"Nobody listens", 1000, RawSamplingParams::default(), &[]), &[]).unwrap();
    for step in 0.. {
        if let Some((id, order)) = coming.next() {
            // Some were begun elsewhere.
            let (whole, _) = expected(&model, order);
            let told = &whole[..(whole.len() / 2).min((step + 1) * 7)];
            batcher.begin(*id, order.clone(), told).unwrap();
            texts.insert(*id, told.to_vec());
        }
        if step == 4 {
            batcher.cancel(left).unwrap();
        }
        for made in batcher.step().unwrap() {
            texts.entry(made.request).or_default().extend(made.bytes);
            if let Some(end) = made.end {
                assert!(ends.insert(made.request, end).is_none());
            }
        }
        if batcher.is_empty() && step > orders.len() {
            break;
        }
    }
    assert!(!ends.contains_key(&left) && texts[&left].len() < 10);
    for (id, order) in ids.iter().zip(&orders) {
        let (bytes, reason) = expected(&model, order);
        assert_eq!(
            String::from_utf8_lossy(&texts[id]),
            String::from_utf8_lossy(&bytes),
            "after {:?}",
            String::from_utf8_lossy(&order.prompt)
        );
        assert_eq!(ends[id], End::Finished(reason));
    }
    // As many as there is room for, and no more; with one prompt, which is read once for all.
    let seeds: BTreeMap<RequestId, GenerationOrder> = (0..batcher.at_once_max() as u64)
        .map(|seed| {
            let sampling = RawSamplingParams { seed, ..Default::default() };
            (RequestId::random(), order(b"The same, longer than a chunk", 20 + seed as u32, sampling, &[]))
        })
        .collect();
    for (request, order) in &seeds {
        batcher.begin(*request, order.clone(), &[]).unwrap();
    }
    texts.clear();
    let mut steps = 0;
    while !batcher.is_empty() {
        for made in batcher.step().unwrap() {
            texts.entry(made.request).or_default().extend(made.bytes);
        }
        steps += 1;
    }
    // Four parts of the prompt, and the longest answer.
    assert!(steps <= 4 + 20 + seeds.len(), "{steps}");
    for (request, order) in &seeds {
        assert_eq!(texts[request], expected(&model, order).0);
    }
    for _ in 0..batcher.at_once_max() {
        batcher.begin(RequestId::random(), orders[0].clone(), &[]).unwrap();
    }
    assert!(batcher.begin(RequestId::random(), orders[0].clone(), &[]).unwrap_err().contains("as many as"));
    let mut batcher = Batcher::open(&checkpoint, &cpu, Precision::F32).unwrap();
    let all = vec![b'a'; orders[0].max_bytes as usize];
    assert!(
        batcher.begin(RequestId::random(), orders[0].clone(), &all).unwrap_err().contains("none is left")
    );
}

#[test]
fn the_process_answers_line_by_line_and_ends_with_its_input() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let model = Arc::new(Model::load(&checkpoint).unwrap());
    let mut process = support::trainer()
        .args(["answer", "--checkpoint", text(&checkpoint), "--device", "cpu"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut event = || -> AnswererEvent { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let AnswererEvent::Ready { sequences_max, pace, .. } = event() else { panic!("it is ready first") };
    assert_eq!(pace.last().unwrap().sequences, sequences_max);
    let orders = orders();
    let mut open: BTreeMap<RequestId, (usize, Vec<u8>)> = BTreeMap::new();
    let tell = |stdin: &mut dyn Write, command: &AnswererCommand| {
        writeln!(stdin, "{}", serde_json::to_string(command).unwrap()).unwrap();
    };
    writeln!(stdin, "this is no command").unwrap();
    for (index, order) in orders.iter().enumerate() {
        let request = RequestId::random();
        open.insert(request, (index, Vec::new()));
        tell(&mut stdin, &AnswererCommand::Answer { request, order: order.clone(), told: vec![] });
    }
    let wrong = RequestId::random();
    let too_long = GenerationOrder { max_bytes: 0, ..orders[0].clone() };
    tell(&mut stdin, &AnswererCommand::Answer { request: wrong, order: too_long, told: vec![] });
    let mut refused = None;
    while !open.is_empty() || refused.is_none() {
        match event() {
            AnswererEvent::Text { request, bytes } => open.get_mut(&request).unwrap().1.extend(bytes),
            AnswererEvent::Finished { request, finish_reason } => {
                let (index, bytes) = open.remove(&request).unwrap();
                assert_eq!((bytes, finish_reason), expected(&model, &orders[index]));
            }
            AnswererEvent::Failed { request, why } => {
                assert_eq!(request, wrong, "{why}");
                refused = Some(why);
            }
            AnswererEvent::Ready { .. } => panic!("it is ready once"),
        }
    }
    let why = refused.unwrap();
    assert!(why.contains("max_bytes"), "{why}");
    // One that is cancelled says no more; and the end comes at once, whatever is being made.
    let [cancelled, long] = [RequestId::random(), RequestId::random()];
    let endless = order(b"On and on", 65_536, RawSamplingParams::default(), &[]);
    tell(&mut stdin, &AnswererCommand::Answer { request: cancelled, order: endless.clone(), told: vec![] });
    while !matches!(event(), AnswererEvent::Text { request, .. } if request == cancelled) {}
    tell(&mut stdin, &AnswererCommand::Cancel { request: cancelled });
    tell(&mut stdin, &AnswererCommand::Answer { request: long, order: endless, told: vec![] });
    while !matches!(event(), AnswererEvent::Text { request, .. } if request == long) {}
    for _ in 0..20 {
        assert!(matches!(event(), AnswererEvent::Text { request, .. } if request == long));
    }
    drop(stdin);
    assert!(process.wait().unwrap().success());
}

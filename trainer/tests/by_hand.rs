//! The commands that a person types: train, eval, generate, doctor, calibrate.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINING_FILE},
    device::{Device, DeviceKind},
    digest::Digest,
    recipe::{Precision, RawTrainSpec},
    trainer::{Calibration, DoctorReport, Ending, TrainerEvent, UnavailableDevice},
};
use hatchery_trainer::{
    checkpoint::{read_cursor, read_model, read_training},
    model::{Model, Pass},
};
use support::{complete, corpus, json, order, output, refusal, small_train, text};
use tch::{Kind, Tensor};

/// A short training of the small model; gives the checkpoint's folder, within `folder`.
fn checkpoint(folder: &Path) -> PathBuf {
    complete(&order(folder, RawTrainSpec { steps: 20, ..small_train() }))
}

/// Only the two public files of `checkpoint`, in a folder of their own within `folder`.
fn public_folder(checkpoint: &Path, folder: &Path) -> PathBuf {
    let public = folder.join("public");
    fs::create_dir(&public).unwrap();
    for file in [CONFIG_FILE, MODEL_FILE] {
        fs::copy(checkpoint.join(file), public.join(file)).unwrap();
    }
    public
}

/// The mean loss in nats, computed window by window and number by number.
fn loss_by_definition(checkpoint: &Path, data: &[u8], block: usize) -> (f64, u64) {
    let found = read_model(checkpoint).unwrap();
    let model = Model::new(found.config, found.weights, tch::Device::Cpu, Precision::F32, block).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for start in (0..).step_by(block).take_while(|start| start + block < data.len()) {
        let tokens = Tensor::from_slice(&data[start..start + block]).to_kind(Kind::Int64).unsqueeze(0);
        let logits = model.logits(&tokens, Pass::Reading).unwrap().squeeze();
        for position in 0..block {
            let row: Vec<f32> = Vec::try_from(logits.get(position as i64)).unwrap();
            let row: Vec<f64> = row.into_iter().map(f64::from).collect();
            let log_total = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            sum += log_total - row[usize::from(data[start + position + 1])];
            count += 1;
        }
    }
    (sum / f64::from(count), count as u64)
}

#[test]
fn eval_is_the_mean_over_consecutive_windows() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let public = public_folder(&checkpoint, folder.path());
    let data = folder.path().join("data.txt");
    let bytes = &fs::read(corpus()).unwrap()[..1500];
    fs::write(&data, bytes).unwrap();

    let eval = |checkpoint: &Path, more: &[&str]| {
        json(
            &[&["eval", "--checkpoint", text(checkpoint), "--data", text(&data), "--output", "json"], more]
                .concat(),
        )
    };
    for (arguments, block) in [(&["--block", "40"][..], 40), (&["--block", "1499"], 1499), (&[], 16)] {
        let found = eval(&public, arguments);
        let (loss, count) = loss_by_definition(&public, bytes, block);
        let keys: Vec<_> = found.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["bits_per_byte", "by_position", "bytes", "loss"]);
        assert_eq!(found["bytes"], count);
        let found_loss = found["loss"].as_f64().unwrap();
        assert!((found_loss / loss - 1.0).abs() < 1e-6, "block {block}: {found_loss} is not {loss}");
        let bits = found["bits_per_byte"].as_f64().unwrap();
        assert!((bits * std::f64::consts::LN_2 / found_loss - 1.0).abs() < 1e-12);
    }
    assert!(
        (eval(&public, &["--precision", "bf16"])["loss"].as_f64().unwrap()
            / eval(&public, &[])["loss"].as_f64().unwrap()
            - 1.0)
            .abs()
            < 0.01
    );

    let message = refusal(&["eval", "--checkpoint", text(&public), "--data", text(&data), "--block", "1500"]);
    assert!(message.contains("1500 bytes") && message.contains("need 1501"), "{message}");
    let message = refusal(&["eval", "--checkpoint", text(&public), "--data", "/nowhere/at/all"]);
    assert!(message.contains("/nowhere/at/all"), "{message}");
}

#[test]
fn a_foreign_model_file_of_any_float_kind_is_read_and_its_block_is_guessed_aloud() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let found = read_model(&checkpoint).unwrap();
    let data = folder.path().join("data.txt");
    fs::write(&data, &fs::read(corpus()).unwrap()[..2000]).unwrap();
    let data = text(&data);
    let eval =
        |folder: &Path| output(&["eval", "--checkpoint", text(folder), "--data", data, "--output", "json"]);
    let loss = |output: &std::process::Output| {
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        found["loss"].as_f64().unwrap()
    };

    let mut losses = HashMap::new();
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        let foreign = folder.path().join(format!("{kind:?}"));
        fs::create_dir(&foreign).unwrap();
        fs::copy(checkpoint.join(CONFIG_FILE), foreign.join(CONFIG_FILE)).unwrap();
        let named: Vec<_> = (found.config.weights().iter().zip(found.weights.all()))
            .map(|((name, _), weight)| ((*name).to_owned(), weight.to_kind(kind)))
            .collect();
        Tensor::write_safetensors(&named, foreign.join(MODEL_FILE)).unwrap();
        let output = eval(&foreign);
        let note = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(note.contains("taking 512"), "{kind:?}: {note}");
        losses.insert(kind, loss(&output));
    }
    let exact = losses[&Kind::Float];
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Half, 1e-3), (Kind::BFloat16, 1e-2)] {
        assert!((losses[&kind] / exact - 1.0).abs() < tolerance, "{kind:?}: {losses:?}");
    }

    // training.json names the block where the model file does not.
    let foreign = folder.path().join("Float");
    fs::copy(checkpoint.join(TRAINING_FILE), foreign.join(TRAINING_FILE)).unwrap();
    assert_eq!(read_model(&foreign).unwrap().trained_block, Some(16));
}

#[test]
fn generate_goes_on_from_two_files() {
    let folder = tempfile::tempdir().unwrap();
    let public = public_folder(&checkpoint(folder.path()), folder.path());
    let generate = |arguments: &[&str]| {
        json(
            &[
                &["generate", "--checkpoint", text(&public), "--output", "json", "--max-bytes", "12"],
                arguments,
            ]
            .concat(),
        )
    };
    let answer = generate(&["--prompt", "The ", "--seed", "3"]);
    let keys: Vec<_> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["bytes_hex", "finish_reason", "latency_ms", "text"]);
    assert_eq!(answer["finish_reason"], "max_bytes");
    assert_eq!(answer["bytes_hex"].as_str().unwrap().len(), 24);
    assert!(answer["latency_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(answer["bytes_hex"], generate(&["--prompt-hex", "54686520", "--seed", "3"])["bytes_hex"]);
    assert_ne!(answer["bytes_hex"], generate(&["--prompt", "The ", "--seed", "4"])["bytes_hex"]);
    let greedy = generate(&["--prompt", "The ", "--greedy"]);
    assert_eq!(
        greedy["bytes_hex"],
        generate(&["--prompt", "The ", "--temperature", "0.7", "--top-k", "1"])["bytes_hex"]
    );

    let plain = output(&[
        "generate",
        "--checkpoint",
        text(&public),
        "--prompt",
        "The ",
        "--greedy",
        "--max-bytes",
        "12",
    ]);
    assert_eq!(
        String::from_utf8(plain.stdout).unwrap().trim_end_matches('\n'),
        greedy["text"].as_str().unwrap()
    );
    for (arguments, expected) in [
        (["--prompt-hex", "xy"], "hexadecimal"),
        (["--prompt=a", "--temperature=0"], "temperature"),
        (["--prompt=a", "--top-k=0"], "top_k"),
    ] {
        let message = refusal(&[&["generate", "--checkpoint", text(&public)], &arguments[..]].concat());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn training_by_hand_reads_folders_and_goes_on_with_more_steps() {
    let folder = tempfile::tempdir().unwrap();
    let (notes, out) = (folder.path().join("notes"), folder.path().join("out"));
    fs::create_dir(&notes).unwrap();
    let shakespeare = fs::read(corpus()).unwrap();
    fs::write(notes.join("a.md"), &shakespeare[..6000]).unwrap();
    fs::write(notes.join("b.md"), &shakespeare[6000..9000]).unwrap();
    fs::write(notes.join("c.bin"), [0; 9000]).unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(
        &recipe,
        "[model]\nn_layer = 1\nn_embd = 16\nn_head = 2\nmlp_internal_dim_multiplier = 8\n\
                        [train]\nsteps = 6\nbatch = 2\nblock = 16\ncheckpoint_every = 3",
    )
    .unwrap();
    let data = ["train", "--data", text(&notes), "--include", "*.md", "--out", text(&out), "--threads", "1"];

    let first = output(&[&data[..], &["--recipe", text(&recipe)]].concat());
    let lines = String::from_utf8(first.stderr).unwrap();
    assert!(first.status.success() && first.stdout.is_empty(), "{lines}");
    for part in [
        "training on cpu in f32",
        "step 6/6",
        "validation at step 6",
        "step-000000003",
        "step-000000006, the best so far",
        "completed",
    ] {
        assert!(lines.contains(part), "{part} is not in {lines}");
    }
    let last = out.join("step-000000006");
    let message = refusal(&[&data[..], &["--recipe", text(&recipe)]].concat());
    assert!(message.contains("another run") && message.contains("--resume"), "{message}");

    let more = ["--resume", text(&last), "--set", "train.steps=8", "--output", "json", "--device", "cpu"];
    let more = output(&[&data[..], &more].concat());
    let events: Vec<TrainerEvent> = String::from_utf8(more.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(matches!(events[0], TrainerEvent::Started { step: 6, .. }), "{:?}", events[0]);
    assert_eq!(events.last(), Some(&TrainerEvent::Ended(Ending::Completed)));
    let cursor = hatchery_trainer::checkpoint::read_cursor(&out.join("step-000000008")).unwrap();
    assert_eq!((cursor.step, cursor.corpus_bytes), (8, 9002));

    for (arguments, code, expected) in [
        (&["--set", "train.lr=nan"][..], 2, "train.lr"),
        (&["--set", "train.stpes=1"], 2, "did you mean `steps`?"),
        (&["--preset", "sed"], 2, "did you mean `seed`?"),
        (&["--device", "gpu"], 2, "cuda:N, mps, cpu"),
        (&["--device", "cuda:63"], 1, "cuda:63"),
    ] {
        let out = folder.path().join("never");
        let refused = output(&[&["train", "--data", text(&notes), "--out", text(&out)], arguments].concat());
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(code) && message.contains(expected), "{message}");
    }
}

#[test]
fn a_curve_has_the_losses_that_the_run_has_told() {
    let folder = tempfile::tempdir().unwrap();
    let train = RawTrainSpec { steps: 20, log_every: 4, validate_every: 10, ..small_train() };
    let (events, _, _) = support::Attempt::start(&order(folder.path(), train)).finish();
    let told =
        |pick: fn(&TrainerEvent) -> Option<(u64, f64)>| events.iter().filter_map(pick).collect::<Vec<_>>();
    let checkpoint = folder.path().join("checkpoints/step-000000020");
    let curve = json(&["curve", "--checkpoint", text(&checkpoint), "--output", "json"]);
    let column = |name: &str| {
        let lines = curve.as_array().unwrap().iter();
        lines.filter_map(|line| Some((line["step"].as_u64()?, line[name].as_f64()?))).collect::<Vec<_>>()
    };
    let training = told(|event| match event {
        TrainerEvent::TrainLoss(point) => Some((point.step, point.loss)),
        _ => None,
    });
    let validation = told(|event| match event {
        TrainerEvent::Validation(found) => Some((found.step, found.loss)),
        _ => None,
    });
    assert_eq!((column("train_loss"), column("validation_loss")), (training.clone(), validation.clone()));
    assert_eq!((training.len(), validation.len()), (5, 2));
    let table = output(&["curve", "--checkpoint", text(&checkpoint)]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().count(), 1 + 6, "20 is a line of both: {table}");
    assert!(table.contains(&format!("{:.4}", validation[1].1 / std::f64::consts::LN_2)), "{table}");
}

#[test]
fn fine_tuning_begins_with_the_weights_of_two_files_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let parent = checkpoint(folder.path());
    let public = public_folder(&parent, folder.path());
    let data = folder.path().join("data.txt");
    fs::write(&data, &fs::read(corpus()).unwrap()[50_000..60_000]).unwrap();
    let train = |out: &str, rest: &[&str]| {
        let out = folder.path().join(out);
        let small = ["--set", "train.steps=4", "--set", "train.batch=2", "--set", "train.block=16"];
        let paths =
            ["train", "--data", text(&data), "--out", text(&out), "--device", "cpu", "--threads", "1"];
        let done = output(&[&paths[..], &small, rest].concat());
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned(), out)
    };
    let cursor = |out: &Path| read_training(&out.join("step-000000004"), tch::Device::Cpu).unwrap().cursor;

    let (code, said, out) = train("tuned", &["--fine-tune", text(&public)]);
    assert_eq!(code, Some(0), "{said}");
    let tuned = cursor(&out);
    assert!(said.contains("from step 0") && tuned.step == 4, "{said}");
    let digest = Digest::of(&fs::read(public.join(MODEL_FILE)).unwrap());
    assert_eq!((tuned.parent, tuned.train.raw().steps), (Some(digest), 4));
    let scratch = ["--set", "model.n_layer=2", "--set", "model.n_embd=16", "--set", "model.n_head=2"];
    let (code, said, fresh) =
        train("fresh", &[&scratch[..], &["--set", "model.mlp_internal_dim_multiplier=8"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let fresh = cursor(&fresh);
    assert_eq!(fresh.parent, None);
    // The parent's text is learned already: twenty steps make a difference that is seen in the very first loss.
    assert!(
        tuned.metrics.first_loss.unwrap() < fresh.metrics.first_loss.unwrap() - 0.1,
        "{tuned:?} {fresh:?}"
    );

    // The whole folder gives the same, for its optimizer is not looked at; dropout may be another; a resumed run remembers.
    let (_, _, whole) = train("whole", &["--fine-tune", text(&parent)]);
    assert_eq!(cursor(&whole), tuned);
    let read = |out: &Path| fs::read(out.join("step-000000004").join(MODEL_FILE)).unwrap();
    assert!(read(&whole) == read(&out));
    let (code, said, dropped) =
        train("dropped", &["--fine-tune", text(&public), "--set", "model.dropout=0.3"]);
    assert!(code == Some(0) && read(&dropped) != read(&out), "{said}");
    let resume = out.join("step-000000004");
    let (code, said, out) = train("tuned", &["--resume", text(&resume), "--set", "train.steps=5"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(read_cursor(&out.join("step-000000005")).unwrap().parent, Some(digest));

    // What another program has made is as good a beginning.
    let imported = folder.path().join("imported");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../bdh/tests/data/dict-config.pt");
    assert!(output(&["import", file, "--out", text(&imported)]).status.success());
    let (code, said, out) = train("from-elsewhere", &["--fine-tune", text(&imported)]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(cursor(&out).parent, Some(Digest::of(&fs::read(imported.join(MODEL_FILE)).unwrap())));

    let (code, said, _) = train("wider", &["--fine-tune", text(&public), "--set", "model.n_embd=32"]);
    assert!(code == Some(1) && said.contains("cannot fine-tune"), "{said}");
}

#[test]
fn doctor_and_calibrate_say_what_this_machine_can_do() {
    let report: DoctorReport = serde_json::from_value(json(&["doctor", "--output", "json"])).unwrap();
    assert_eq!(report.libtorch, "2.11.0");
    assert!(report.libtorch_folder.unwrap().join("libc10.so").exists() || cfg!(target_os = "macos"));
    assert!(report.devices.iter().any(|found| found.device == Device::CPU));
    assert!(report.devices.iter().all(|found| !found.name.is_empty()));
    assert!(report.unavailable.iter().all(|missing| !missing.why.is_empty()));

    let calibrated = json(&["calibrate", "--device", "cpu", "--threads", "1", "--output", "json"]);
    let calibration: Calibration = serde_json::from_value(calibrated).unwrap();
    assert_eq!((calibration.device, calibration.version), (Device::CPU, 3));
    let flops_per_step = calibration.flops_per_sec / calibration.steps_per_sec;
    assert!((flops_per_step / 6.7e9 - 1.0).abs() < 0.05, "{flops_per_step}");
}

#[test]
#[cfg(target_os = "linux")]
fn doctor_says_what_is_wrong_with_a_driver() {
    let told = |init: i32, cuda: i32| {
        let folder = tempfile::tempdir().unwrap();
        let built = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DINIT={init}"), &format!("-DCUDA={cuda}"), "-o"])
            .arg(folder.path().join("libcuda.so.1"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/driver.c"))
            .status();
        assert!(built.unwrap().success());
        let mut doctor = support::trainer();
        doctor.env("LD_LIBRARY_PATH", folder.path()).env_remove("CUDA_VISIBLE_DEVICES");
        doctor.args(["doctor", "--output", "json"]);
        let report: DoctorReport = serde_json::from_slice(&doctor.output().unwrap().stdout).unwrap();
        let is_cuda = |missing: &&UnavailableDevice| missing.kind == DeviceKind::Cuda;
        report.unavailable.iter().find(is_cuda).expect("there is no CUDA").why.clone()
    };
    let old = told(0, 12_040);
    assert!(old.contains("12.4") && old.contains("driver 580"), "{old}");
    let half_updated = told(803, 13_000);
    assert!(half_updated.contains("restart the machine"), "{half_updated}");
}

#[test]
fn starting_anew_with_other_settings_keeps_the_command_line() {
    let mut trainer = support::trainer();
    trainer.env_remove("OMP_WAIT_POLICY").env_remove("GLIBC_TUNABLES");
    let output = trainer.args(["eval", "--checkpoint", "/nowhere at all", "--data", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("/nowhere at all/config.json"), "{message}");
}

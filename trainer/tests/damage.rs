//! Checkpoint folders that are not what they should be: refused by the name of the file, never a panic.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::{fs, path::Path};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE},
    recipe::RawTrainSpec,
};
use hatchery_trainer::checkpoint::read_training;
use support::{complete, copy_folder, corpus, order, refusal, small_train, text};

/// A file, the bytes it then has, and what the refusal says.
type Damage = (&'static str, fn(Vec<u8>) -> Vec<u8>, &'static str);

const NOT_WHOLE: &str = "not a complete safetensors file";

const DAMAGES: [Damage; 14] = [
    (MODEL_FILE, |bytes| bytes[..bytes.len() - 1].to_vec(), NOT_WHOLE),
    (MODEL_FILE, |bytes| bytes[..5].to_vec(), NOT_WHOLE),
    (MODEL_FILE, |_| Vec::new(), NOT_WHOLE),
    (MODEL_FILE, |bytes| [bytes, vec![0; 8]].concat(), NOT_WHOLE),
    (MODEL_FILE, |bytes| [&[0xff; 8], &bytes[8..]].concat(), NOT_WHOLE),
    (MODEL_FILE, |bytes| [&[bytes[0] ^ 0x40], &bytes[1..]].concat(), NOT_WHOLE),
    (MODEL_FILE, |bytes| replace(&bytes, "\"decoder\"", "\"recoded\""), "no tensor `decoder`"),
    (MODEL_FILE, |bytes| replace(&bytes, "\"16\"", "\"0x\""), "hatchery.block"),
    (CONFIG_FILE, |_| b"n_embd: 16".to_vec(), "not usable"),
    (CONFIG_FILE, |_| b"{\"n_embd\": 18, \"n_head\": 4}".to_vec(), "not divisible"),
    (CONFIG_FILE, |_| b"[".repeat(100_000), "not usable"),
    (OPTIMIZER_FILE, |bytes| bytes[..999].to_vec(), NOT_WHOLE),
    (
        OPTIMIZER_FILE,
        |bytes| replace(&bytes, "exp_avg.lm_head", "exp_avg.lm_hand"),
        "no tensor `exp_avg.lm_head`",
    ),
    (TRAINING_FILE, |_| b"{}".to_vec(), "missing field"),
];

fn replace(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let place = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&bytes[..place], to.as_bytes(), &bytes[place + from.len()..]].concat()
}

fn read_all(folder: &Path) -> Result<(), String> {
    read_training(folder, tch::Device::Cpu).map(drop).map_err(|error| error.to_string())
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let whole = complete(&order(folder.path(), RawTrainSpec { steps: 1, ..small_train() }));
    assert_eq!(read_all(&whole), Ok(()));
    let damaged = folder.path().join("damaged");
    for (index, (file, damage, expected)) in DAMAGES.into_iter().enumerate() {
        copy_folder(&whole, &damaged);
        fs::write(damaged.join(file), damage(fs::read(whole.join(file)).unwrap())).unwrap();
        let message = read_all(&damaged).unwrap_err();
        assert!(message.contains(file) && message.contains(expected), "damage {index}: {message}");
    }
    for file in [CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE] {
        copy_folder(&whole, &damaged);
        fs::remove_file(damaged.join(file)).unwrap();
        let message = read_all(&damaged).unwrap_err();
        assert!(message.contains("cannot read") && message.contains(file), "{message}");
    }

    // The weights themselves are missing where the model file holds their running mean.
    let mean = RawTrainSpec { steps: 1, ema_decay: 0.9, ..small_train() };
    let mean = complete(&order(&folder.path().join("mean"), mean));
    assert_eq!(read_all(&mean), Ok(()));
    let optimizer = replace(&fs::read(mean.join(OPTIMIZER_FILE)).unwrap(), "raw.decoder", "raw.recoder");
    fs::write(mean.join(OPTIMIZER_FILE), optimizer).unwrap();
    assert!(read_all(&mean).unwrap_err().contains("no tensor `raw.decoder`"));

    // A file that is far too large is not even read, a shape that does not fit is named.
    copy_folder(&whole, &damaged);
    fs::write(damaged.join(MODEL_FILE), vec![0; 4 << 20]).unwrap();
    assert!(read_all(&damaged).unwrap_err().contains("larger than"));
    copy_folder(&whole, &damaged);
    let config =
        fs::read_to_string(whole.join(CONFIG_FILE)).unwrap().replace("\"n_embd\": 16", "\"n_embd\": 32");
    fs::write(damaged.join(CONFIG_FILE), config).unwrap();
    let message = read_all(&damaged).unwrap_err();
    assert!(
        message.contains("`embed.weight` has the shape [256, 16]") && message.contains("[256, 32]"),
        "{message}"
    );
    copy_folder(&whole, &damaged);
    let cursor = replace(&fs::read(whole.join(TRAINING_FILE)).unwrap(), "\"version\": 1", "\"version\": 2");
    fs::write(damaged.join(TRAINING_FILE), cursor).unwrap();
    assert!(read_all(&damaged).unwrap_err().contains("form is 2"));
}

#[test]
fn the_commands_say_it_and_exit_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let whole = complete(&order(folder.path(), RawTrainSpec { steps: 1, ..small_train() }));
    fs::write(whole.join(MODEL_FILE), "not tensors").unwrap();
    let (checkpoint, corpus, out) = (text(&whole), corpus(), folder.path().join("out"));
    let (data, out) = (text(&corpus), text(&out));
    for arguments in [
        &["eval", "--checkpoint", checkpoint, "--data", data][..],
        &["generate", "--checkpoint", checkpoint, "--prompt", "a"],
        &["train", "--data", data, "--out", out, "--resume", checkpoint],
    ] {
        let message = refusal(arguments);
        assert!(message.contains(MODEL_FILE), "{message}");
    }
}

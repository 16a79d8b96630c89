//! Importing the public code's checkpoints: files that `torch.save` made (`data/make.py`), and hostile ones.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use hatchery_bdh::{Engine, ImportError, ImportOptions, Imported, Model, Window};
use proptest::prelude::*;
use support::{Tensor, random_weights, relative_difference, shape, weight_file};

/// The first logits after `To be`, as PyTorch printed them when it made the files.
const LOGITS: [f32; 8] = [
    -1.111_625_1,
    0.025_439_53,
    -1.084_753_9,
    -1.251_523_4,
    0.311_862_65,
    0.045_054_94,
    1.483_160_9,
    0.180_970_62,
];

const TWO_LAYERS: ImportOptions = ImportOptions { n_layer: Some(2), dropout: None, block: None };

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Imports, writes, loads again, and asks: the folder, and the first logits.
fn logits(file: &Path, options: &ImportOptions) -> (tempfile::TempDir, Vec<f32>) {
    let imported = Imported::read(file, options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    imported.write(&folder.path().join("new/checkpoint")).unwrap();
    let model = Model::load(&folder.path().join("new/checkpoint")).unwrap();
    assert_eq!((model.config(), model.trained_block()), (imported.config(), options.block));
    let mut engine = Engine::new(model.into(), Window::None).unwrap();
    let logits = engine.prefill(b"To be")[..LOGITS.len()].to_vec();
    (folder, logits)
}

/// What is said of a file of these bytes.
fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.pt");
    fs::write(&file, bytes).unwrap();
    Imported::read(&file, &TWO_LAYERS).unwrap_err().to_string()
}

#[test]
fn what_torch_saved_gives_the_logits_that_torch_computed() {
    let of_the_file = ImportOptions::default();
    let (folder, from_dict) = logits(&data("dict-config.pt"), &of_the_file);
    assert!(relative_difference(&from_dict, &LOGITS) < 1e-5, "{from_dict:?}");
    let config = fs::read_to_string(folder.path().join("new/checkpoint/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let expected = serde_json::json!({"n_layer": 2, "n_embd": 8, "dropout": 0.1, "n_head": 2,
        "mlp_internal_dim_multiplier": 4, "vocab_size": 256});
    assert_eq!(config, expected);

    let (_, from_bare) = logits(&data("bare.pt"), &ImportOptions { block: Some(64), ..TWO_LAYERS });
    assert_eq!(from_bare, from_dict, "a parameter and a transposed view are the same numbers");
    let (_, from_class) = logits(&data("class-config.pt"), &of_the_file);
    assert!(relative_difference(&from_class, &LOGITS) < 0.05, "bf16: {from_class:?}");

    // The written file is a state dict too.
    let again = folder.path().join("new/checkpoint/model.safetensors");
    assert_eq!(logits(&again, &of_the_file).1, from_dict, "by the config.json beside it");
    let alone = folder.path().join("alone.safetensors");
    fs::copy(&again, &alone).unwrap();
    assert_eq!(logits(&alone, &TWO_LAYERS).1, from_dict, "by its shapes and --n-layer");
    let bytes = fs::read(&again).unwrap();
    let (other, _) = logits(&alone, &TWO_LAYERS);
    assert_eq!(fs::read(other.path().join("new/checkpoint/model.safetensors")).unwrap(), bytes);
}

#[test]
fn what_the_file_leaves_open_is_asked_for_and_what_contradicts_it_is_refused() {
    let refused =
        |file: &str, options: ImportOptions| Imported::read(&data(file), &options).unwrap_err().to_string();
    let said = refused("bare.pt", ImportOptions::default());
    assert!(said.contains("n_layer") && said.contains("--n-layer"), "{said}");
    let said = refused("dict-config.pt", ImportOptions { n_layer: Some(6), ..Default::default() });
    assert!(said.contains("`n_layer` is 2 in the file, but 6 on the command line"), "{said}");
    let said = refused("dict-config.pt", ImportOptions { dropout: Some(0.5), ..Default::default() });
    assert!(said.contains("dropout"), "{said}");
    let said = refused("bare.pt", ImportOptions { block: Some(0), ..TWO_LAYERS });
    assert!(said.contains("`block` must be from 2"), "{said}");
    let said = refused("old-form.pt", TWO_LAYERS);
    assert!(said.contains("before 1.6") && said.contains("save it again"), "{said}");
    let said = refused("nowhere.pt", TWO_LAYERS);
    assert!(said.contains("cannot read") && said.contains("nowhere.pt"), "{said}");
    assert!(refused("make.py", TWO_LAYERS).contains("safetensors"));

    let imported = Imported::read(&data("dict-config.pt"), &ImportOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "").unwrap();
    let error = imported.write(folder.path()).unwrap_err();
    assert!(matches!(error, ImportError::Occupied { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_state_dict_in_safetensors_is_checked_like_any_other() {
    let config = shape(2, 16, 2, 4);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.safetensors");
    let read = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = random_weights(&config, 1, 0.05);
        change(&mut tensors);
        fs::write(&file, weight_file(&tensors, Some("64"))).unwrap();
        Imported::read(&file, &TWO_LAYERS)
    };
    let wrapped = read(&|tensors| {
        for tensor in &mut *tensors {
            tensor.name = format!("module._orig_mod.{}", tensor.name);
        }
        tensors.push(Tensor::f32("module._orig_mod.attn.freqs", vec![1, 1, 1, 32], &[0.5; 32]));
    })
    .unwrap();
    assert_eq!(
        (wrapped.config().raw(), wrapped.trained_block()),
        (
            &{
                let mut raw = config.raw().clone();
                raw.dropout = 0.1;
                raw
            },
            Some(64)
        )
    );
    let refused = |change: &dyn Fn(&mut Vec<Tensor>), parts: [&str; 2]| {
        let said = read(change).unwrap_err().to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    };
    refused(&|tensors| drop(tensors.remove(1)), ["`encoder` is missing", "embed.weight"]);
    refused(&|tensors| tensors[3].shape = vec![16, 64], ["`decoder` has shape [16, 64]", "[64, 16]"]);
    refused(&|tensors| tensors[1].shape = vec![2, 512], ["`encoder` has shape [2, 512]", "3 dimensions"]);
    refused(&|tensors| tensors[2].name = "gate".into(), ["`gate` is not part", "wrong answers"]);
    refused(&|tensors| tensors[4].dtype = safetensors::Dtype::I32, ["`lm_head` holds I32", "bf16"]);
    refused(
        &|tensors| tensors[4].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
        ["`lm_head` is inf at index 0", "diverged"],
    );
    refused(
        &|tensors| {
            let twice = Tensor { name: "module.encoder".into(), ..tensors[1].clone() };
            tensors.push(twice);
        },
        ["`encoder` appears twice", "wrapper"],
    );
}

/// A zip archive of stored entries, as `torch.save` lays it out.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let (start, size, length) = (file.len() as u32, bytes.len() as u32, name.len() as u16);
        let sizes = [&[0; 12][..], &size.to_le_bytes(), &size.to_le_bytes(), &length.to_le_bytes()].concat();
        file.extend([b"PK\x03\x04\0\0", &sizes[..], &[0, 0], name.as_bytes(), bytes].concat());
        let header = [b"PK\x01\x02\0\0\0\0", &sizes[..]].concat();
        directory.extend([&header[..], &[0; 12], &start.to_le_bytes(), name.as_bytes()].concat());
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend([&b"PK\x05\x06"[..], &[0; 8], &size.to_le_bytes(), &start.to_le_bytes(), &[0; 2]].concat());
    file
}

/// A file of this pickle, beside a storage of eight f32.
fn pickled(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 32])])
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// A pickle of `{"encoder": a view into a storage of so many f32}`.
fn view(key: &str, len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |int: i32| [&b"J"[..], &int.to_le_bytes()].concat();
    let tuple =
        |ints: &[i32]| [b"(".to_vec(), ints.iter().flat_map(|i| int(*i)).collect(), b"t".to_vec()].concat();
    [
        b"\x80\x02}".to_vec(),
        text("encoder"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text(key),
        text("cpu"),
        int(len),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn nothing_out_of_a_file_is_run() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let command = text(&format!("touch {}", trace.display()));
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("collections", "OrderedDict.fromkeys"),
    ] {
        let global = format!("c{module}\n{name}\n");
        let pickle = [b"\x80\x02", global.as_bytes(), &command, b"\x85R."].concat();
        let said = refused(&pickled(&pickle));
        assert!(said.contains(&format!("asks to run `{module}.{name}`; refused")), "{said}");
    }
    // Whatever module it stands in, the class is no more than its name.
    let pickle = [b"\x80\x02cos\nBDHConfig\n", &command[..], b"\x85R."].concat();
    assert!(refused(&pickled(&pickle)).contains("parts that do not fit"));
    // By other opcodes: INST, STACK_GLOBAL, EXT1, and protocol 4.
    for opcode in [&b"\x80\x02(ios\nsystem\n."[..], b"\x80\x02\x93.", b"\x80\x02\x82\x01.", b"\x80\x04N."] {
        assert!(refused(&pickled(opcode)).contains("torch.save"), "{opcode:?}");
    }
    assert!(!trace.exists());
}

#[test]
fn views_that_do_not_fit_their_storage_are_refused() {
    let said = |len, offset, shape: &[i32], strides: &[i32]| {
        refused(&pickled(&view("0", len, offset, shape, strides)))
    };
    // This one fits, and only then it matters that there is no whole model.
    assert!(said(8, 2, &[1, 2, 3], &[9, 1, 2]).contains("`embed.weight` is missing"));
    for (len, offset, shape, strides, problem) in [
        (8, 0, &[1, 3, 3][..], &[9, 3, 1][..], "reaches beyond"),
        (8, 3, &[1, 2, 3], &[6, 3, 1], "reaches beyond"),
        (8, i32::MAX, &[1, 2, 3], &[6, 3, 1], "reaches beyond"),
        (8, -1, &[1, 2, 3], &[6, 3, 1], "begins before"),
        (8, 0, &[1, 2, 3], &[6, -3, 1], "negative stride"),
        (8, 0, &[1, -2, 3], &[6, 3, 1], "negative size"),
        (8, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0], "overlap"),
        (8, 0, &[1, 2, 3], &[6, 2, 1], "overlap"),
        (8, 0, &[1, 2, 3], &[3, 1], "3 sizes and 2 strides"),
        (8, 0, &[1, i32::MAX, 2], &[1, i32::MAX, 1], "reaches beyond"),
        (8, 0, &[0, 2, 3], &[6, 3, 1], "is empty"),
        (i32::MAX, 0, &[1, 2, 3], &[6, 3, 1], "has 32 bytes"),
        (-8, 0, &[1, 2, 3], &[6, 3, 1], "has 32 bytes"),
        (8, 0, &[1; 9], &[1; 9], "more than 8 dimensions"),
    ] {
        let said = said(len, offset, shape, strides);
        assert!(said.contains(problem), "{shape:?} {strides:?}: {said}");
    }
    assert!(refused(&pickled(&view("1", 8, 0, &[1], &[1]))).contains("not in the file"));
    assert!(refused(&pickled(&view("../../0", 8, 0, &[1], &[1]))).contains("not in the file"));
}

#[test]
fn pickles_that_are_damaged_or_built_to_hurt_are_refused() {
    // A hundred thousand tuples within each other, and a list that holds itself.
    let deep = [&b"\x80\x02N"[..], &b"\x85".repeat(100_000), b"."].concat();
    assert!(refused(&pickled(&deep)).contains("holds no dictionary"));
    assert!(refused(&pickled(b"\x80\x02]q\x00h\x00a.")).contains("holds no dictionary"));
    assert!(refused(&pickled(b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")).contains("not a tensor"));
    for (pickle, problem) in [
        (&b""[..], "cut off"),
        (b"\x80\x02", "cut off"),
        (b"\x80\x02.", "pops a value from an empty stack"),
        (b"\x80\x02(.", "pops a value from an empty stack"),
        (b"\x80\x02N(q\x00.", "uses a value of an empty stack"),
        (b"\x80\x02t.", "lacks a mark"),
        (b"\x80\x02h\x05.", "slot 5"),
        (b"\x80\x02X\xff\xff\xff\xffab.", "cut off"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "UTF-8"),
        (b"\x80\x02\x8a\x09123456789.", "64 bits"),
        (b"\x80\x02N(NNu.", "not a dictionary"),
        (b"\x80\x02}(NNNu.", "half an item"),
        (b"\x80\x02NNb.", "attributes"),
        (b"\x80\x02N)R.", "unknown name"),
        (b"\x80\x02NQ.", "names a storage"),
        (b"\x80\x02NNa.", "not a list"),
    ] {
        let said = refused(&pickled(pickle));
        assert!(said.contains(problem), "{pickle:?}: {said}");
    }
    let long = vec![b'N'; 300 << 10];
    assert!(refused(&pickled(&long)).contains("more than the limit of 262144"));
    assert!(refused(&archive(&[("a/version", b"3")])).contains("without a data.pkl"));
    let big_endian = archive(&[("a/byteorder", b"big"), ("a/data.pkl", b"\x80\x02N.")]);
    assert!(refused(&big_endian).contains("not little-endian"));
}

#[test]
fn archives_that_are_cut_or_lie_are_refused() {
    let whole = fs::read(data("dict-config.pt")).unwrap();
    for length in (0..whole.len()).step_by(211).chain([whole.len() - 1]) {
        refused(&whole[..length]);
    }
    let twice = archive(&[("a/data.pkl", b"\x80\x02N."), ("a/data.pkl", b"\x80\x02N.")]);
    assert!(refused(&twice).contains("two entries called"));
    // Both entries are one: the second directory record points at the first header.
    let mut on_top = archive(&[("a/data.pkl", b"\x80\x02N."), ("a/data/00", b"")]);
    let second = on_top.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    on_top[second + 42..second + 46].fill(0);
    assert!(refused(&on_top).contains("overlap"));
    let mut packed = archive(&[("a/data.pkl", b"\x80\x02N.")]);
    let record = packed.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    packed[record + 10] = 8;
    assert!(refused(&packed).contains("compressed"));
    for (place, problem) in [(24, "outside"), (42, "outside")] {
        let mut lying = archive(&[("a/data.pkl", b"\x80\x02N.")]);
        lying[record + place..record + place + 4].copy_from_slice(&0xFFFF_FFF0_u32.to_le_bytes());
        if place == 24 {
            lying[record + 20..record + 24].copy_from_slice(&0xFFFF_FFF0_u32.to_le_bytes());
        }
        assert!(refused(&lying).contains(problem), "{place}: {}", refused(&lying));
    }
    let end = packed.len() - 22;
    for (place, problem) in [(12, "limit"), (16, "outside")] {
        let mut lying = archive(&[("a/data.pkl", b"\x80\x02N.")]);
        lying[end + place..end + place + 4].fill(0xFF);
        assert!(refused(&lying).contains(problem), "{place}: {}", refused(&lying));
    }
}

/// Of the files that are spoiled below, the pickle stands within so many first bytes,
const PICKLE_BYTES: usize = 1024;
/// and the archive's directory within so many last ones.
const DIRECTORY_BYTES: usize = 1200;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Bytes flipped anywhere but in the weights: an error, or five finite weights of the shape that is said.
    #[test]
    fn flipped_bytes_never_panic(
        name in prop_oneof![Just("dict-config.pt"), Just("class-config.pt"), Just("bare.pt")],
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 1..=255_u8), 1..8),
    ) {
        let mut bytes = fs::read(data(name)).unwrap();
        let directory = bytes.len() - DIRECTORY_BYTES;
        for (place, in_pickle, flip) in flips {
            let place = if in_pickle { place.index(PICKLE_BYTES) } else { directory + place.index(DIRECTORY_BYTES) };
            bytes[place] ^= flip;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.pt");
        fs::write(&file, &bytes).unwrap();
        if let Ok(imported) = Imported::read(&file, &TWO_LAYERS) {
            let floats = imported.config().parameters();
            prop_assert!(floats * 2 <= bytes.len() as u64, "{floats} weights out of {} bytes", bytes.len());
        }
    }

    /// Any opcodes in any order.
    #[test]
    fn any_pickle_is_read_or_refused(
        parts in prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                prop::sample::select(b"()tRQbusaeN}]\x81\x85\x86\x87\x88.".to_vec()).prop_map(|byte| vec![byte]),
                (0..4_u8).prop_map(|slot| vec![b'q', slot]),
                (0..4_u8).prop_map(|slot| vec![b'h', slot]),
                any::<i32>().prop_map(|int| [&b"J"[..], &int.to_le_bytes()].concat()),
                prop::sample::select(vec!["model", "config", "encoder", "storage", "0", "n_layer"]).prop_map(text),
                Just(b"ctorch\nFloatStorage\n".to_vec()),
                Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
                Just(b"cbdh\nBDHConfig\n".to_vec()),
            ],
            0..64,
        ),
    ) {
        let pickle = [b"\x80\x02".to_vec(), parts.concat()].concat();
        prop_assert!(!refused(&pickled(&pickle)).is_empty());
    }
}

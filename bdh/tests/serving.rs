//! The weights in bf16 for nodes that only answer.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::{collections::HashMap, fs};

use half::bf16;
use hatchery_bdh::{Model, write_serving_weights};
use hatchery_common::checkpoint::{MODEL_FILE, SERVING_FILE};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use support::{Tensor, folder, random_weights, shape, weight_file};

#[test]
fn they_are_the_same_tensors_rounded_and_always_the_same_bytes() {
    let config = shape(2, 16, 2, 4);
    let weights = random_weights(&config, 3, 0.05);
    let text = serde_json::to_string(&config).unwrap();
    let source = folder(&text, &weight_file(&weights, Some("64")));
    write_serving_weights(source.path()).unwrap();
    let bytes = fs::read(source.path().join(SERVING_FILE)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!((metadata["format"].as_str(), metadata["hatchery.block"].as_str()), ("pt", "64"));
    let found = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(found.len(), weights.len());
    for tensor in &weights {
        let view = found.tensor(&tensor.name).unwrap();
        assert_eq!((view.dtype(), view.shape()), (Dtype::BF16, tensor.shape.as_slice()));
        let rounded = tensor.to_f32().into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes());
        assert!(rounded.eq(view.data().iter().copied()), "{}", tensor.name);
    }
    let size = |name: &str| fs::metadata(source.path().join(name)).unwrap().len();
    assert!(size(SERVING_FILE) * 2 < size(MODEL_FILE) + 1000);

    // Metadata of two entries comes in any order; what is made of it does not.
    for _ in 0..8 {
        fs::write(source.path().join(MODEL_FILE), weight_file(&weights, Some("64"))).unwrap();
        write_serving_weights(source.path()).unwrap();
        assert!(fs::read(source.path().join(SERVING_FILE)).unwrap() == bytes);
    }

    let model = Model::load_serving(source.path()).unwrap();
    assert_eq!(model.trained_block(), Some(64));
    fs::rename(source.path().join(SERVING_FILE), source.path().join(MODEL_FILE)).unwrap();
    assert_eq!(Model::load(source.path()).unwrap().identity(), model.identity());
}

#[test]
fn what_has_no_place_in_bf16_is_told_and_leaves_no_file() {
    for (value, said) in [(f32::NAN, "is NaN at index 7"), (f32::MAX, "at index 7, too large for BF16")] {
        let config = shape(1, 16, 2, 4);
        let mut weights = random_weights(&config, 3, 0.05);
        weights[2].bytes[28..32].copy_from_slice(&value.to_le_bytes());
        let source = folder("{}", &weight_file(&weights, None));
        let error = write_serving_weights(source.path()).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(&weights[2].name), "{error}");
        assert_eq!(fs::read_dir(source.path()).unwrap().count(), 2, "{value}");
    }
    let source = folder("{}", &weight_file(&[], None));
    fs::write(source.path().join(MODEL_FILE), b"no tensors").unwrap();
    assert!(
        write_serving_weights(source.path())
            .unwrap_err()
            .to_string()
            .contains("not a complete safetensors file")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_number_goes_to_the_nearest_and_a_tie_to_the_even_one(bits in proptest::collection::vec(any::<u32>(), 1..200)) {
        let values: Vec<f32> =
            bits.into_iter().map(|bits| f32::from_bits(bits & !(1 << 29))).filter(|value| value.is_finite()).collect();
        let tensor = Tensor::f32("any", vec![values.len()], &values);
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        let source = folder("{}", &safetensors::serialize([("any", view)], None::<HashMap<_, _>>).unwrap());
        write_serving_weights(source.path()).unwrap();
        let bytes = fs::read(source.path().join(SERVING_FILE)).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        let found: Vec<u16> =
            found.tensor("any").unwrap().data().as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        for (value, found) in values.iter().zip(found) {
            // The numbers of one sign are in the order of their bits, so the two beside a number follow one another.
            let (low, rest) = ((value.to_bits() >> 16) as u16, value.to_bits() & 0xffff);
            let up = rest > 0x8000 || rest == 0x8000 && low % 2 == 1;
            prop_assert_eq!(found, low + u16::from(up), "{}", value);
        }
    }
}

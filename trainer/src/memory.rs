//! How much of a GPU's memory a training step takes, and what of a job would fit.

use hatchery_common::{
    model::ModelConfig,
    recipe::{Precision, TrainSpec},
};

const F32_BYTES: u64 = 4;
/// Of the memory that is there, so much is counted on: what is free comes in pieces.
const USABLE_PERCENT: u64 = 90;

/// How a step is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub precision: Precision,
    /// Whether kernels compute the pointwise operations.
    pub has_kernels: bool,
}

/// The bytes of all tensors at the height of a step in which `rows` sequences go through the model at once; an estimate,
/// from what [`crate::fused`] makes.
pub fn step_bytes(config: &ModelConfig, train: &TrainSpec, way: Way, rows: u64) -> u64 {
    let raw = train.raw();
    let is_bf16 = way.precision == Precision::Bf16;
    let operand = if is_bf16 { 2 } else { F32_BYTES };
    let [layers, heads, width, neurons, vocabulary] =
        [config.layers(), config.heads(), config.width(), config.neurons_per_head(), config.vocabulary()]
            .map(|size| size as u64);
    let tokens = u64::from(raw.block);
    let n = rows * tokens;
    // Weights, two moments, gradients, those of the parts before, perhaps a running mean; and the operands, where they are others.
    let copies = 4 + u64::from(rows < u64::from(raw.batch)) + u64::from(raw.ema_decay > 0.0);
    let operands = if is_bf16 { operand } else { 0 };
    let weights = config.parameters() * (copies * F32_BYTES + operands);
    let phases = 4 * tokens * neurons * F32_BYTES;
    let of_neurons = heads * n * neurons * operand;
    let scores = heads * rows * tokens * tokens * operand;
    let of_width = n * width;
    // Of each layer stay q and v, and without kernels the mask; scores, what attention read, the stream twice, as an operand, and
    // as one for each head.
    // On the way back through the last one q, dq, r and dr are there, and v's memory is that of one of them. Without kernels the
    // rope is computed in f32: x, a quarter of a turn on, and their sum.
    let (kept, passing) = match (way.has_kernels, is_bf16) {
        (true, _) => (2, 2),
        (false, false) => (3, 5),
        (false, true) => (3, 8),
    };
    let layer =
        kept * of_neurons + scores + 2 * heads * of_width * operand + of_width * (2 * F32_BYTES + operand);
    let passing = passing * of_neurons + 2 * scores + 3 * heads * of_width * operand;
    let ends = n * vocabulary * (F32_BYTES + operand);
    weights + phases + layers * layer + passing + ends
}

/// What of a job that did not fit would fit into `memory_bytes`, those that nobody else holds. None: the memory is not known.
pub fn advice(config: &ModelConfig, train: &TrainSpec, way: Way, memory_bytes: u64) -> Option<String> {
    let raw = train.raw();
    let (batch, parts) = (u64::from(raw.batch), u64::from(raw.accumulate));
    let bytes = |parts: u64| step_bytes(config, train, way, batch / parts);
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    if memory_bytes == 0 {
        return None;
    }
    let told = format!(
        "it takes about {:.1} GiB, and {:.1} GiB were available",
        gib(bytes(parts)),
        gib(memory_bytes)
    );
    let mut more_parts = (parts + 1..=batch).filter(|parts| batch.is_multiple_of(*parts));
    let usable = memory_bytes / 100 * USABLE_PERCENT;
    Some(match more_parts.find(|parts| bytes(*parts) <= usable) {
        Some(parts) => format!(
            "{told}: train.accumulate = {parts} splits the same batch and takes about {:.1} GiB",
            gib(bytes(parts))
        ),
        None if bytes(parts) <= usable => {
            format!(
                "{told}: it should fit; another process may have used the memory, or train.block is too large"
            )
        }
        None => format!("{told}: not even one sequence fits; reduce train.block or the model"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use hatchery_common::recipe::Recipe;

    use super::*;

    const GIB: u64 = 1 << 30;

    const KERNELS: Way = Way { precision: Precision::Bf16, has_kernels: true };

    fn advice_for(settings: &[&str], memory_bytes: u64) -> Option<String> {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let recipe = Recipe::parse(Some("seed"), "", &settings).unwrap();
        advice(&recipe.model, &recipe.train, KERNELS, memory_bytes)
    }

    #[test]
    fn the_reference_run_takes_less_than_half_of_what_autograd_did() {
        let recipe = Recipe::parse(Some("seed"), "", &[]).unwrap();
        let bytes = |way| step_bytes(&recipe.model, &recipe.train, way, 8);
        // 1,249 MiB with the reference's own code; the process's overhead is not counted here.
        let kernels = bytes(KERNELS);
        assert!((400 << 20..625 << 20).contains(&kernels), "{} MiB", kernels >> 20);
        let f32_bytes = bytes(Way { precision: Precision::F32, ..KERNELS });
        assert!(f32_bytes > kernels * 17 / 10 && f32_bytes < kernels * 2);
        assert!(bytes(Way { has_kernels: false, ..KERNELS }) > kernels * 3 / 2);
    }

    #[test]
    fn what_does_not_fit_is_told_what_would() {
        assert_eq!(advice_for(&["train.batch=512"], 0), None, "nothing is known of the memory");
        let told = advice_for(&["train.batch=192"], 8 * GIB).unwrap();
        assert!(told.contains("train.accumulate = 2") && told.contains("8.0 GiB were available"), "{told}");
        let told = advice_for(&["train.batch=192", "train.accumulate=2"], 4 * GIB).unwrap();
        assert!(told.contains("train.accumulate = 3"), "{told}");
        // It should have fitted, and did not: less of it.
        let told = advice_for(&["train.batch=8"], 8 * GIB).unwrap();
        assert!(told.contains("train.accumulate = 2"), "{told}");
        let told = advice_for(&["train.accumulate=8"], 8 * GIB).unwrap();
        assert!(told.contains("it should fit"), "{told}");
        let told = advice_for(&["train.block=16384"], 2 * GIB).unwrap();
        assert!(told.contains("not even one sequence"), "{told}");
    }
}

//! The equations, over a block of bytes: layer by layer and head by head, all bytes of the block before the next.
//!
//! A byte needs, of the bytes before it, only what they have left in the state of the same layer and head. So the
//! block goes through a layer together: weights and rows of the state are fetched from memory once and serve every
//! byte in it. Each sum keeps the order that it has for a block of one, so the blocks do not change a bit.
#![allow(clippy::inline_always, reason = "compiled once for each instruction set that it is called from")]

use std::f64::consts::TAU;

use crate::{
    loops::{add_scaled, dot, multiply_tile, normalise, read_and_update, read_both_and_update},
    model::{Model, TILE},
};

/// Most bytes in one block: what a block needs beside weights and state stays in the cache nearest to the core.
pub(crate) const BLOCK_BYTES: usize = 16;

/// The states that one byte sees: L * H * M rows of D each.
pub(crate) struct States<'a> {
    /// Of the chunk before, where there is one: only read.
    pub(crate) previous: Option<&'a [f32]>,
    /// Read, then updated.
    pub(crate) current: &'a mut [f32],
}

/// Room for one block, so that nothing is allocated while bytes are fed.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    /// The residual stream of each byte, D.
    x: Vec<f32>,
    /// What attention gives one head for each byte, D.
    a: Vec<f32>,
    /// Sum over the heads of what the decoder gives for each byte, D.
    y: Vec<f32>,
    /// Neurons of one head for each byte, M and the filling of the last tile.
    q: Vec<f32>,
    /// Cosine and sine of the angle of each byte's position for each pair of neurons, M / 2.
    turns: Vec<[f32; 2]>,
    /// D.
    width: usize,
}

impl Scratch {
    pub(crate) fn new(model: &Model) -> Self {
        let width = model.config().width();
        let row = vec![0.0; BLOCK_BYTES * width];
        Self {
            x: row.clone(),
            a: row.clone(),
            y: row,
            q: vec![0.0; BLOCK_BYTES * model.encoder.padded_columns()],
            turns: vec![[0.0; 2]; BLOCK_BYTES * model.frequencies.len()],
            width,
        }
    }
}

/// Takes the block `bytes`, at most [`BLOCK_BYTES`], whose first stands at `position`, through all layers. Their
/// residual streams are then in `scratch`.
pub(crate) fn forward(model: &Model, mut states: States, scratch: &mut Scratch, position: u64, bytes: &[u8]) {
    set_turns(&mut scratch.turns, &model.frequencies, position, bytes.len());
    for (x, byte) in scratch.x.chunks_exact_mut(scratch.width).zip(bytes) {
        x.copy_from_slice(model.embed.row(usize::from(*byte)));
    }
    widest::layers(model, &mut states, scratch, bytes.len());
}

/// logits = x @ lm_head, for the byte at `index` of the last block. `logits` has room for the last tile's filling.
pub(crate) fn read_out(model: &Model, scratch: &Scratch, index: usize, logits: &mut [f32]) {
    let x = &scratch.x[index * scratch.width..][..scratch.width];
    for (logits, tile) in logits.as_chunks_mut().0.iter_mut().zip(model.lm_head.matrix(0)) {
        *logits = multiply_tile(x, tile);
    }
}

/// Cosine and sine of each pair's angle for `count` positions. Whole turns are dropped in f64 before the angle is
/// rounded: after a thousand million bytes it is still right to 1e-6.
fn set_turns(turns: &mut [[f32; 2]], frequencies: &[f64], position: u64, count: usize) {
    for (position, turns) in (position..).zip(turns.chunks_exact_mut(frequencies.len())).take(count) {
        for (turn, frequency) in turns.iter_mut().zip(frequencies) {
            let (sine, cosine) = ((position as f64 * frequency).fract() * TAU).sin_cos();
            *turn = [cosine as f32, sine as f32];
        }
    }
}

/// All layers, from the embeddings in `scratch.x` to the last residual streams in the same place.
#[inline(always)]
fn layers(model: &Model, states: &mut States, scratch: &mut Scratch, count: usize) {
    let width = scratch.width;
    let (x, a, y) =
        (&mut scratch.x[..count * width], &mut scratch.a[..count * width], &mut scratch.y[..count * width]);
    let (pairs, padded) = (model.frequencies.len(), model.encoder.padded_columns());
    let (q, turns) = (&mut scratch.q[..count * padded], &scratch.turns[..count * pairs]);
    let head_len = 2 * pairs * width;

    x.chunks_exact_mut(width).for_each(normalise);
    for layer in 0..model.config().layers() {
        y.fill(0.0);
        for head in 0..model.config().heads() {
            encode(model, head, x, q);
            let start = (layer * model.config().heads() + head) * head_len;
            let previous = states.previous.map(|state| &state[start..start + head_len]);
            let current = &mut states.current[start..start + head_len];
            attend(previous, current, (q, padded), (turns, pairs), x, (a, width));
            a.chunks_exact_mut(width).for_each(normalise);
            decode(model, head, (q, padded), a, y);
        }
        for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact_mut(width)) {
            normalise(y);
            add_scaled(x, 1.0, y);
            normalise(x);
        }
    }
}

/// q = relu(x @ encoder) for one head.
#[inline(always)]
fn encode(model: &Model, head: usize, x: &[f32], q: &mut [f32]) {
    let (width, padded) = (model.config().width(), model.encoder.padded_columns());
    for (index, tile) in model.encoder.matrix(head).enumerate() {
        for (x, q) in x.chunks_exact(width).zip(q.chunks_exact_mut(padded)) {
            let neurons = &mut q[index * TILE..][..TILE];
            neurons.copy_from_slice(&multiply_tile(x, tile).map(|neuron| neuron.max(0.0)));
        }
    }
}

/// r = rope(q), a = r^T (S + previous S), S += r x^T for one head, pair of neurons by pair of neurons: the pair's two
/// rows of the state stay at hand for all bytes. A pair that is silent for a byte costs nothing.
#[inline(always)]
fn attend(
    previous: Option<&[f32]>,
    current: &mut [f32],
    (q, padded): (&[f32], usize),
    (turns, pairs): (&[[f32; 2]], usize),
    x: &[f32],
    (a, width): (&mut [f32], usize),
) {
    a.fill(0.0);
    for (pair, rows) in current.chunks_exact_mut(2 * width).enumerate() {
        let (s0, s1) = rows.split_at_mut(width);
        let before = previous.map(|state| state[pair * 2 * width..][..2 * width].split_at(width));
        for (byte, (x, a)) in x.chunks_exact(width).zip(a.chunks_exact_mut(width)).enumerate() {
            let q = [q[byte * padded + 2 * pair], q[byte * padded + 2 * pair + 1]];
            if q == [0.0, 0.0] {
                continue;
            }
            let r = rotate(q, turns[byte * pairs + pair]);
            match before {
                Some(before) => read_both_and_update(before, (s0, s1), r, x, a),
                None => read_and_update((s0, s1), r, x, a),
            }
        }
    }
}

/// Neighbours 2i and 2i + 1, turned together.
#[inline(always)]
fn rotate([even, odd]: [f32; 2], [cosine, sine]: [f32; 2]) -> [f32; 2] {
    [even * cosine - odd * sine, odd * cosine + even * sine]
}

/// y += (q * relu(a @ encoder_v)) @ decoder for one head. Silent neurons are passed over.
#[inline(always)]
fn decode(model: &Model, head: usize, (q, padded): (&[f32], usize), a: &[f32], y: &mut [f32]) {
    let (width, neurons) = (model.config().width(), model.config().neurons_per_head());
    for neuron in 0..neurons {
        let row = head * neurons + neuron;
        for (byte, (a, y)) in a.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let q = q[byte * padded + neuron];
            if q > 0.0 {
                let gate = dot(a, model.encoder_v.row(row));
                if gate > 0.0 {
                    add_scaled(y, q * gate, model.decoder.row(row));
                }
            }
        }
    }
}

/// The same loops compiled for the widest vectors of the machine that runs them. The bits are the same in all.
mod widest {
    use super::{Model, Scratch, States};

    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "each call stands behind a check that the processor has the instructions")]
    pub(super) fn layers(model: &Model, states: &mut States, scratch: &mut Scratch, count: usize) {
        #[target_feature(enable = "avx512f")]
        fn avx512(model: &Model, states: &mut States, scratch: &mut Scratch, count: usize) {
            super::layers(model, states, scratch, count);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(model: &Model, states: &mut States, scratch: &mut Scratch, count: usize) {
            super::layers(model, states, scratch, count);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F.
            unsafe { avx512(model, states, scratch, count) }
        } else if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            unsafe { avx2(model, states, scratch, count) }
        } else {
            super::layers(model, states, scratch, count);
        }
    }

    /// On arm64 the vectors that every processor has are the ones used.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) fn layers(model: &Model, states: &mut States, scratch: &mut Scratch, count: usize) {
        super::layers(model, states, scratch, count);
    }
}

#[cfg(test)]
mod tests {
    use hatchery_common::{
        digest::Digest,
        model::{ModelConfig, RawModelConfig},
    };

    use super::*;
    use crate::{
        model::{Rows, Tiles, frequencies},
        sampling::random_at,
    };

    fn model() -> Model {
        let config = ModelConfig::new(RawModelConfig {
            n_layer: 2,
            n_embd: 60,
            n_head: 3,
            mlp_internal_dim_multiplier: 7,
            ..Default::default()
        })
        .unwrap();
        let (width, neurons) = (config.width(), config.neurons_per_head());
        let [embed, encoder, encoder_v, decoder, lm_head] = config.weights().map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let seed = name.len() as u64;
            (0..count as u64).map(|draw| (random_at(seed, draw) - 0.5) as f32 * 0.2).collect::<Vec<_>>()
        });
        Model {
            trained_block: None,
            embed: Rows::new(embed, width),
            encoder: Tiles::new(&encoder, width, neurons),
            encoder_v: Rows::transposed(&encoder_v, width, neurons),
            decoder: Rows::new(decoder, width),
            lm_head: Tiles::new(&lm_head, width, config.vocabulary()),
            frequencies: frequencies(neurons),
            identity: Digest::of(b""),
            config,
        }
    }

    /// Runs two blocks through `run`; the residual streams of the second.
    fn streams(model: &Model, run: fn(&Model, &mut States, &mut Scratch, usize)) -> Vec<u32> {
        let state_len = model.config.layers() * model.config.heads() * model.config.neurons_per_head();
        let mut current = vec![0.0; state_len * model.config.width()];
        let previous: Vec<f32> = (0..current.len() as u64).map(|draw| random_at(9, draw) as f32).collect();
        let mut scratch = Scratch::new(model);
        for previous in [None, Some(&*previous)] {
            set_turns(&mut scratch.turns, &model.frequencies, 1000, BLOCK_BYTES);
            for (byte, x) in scratch.x.chunks_exact_mut(scratch.width).enumerate() {
                x.copy_from_slice(model.embed.row(byte * 3));
            }
            run(model, &mut States { previous, current: &mut current }, &mut scratch, BLOCK_BYTES);
        }
        scratch.x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let model = model();
        assert_eq!(streams(&model, widest::layers), streams(&model, layers));
    }
}

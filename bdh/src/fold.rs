//! Folding a part into a sum.
#![allow(
    clippy::inline_always,
    reason = "part of the inner loops, which are compiled for several instruction sets"
)]

use crate::{
    loops::{TileRow, multiply_tile},
    model::{Model, TILE},
    multiversion::Work,
    number::Number,
    part::Part,
    simd::Vector,
};

/// Neurons whose rows are multiplied at once.
const BLOCK_NEURONS: usize = 32;

/// S += r_s x_s^T for each byte s of a part, in all layers and heads.
pub(crate) struct Fold<'a, N> {
    pub(crate) model: &'a Model,
    pub(crate) byte_tiles: usize,
    pub(crate) part: &'a Part<N>,
    pub(crate) sum: &'a mut [TileRow<N>],
}

impl<N: Number> Work for Fold<'_, N> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let config = self.model.config();
        let (neurons, width_tiles) = (config.neurons_per_head(), config.width().div_ceil(TILE));
        let values_per_layer = width_tiles * self.byte_tiles * TILE;
        let mut r = [[0.0; TILE]; BLOCK_NEURONS];
        let mut products = [[0.0; TILE]; BLOCK_NEURONS];
        for (index, sum) in self.sum.chunks_exact_mut(neurons).enumerate() {
            let (layer_and_head, width_tile) = (index / width_tiles, index % width_tiles);
            let values = &self.part.values[layer_and_head / config.heads() * values_per_layer..];
            for byte_tile in 0..self.byte_tiles {
                let values = &values[(width_tile * self.byte_tiles + byte_tile) * TILE..][..TILE];
                let keys = &self.part.keys[(layer_and_head * self.byte_tiles + byte_tile) * neurons..];
                for (sum, keys) in sum.chunks_mut(BLOCK_NEURONS).zip(keys.chunks(BLOCK_NEURONS)) {
                    let count = sum.len();
                    for (r, key) in r.iter_mut().zip(keys) {
                        *r = key.map(N::to_f32);
                    }
                    multiply_tile::<f32, V>(r.as_flattened(), values, &mut products[..count]);
                    for (sum, product) in sum.iter_mut().zip(&products) {
                        for (sum, product) in sum.iter_mut().zip(product) {
                            *sum = N::from_f32(sum.to_f32() + product);
                        }
                    }
                }
            }
        }
    }
}

//! The weights, laid out for the engine.

use std::path::Path;

use hatchery_common::{digest::Digest, model::ModelConfig};

use crate::load::{self, LoadError};

/// Base of the rotary frequencies.
const THETA: f64 = 65_536.0;

/// A matrix whose rows are vectors over the width D.
#[derive(Debug)]
pub(crate) struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    pub(crate) fn new(values: Vec<f32>, width: usize) -> Self {
        Self { width, values }
    }

    /// The transpose of each of the `width` x `columns` matrices in `values`, one below the other.
    pub(crate) fn transposed(values: &[f32], width: usize, columns: usize) -> Self {
        let mut transposed = vec![0.0; values.len()];
        let matrices = values.chunks_exact(width * columns);
        for (matrix, rows) in matrices.zip(transposed.chunks_exact_mut(width * columns)) {
            for (d, line) in matrix.chunks_exact(columns).enumerate() {
                for (value, row) in line.iter().zip(rows.chunks_exact_mut(width)) {
                    row[d] = *value;
                }
            }
        }
        Self { width, values: transposed }
    }

    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }
}

/// Columns in one tile.
pub(crate) const TILE: usize = 64;

/// Matrices of D x C, each cut into tiles of [`TILE`] columns, so that x @ matrix reads memory in one line and sums
/// up neighbouring columns side by side. The last tile is filled up with zeros.
#[derive(Debug)]
pub(crate) struct Tiles {
    width: usize,
    per_matrix: usize,
    /// For each matrix, each tile, each d: a line of the tile.
    lines: Vec<[f32; TILE]>,
}

impl Tiles {
    /// Cuts up the `width` x `columns` matrices that follow one another in `values`.
    pub(crate) fn new(values: &[f32], width: usize, columns: usize) -> Self {
        let per_matrix = columns.div_ceil(TILE);
        let mut lines = vec![[0.0; TILE]; values.len() / columns * per_matrix];
        let matrices = values.chunks_exact(width * columns);
        for (matrix, lines) in matrices.zip(lines.chunks_exact_mut(width * per_matrix)) {
            for (d, row) in matrix.chunks_exact(columns).enumerate() {
                for (part, tile) in row.chunks(TILE).zip(lines.chunks_exact_mut(width)) {
                    tile[d][..part.len()].copy_from_slice(part);
                }
            }
        }
        Self { width, per_matrix, lines }
    }

    /// Columns of one matrix with the filling.
    pub(crate) fn padded_columns(&self) -> usize {
        self.per_matrix * TILE
    }

    /// The tiles of the matrix at `index`, each a line for each d.
    pub(crate) fn matrix(&self, index: usize) -> impl Iterator<Item = &[[f32; TILE]]> {
        let len = self.width * self.per_matrix;
        self.lines[index * len..][..len].chunks_exact(self.width)
    }
}

/// A model, ready to answer: immutable, shared by [`std::sync::Arc`] among any number of engines.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) trained_block: Option<u32>,
    /// V rows.
    pub(crate) embed: Rows,
    /// H matrices of D x M.
    pub(crate) encoder: Tiles,
    /// H * M rows, a neuron each: transposed, so that silent neurons can be passed over.
    pub(crate) encoder_v: Rows,
    /// H * M rows, a neuron each.
    pub(crate) decoder: Rows,
    /// One matrix of D x V.
    pub(crate) lm_head: Tiles,
    /// Turns per position of each of the M / 2 pairs of neurons.
    pub(crate) frequencies: Vec<f64>,
    pub(crate) identity: Digest,
}

impl Model {
    /// Reads `config.json` and `model.safetensors` from a checkpoint `folder`; other files there do not matter.
    ///
    /// Weights may be f32, f64, bf16 or f16 and are kept as f32. Names, shapes and values are checked; an error names
    /// the file, the tensor and what to do.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        load::load(folder)
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// BLAKE3 of the five fields that shape the model and of its weights as f32: what a state was made by. Dropout and
    /// the trained block do not count, nor the kind of number in which the file holds the weights.
    pub fn identity(&self) -> Digest {
        self.identity
    }

    /// The block in bytes that the model was trained on, if the checkpoint names it in the metadata of
    /// `model.safetensors` under [`hatchery_common::checkpoint::TRAINED_BLOCK_KEY`].
    pub fn trained_block(&self) -> Option<u32> {
        self.trained_block
    }
}

/// f_i = theta^(-2i / M) / 2 pi for the pairs i of M neurons: in turns, so that whole turns can be dropped exactly.
pub(crate) fn frequencies(neurons: usize) -> Vec<f64> {
    (0..neurons / 2)
        .map(|pair| THETA.powf(-((2 * pair) as f64) / neurons as f64) / std::f64::consts::TAU)
        .collect()
}

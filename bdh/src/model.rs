//! The weights, laid out for the engine.

use half::bf16;
use hatchery_common::{digest::Digest, model::ModelConfig};

use crate::number::{Number, Precision};

/// A matrix whose rows are vectors over the width D.
#[derive(Debug)]
pub(crate) struct Rows<N> {
    width: usize,
    values: Vec<N>,
}

impl<N: Number> Rows<N> {
    pub(crate) fn new(values: &[f32], width: usize) -> Self {
        Self { width, values: values.iter().map(|value| N::from_f32(*value)).collect() }
    }

    /// The transpose of each of the `width` x `columns` matrices in `values`, one below the other.
    pub(crate) fn transposed(values: &[f32], width: usize, columns: usize) -> Self {
        let mut transposed = vec![N::default(); values.len()];
        let matrices = values.chunks_exact(width * columns);
        for (matrix, rows) in matrices.zip(transposed.chunks_exact_mut(width * columns)) {
            for (d, line) in matrix.chunks_exact(columns).enumerate() {
                for (value, row) in line.iter().zip(rows.chunks_exact_mut(width)) {
                    row[d] = N::from_f32(*value);
                }
            }
        }
        Self { width, values: transposed }
    }

    /// The row at `index`.
    #[inline]
    pub(crate) fn row(&self, index: usize) -> &[N] {
        &self.values[index * self.width..][..self.width]
    }
}

/// Columns in one tile.
pub(crate) const TILE: usize = 64;

/// Matrices, each cut into tiles of [`TILE`] columns, so that x @ matrix reads memory in one line and sums up
/// neighbouring columns side by side. The last tile is filled up with zeros.
#[derive(Debug)]
pub(crate) struct Tiles<N> {
    /// Rows of one matrix.
    rows: usize,
    per_matrix: usize,
    /// For each matrix, each tile, each row: a line of the tile.
    lines: Vec<[N; TILE]>,
}

impl<N: Number> Tiles<N> {
    /// Cuts up the `rows` x `columns` matrices that follow one another in `values`.
    pub(crate) fn new(values: &[f32], rows: usize, columns: usize) -> Self {
        let per_matrix = columns.div_ceil(TILE);
        let mut lines = vec![[N::default(); TILE]; values.len() / columns * per_matrix];
        let matrices = values.chunks_exact(rows * columns);
        for (matrix, lines) in matrices.zip(lines.chunks_exact_mut(rows * per_matrix)) {
            for (index, row) in matrix.chunks_exact(columns).enumerate() {
                for (part, tile) in row.chunks(TILE).zip(lines.chunks_exact_mut(rows)) {
                    for (number, value) in tile[index].iter_mut().zip(part) {
                        *number = N::from_f32(*value);
                    }
                }
            }
        }
        Self { rows, per_matrix, lines }
    }

    /// Columns of one matrix with the filling.
    pub(crate) fn padded_columns(&self) -> usize {
        self.per_matrix * TILE
    }

    /// The tiles of the matrix at `index`, each a line for each row.
    pub(crate) fn matrix(&self, index: usize) -> impl Iterator<Item = &[[N; TILE]]> {
        let len = self.rows * self.per_matrix;
        self.lines[index * len..][..len].chunks_exact(self.rows)
    }
}

/// The weights that all layers share.
#[derive(Debug)]
pub(crate) struct Layers<N> {
    /// M.
    pub(crate) neurons_per_head: usize,
    /// H matrices of D x M.
    pub(crate) encoder: Tiles<N>,
    /// H * M rows, a neuron each: transposed, so that silent neurons can be passed over.
    pub(crate) encoder_v: Rows<N>,
    /// H matrices of M x D, a row for each neuron.
    pub(crate) decoder: Tiles<N>,
}

/// The same in the precision that was asked for.
#[derive(Debug)]
pub(crate) enum LayersIn {
    F32(Layers<f32>),
    Bf16(Layers<bf16>),
}

/// A model, ready to answer: immutable, shared by [`std::sync::Arc`] among any number of engines.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) trained_block: Option<u32>,
    /// V rows.
    pub(crate) embed: Rows<f32>,
    pub(crate) layers: LayersIn,
    /// One matrix of D x V.
    pub(crate) lm_head: Tiles<f32>,
    /// Of each of the M / 2 pairs of neurons.
    pub(crate) frequencies: Vec<u64>,
    pub(crate) identity: Digest,
}

impl Model {
    /// In which kind of number the layers' weights and the states of engines are kept.
    pub fn precision(&self) -> Precision {
        match self.layers {
            LayersIn::F32(_) => Precision::F32,
            LayersIn::Bf16(_) => Precision::Bf16,
        }
    }

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

//! The inner loops.
//!
//! Every sum has one fixed order, however many bytes are worked on together, so a machine always gives the same bits.
#![allow(clippy::inline_always, reason = "the callers are compiled for several instruction sets")]
#![allow(
    clippy::needless_range_loop,
    reason = "counted loops are unrolled in full, and their sums stay in registers"
)]

use crate::{
    model::TILE,
    number::Number,
    simd::{LANES, Vector, prefetch},
};

/// Vectors in one line of a tile.
const TILE_VECTORS: usize = TILE / LANES;

#[inline(always)]
pub(crate) fn dot<N: Number, V: Vector>(a: &[f32], b: &[N]) -> f32 {
    /// So many sums side by side, so that none need wait for the one before.
    const SUMS: usize = 4;
    let ((a_vectors, a_rest), (b_vectors, b_rest)) = (a.as_chunks(), b.as_chunks());
    let (a_groups, a_others) = a_vectors.as_chunks::<SUMS>();
    let (b_groups, b_others) = b_vectors.as_chunks::<SUMS>();
    let mut sums = [V::splat(0.0); SUMS];
    for (a, b) in a_groups.iter().zip(b_groups) {
        for i in 0..SUMS {
            sums[i] = sums[i].add_product(V::load(&a[i]), N::load(&b[i]));
        }
    }
    for (a, b) in a_others.iter().zip(b_others) {
        sums[0] = sums[0].add_product(V::load(a), N::load(b));
    }
    let total = (sums[0].add(sums[2])).add(sums[1].add(sums[3])).total();
    a_rest.iter().zip(b_rest).fold(total, |sum, (a, b)| V::add_product_of_one(sum, *a, b.to_f32()))
}

/// y += factor * x
#[inline(always)]
pub(crate) fn add_scaled<V: Vector>(y: &mut [f32], factor: f32, x: &[f32]) {
    let ((y_vectors, y_rest), (x_vectors, x_rest)) = (y.as_chunks_mut(), x.as_chunks());
    let factors = V::splat(factor);
    for (y, x) in y_vectors.iter_mut().zip(x_vectors) {
        V::load(y).add_product(factors, V::load(x)).store(y);
    }
    for (y, x) in y_rest.iter_mut().zip(x_rest) {
        *y = V::add_product_of_one(*y, factor, *x);
    }
}

/// The first `VECTORS` vectors of `line`, from `start` on, times `x` and added to `sums`.
#[inline(always)]
fn add_line<N: Number, V: Vector, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[V; VECTORS]; ROWS],
    x: [f32; ROWS],
    line: &[[N; LANES]; VECTORS],
) {
    let mut line_vectors = [V::splat(0.0); VECTORS];
    for i in 0..VECTORS {
        line_vectors[i] = N::load(&line[i]);
    }
    for row in 0..ROWS {
        let x = V::splat(x[row]);
        for i in 0..VECTORS {
            sums[row][i] = sums[row][i].add_product(x, line_vectors[i]);
        }
    }
}

/// x @ tile for `ROWS` vectors that follow one another, `VECTORS` of its vectors at a time: a line that has been
/// fetched serves them all, and all sums stay in registers.
#[inline(always)]
fn multiply_rows<N: Number, V: Vector, const ROWS: usize, const VECTORS: usize>(
    x: &[f32],
    tile: &[TileRow<N>],
    products: &mut [TileRow<f32>],
) {
    let width = tile.len();
    let mut rows = [&x[..0]; ROWS];
    for row in 0..ROWS {
        rows[row] = &x[row * width..][..width];
    }
    for start in (0..TILE_VECTORS).step_by(VECTORS) {
        let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
        for d in 0..width {
            let mut x = [0.0; ROWS];
            for row in 0..ROWS {
                x[row] = rows[row][d];
            }
            let line = tile[d].as_chunks().0[start..].first_chunk().expect("a line has these vectors");
            add_line::<N, V, ROWS, VECTORS>(&mut sums, x, line);
        }
        for row in 0..ROWS {
            for i in 0..VECTORS {
                sums[row][i].store(&mut products[row].as_chunks_mut().0[start + i]);
            }
        }
    }
}

/// x @ tile for each of the vectors in `x`.
#[inline(always)]
pub(crate) fn multiply_tile<N: Number, V: Vector>(
    mut x: &[f32],
    tile: &[TileRow<N>],
    mut products: &mut [TileRow<f32>],
) {
    let width = tile.len();
    // Six rows of two vectors of sums leave some registers for the two of a line and for an x.
    while products.len() >= 6 {
        multiply_rows::<N, V, 6, 2>(x, tile, products);
        (x, products) = (&x[6 * width..], &mut products[6..]);
    }
    while products.len() >= 2 {
        multiply_rows::<N, V, 2, 4>(x, tile, products);
        (x, products) = (&x[2 * width..], &mut products[2..]);
    }
    if products.len() == 1 {
        multiply_rows::<N, V, 1, TILE_VECTORS>(x, tile, products);
    }
}

/// A row of a tile.
pub(crate) type TileRow<N> = [N; TILE];

/// A row of a matrix, and by how much it counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WeightedRow {
    pub(crate) row: u32,
    pub(crate) weight: f32,
}

/// How far ahead a row is asked for: far enough for the slowest cache, near enough not to be pushed out again.
pub(crate) const ROWS_AHEAD: usize = 8;

/// Asks for the row that will be needed a little later than the one at `index` of `list`.
#[inline(always)]
pub(crate) fn prefetch_ahead<T>(matrix: &[T], list: &[WeightedRow], index: usize) {
    if let Some(later) = list.get(index + ROWS_AHEAD) {
        prefetch(std::slice::from_ref(&matrix[later.row as usize]));
    }
}

/// sum += weight * row for each of `rows` of `matrix`. `FAR`: the matrix is not in the nearest cache.
#[inline(always)]
pub(crate) fn add_rows<N: Number, V: Vector, const FAR: bool>(
    matrix: &[TileRow<N>],
    rows: &[WeightedRow],
    sum: &mut TileRow<f32>,
) {
    let (sum, _) = sum.as_chunks_mut::<LANES>();
    let mut sums = [V::splat(0.0); TILE_VECTORS];
    for i in 0..TILE_VECTORS {
        sums[i] = V::load(&sum[i]);
    }
    for (index, WeightedRow { row, weight }) in rows.iter().enumerate() {
        if FAR {
            prefetch_ahead(matrix, rows, index);
        }
        let (row, weight) = (matrix[*row as usize].as_chunks().0, V::splat(*weight));
        for i in 0..TILE_VECTORS {
            sums[i] = sums[i].add_product(weight, N::load(&row[i]));
        }
    }
    for i in 0..TILE_VECTORS {
        sums[i].store(&mut sum[i]);
    }
}

/// Neighbours 2i and 2i + 1, turned together.
#[inline(always)]
pub(crate) fn rotate<V: Vector>([even, odd]: [f32; 2], [cosine, sine]: [f32; 2]) -> [f32; 2] {
    [V::add_product_of_one(even * cosine, -odd, sine), V::add_product_of_one(odd * cosine, even, sine)]
}

/// x = norm(x): mean 0, variance 1, no learned scale.
#[inline(always)]
pub(crate) fn normalise<V: Vector>(x: &mut [f32]) {
    const EPSILON: f32 = 1e-5;
    let width = x.len() as f32;
    let (vectors, rest) = x.as_chunks();
    let mut sums = V::splat(0.0);
    for vector in vectors {
        sums = sums.add(V::load(vector));
    }
    let mean = rest.iter().fold(sums.total(), |sum, x| sum + x) / width;
    for x in &mut *x {
        *x -= mean;
    }
    let scale = 1.0 / (dot::<f32, V>(x, x) / width + EPSILON).sqrt();
    for x in x {
        *x *= scale;
    }
}

//! The matrix product, over panels.
//!
//! Of our own and not of a library: both sides lie in panels already, so that nothing is copied before a product as a
//! library must, and the same small matrices come back a hundred times in a step. Plain Rust that the compiler turns into
//! the widest fused multiply-adds: on one core of an AMD Zen 3 it reaches 92 to 97 of 103 GFLOP/s at the sizes of the seed
//! model, where the library in libtorch reaches 96 for large matrices and 93 for these.
#![allow(clippy::inline_always, reason = "compiled once for each instruction set that it is called from")]

use super::{
    multiversion::multiversion,
    number::Number,
    panels::{Line, PANEL, View, ViewMut},
};

/// Terms of a sum at a time: so many lines of a panel stay in the nearest cache, with as many of the other side.
const DEPTH: usize = 128;
/// Rows at a time: with `DEPTH` columns they stay in the second cache while the panels of the other side pass.
const ROWS: usize = 256;

/// The left side of a product.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left<'a, N> {
    Plain(View<'a, N>),
    Transposed(View<'a, N>),
}

/// Whether a product replaces what is there or is added to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accumulation {
    /// c = a b
    Replace,
    /// c += a b
    Add,
}

multiversion! {
    /// The product of `a` and `b`, in `c` as `accumulation` says. Each sum runs in the order of its terms.
    pub(super) fn product<N>(a: Left<'_, N>, b: View<'_, N>, accumulation: Accumulation, c: ViewMut<'_, N>) {
        // A line of sums for each register that an instruction set has, less those that the terms need: with fewer, each
        // multiply-add would wait for the one before.
        if WIDE {
            by_blocks::<N, FUSED, 8>(a, b, accumulation, c);
        } else {
            by_blocks::<N, FUSED, 4>(a, b, accumulation, c);
        }
    }
}

/// By blocks that stay in the caches, in tiles of `TILE` rows by a panel's columns that stay in registers.
#[inline(always)]
fn by_blocks<N: Number, const FUSED: bool, const TILE: usize>(
    a: Left<'_, N>,
    b: View<'_, N>,
    accumulation: Accumulation,
    mut c: ViewMut<'_, N>,
) {
    let (terms, rows) = (b.row_count(), c.row_count());
    let fits = match a {
        Left::Plain(a) => a.row_count() == rows && a.panel_count() * PANEL >= terms,
        Left::Transposed(a) => a.panel_count() * PANEL >= rows && a.row_count() == terms,
    };
    assert!(fits && c.panel_count() == b.panel_count(), "a product of matrices that do not fit together");
    for term in (0..terms).step_by(DEPTH) {
        let depth = DEPTH.min(terms - term);
        let starts = term == 0 && accumulation == Accumulation::Replace;
        for block in (0..rows).step_by(ROWS) {
            for panel in 0..c.panel_count() {
                let right = &b.panel(panel)[term..term + depth];
                let out = c.panel(panel);
                for row in (block..rows.min(block + ROWS)).step_by(TILE) {
                    let out = &mut out[row..row + TILE];
                    let mut sums: [Line<N>; TILE] =
                        if starts { [[N::ZERO; PANEL]; TILE] } else { std::array::from_fn(|row| out[row]) };
                    match a {
                        Left::Plain(a) => plain_tile::<N, FUSED, TILE>(a, (row, term), right, &mut sums),
                        Left::Transposed(a) => {
                            let left = &a.panel(row / PANEL)[term..term + depth];
                            transposed_tile::<N, FUSED, TILE>(left, row % PANEL, right, &mut sums);
                        }
                    }
                    out.copy_from_slice(&sums);
                }
            }
        }
    }
}

/// One term of each of a tile's sums.
#[inline(always)]
fn add_term<N: Number, const FUSED: bool, const TILE: usize>(
    sums: &mut [Line<N>; TILE],
    left: [N; TILE],
    right: &Line<N>,
) {
    for (sums, left) in sums.iter_mut().zip(left) {
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum = left.multiply_add::<FUSED>(*right, *sum);
        }
    }
}

/// A tile of a^T b: the tile's rows are neighbours in each line of `left`, from `row` on.
#[inline(always)]
fn transposed_tile<N: Number, const FUSED: bool, const TILE: usize>(
    left: &[Line<N>],
    row: usize,
    right: &[Line<N>],
    sums: &mut [Line<N>; TILE],
) {
    for (left, right) in left.iter().zip(right) {
        let left = &left[row..row + TILE];
        add_term::<N, FUSED, TILE>(sums, std::array::from_fn(|row| left[row]), right);
    }
}

/// A tile of a b, with the rows of `a` from `row` on and its columns from `term` on, panel by panel.
#[inline(always)]
fn plain_tile<N: Number, const FUSED: bool, const TILE: usize>(
    a: View<'_, N>,
    (row, term): (usize, usize),
    right: &[Line<N>],
    sums: &mut [Line<N>; TILE],
) {
    for (panel, right) in right.chunks(PANEL).enumerate() {
        let lines = &a.panel(term / PANEL + panel)[row..row + TILE];
        let lines: [&Line<N>; TILE] = std::array::from_fn(|row| &lines[row]);
        for (place, right) in right.iter().enumerate() {
            add_term::<N, FUSED, TILE>(sums, lines.map(|line| line[place]), right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::panels::Panels, *};

    /// Some small whole numbers, so that every sum is exact in any order.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 7 + seed) % 11) as f32 - 5.0).collect()
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "small whole numbers are exact")]
    fn products_are_right_in_every_size_and_tile() {
        type Product = fn(Left<'_, f32>, View<'_, f32>, Accumulation, ViewMut<'_, f32>);
        let by_tiles: [Product; 3] = [product, by_blocks::<f32, false, 4>, by_blocks::<f32, false, 8>];
        for (rows, terms, columns) in [(1, 1, 1), (4, 32, 32), (6, 7, 33), (65, 130, 31), (300, 290, 70)] {
            let (a, b) = (numbers(rows * terms, 1), numbers(terms * columns, 2));
            let mut plain = Panels::new(rows, terms).unwrap();
            plain.pack(&a, terms);
            let mut transposed = Panels::new(terms, rows).unwrap();
            transposed.pack_transposed(&a, rows);
            let mut right = Panels::new(terms, columns).unwrap();
            right.pack(&b, columns);
            let expected: Vec<f32> = (0..rows * columns)
                .map(|place| {
                    let (row, column) = (place / columns, place % columns);
                    (0..terms).map(|term| a[row * terms + term] * b[term * columns + column]).sum()
                })
                .collect();
            for product in by_tiles {
                for left in [Left::Plain(plain.view()), Left::Transposed(transposed.view())] {
                    let mut out = Panels::new(rows, columns).unwrap();
                    let mut found = vec![0.0; rows * columns];
                    for (accumulation, times) in
                        [(Accumulation::Replace, 1.0), (Accumulation::Add, 2.0), (Accumulation::Replace, 1.0)]
                    {
                        product(left, right.view(), accumulation, out.view_mut());
                        out.unpack(&mut found, columns);
                        assert!(
                            found.iter().zip(&expected).all(|(found, expected)| *found == expected * times)
                        );
                    }
                }
            }
        }
    }
}

//! The loops between the products, each one pass over its numbers, compiled for the widest vectors of the machine.
#![allow(clippy::inline_always, reason = "compiled once for each instruction set that it is called from")]

use super::Number;
use crate::dropout::{Dropout, RowKey};

/// The term against division by zero in the norms.
const NORM_EPSILON: f64 = 1e-5;
/// Sums of a row run in so many lanes.
const LANES: usize = 16;

/// Defines functions whose body is compiled again for AVX2 and AVX-512, and chosen at run time.
macro_rules! widest {
    ($($(#[$doc:meta])* $visibility:vis fn $name:ident<$number:ident>($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        #[allow(unsafe_code, reason = "each call stands behind a check that the processor has the instructions")]
        $visibility fn $name<$number: Number>($($argument: $kind),*) {
            #[inline(always)]
            fn plain<$number: Number>($($argument: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$number: Number>($($argument: $kind),*) { plain($($argument),*) }
                #[target_feature(enable = "avx2")]
                fn avx2<$number: Number>($($argument: $kind),*) { plain($($argument),*) }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has all four.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has it.
                    return unsafe { avx2($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    )*};
}

/// The cosine and sine of each pair's phase at each position, T x M/2 each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a, N> {
    pub(super) cos: &'a [N],
    pub(super) sin: &'a [N],
}

/// What is dropped from the rows of one head and sequence; none: nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drops<'a> {
    pub(super) rule: Option<Dropout>,
    /// A key for each row.
    pub(super) rows: &'a [RowKey],
}

impl Drops<'_> {
    #[inline(always)]
    fn row(&self, index: usize) -> RowKey {
        self.rows.get(index).copied().unwrap_or_default()
    }
}

widest! {
    /// q = relu(q), then r = rope(q).
    pub(super) fn relu_and_rope<N>(q: &mut [N], turn: Turn<'_, N>, r: &mut [N]) {
        for q in &mut *q {
            *q = q.max(N::ZERO);
        }
        rope_rows(q, turn, r);
    }

    /// r = rope(q): pairs (a, b) become (a cos - b sin, b cos + a sin).
    pub(super) fn rope<N>(q: &[N], turn: Turn<'_, N>, r: &mut [N]) {
        rope_rows(q, turn, r);
    }

    /// v = relu(v), then g = dropout(q v).
    pub(super) fn gate<N>(q: &[N], v: &mut [N], neurons: usize, drops: Drops<'_>, g: &mut [N]) {
        let scale = N::from_f64(drops.rule.map_or(1.0, |rule| rule.scale()));
        let rows = q.chunks_exact(neurons).zip(v.chunks_exact_mut(neurons)).zip(g.chunks_exact_mut(neurons));
        for (row, ((q, v), g)) in rows.enumerate() {
            let key = drops.row(row);
            for (index, ((q, v), g)) in q.iter().zip(v).zip(g).enumerate() {
                *v = v.max(N::ZERO);
                let kept = drops.rule.is_none_or(|rule| rule.keeps(key, index as u32));
                *g = if kept { *q * *v * scale } else { N::ZERO };
            }
        }
    }

    /// The gate again and its derivative, in one pass. `g` comes as dg, the derivative of the loss by the gated neurons,
    /// and leaves as the gated neurons; `dv` leaves as the derivative before v's relu, `dq` as that of q by this way.
    pub(super) fn gate_backward<N>(
        q: &[N], v: &[N], neurons: usize, drops: Drops<'_>, g: &mut [N], dv: &mut [N], dq: &mut [N],
    ) {
        let scale = N::from_f64(drops.rule.map_or(1.0, |rule| rule.scale()));
        let rows = q.chunks_exact(neurons).zip(v.chunks_exact(neurons)).zip(g.chunks_exact_mut(neurons))
            .zip(dv.chunks_exact_mut(neurons)).zip(dq.chunks_exact_mut(neurons));
        for (row, ((((q, v), g), dv), dq)) in rows.enumerate() {
            let key = drops.row(row);
            for (index, ((((q, v), g), dv), dq)) in q.iter().zip(v).zip(g).zip(dv).zip(dq).enumerate() {
                let kept = drops.rule.is_none_or(|rule| rule.keeps(key, index as u32));
                let scale = if kept { scale } else { N::ZERO };
                let dg = *g * scale;
                *g = *q * *v * scale;
                *dv = if *v > N::ZERO { dg * *q } else { N::ZERO };
                *dq = dg * *v;
            }
        }
    }

    /// dq = the derivative before q's relu: what comes by the gate (`dq`) and by the rope (`dr`, turned back).
    pub(super) fn rope_backward<N>(q: &[N], dr: &[N], turn: Turn<'_, N>, dq: &mut [N]) {
        let pairs = q.as_chunks::<2>().0.iter().zip(dr.as_chunks::<2>().0).zip(turn.cos.iter().zip(turn.sin))
            .zip(dq.as_chunks_mut::<2>().0);
        for (((q, dr), (cos, sin)), dq) in pairs {
            let turned = [dr[0] * *cos + dr[1] * *sin, dr[1] * *cos - dr[0] * *sin];
            dq[0] = if q[0] > N::ZERO { dq[0] + turned[0] } else { N::ZERO };
            dq[1] = if q[1] > N::ZERO { dq[1] + turned[1] } else { N::ZERO };
        }
    }

    /// y = norm(y), row by row of `width`; keeps the reciprocal deviation of each row.
    pub(super) fn norm<N>(y: &mut [N], width: usize, reciprocals: &mut [N]) {
        let share = N::from_f64(1.0 / width as f64);
        for (y, reciprocal) in y.chunks_exact_mut(width).zip(reciprocals) {
            let mean = sum(y, |y| y) * share;
            let variance = sum(y, |y| (y - mean) * (y - mean)) * share;
            *reciprocal = N::ONE / (variance + N::from_f64(NORM_EPSILON)).sqrt();
            for y in y {
                *y = (*y - mean) * *reciprocal;
            }
        }
    }

    /// dy = the derivative by what was normed, from `dy` by the result `y`: (dy - mean(dy) - y mean(dy y)) / deviation.
    pub(super) fn norm_backward<N>(y: &[N], width: usize, reciprocals: &[N], dy: &mut [N]) {
        let share = N::from_f64(1.0 / width as f64);
        for ((y, dy), reciprocal) in y.chunks_exact(width).zip(dy.chunks_exact_mut(width)).zip(reciprocals) {
            let mean = sum(dy, |dy| dy) * share;
            let along = dot(dy, y) * share;
            for (dy, y) in dy.iter_mut().zip(y) {
                *dy = (*dy - mean - *y * along) * *reciprocal;
            }
        }
    }

    /// y += x
    pub(super) fn add<N>(x: &[N], y: &mut [N]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *y + *x;
        }
    }
}

#[inline(always)]
fn rope_rows<N: Number>(q: &[N], turn: Turn<'_, N>, r: &mut [N]) {
    let pairs = q.as_chunks::<2>().0.iter().zip(r.as_chunks_mut::<2>().0);
    for ((q, r), (cos, sin)) in pairs.zip(turn.cos.iter().zip(turn.sin)) {
        *r = [q[0] * *cos - q[1] * *sin, q[1] * *cos + q[0] * *sin];
    }
}

/// The sum of `f` over a row, in lanes that are added up at the end: the same order on every machine.
#[inline(always)]
fn sum<N: Number>(row: &[N], f: impl Fn(N) -> N) -> N {
    let mut lanes = [N::ZERO; LANES];
    let (groups, rest) = row.as_chunks::<LANES>();
    for group in groups {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *lane = *lane + f(*x);
        }
    }
    rest.iter().fold(total(lanes), |sum, x| sum + f(*x))
}

#[inline(always)]
fn dot<N: Number>(a: &[N], b: &[N]) -> N {
    let mut lanes = [N::ZERO; LANES];
    let ((a_groups, a_rest), (b_groups, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_groups.iter().zip(b_groups) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = *lane + *a * *b;
        }
    }
    a_rest.iter().zip(b_rest).fold(total(lanes), |sum, (a, b)| sum + *a * *b)
}

#[inline(always)]
fn total<N: Number>(lanes: [N; LANES]) -> N {
    lanes.into_iter().fold(N::ZERO, |sum, lane| sum + lane)
}

/// Strictly below the diagonal stays; the rest of the `size` x `size` matrix within rows of `stride` becomes 0.
pub(super) fn keep_below_diagonal<N: Number>(square: &mut [N], size: usize, stride: usize) {
    for row in 0..size {
        square[row * stride + row..][..size - row].fill(N::ZERO);
    }
}

/// Copies the part below the diagonal of a T x T matrix to the part above: s + s^T for an s with nothing above.
pub(super) fn mirror<N: Number>(square: &mut [N], size: usize) {
    /// Rows and columns of a tile, so that both sides stay in the nearest cache.
    const TILE: usize = 32;
    for row_tile in (0..size).step_by(TILE) {
        for column_tile in (0..=row_tile).step_by(TILE) {
            for row in row_tile..size.min(row_tile + TILE) {
                for column in column_tile..row.min(column_tile + TILE) {
                    square[column * size + row] = square[row * size + column];
                }
            }
        }
    }
}

/// The sum of the cross-entropies of `targets`, in f64; `logits` (T x V) become their derivatives times `weight`.
pub(super) fn cross_entropy<N: Number>(
    logits: &mut [N],
    vocabulary: usize,
    targets: &[i64],
    weight: f64,
    mut each: impl FnMut(usize, f64),
) {
    for (position, (logits, target)) in logits.chunks_exact_mut(vocabulary).zip(targets).enumerate() {
        let highest = logits.iter().fold(logits[0], |highest, logit| highest.max(*logit));
        let target = *target as usize;
        let target_logit = logits[target];
        let mut total = 0.0;
        for logit in logits.iter_mut() {
            *logit = (*logit - highest).exp();
            total += logit.to_f64();
        }
        each(position, total.ln() - (target_logit - highest).to_f64());
        let share = N::from_f64(weight / total);
        for logit in &mut *logits {
            *logit = *logit * share;
        }
        logits[target] = logits[target] - N::from_f64(weight);
    }
}

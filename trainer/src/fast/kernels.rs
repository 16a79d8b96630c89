//! The loops between the products, each one pass over its numbers, compiled for the widest vectors of the machine.
//!
//! Everywhere a row is a neuron, a place in the width or a byte of the vocabulary, and a column is a token: what is
//! summed up over rows, turned with the next row or hashed with its own number goes 16 tokens at a time.
#![allow(clippy::inline_always, reason = "compiled once for each instruction set that it is called from")]

use super::{
    multiversion::multiversion,
    number::Number,
    panels::{Line, PANEL, View, ViewMut, transposed_tile},
};
use crate::dropout::{Dropout, RowKeys};

/// The term against division by zero in the norms.
const NORM_EPSILON: f64 = 1e-5;

/// The cosine and sine of each pair's phase (rows) at each position (columns), M/2 x T each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rope<'a, N> {
    pub(super) cos: View<'a, N>,
    pub(super) sin: View<'a, N>,
}

impl<N> Rope<'_, N> {
    /// That of some of the neurons: an even number, from an even one on.
    pub(super) fn neurons(self, neurons: std::ops::Range<usize>) -> Self {
        let pairs = neurons.start / 2..neurons.end / 2;
        Self { cos: self.cos.rows(pairs.clone()), sin: self.sin.rows(pairs) }
    }
}

/// What is dropped from some of the neurons of one head and sequence; no rule: nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drops<'a> {
    pub(super) rule: Option<Dropout>,
    /// A key for each token.
    pub(super) keys: &'a [RowKeys<PANEL>],
    /// The number of the first neuron.
    pub(super) first: usize,
}

impl Drops<'_> {
    /// What the neuron in `row` is multiplied by at each token of a panel.
    #[inline(always)]
    fn scales<N: Number>(&self, panel: usize, row: usize, scale: N) -> Line<N> {
        match self.rule {
            None => [N::ONE; PANEL],
            Some(rule) => {
                let (keys, neuron) = (&self.keys[panel], (self.first + row) as u32);
                std::array::from_fn(|place| if rule.keeps(keys.get(place), neuron) { scale } else { N::ZERO })
            }
        }
    }

    fn scale<N: Number>(&self) -> N {
        N::from_f64(self.rule.map_or(1.0, |rule| rule.scale()))
    }
}

multiversion! {
    /// q = relu(q), then r = rope(q): pairs (a, b) of rows become (a cos - b sin, b cos + a sin).
    pub(super) fn relu_and_rope<N>(q: ViewMut<'_, N>, rope: Rope<'_, N>, r: ViewMut<'_, N>) {
        let (mut q, mut r) = (q, r);
        for panel in 0..q.panel_count() {
            let pairs = q.panel(panel).as_chunks_mut::<2>().0.iter_mut().zip(r.panel(panel).as_chunks_mut::<2>().0);
            for ((q, r), (cos, sin)) in pairs.zip(rope.cos.panel(panel).iter().zip(rope.sin.panel(panel))) {
                for q in &mut *q {
                    *q = relu(q);
                }
                turn_pair(q, cos, sin, r);
            }
        }
    }

    /// r = rope(q)
    pub(super) fn rope<N>(q: View<'_, N>, rope: Rope<'_, N>, r: ViewMut<'_, N>) {
        let mut r = r;
        for panel in 0..q.panel_count() {
            let pairs = q.panel(panel).as_chunks::<2>().0.iter().zip(r.panel(panel).as_chunks_mut::<2>().0);
            for ((q, r), (cos, sin)) in pairs.zip(rope.cos.panel(panel).iter().zip(rope.sin.panel(panel))) {
                turn_pair(q, cos, sin, r);
            }
        }
    }

    /// dq = the derivative before q's relu: what comes by the gate (`dq`) and by the rope (`dr`, turned back).
    pub(super) fn rope_backward<N>(q: View<'_, N>, dr: View<'_, N>, rope: Rope<'_, N>, dq: ViewMut<'_, N>) {
        let mut dq = dq;
        for panel in 0..q.panel_count() {
            let q = q.panel(panel).as_chunks::<2>().0;
            let dr = dr.panel(panel).as_chunks::<2>().0;
            let dq = dq.panel(panel).as_chunks_mut::<2>().0;
            let turns = rope.cos.panel(panel).iter().zip(rope.sin.panel(panel));
            for (((q, dr), dq), (cos, sin)) in q.iter().zip(dr).zip(dq).zip(turns) {
                for place in 0..PANEL {
                    let (cos, sin, dr) = (cos[place], sin[place], [dr[0][place], dr[1][place]]);
                    let turned = [dr[0] * cos + dr[1] * sin, dr[1] * cos - dr[0] * sin];
                    for (half, turned) in turned.into_iter().enumerate() {
                        let sum = dq[half][place] + turned;
                        dq[half][place] = if q[half][place] > N::ZERO { sum } else { N::ZERO };
                    }
                }
            }
        }
    }

    /// v = relu(v), then g = dropout(q v).
    pub(super) fn gate<N>(q: View<'_, N>, v: ViewMut<'_, N>, drops: Drops<'_>, g: ViewMut<'_, N>) {
        let (mut v, mut g, scale) = (v, g, drops.scale());
        for panel in 0..q.panel_count() {
            let rows = q.panel(panel).iter().zip(v.panel(panel)).zip(g.panel(panel)).enumerate();
            for (row, ((q, v), g)) in rows {
                let scales = drops.scales(panel, row, scale);
                *v = relu(v);
                *g = each(&each(q, v, |q, v| q * v), &scales, |g, scale| g * scale);
            }
        }
    }

    /// The gate again and its derivative, in one pass. `g` comes as dg, the derivative of the loss by the gated neurons,
    /// and leaves as the gated neurons; `dv` leaves as the derivative before v's relu; `v` leaves as dq, the derivative
    /// of q by this way.
    pub(super) fn gate_backward<N>(
        q: View<'_, N>, v: ViewMut<'_, N>, drops: Drops<'_>, g: ViewMut<'_, N>, dv: ViewMut<'_, N>,
    ) {
        let (mut v, mut g, mut dv, scale) = (v, g, dv, drops.scale());
        for panel in 0..q.panel_count() {
            let rows = q.panel(panel).iter().zip(v.panel(panel)).zip(g.panel(panel)).zip(dv.panel(panel)).enumerate();
            for (row, (((q, v), g), dv)) in rows {
                let scales = drops.scales(panel, row, scale);
                let dg = each(g, &scales, |dg, scale| dg * scale);
                *g = each(&each(q, v, |q, v| q * v), &scales, |g, scale| g * scale);
                let through = each(&dg, q, |dg, q| dg * q);
                *dv = each(&through, v, |through, v| if v > N::ZERO { through } else { N::ZERO });
                *v = each(&dg, v, |dg, v| dg * v);
            }
        }
    }

    /// y = norm(y), token by token over the first `width` rows; keeps the reciprocal deviation of each token.
    pub(super) fn norm<N>(y: ViewMut<'_, N>, width: usize, reciprocals: &mut [Line<N>]) {
        let (mut y, share) = (y, N::from_f64(1.0 / width as f64));
        for (panel, reciprocal) in reciprocals.iter_mut().enumerate() {
            let y = &mut y.panel(panel)[..width];
            let mean = sum(y.iter().copied()).map(|sum| sum * share);
            let variance = sum(y.iter().map(|y| each(y, &mean, |y, mean| (y - mean) * (y - mean))));
            *reciprocal = variance.map(|sum| N::ONE / (sum * share + N::from_f64(NORM_EPSILON)).sqrt());
            for y in y {
                for place in 0..PANEL {
                    y[place] = (y[place] - mean[place]) * reciprocal[place];
                }
            }
        }
    }

    /// dy = the derivative by what was normed, from `dy` by the result `y`: (dy - mean(dy) - y mean(dy y)) / deviation.
    pub(super) fn norm_backward<N>(y: View<'_, N>, width: usize, reciprocals: &[Line<N>], dy: ViewMut<'_, N>) {
        let (mut dy, share) = (dy, N::from_f64(1.0 / width as f64));
        for (panel, reciprocal) in reciprocals.iter().enumerate() {
            let (y, dy) = (&y.panel(panel)[..width], &mut dy.panel(panel)[..width]);
            let mean = sum(dy.iter().copied()).map(|sum| sum * share);
            let along = sum(dy.iter().zip(y).map(|(dy, y)| each(dy, y, |dy, y| dy * y))).map(|sum| sum * share);
            for (dy, y) in dy.iter_mut().zip(y) {
                for place in 0..PANEL {
                    dy[place] = (dy[place] - mean[place] - y[place] * along[place]) * reciprocal[place];
                }
            }
        }
    }

    /// y += x
    pub(super) fn add<N>(x: &[Line<N>], y: &mut [Line<N>]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = each(y, x, |y, x| y + x);
        }
    }

    /// b = a^T
    pub(super) fn transpose<N>(a: View<'_, N>, b: ViewMut<'_, N>) {
        let mut b = b;
        for panel in 0..a.panel_count() {
            for (index, tile) in a.panel(panel).as_chunks::<PANEL>().0.iter().enumerate() {
                b.panel(index)[panel * PANEL..][..PANEL].copy_from_slice(&transposed_tile(tile));
            }
        }
    }

    /// b += a^T
    pub(super) fn add_transpose<N>(a: View<'_, N>, b: ViewMut<'_, N>) {
        let mut b = b;
        for panel in 0..a.panel_count() {
            for (index, tile) in a.panel(panel).as_chunks::<PANEL>().0.iter().enumerate() {
                for (sum, line) in b.panel(index)[panel * PANEL..][..PANEL].iter_mut().zip(transposed_tile(tile)) {
                    *sum = each(sum, &line, |sum, term| sum + term);
                }
            }
        }
    }

    /// Copies the part above the diagonal of a square matrix to the part below: u + u^T for a u with nothing there.
    pub(super) fn mirror<N>(square: ViewMut<'_, N>) {
        let mut square = square;
        for panel in 0..square.panel_count() {
            for index in 0..=panel {
                let tile: [Line<N>; PANEL] = std::array::from_fn(|row| square.panel(panel)[index * PANEL + row]);
                let turned = transposed_tile(&tile);
                let below = &mut square.panel(index)[panel * PANEL..][..PANEL];
                for (row, (below, turned)) in below.iter_mut().zip(turned).enumerate() {
                    // On the diagonal itself only what lies below it is copied.
                    let count = if index == panel { row } else { PANEL };
                    below[..count].copy_from_slice(&turned[..count]);
                }
            }
        }
    }
}

#[inline(always)]
fn relu<N: Number>(q: &Line<N>) -> Line<N> {
    std::array::from_fn(|place| q[place].max(N::ZERO))
}

/// One pair of rows, turned: (a cos - b sin, b cos + a sin).
#[inline(always)]
fn turn_pair<N: Number>(q: &[Line<N>; 2], cos: &Line<N>, sin: &Line<N>, r: &mut [Line<N>; 2]) {
    r[0] = pair(&q[0], cos, &q[1], sin, |a, cos, b, sin| a * cos - b * sin);
    r[1] = pair(&q[1], cos, &q[0], sin, |a, cos, b, sin| a * cos + b * sin);
}

#[inline(always)]
fn pair<N: Number>(
    a: &Line<N>,
    cos: &Line<N>,
    b: &Line<N>,
    sin: &Line<N>,
    f: impl Fn(N, N, N, N) -> N,
) -> Line<N> {
    std::array::from_fn(|place| f(a[place], cos[place], b[place], sin[place]))
}

#[inline(always)]
fn each<N: Number>(a: &Line<N>, b: &Line<N>, f: impl Fn(N, N) -> N) -> Line<N> {
    std::array::from_fn(|place| f(a[place], b[place]))
}

/// The sum of lines, in four parts that are added up at the end: rounding stays small, and no addition waits for the one
/// before.
#[inline(always)]
fn sum<N: Number>(lines: impl Iterator<Item = Line<N>>) -> Line<N> {
    let mut parts = [[N::ZERO; PANEL]; 4];
    for (index, line) in lines.enumerate() {
        let part = &mut parts[index % 4];
        *part = each(part, &line, |sum, term| sum + term);
    }
    let [a, b, c, d] = &parts;
    each(&each(a, b, |a, b| a + b), &each(c, d, |c, d| c + d), |sum, other| sum + other)
}

/// Strictly above the diagonal stays; the rest of the tiles on the diagonal becomes 0.
pub(super) fn keep_above_diagonal<N: Number>(mut square: ViewMut<'_, N>) {
    for panel in 0..square.panel_count() {
        for (row, line) in square.panel(panel)[panel * PANEL..][..PANEL].iter_mut().enumerate() {
            line[..=row].fill(N::ZERO);
        }
    }
}

/// The cross-entropy of each of `targets` in nats, told to `each`; `logits` (V x T) become their derivatives times
/// `weight`, and 0 where there is no target.
pub(super) fn cross_entropy<N: Number>(
    mut logits: ViewMut<'_, N>,
    vocabulary: usize,
    targets: &[i64],
    weight: f64,
    mut told: impl FnMut(usize, f64),
) {
    for panel in 0..logits.panel_count() {
        let lines = &mut logits.panel(panel)[..vocabulary];
        let targets = &targets[panel * PANEL..targets.len().min((panel + 1) * PANEL)];
        let highest = lines.iter().fold(lines[0], |highest, line| each(&highest, line, N::max));
        let target_logits: Vec<N> =
            targets.iter().zip(0..).map(|(target, place)| lines[*target as usize][place]).collect();
        let mut totals = [0.0; PANEL];
        for line in lines.iter_mut() {
            for (place, logit) in line.iter_mut().enumerate() {
                *logit = (*logit - highest[place]).exp();
                totals[place] += logit.to_f64();
            }
        }
        let mut shares = [N::ZERO; PANEL];
        for (place, target_logit) in target_logits.into_iter().enumerate() {
            told(panel * PANEL + place, totals[place].ln() - (target_logit - highest[place]).to_f64());
            shares[place] = N::from_f64(weight / totals[place]);
        }
        for line in lines.iter_mut() {
            *line = each(line, &shares, |logit, share| logit * share);
        }
        for (place, target) in targets.iter().enumerate() {
            let logit = &mut lines[*target as usize][place];
            *logit = *logit - N::from_f64(weight);
        }
    }
}

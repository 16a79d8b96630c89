//! The equations, over the bytes of one stream or of several: layer by layer and head by head, all bytes before the
//! next.
//!
//! A byte needs, of the bytes before it, only what they have left in the state of the same layer and head. So a block
//! of bytes goes through a layer together: weights and state are fetched from memory once and serve every byte in it.
//! Each sum keeps the order that it has for a block of one, so the blocks do not change a bit.
//!
//! A silent neuron costs nothing after it has been found silent: the neurons that are active for a byte are listed
//! once, and rows of the state, of encoder_v and of decoder are read for those alone.
#![allow(clippy::inline_always, reason = "compiled once for each instruction set that it is called from")]

use std::ops::Range;

use crate::{
    loops::{
        ROWS_AHEAD, TileRow, WeightedRow, add_rows, add_scaled, dot, multiply_tile, normalise,
        prefetch_ahead, rotate,
    },
    model::{Layers, Model, TILE},
    multiversion::Work,
    number::Number,
    part::{Course, PART_BYTES_MAX},
    rope::cosine_and_sine,
    simd::{Vector, prefetch},
    state::State,
};

/// Most bytes in one block: what a block needs beside weights and state stays in the caches next to the core.
pub(crate) const BLOCK_BYTES: usize = 32;
/// Pairs in one tile of the encoder.
const TILE_PAIRS: usize = TILE / 2;
/// Pairs of neurons whose rows stay in the nearest cache while the bytes of a block pass by.
const GROUP_PAIRS: usize = 16;
/// Below so many bytes in a block, rows of weights are not near by themselves when they are needed.
const NEAR_BYTES_MIN: usize = 8;

/// The next bytes of one stream, all of one part, and the state that they see and change.
pub(crate) struct Stream<'a, N> {
    pub(crate) state: &'a mut State<N>,
    pub(crate) course: Course,
    /// Of the first of `bytes`.
    pub(crate) position: u64,
    pub(crate) bytes: &'a [u8],
}

/// Room for one block, so that nothing is allocated while bytes are fed.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    /// D.
    width: usize,
    /// M with the filling of the last tile.
    room: usize,
    /// The residual stream of each byte, D.
    x: Vec<f32>,
    /// What attention gives one head for each byte, D.
    a: Vec<f32>,
    /// The same in tiles: for each tile of the width a row for each byte.
    a_tiles: Vec<TileRow<f32>>,
    /// Sum over the heads of what the decoder gives, in such tiles.
    y_tiles: Vec<TileRow<f32>>,
    /// A row for each byte: the neurons of one tile, or what is to be added.
    rows: [TileRow<f32>; BLOCK_BYTES],
    /// What each byte has in common with those of a part.
    scores: Vec<f32>,
    /// Cosine and sine of the angle of each byte's position, for each tile, each byte, each pair in the tile.
    angles: Vec<[[f32; 2]; TILE_PAIRS]>,
    /// q: the active neurons of one head.
    active: Lists,
    /// r: the same and their neighbours, turned.
    turned: Lists,
    /// Of one byte, those neurons that the gate lets through.
    gated: Vec<WeightedRow>,
    /// Neurons found active, and all that were asked.
    pub(crate) activity: [u64; 2],
}

impl Scratch {
    pub(crate) fn new(model: &Model) -> Self {
        let (width, room) =
            (model.config().width(), model.config().neurons_per_head().next_multiple_of(TILE));
        let tiles = vec![[0.0; TILE]; BLOCK_BYTES * width.div_ceil(TILE)];
        Self {
            width,
            room,
            x: vec![0.0; BLOCK_BYTES * width],
            a: vec![0.0; BLOCK_BYTES * width],
            a_tiles: tiles.clone(),
            y_tiles: tiles,
            rows: [[0.0; TILE]; BLOCK_BYTES],
            scores: vec![0.0; BLOCK_BYTES * PART_BYTES_MAX],
            angles: vec![[[0.0; 2]; TILE_PAIRS]; BLOCK_BYTES * room / TILE],
            active: Lists::new(room),
            turned: Lists::new(room),
            gated: vec![WeightedRow::default(); room],
            activity: [0; 2],
        }
    }

    /// The residual stream of the byte at `index` of the last block.
    pub(crate) fn x(&self, index: usize) -> &[f32] {
        &self.x[index * self.width..][..self.width]
    }
}

/// For each byte of a block a list of neurons, in order.
#[derive(Clone, Debug)]
struct Lists {
    /// Room for so many neurons for each byte.
    room: usize,
    entries: Vec<WeightedRow>,
    /// For each group of neurons, and each byte, where the group ends in the list.
    ends: Vec<[usize; BLOCK_BYTES]>,
}

impl Lists {
    fn new(room: usize) -> Self {
        let entries = vec![WeightedRow::default(); BLOCK_BYTES * room];
        Self { room, entries, ends: vec![[0; BLOCK_BYTES]; room / (2 * GROUP_PAIRS)] }
    }

    fn groups(&self) -> usize {
        self.ends.len()
    }

    /// A byte's whole list.
    #[inline(always)]
    fn list(&self, byte: usize) -> &[WeightedRow] {
        let end = self.ends.last().map_or(0, |ends| ends[byte]);
        &self.entries[byte * self.room..][..end]
    }

    /// The part of a byte's list that lies in one group of neurons.
    #[inline(always)]
    fn piece(&self, group: usize, byte: usize) -> &[WeightedRow] {
        let start = if group == 0 { 0 } else { self.ends[group - 1][byte] };
        &self.entries[byte * self.room..][start..self.ends[group][byte]]
    }
}

/// Takes the bytes of all `streams`, together at most [`BLOCK_BYTES`], through all layers. Their residual streams are
/// then in `scratch`, in the same order.
pub(crate) struct Forward<'a, 'b, N> {
    pub(crate) model: &'a Model,
    pub(crate) layers: &'a Layers<N>,
    pub(crate) streams: &'a mut [Stream<'b, N>],
    pub(crate) scratch: &'a mut Scratch,
}

impl<N: Number> Work for Forward<'_, '_, N> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Self { model, layers, streams, scratch } = self;
        let count = streams.iter().map(|stream| stream.bytes.len()).sum();
        let width = scratch.width;
        let bytes = streams.iter().flat_map(|stream| stream.bytes);
        for (x, byte) in scratch.x.chunks_exact_mut(width).zip(bytes) {
            x.copy_from_slice(model.embed.row(usize::from(*byte)));
            normalise::<V>(x);
        }
        set_angles::<N, V>(&mut scratch.angles, &model.frequencies, streams, count);

        let heads = model.config().heads();
        for layer in 0..model.config().layers() {
            remember_values(streams, layer, scratch);
            scratch.y_tiles.fill([0.0; TILE]);
            for head in 0..heads {
                encode::<N, V>(layers, head, scratch, count);
                attend::<N, V>(model, streams, (layer, layer * heads + head), scratch);
                for byte in 0..count {
                    let a = &mut scratch.a[byte * width..][..width];
                    from_tiles(&scratch.a_tiles, byte, a);
                    normalise::<V>(a);
                }
                decode::<N, V>(layers, head, scratch, count);
            }
            for byte in 0..count {
                let (y, x) = (&mut scratch.a[..width], &mut scratch.x[byte * width..][..width]);
                from_tiles(&scratch.y_tiles, byte, y);
                normalise::<V>(y);
                add_scaled::<V>(x, 1.0, y);
                normalise::<V>(x);
            }
        }
    }
}

/// logits = x @ lm_head. `logits` has room for the last tile's filling.
pub(crate) struct ReadOut<'a> {
    pub(crate) model: &'a Model,
    pub(crate) x: &'a [f32],
    pub(crate) logits: &'a mut [f32],
}

impl Work for ReadOut<'_> {
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (logits, tile) in self.logits.as_chunks_mut().0.iter_mut().zip(self.model.lm_head.matrix(0)) {
            multiply_tile::<f32, V>(self.x, tile, std::slice::from_mut(logits));
        }
    }
}

/// Cosine and sine of each pair's angle at each byte's position.
#[inline(always)]
fn set_angles<N, V: Vector>(
    angles: &mut [[[f32; 2]; TILE_PAIRS]],
    frequencies: &[u64],
    streams: &[Stream<N>],
    count: usize,
) {
    for (frequencies, angles) in frequencies.chunks(TILE_PAIRS).zip(angles.chunks_exact_mut(count)) {
        let mut angles = angles.iter_mut();
        for stream in streams {
            for (index, angles) in angles.by_ref().take(stream.bytes.len()).enumerate() {
                let position = stream.position + index as u64;
                for (angle, frequency) in angles.iter_mut().zip(frequencies) {
                    *angle = cosine_and_sine::<V>(position, *frequency);
                }
            }
        }
    }
}

/// Writes what goes into the layer for each byte into the newest part of its stream.
#[inline(always)]
fn remember_values<N>(streams: &mut [Stream<N>], layer: usize, scratch: &Scratch) {
    let width_tiles = scratch.width.div_ceil(TILE);
    let mut x = scratch.x.chunks_exact(scratch.width);
    for stream in streams {
        let part_len = stream.state.byte_tiles * TILE;
        let start = stream.course.into_part(stream.position);
        let values = &mut stream.state.recent.values[layer * width_tiles * part_len..];
        for (at, x) in (start..).zip(x.by_ref().take(stream.bytes.len())) {
            for (tile, x) in x.chunks(TILE).enumerate() {
                values[tile * part_len + at][..x.len()].copy_from_slice(x);
            }
        }
    }
}

/// q = relu(x @ encoder), r = rope(q) for one head, as lists of the neurons that are active.
#[inline(always)]
fn encode<N: Number, V: Vector>(layers: &Layers<N>, head: usize, scratch: &mut Scratch, count: usize) {
    const GROUPS: usize = TILE_PAIRS / GROUP_PAIRS;
    let Scratch { x, rows, angles, active, turned, room, activity, .. } = scratch;
    let (rows, room) = (&mut rows[..count], *room);
    let mut ends = [[0; 2]; BLOCK_BYTES];
    let tiles = layers.encoder.matrix(head).zip(angles.chunks_exact(count));
    for (index, (tile, angles)) in tiles.enumerate() {
        multiply_tile::<N, V>(x, tile, rows);
        for byte in 0..count {
            let [mut active_end, mut turned_end] = ends[byte];
            let active_list = &mut active.entries[byte * room..][..room];
            let turned_list = &mut turned.entries[byte * room..][..room];
            for group in 0..GROUPS {
                for pair in group * GROUP_PAIRS..(group + 1) * GROUP_PAIRS {
                    let q = [rows[byte][2 * pair].max(0.0), rows[byte][2 * pair + 1].max(0.0)];
                    let r = rotate::<V>(q, angles[byte][pair]);
                    // Written in any case and kept only if active: there is no telling which way a branch would go.
                    let first = (index * TILE + 2 * pair) as u32;
                    active_list[active_end] = WeightedRow { row: first, weight: q[0] };
                    active_end += usize::from(q[0] > 0.0);
                    active_list[active_end] = WeightedRow { row: first + 1, weight: q[1] };
                    active_end += usize::from(q[1] > 0.0);
                    turned_list[turned_end] = WeightedRow { row: first, weight: r[0] };
                    turned_list[turned_end + 1] = WeightedRow { row: first + 1, weight: r[1] };
                    turned_end += 2 * usize::from(q[0] + q[1] > 0.0);
                }
                active.ends[index * GROUPS + group][byte] = active_end;
                turned.ends[index * GROUPS + group][byte] = turned_end;
            }
            ends[byte] = [active_end, turned_end];
        }
    }
    let found: usize = ends[..count].iter().map(|[active_end, _]| active_end).sum();
    *activity = [activity[0] + found as u64, activity[1] + (count * layers.neurons_per_head) as u64];
}

/// a = sum over s < t of (r_t . r_s) x_s for one head, and r_t is remembered.
#[inline(always)]
fn attend<N: Number, V: Vector>(
    model: &Model,
    streams: &mut [Stream<N>],
    (layer, layer_and_head): (usize, usize),
    scratch: &mut Scratch,
) {
    let neurons = model.config().neurons_per_head();
    let mut first = 0;
    for stream in streams {
        let bytes = first..first + stream.bytes.len();
        first = bytes.end;
        let State { byte_tiles, recent, past } = &mut *stream.state;
        let start = stream.course.into_part(stream.position);
        let own_keys = layer_and_head * *byte_tiles * neurons;
        let own_values = |values_len: usize| {
            let len = values_len / model.config().layers();
            layer * len..(layer + 1) * len
        };

        for (at, byte) in (start..).zip(bytes.clone()) {
            let keys = &mut recent.keys[own_keys + at / TILE * neurons..][..neurons];
            let turned = scratch.turned.list(byte);
            for (index, WeightedRow { row, weight }) in turned.iter().enumerate() {
                prefetch_ahead(keys, turned, index);
                keys[*row as usize][at % TILE] = N::from_f32(*weight);
            }
        }

        // A byte sees those before it, so of the part nothing from the last one's own place on.
        let seen = start + bytes.len() - 1;
        let tiles = seen.div_ceil(TILE);
        score::<N, V>(&recent.keys[own_keys..], neurons, tiles, bytes.clone(), scratch);
        for (at, scores) in
            (start..).zip(scratch.scores.chunks_exact_mut((tiles * TILE).max(1))).take(bytes.len())
        {
            scores[at.min(tiles * TILE)..].fill(0.0);
        }
        let values = &recent.values[own_values(recent.values.len())];
        weigh_values::<V>(values, *byte_tiles, tiles, bytes.clone(), false, scratch);

        if let Some(before) = past.part(stream.course, stream.position) {
            score::<N, V>(&before.keys[own_keys..], neurons, *byte_tiles, bytes.clone(), scratch);
            let values = &before.values[own_values(before.values.len())];
            weigh_values::<V>(values, *byte_tiles, *byte_tiles, bytes.clone(), true, scratch);
        }
        let width_tiles = scratch.width.div_ceil(TILE);
        for sum in past.sums(stream.course, stream.position).into_iter().flatten() {
            let sum = &sum[layer_and_head * width_tiles * neurons..][..width_tiles * neurons];
            for (tile, sum) in sum.chunks_exact(neurons).enumerate() {
                let a = &mut scratch.a_tiles[tile * BLOCK_BYTES..][..BLOCK_BYTES];
                add_listed::<N, V>(sum, &scratch.turned, bytes.clone(), a);
            }
        }
    }
}

/// scores = r . r_s for each of `bytes` and all s in the first `tiles` of a part's `keys`; a row of so many tiles for
/// each byte, from the first row on.
#[inline(always)]
fn score<N: Number, V: Vector>(
    keys: &[TileRow<N>],
    neurons: usize,
    tiles: usize,
    bytes: Range<usize>,
    scratch: &mut Scratch,
) {
    for (tile, keys) in keys.chunks_exact(neurons).take(tiles).enumerate() {
        let rows = &mut scratch.rows;
        rows[bytes.clone()].fill([0.0; TILE]);
        add_listed::<N, V>(keys, &scratch.turned, bytes.clone(), rows);
        for (row, scores) in rows[bytes.clone()].iter().zip(scratch.scores.chunks_exact_mut(tiles * TILE)) {
            scores[tile * TILE..][..TILE].copy_from_slice(row);
        }
    }
}

/// a = scores @ values over the first `tiles` of a part, or a += it if `is_more`.
#[inline(always)]
fn weigh_values<V: Vector>(
    values: &[TileRow<f32>],
    byte_tiles: usize,
    tiles: usize,
    bytes: Range<usize>,
    is_more: bool,
    scratch: &mut Scratch,
) {
    let count = bytes.len();
    for (tile, values) in values.chunks_exact(byte_tiles * TILE).enumerate() {
        let products = &mut scratch.rows[..count];
        multiply_tile::<f32, V>(&scratch.scores, &values[..tiles * TILE], products);
        let a = &mut scratch.a_tiles[tile * BLOCK_BYTES..][bytes.clone()];
        for (a, product) in a.iter_mut().zip(products) {
            for (a, product) in a.iter_mut().zip(product) {
                *a = if is_more { *a + *product } else { *product };
            }
        }
    }
}

/// For each of `bytes`, adds the listed rows of `matrix` to its row of `sums`. Of one byte alone all rows at once; of
/// more, group by group, so that rows stay near for all.
#[inline(always)]
fn add_listed<N: Number, V: Vector>(
    matrix: &[TileRow<N>],
    lists: &Lists,
    bytes: Range<usize>,
    sums: &mut [TileRow<f32>],
) {
    if bytes.len() == 1 {
        return add_rows::<N, V, true>(matrix, lists.list(bytes.start), &mut sums[bytes.start]);
    }
    for group in 0..lists.groups() {
        for byte in bytes.clone() {
            add_rows::<N, V, false>(matrix, lists.piece(group, byte), &mut sums[byte]);
        }
    }
}

/// y += (q * relu(a @ encoder_v)) @ decoder for one head.
#[inline(always)]
fn decode<N: Number, V: Vector>(layers: &Layers<N>, head: usize, scratch: &mut Scratch, count: usize) {
    let first = head * layers.neurons_per_head;
    let Scratch { width, a, y_tiles, active, gated, .. } = scratch;
    let is_far = count < NEAR_BYTES_MIN;
    let groups = if is_far { 1 } else { active.groups() };
    for group in 0..groups {
        for byte in 0..count {
            let active = if is_far { active.list(byte) } else { active.piece(group, byte) };
            let a = &a[byte * *width..][..*width];
            let mut end = 0;
            for (index, WeightedRow { row, weight }) in active.iter().enumerate() {
                if is_far && let Some(later) = active.get(index + ROWS_AHEAD) {
                    prefetch(layers.encoder_v.row(first + later.row as usize));
                }
                let gate = dot::<N, V>(a, layers.encoder_v.row(first + *row as usize));
                gated[end] = WeightedRow { row: *row, weight: weight * gate };
                end += usize::from(gate > 0.0);
            }
            for (tile, decoder) in layers.decoder.matrix(head).enumerate() {
                let y = &mut y_tiles[tile * BLOCK_BYTES + byte];
                if is_far {
                    add_rows::<N, V, true>(decoder, &gated[..end], y);
                } else {
                    add_rows::<N, V, false>(decoder, &gated[..end], y);
                }
            }
        }
    }
}

/// The row of `byte` from all tiles, one after the other.
#[inline(always)]
fn from_tiles(tiles: &[TileRow<f32>], byte: usize, row: &mut [f32]) {
    for (row, tile) in row.chunks_mut(TILE).zip(tiles.chunks_exact(BLOCK_BYTES)) {
        row.copy_from_slice(&tile[byte][..row.len()]);
    }
}

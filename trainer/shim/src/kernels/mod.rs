//! What lies between the matrix products of BDH on a GPU: `kernels.cu`, and the only way to call it.
//!
//! Every tensor that goes in is checked for kind, size, place and device, because a kernel believes what it is told. The
//! sizes are those of `kernels.cu`; what a kernel writes is borrowed alone.

mod call;
mod cuda;
#[cfg(feature = "emulation")]
mod emulation;
mod nvrtc;

pub use cuda::{CudaError, compile};

use tch::{Device, Kind, TchError, Tensor};

use self::call::Call;

pub(crate) const SOURCE: &str = include_str!("kernels.cu");
const NAMES: [&str; 17] = [
    "rope",
    "rope_backward",
    "gate",
    "gate_backward",
    "layer_norm",
    "layer_norm_backward",
    "embed",
    "embed_backward",
    "residual",
    "residual_backward",
    "add_heads",
    "cross_entropy",
    "below_diagonal",
    "mirror",
    "remember",
    "remember_values",
    "unseen",
];
/// Pairs of neurons that a thread takes at once, where the neurons of a head can be shared out so.
const PAIRS_WIDE: u32 = 4;
/// Lines that a block of the rope's kernels takes: `kernels.cu` has the same number.
const LINES_AT_ONCE: i64 = 8;

/// How the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Numbers in memory are bf16 rather than f32.
    pub is_bf16: bool,
    /// Pairs of neurons that a thread takes at once.
    pub pairs: u32,
}

impl Variant {
    pub const ALL: [Self; 4] = [
        Self { is_bf16: true, pairs: PAIRS_WIDE },
        Self { is_bf16: true, pairs: 1 },
        Self { is_bf16: false, pairs: PAIRS_WIDE },
        Self { is_bf16: false, pairs: 1 },
    ];

    /// For operands of `kind` and heads of `neurons` neurons. None: there are no kernels for that kind, or for an odd number.
    pub fn new(kind: Kind, neurons: i64) -> Option<Self> {
        let is_bf16 = match kind {
            Kind::BFloat16 => true,
            Kind::Float => false,
            _ => return None,
        };
        let is_wide = neurons % (2 * i64::from(PAIRS_WIDE)) == 0;
        (neurons % 2 == 0).then_some(Self { is_bf16, pairs: if is_wide { PAIRS_WIDE } else { 1 } })
    }

    fn kind(self) -> Kind {
        if self.is_bf16 { Kind::BFloat16 } else { Kind::Float }
    }
}

/// What a layer drops; as in the trainer's `dropout`, whose masks these are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drops {
    /// The stream of the step's key.
    pub stream: u64,
    /// The row of the batch that the first sequence is.
    pub first_sequence: u64,
    /// From 0.
    pub layer: u32,
    /// Hashes below are dropped.
    pub threshold: u32,
    /// What is kept is multiplied by this.
    pub scale: f32,
}

impl Drops {
    pub const NOTHING: Self = Self { stream: 0, first_sequence: 0, layer: 0, threshold: 0, scale: 1.0 };
}

/// The rows of H heads of B sequences of T tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// H.
    pub heads: i64,
    /// B*T.
    pub of_head: i64,
    /// T.
    pub tokens: i64,
}

/// N bytes of each of K streams, whose past is kept in rings of R = 2 C places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// H.
    pub heads: i64,
    /// K.
    pub count: i64,
    /// N.
    pub tokens: i64,
    /// C.
    pub chunk: i64,
}

impl Streams {
    /// R.
    fn ring(self) -> i64 {
        2 * self.chunk
    }
}

impl Rows {
    fn all(self) -> i64 {
        self.heads * self.of_head
    }

    fn lines(self) -> i64 {
        self.all() / self.tokens
    }
}

/// Runs one kernel after another, in the order in which they are called.
#[derive(Debug)]
pub struct Kernels {
    variant: Variant,
    device: Device,
    launcher: Launcher,
}

#[derive(Debug)]
enum Launcher {
    Cuda(cuda::Cuda),
    #[cfg(feature = "emulation")]
    Emulated,
}

impl Kernels {
    /// Compiles the kernels for GPU `index`; they run in the order of libtorch's own work on it.
    pub fn on_cuda(index: usize, variant: Variant) -> Result<Self, CudaError> {
        let launcher = Launcher::Cuda(cuda::Cuda::new(index, variant)?);
        Ok(Self { variant, device: Device::Cuda(index), launcher })
    }

    /// The same kernels on the CPU, thread by thread: for tests.
    #[cfg(feature = "emulation")]
    pub fn emulated(variant: Variant) -> Self {
        Self { variant, device: Device::Cpu, launcher: Launcher::Emulated }
    }

    /// The kind of the operands.
    pub fn kind(&self) -> Kind {
        self.variant.kind()
    }

    /// r = rope(relu(q)) for q and r H x N x M, `angles` T x M/2 x 2 f32: the cosine and sine of each pair's phase.
    pub fn rope(&self, rows: Rows, q: &Tensor, angles: &Tensor, r: &mut Tensor) -> Result<(), TchError> {
        let neurons = last(q);
        let call = self.by_lines("rope", rows, neurons)?.numbers(q, rows.all() * neurons);
        let call = call.floats(angles, rows.tokens * neurons).numbers(r, rows.all() * neurons);
        call.size(neurons).size(rows.tokens).size(rows.lines()).run()
    }

    /// dq = dq and what comes of `dr` by the rope, where q > 0; else 0.
    pub fn rope_backward(
        &self,
        rows: Rows,
        q: &Tensor,
        dr: &Tensor,
        angles: &Tensor,
        dq: &mut Tensor,
    ) -> Result<(), TchError> {
        let neurons = last(q);
        let size = rows.all() * neurons;
        let call = self.by_lines("rope_backward", rows, neurons)?.numbers(q, size).numbers(dr, size);
        let call = call.floats(angles, rows.tokens * neurons).numbers(dq, size);
        call.size(neurons).size(rows.tokens).size(rows.lines()).run()
    }

    /// g = dropout(relu(q) relu(v)), H x N x M each.
    pub fn gate(
        &self,
        rows: Rows,
        q: &Tensor,
        v: &Tensor,
        g: &mut Tensor,
        drops: Drops,
    ) -> Result<(), TchError> {
        let neurons = last(q);
        let size = rows.all() * neurons;
        let call = self.by_row("gate", rows, neurons)?.numbers(q, size).numbers(v, size).numbers(g, size);
        call.size(neurons).size(rows.tokens).size(rows.of_head).drops(drops).run()
    }

    /// The same g again; in dg's place the derivative by relu(q), in v's place that by v.
    pub fn gate_backward(
        &self,
        rows: Rows,
        q: &Tensor,
        v: &mut Tensor,
        dg: &mut Tensor,
        g: &mut Tensor,
        drops: Drops,
    ) -> Result<(), TchError> {
        let neurons = last(q);
        let size = rows.all() * neurons;
        let call = self.by_row("gate_backward", rows, neurons)?.numbers(q, size).numbers(v, size);
        let call = call.numbers(dg, size).numbers(g, size);
        call.size(neurons).size(rows.tokens).size(rows.of_head).drops(drops).run()
    }

    /// y = norm(x) over the last dimension, and the reciprocal deviation of each row, f32.
    pub fn layer_norm(&self, x: &Tensor, y: &mut Tensor, reciprocals: &mut Tensor) -> Result<(), TchError> {
        let (rows, width) = (rows_of(x), last(x));
        let call = self.by_warp("layer_norm", rows).numbers(x, rows * width).numbers(y, rows * width);
        call.floats(reciprocals, rows).size(rows).size(width).run()
    }

    /// In dy's place the derivative before the norm that gave `y`.
    pub fn layer_norm_backward(
        &self,
        y: &Tensor,
        reciprocals: &Tensor,
        dy: &mut Tensor,
    ) -> Result<(), TchError> {
        let (rows, width) = (rows_of(y), last(y));
        let call = self.by_warp("layer_norm_backward", rows).numbers(y, rows * width);
        call.floats(reciprocals, rows).numbers(dy, rows * width).size(rows).size(width).run()
    }

    /// x = norm(`table`'s rows at `bytes`), N x D f32, and the same as an operand. A byte that the
    /// table has no row for gives no number.
    pub fn embed(
        &self,
        table: &Tensor,
        bytes: &Tensor,
        x: &mut Tensor,
        reciprocals: &mut Tensor,
        operand: &mut Tensor,
    ) -> Result<(), TchError> {
        let (rows, width) = (rows_of(x), last(x));
        let call = self.by_warp("embed", rows).floats(table, rows_of(table) * width).longs(bytes, rows);
        let call = call.floats(x, rows * width).floats(reciprocals, rows).numbers(operand, rows * width);
        call.size(rows).size(width).size(rows_of(table)).run()
    }

    /// In dx's place the derivative by the rows of the table.
    pub fn embed_backward(&self, x: &Tensor, reciprocals: &Tensor, dx: &mut Tensor) -> Result<(), TchError> {
        let (rows, width) = (rows_of(x), last(x));
        let call = self.by_warp("embed_backward", rows).floats(x, rows * width).floats(reciprocals, rows);
        call.floats(dx, rows * width).size(rows).size(width).run()
    }

    /// y = norm(the sum of `parts` over heads), `next` = norm(x + y), N x D f32 each, and the latter as an operand; `parts`
    /// are H x N x D.
    pub fn residual(
        &self,
        x: &Tensor,
        parts: &Tensor,
        [y, next]: [&mut Tensor; 2],
        [y_reciprocals, next_reciprocals]: [&mut Tensor; 2],
        operand: &mut Tensor,
    ) -> Result<(), TchError> {
        let (rows, width) = (rows_of(x), last(x));
        let (size, heads) = (rows * width, parts.size()[0]);
        let call = self.by_warp("residual", rows).floats(x, size).numbers(parts, heads * size);
        let call = call.floats(y, size).floats(y_reciprocals, rows);
        let call = call.floats(next, size).floats(next_reciprocals, rows).numbers(operand, size);
        call.size(rows).size(width).size(heads).run()
    }

    /// From the derivative by `next` of [`Self::residual`] that by x, in its place, and that by the sum, as an operand.
    pub fn residual_backward(
        &self,
        [y, next]: [&Tensor; 2],
        [y_reciprocals, next_reciprocals]: [&Tensor; 2],
        dx: &mut Tensor,
        dy: &mut Tensor,
    ) -> Result<(), TchError> {
        let (rows, width) = (rows_of(y), last(y));
        let size = rows * width;
        let call = self.by_warp("residual_backward", rows).floats(y, size).floats(y_reciprocals, rows);
        let call = call.floats(next, size).floats(next_reciprocals, rows).floats(dx, size);
        call.numbers(dy, size).size(rows).size(width).run()
    }

    /// dx, N x D f32, += the sums over heads of two derivatives, H x N x D each.
    pub fn add_heads(&self, dx: &mut Tensor, parts: [&Tensor; 2]) -> Result<(), TchError> {
        let (size, heads) = (dx.numel() as i64, parts[0].size()[0]);
        let call = self.by_element("add_heads", size).floats(dx, size);
        call.numbers(parts[0], heads * size).numbers(parts[1], heads * size).size(size).size(heads).run()
    }

    /// The loss of each row's target in nats, N f32; in the logits' place, N x V, their derivatives, weighed by `weight`.
    /// The loss of a target that is not below V is no number.
    pub fn cross_entropy(
        &self,
        logits: &mut Tensor,
        targets: &Tensor,
        losses: &mut Tensor,
        weight: f32,
    ) -> Result<(), TchError> {
        let (rows, vocabulary) = (rows_of(logits), last(logits));
        let call = self.by_warp("cross_entropy", rows).numbers(logits, rows * vocabulary);
        call.longs(targets, rows).floats(losses, rows).float(weight).size(rows).size(vocabulary).run()
    }

    /// Clears each of the T x T scores (row: who reads) on and above the diagonal.
    pub fn below_diagonal(&self, scores: &mut Tensor) -> Result<(), TchError> {
        let (rows, tokens) = square(scores)?;
        self.by_score("below_diagonal", rows, tokens).numbers(scores, rows * tokens).size(tokens).run()
    }

    /// d = e + e^T for each T x T matrix, where e is what d has below the diagonal.
    pub fn mirror(&self, d: &mut Tensor) -> Result<(), TchError> {
        let (rows, tokens) = square(d)?;
        self.by_score("mirror", rows, tokens).numbers(d, rows * tokens).size(tokens).run()
    }

    /// r = rope(relu(q)) for q H x K N x M and r K x H x N x M, and the same into the rings `keys`, K x H x R x M. `positions`
    /// are those of each stream's first byte, K i64; `frequencies` turns a byte in 2^-64 turns, M/2 i64.
    pub fn remember(
        &self,
        streams: Streams,
        q: &Tensor,
        [positions, frequencies]: [&Tensor; 2],
        r: &mut Tensor,
        keys: &mut Tensor,
    ) -> Result<(), TchError> {
        let neurons = last(q);
        let Streams { heads, count, tokens, .. } = streams;
        let rows = Rows { heads, of_head: count * tokens, tokens };
        let size = rows.all() * neurons;
        let call = self.by_row("remember", rows, neurons)?.numbers(q, size).longs(positions, count);
        let call = call.longs(frequencies, neurons / 2).numbers(r, size);
        let call = call.numbers(keys, count * heads * streams.ring() * neurons);
        call.size(neurons).size(tokens).size(heads).size(streams.ring()).run()
    }

    /// x, K N x D, into the rings `values`, K x R x D.
    pub fn remember_values(
        &self,
        streams: Streams,
        x: &Tensor,
        positions: &Tensor,
        values: &mut Tensor,
    ) -> Result<(), TchError> {
        let (rows, width) = (streams.count * streams.tokens, last(x));
        let call = Call::new(self, "remember_values", rows, width).singles(x, rows * width);
        let call =
            call.longs(positions, streams.count).singles(values, streams.count * streams.ring() * width);
        call.size(width).size(streams.tokens).size(streams.ring()).run()
    }

    /// Clears the scores, K x H x N x R, of what a byte does not see.
    pub fn unseen(&self, streams: Streams, scores: &mut Tensor, positions: &Tensor) -> Result<(), TchError> {
        let Streams { heads, count, tokens, chunk } = streams;
        let (rows, ring) = (count * heads * tokens, streams.ring());
        let call = Call::new(self, "unseen", rows, ring).numbers(scores, rows * ring).longs(positions, count);
        call.size(tokens).size(heads).size(chunk).run()
    }

    /// A block for each row of M neurons.
    fn by_row(&self, name: &'static str, rows: Rows, neurons: i64) -> Result<Call<'_>, TchError> {
        self.over_neurons(name, rows, neurons, Rows::all)
    }

    /// A block for each token of so many lines.
    fn by_lines(&self, name: &'static str, rows: Rows, neurons: i64) -> Result<Call<'_>, TchError> {
        self.over_neurons(name, rows, neurons, |rows| {
            rows.tokens * ((rows.lines() + LINES_AT_ONCE - 1) / LINES_AT_ONCE)
        })
    }

    fn over_neurons(
        &self,
        name: &'static str,
        rows: Rows,
        neurons: i64,
        blocks: fn(Rows) -> i64,
    ) -> Result<Call<'_>, TchError> {
        let at_once = 2 * i64::from(self.variant.pairs);
        if neurons <= 0 || neurons % at_once != 0 || rows.tokens <= 0 || rows.of_head % rows.tokens != 0 {
            return Err(TchError::Shape(format!("{name} over {neurons} neurons in {rows:?}")));
        }
        Ok(Call::new(self, name, blocks(rows), neurons / at_once))
    }

    /// A warp for each row, four in a block.
    fn by_warp(&self, name: &'static str, rows: i64) -> Call<'_> {
        const ROWS: i64 = 4;
        Call::new(self, name, (rows + ROWS - 1) / ROWS, ROWS * call::LANES)
    }

    fn by_element(&self, name: &'static str, size: i64) -> Call<'_> {
        const THREADS: i64 = 256;
        const BLOCKS_MAX: i64 = 4096;
        Call::new(self, name, ((size + THREADS - 1) / THREADS).min(BLOCKS_MAX), THREADS)
    }

    /// A block for each row of scores.
    fn by_score(&self, name: &'static str, rows: i64, tokens: i64) -> Call<'_> {
        Call::new(self, name, rows, tokens)
    }
}

/// All rows of square matrices, and how long they are.
fn square(matrices: &Tensor) -> Result<(i64, i64), TchError> {
    match matrices.size().as_slice() {
        [.., rows, columns] if rows == columns => Ok((rows_of(matrices), *columns)),
        size => Err(TchError::Shape(format!("matrices of {size:?} are not square"))),
    }
}

fn last(tensor: &Tensor) -> i64 {
    tensor.size().last().copied().unwrap_or_default()
}

fn rows_of(tensor: &Tensor) -> i64 {
    tensor.size().split_last().map_or(0, |(_, rest)| rest.iter().product())
}

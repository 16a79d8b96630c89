//! What a stream of bytes leaves behind, in each layer and head.
//!
//! With r_s the turned neurons of the byte at s and x_s what it takes into the layer, attention at t needs
//! sum over s < t of (r_t . r_s) x_s. There are two ways to keep what that takes, and both are used:
//!
//! - a [`Part`]: the r_s and x_s of a number of bytes as they are. To take in a byte is to write its own numbers.
//! - a sum: S = sum of r_s x_s^T, M x D, of any number of bytes.
//!
//! The newest bytes always are a part. When it is full, a short window keeps it as it is and drops the part before;
//! without a window, or with a long one, it is folded into a sum.

use std::{collections::TryReserveError, io};

use half::bf16;

use crate::{
    fold::Fold,
    model::{Model, TILE},
    multiversion,
    number::{Number, Precision},
    part::{Course, Part},
};

/// Numbers written or read at once.
const PORTION_LEN: usize = 16 << 10;

/// What is kept of the bytes before the newest part. A sum has, for each layer, each head, each tile of the width, M
/// rows.
#[derive(Clone, Debug)]
pub(crate) enum Past<N> {
    Part(Part<N>),
    Sums {
        /// Of the current chunk.
        current: Vec<[N; TILE]>,
        /// Of the chunk before; empty without a window.
        previous: Vec<[N; TILE]>,
    },
}

/// All that is kept of a stream.
#[derive(Clone, Debug)]
pub(crate) struct State<N> {
    /// Tiles of bytes in a part.
    pub(crate) byte_tiles: usize,
    pub(crate) recent: Part<N>,
    pub(crate) past: Past<N>,
}

impl<N: Number> State<N> {
    fn new(model: &Model, course: Course) -> Result<Self, TryReserveError> {
        let config = model.config();
        let width_tiles = config.width().div_ceil(TILE);
        let byte_tiles = (course.part_bytes as usize).div_ceil(TILE);
        let rows = config.layers() * config.heads() * config.neurons_per_head();
        let part = || {
            let keys = zeros([N::default(); TILE], rows * byte_tiles)?;
            let values = zeros([0.0; TILE], config.layers() * width_tiles * byte_tiles * TILE)?;
            Ok::<_, TryReserveError>(Part { keys, values })
        };
        let sum = |is_kept| zeros([N::default(); TILE], if is_kept { rows * width_tiles } else { 0 });
        let past = if course.keeps_parts() {
            Past::Part(part()?)
        } else {
            Past::Sums { current: sum(true)?, previous: sum(course.chunk_bytes.is_some())? }
        };
        Ok(Self { byte_tiles, recent: part()?, past })
    }

    /// To be called before the byte at `position` is fed: ends the part, and the chunk, that are full.
    fn end_full_part(&mut self, model: &Model, course: Course, position: u64) {
        if position == 0 || course.into_part(position) > 0 {
            return;
        }
        match &mut self.past {
            Past::Part(before) => std::mem::swap(&mut self.recent, before),
            Past::Sums { current, previous } => {
                multiversion::run(Fold {
                    model,
                    byte_tiles: self.byte_tiles,
                    part: &self.recent,
                    sum: current,
                });
                if course.into_chunk(position) == 0 && course.chunk_bytes.is_some() {
                    std::mem::swap(current, previous);
                    current.fill([N::default(); TILE]);
                }
            }
        }
        self.recent.keys.fill([N::default(); TILE]);
    }

    /// All numbers, in two kinds.
    fn arrays(&self) -> ([&[N]; 3], [&[f32]; 2]) {
        let Part { keys, values } = &self.recent;
        let (keys, values) = (keys.as_flattened(), values.as_flattened());
        match &self.past {
            Past::Part(before) => {
                ([keys, before.keys.as_flattened(), &[]], [values, before.values.as_flattened()])
            }
            Past::Sums { current, previous } => {
                ([keys, current.as_flattened(), previous.as_flattened()], [values, &[]])
            }
        }
    }

    /// The same, to be set.
    fn arrays_mut(&mut self) -> ([&mut [N]; 3], [&mut [f32]; 2]) {
        let Part { keys, values } = &mut self.recent;
        let (keys, values) = (keys.as_flattened_mut(), values.as_flattened_mut());
        match &mut self.past {
            Past::Part(before) => {
                let Part { keys: before_keys, values: before_values } = before;
                let before_values = before_values.as_flattened_mut();
                ([keys, before_keys.as_flattened_mut(), &mut []], [values, before_values])
            }
            Past::Sums { current, previous } => {
                ([keys, current.as_flattened_mut(), previous.as_flattened_mut()], [values, &mut []])
            }
        }
    }

    fn bytes(&self) -> usize {
        let (narrow, wide) = self.arrays();
        narrow.map(size_of_val::<[N]>).iter().sum::<usize>()
            + wide.map(size_of_val::<[f32]>).iter().sum::<usize>()
    }

    fn write(&self, write: &mut Write) -> io::Result<()> {
        let (narrow, wide) = self.arrays();
        narrow.into_iter().try_for_each(|numbers| write_numbers(numbers, write))?;
        wide.into_iter().try_for_each(|numbers| write_numbers(numbers, write))
    }

    fn read(&mut self, read: &mut Read) -> io::Result<()> {
        let (narrow, wide) = self.arrays_mut();
        narrow.into_iter().try_for_each(|numbers| read_numbers(numbers, read))?;
        wide.into_iter().try_for_each(|numbers| read_numbers(numbers, read))
    }
}

impl<N> Past<N> {
    /// The part before, if it counts at `position`.
    pub(crate) fn part(&self, course: Course, position: u64) -> Option<&Part<N>> {
        match self {
            Self::Part(part) if course.has_previous(position) => Some(part),
            _ => None,
        }
    }

    /// The sums that count at `position`.
    pub(crate) fn sums(&self, course: Course, position: u64) -> [Option<&[[N; TILE]]>; 2] {
        match self {
            Self::Part(_) => [None, None],
            Self::Sums { current, previous } => [
                course.has_folded(position).then_some(&**current),
                course.has_previous(position).then_some(&**previous),
            ],
        }
    }
}

/// Zeros for a state, or the news that there is no room for them.
fn zeros<T: Clone>(zero: T, len: usize) -> Result<Vec<T>, TryReserveError> {
    let mut state = Vec::new();
    state.try_reserve_exact(len)?;
    state.resize(len, zero);
    Ok(state)
}

/// A state in the precision of its model.
#[derive(Clone, Debug)]
pub(crate) enum StateIn {
    F32(State<f32>),
    Bf16(State<bf16>),
}

impl StateIn {
    pub(crate) fn new(model: &Model, course: Course) -> Result<Self, TryReserveError> {
        Ok(match model.precision() {
            Precision::F32 => Self::F32(State::new(model, course)?),
            Precision::Bf16 => Self::Bf16(State::new(model, course)?),
        })
    }

    /// The state of a model in f32.
    pub(crate) fn f32(&mut self) -> &mut State<f32> {
        match self {
            Self::F32(state) => state,
            Self::Bf16(_) => unreachable!("a state has the precision of its model"),
        }
    }

    /// The state of a model in bf16.
    pub(crate) fn bf16(&mut self) -> &mut State<bf16> {
        match self {
            Self::Bf16(state) => state,
            Self::F32(_) => unreachable!("a state has the precision of its model"),
        }
    }

    /// To be called before the byte at `position` is fed: ends the part, and the chunk, that are full.
    pub(crate) fn end_full_part(&mut self, model: &Model, course: Course, position: u64) {
        match self {
            Self::F32(state) => state.end_full_part(model, course, position),
            Self::Bf16(state) => state.end_full_part(model, course, position),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(state) => state.bytes(),
            Self::Bf16(state) => state.bytes(),
        }
    }

    /// Hands over all numbers as bytes.
    pub(crate) fn write(&self, write: &mut Write) -> io::Result<()> {
        match self {
            Self::F32(state) => state.write(write),
            Self::Bf16(state) => state.write(write),
        }
    }

    pub(crate) fn read(&mut self, read: &mut Read) -> io::Result<()> {
        match self {
            Self::F32(state) => state.read(read),
            Self::Bf16(state) => state.read(read),
        }
    }
}

pub(crate) type Write<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;
/// Gives as many bytes as it is asked for.
pub(crate) type Read<'a> = dyn FnMut(&mut [u8]) -> io::Result<()> + 'a;

/// Hands over `numbers` as little-endian bytes.
pub(crate) fn write_numbers<N: Number>(numbers: &[N], write: &mut Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(PORTION_LEN * size_of::<N>());
    for portion in numbers.chunks(PORTION_LEN) {
        bytes.clear();
        for number in portion {
            number.append_to(&mut bytes);
        }
        write(&bytes)?;
    }
    Ok(())
}

/// Sets `numbers` from little-endian bytes.
pub(crate) fn read_numbers<N: Number>(numbers: &mut [N], read: &mut Read) -> io::Result<()> {
    let mut bytes = vec![0; PORTION_LEN * size_of::<N>()];
    for portion in numbers.chunks_mut(PORTION_LEN) {
        let bytes = &mut bytes[..size_of_val(portion)];
        read(bytes)?;
        for (number, bytes) in portion.iter_mut().zip(bytes.chunks_exact(size_of::<N>())) {
            *number = N::from_bytes(bytes);
        }
    }
    Ok(())
}

//! What both kinds of files come to: named tensors, each a view of numbers that lie in the file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use safetensors::Dtype;

use crate::load::append_as_f32;

/// How much of a tensor is read at once; a multiple of every number's size.
const READ_BYTES: usize = 1 << 20;

/// An open file and what was found in it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) tensors: BTreeMap<String, View>,
    pub(super) config: GivenConfig,
    pub(super) trained_block: Option<u32>,
}

/// The public fields of the configuration, as far as the file names them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GivenConfig {
    pub(super) n_layer: Option<u32>,
    pub(super) n_embd: Option<u32>,
    pub(super) dropout: Option<f64>,
    pub(super) n_head: Option<u32>,
    pub(super) mlp_internal_dim_multiplier: Option<u32>,
    pub(super) vocab_size: Option<u32>,
}

/// Numbers in the file as a tensor. The reader of the file has made sure that all of them lie in it and that no two
/// elements are the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// In numbers, for each dimension.
    pub(super) strides: Vec<usize>,
    /// Where the first number lies, in bytes from the file's start.
    pub(super) start: u64,
}

impl View {
    /// A tensor whose numbers lie in order.
    pub(super) fn contiguous(dtype: Dtype, shape: Vec<usize>, start: u64) -> Self {
        let strides = contiguous_strides(&shape);
        Self { dtype, shape, strides, start }
    }

    /// Its numbers as f32, in order.
    pub(super) fn read(&self, file: &mut File) -> io::Result<Vec<f32>> {
        let number_bytes = self.dtype.bitsize() / 8;
        let mut left = extent(&self.shape, &self.strides) * number_bytes;
        let mut numbers = Vec::with_capacity(left / number_bytes);
        let mut buffer = vec![0; READ_BYTES.min(left)];
        file.seek(SeekFrom::Start(self.start))?;
        while left > 0 {
            let part = &mut buffer[..READ_BYTES.min(left)];
            file.read_exact(part)?;
            append_as_f32(&mut numbers, part, self.dtype);
            left -= part.len();
        }
        if self.strides == contiguous_strides(&self.shape) {
            return Ok(numbers);
        }
        let count = self.shape.iter().product();
        Ok((0..count).map(|index| numbers[self.place(index)]).collect())
    }

    /// Where the element of this number, counted in order, lies among the numbers of the view.
    fn place(&self, mut index: usize) -> usize {
        let dimensions = self.shape.iter().zip(&self.strides).rev();
        dimensions.fold(0, |place, (size, stride)| {
            let at = index % size;
            index /= size;
            place + at * stride
        })
    }
}

/// Numbers from the first element to the last, both included; 0 of an empty tensor.
fn extent(shape: &[usize], strides: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    1 + shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum::<usize>()
}

fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension].max(1);
    }
    strides
}

/// Checks that a view of these signed figures, as a pickle has them, lies in a storage of `len` numbers and that no two
/// of its elements are one number; gives shape and strides, or what is wrong.
pub(super) fn check_view(
    offset: i64,
    shape: &[i64],
    strides: &[i64],
    len: u64,
) -> Result<(Vec<usize>, Vec<usize>), String> {
    let unsigned = |figures: &[i64], what: &str| {
        let figures = figures.iter().map(|figure| usize::try_from(*figure));
        figures.collect::<Result<Vec<_>, _>>().map_err(|_| format!("has a negative {what}"))
    };
    let (sizes, steps) = (unsigned(shape, "size")?, unsigned(strides, "stride")?);
    if sizes.len() != steps.len() {
        return Err(format!("has {} sizes and {} strides", sizes.len(), steps.len()));
    }
    let offset = u64::try_from(offset).map_err(|_| "begins before its storage".to_owned())?;
    if sizes.contains(&0) {
        return Err("is empty".to_owned());
    }
    // From the innermost dimension out, each stride must step over all that lies within it.
    let mut dimensions: Vec<_> = sizes.iter().zip(&steps).filter(|(size, _)| **size > 1).collect();
    dimensions.sort_by_key(|(_, stride)| **stride);
    let mut within = 1_u64;
    for (size, stride) in dimensions {
        if (*stride as u64) < within {
            return Err(format!("has elements that overlap in its storage, with strides {steps:?}"));
        }
        let reach =
            (*stride as u64).checked_mul(*size as u64 - 1).and_then(|reach| reach.checked_add(within));
        within = reach.filter(|reach| *reach <= len).ok_or_else(|| reaches_beyond(&sizes, &steps, len))?;
    }
    match offset.checked_add(within) {
        Some(end) if end <= len => Ok((sizes, steps)),
        _ => Err(reaches_beyond(&sizes, &steps, len)),
    }
}

fn reaches_beyond(sizes: &[usize], strides: &[usize], len: u64) -> String {
    format!("of shape {sizes:?} and strides {strides:?} reaches beyond its storage of {len} numbers")
}

//! One call of a kernel: its arguments, checked.

use std::ffi::c_void;

use tch::{Kind, TchError, Tensor};

use super::{Drops, Kernels, Launcher};

/// Threads of a warp.
pub(super) const LANES: i64 = 32;
/// Threads in a block at most: enough to keep a processor busy with a few blocks.
const THREADS_MAX: i64 = 256;
/// The widest accesses that a kernel makes to what it computes with, to what it only carries, and to indexes, in bytes.
const ALIGNMENT: usize = 32;
const ALIGNMENT_OF_SINGLES: usize = 4;
const ALIGNMENT_OF_LONGS: usize = 8;

/// A call that is being put together. The first argument that does not fit is what [`Call::run`] tells.
pub(super) struct Call<'a> {
    kernels: &'a Kernels,
    name: &'static str,
    blocks: i64,
    threads: i64,
    /// Each argument in a word of its own; those of four bytes in the lower half.
    words: Vec<u64>,
    problem: Option<String>,
}

impl<'a> Call<'a> {
    /// A call with so many blocks of so many threads, which are made whole warps and no more than a block may have.
    pub(super) fn new(kernels: &'a Kernels, name: &'static str, blocks: i64, threads: i64) -> Self {
        let threads = ((threads + LANES - 1) / LANES * LANES).clamp(LANES, THREADS_MAX);
        Self { kernels, name, blocks, threads, words: Vec::with_capacity(16), problem: None }
    }

    /// `count` numbers of the operands' kind.
    pub(super) fn numbers(self, tensor: &Tensor, count: i64) -> Self {
        let kind = self.kernels.kind();
        self.tensor(tensor, kind, count, ALIGNMENT)
    }

    /// `count` numbers of the operands' kind, which are read and written one by one.
    pub(super) fn singles(self, tensor: &Tensor, count: i64) -> Self {
        let kind = self.kernels.kind();
        self.tensor(tensor, kind, count, ALIGNMENT_OF_SINGLES)
    }

    /// `count` f32.
    pub(super) fn floats(self, tensor: &Tensor, count: i64) -> Self {
        self.tensor(tensor, Kind::Float, count, ALIGNMENT)
    }

    /// `count` i64.
    pub(super) fn longs(self, tensor: &Tensor, count: i64) -> Self {
        self.tensor(tensor, Kind::Int64, count, ALIGNMENT_OF_LONGS)
    }

    fn tensor(mut self, tensor: &Tensor, kind: Kind, count: i64, alignment: usize) -> Self {
        let address = tensor.data_ptr() as usize;
        let fits = tensor.kind() == kind
            && tensor.numel() as i64 == count
            && tensor.is_contiguous()
            && tensor.device() == self.kernels.device
            && address.is_multiple_of(alignment);
        if !fits && self.problem.is_none() {
            self.problem = Some(format!(
                "argument {} is {:?} of {:?} on {:?} instead of {count} contiguous {kind:?} on {:?}",
                self.words.len(),
                tensor.size(),
                tensor.kind(),
                tensor.device(),
                self.kernels.device
            ));
        }
        self.words.push(address as u64);
        self
    }

    /// A size, as a u32.
    pub(super) fn size(mut self, size: i64) -> Self {
        match u32::try_from(size) {
            Ok(size) => self.words.push(size.into()),
            Err(_) => self.problem = Some(format!("the size {size} exceeds 32 bits")),
        }
        self
    }

    /// An f32.
    pub(super) fn float(mut self, value: f32) -> Self {
        self.words.push(value.to_bits().into());
        self
    }

    /// The five figures of dropout.
    pub(super) fn drops(mut self, drops: Drops) -> Self {
        let Drops { stream, first_sequence, layer, threshold, scale } = drops;
        self.words.extend([stream, first_sequence, layer.into(), threshold.into(), scale.to_bits().into()]);
        self
    }

    /// Runs the kernel, or puts it behind all other work of the GPU.
    pub(super) fn run(mut self) -> Result<(), TchError> {
        let refuse = |problem| Err(TchError::Shape(format!("the kernel {}: {problem}", self.name)));
        if let Some(problem) = self.problem {
            return refuse(problem);
        }
        let Ok(blocks) = i32::try_from(self.blocks) else {
            return refuse(format!("{} are too many blocks", self.blocks));
        };
        if blocks == 0 {
            return Ok(());
        }
        let (blocks, threads) = (blocks.unsigned_abs(), self.threads as u32);
        let mut arguments: Vec<*mut c_void> =
            self.words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        // SAFETY: the arguments are those of the kernel, in its order, as the methods of `Kernels` put them; each pointer
        // among them is that of a live tensor of the size and kind that the kernel takes.
        let ran = unsafe {
            match &self.kernels.launcher {
                Launcher::Cuda(cuda) => cuda.launch(self.name, blocks, threads, &mut arguments),
                #[cfg(feature = "emulation")]
                Launcher::Emulated => {
                    super::emulation::launch(self.name, self.kernels.variant, blocks, threads, &mut arguments)
                }
            }
        };
        ran.map_err(|problem| TchError::Torch(format!("the kernel {}: {problem}", self.name)))
    }
}

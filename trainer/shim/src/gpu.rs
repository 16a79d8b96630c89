//! What libtorch says and may be told of a GPU.

use std::ffi::c_int;

unsafe extern "C" {
    fn hatchery_allow_tf32(is_allowed: c_int);
    fn hatchery_synchronize_cuda(index: c_int);
    fn hatchery_cuda_memory(index: c_int, tensors_peak: *mut u64, held: *mut u64, free: *mut u64) -> c_int;
}

/// What libtorch has of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaMemory {
    /// Of tensors, at most so far.
    pub tensors_peak: u64,
    /// Altogether, now: what tensors had goes back to it and not to the GPU.
    pub held: u64,
    /// What no process holds, now.
    pub free: u64,
}

/// Lets f32 products round their operands to TF32, on GPUs that multiply that faster, or not.
pub fn allow_tf32(is_allowed: bool) {
    // SAFETY: sets a flag.
    unsafe { hatchery_allow_tf32(is_allowed.into()) }
}

/// Waits for all that CUDA device `index`, which exists, has to do.
pub fn synchronize_cuda(index: u32) {
    // SAFETY: takes a number; what goes wrong on the device is no matter of memory.
    unsafe { hatchery_synchronize_cuda(index as c_int) }
}

/// Asks for the memory of CUDA device `index`, which exists and has been used.
pub fn cuda_memory(index: u32) -> Option<CudaMemory> {
    let mut memory = CudaMemory::default();
    let CudaMemory { tensors_peak, held, free } = &mut memory;
    // SAFETY: the pointers are those of locals of that type.
    let failed = unsafe { hatchery_cuda_memory(index as c_int, tensors_peak, held, free) != 0 };
    (!failed).then_some(memory)
}

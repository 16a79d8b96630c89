//! The kernels on a CPU: `emulation.cpp`.

use std::{
    ffi::{CString, c_char, c_int, c_uint, c_void},
    sync::Mutex,
};

use super::Variant;

unsafe extern "C" {
    fn hatchery_emulate_kernel(
        name: *const c_char,
        is_bf16: c_int,
        pairs: c_uint,
        blocks: c_uint,
        threads: c_uint,
        arguments: *mut *mut c_void,
        count: usize,
    ) -> c_int;
}

/// Runs a kernel to its end.
///
/// # Safety
/// The arguments are the kernel's, in its order.
pub(super) unsafe fn launch(
    name: &str,
    variant: Variant,
    blocks: u32,
    threads: u32,
    arguments: &mut [*mut c_void],
) -> Result<(), String> {
    // The emulation has one block at a time in the process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let c_name = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: by this function's own contract; the name ends in 0 and the list is as long as is said.
    let found = unsafe {
        hatchery_emulate_kernel(
            c_name.as_ptr(),
            variant.is_bf16.into(),
            variant.pairs,
            blocks,
            threads,
            arguments.as_mut_ptr(),
            arguments.len(),
        )
    };
    if found == 0 { Err(format!("no such kernel takes {} arguments", arguments.len())) } else { Ok(()) }
}

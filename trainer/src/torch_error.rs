//! What libtorch's errors say: it has one class for all of them, and text.

use tch::TchError;

/// How libtorch says that there is not enough memory: CUDA and MPS, the CPU, and the products' library, which on a full GPU
/// cannot even start.
const LACKS_MEMORY: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
];

/// What happened, without the stack trace that libtorch lets follow.
pub fn first_line(error: &TchError) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("Internal torch error: ").to_owned()
}

/// Whether there was not enough memory: libtorch has one class for all errors.
pub(crate) fn lacks_memory(error: &TchError) -> bool {
    let text = error.to_string();
    LACKS_MEMORY.iter().any(|words| text.contains(words))
}

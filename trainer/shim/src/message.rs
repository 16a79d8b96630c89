//! How C++ says what went wrong.

use std::ffi::{CStr, c_char, c_int};

use tch::TchError;

const MESSAGE_BYTES: usize = 1024;

/// Makes a `call` that returns 0, or something else after it has written a message into the room it was given, cut to its length
/// and ended by 0.
pub(crate) fn told(call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), TchError> {
    let mut message: [c_char; MESSAGE_BYTES] = [0; MESSAGE_BYTES];
    if call(message.as_mut_ptr(), MESSAGE_BYTES) == 0 {
        return Ok(());
    }
    message[MESSAGE_BYTES - 1] = 0;
    // SAFETY: it ends in 0 at the latest there.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) };
    Err(TchError::Torch(message.to_string_lossy().into_owned()))
}

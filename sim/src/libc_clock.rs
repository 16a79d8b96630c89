//! Clock and randomness at the level at which everything asks for them: the C library's two functions, defined here in
//! its place. Threads that simulate get the simulated ones, all others the system's. So nothing in the house, nor in any
//! library that it uses, needs to know that it is simulated.

#![allow(unsafe_code, reason = "functions of the C library take pointers")]

use libc::{c_int, c_uint, clockid_t, timespec};

use crate::{clock, entropy};

/// `clock_gettime(3)`.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let simulated = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => clock::wall(),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => clock::boot(),
        _ => None,
    };
    match simulated {
        Some(now) if !time.is_null() => {
            let now = timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) };
            // SAFETY: the caller gives room for one, which is what the function is declared to take.
            unsafe { time.write(now) };
            0
        }
        // SAFETY: the system checks what it is given.
        _ => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int },
    }
}

/// `getrandom(2)`.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: c_uint) -> isize {
    if len > 0 && !buffer.is_null() {
        // SAFETY: the caller gives room for `len` bytes; they are written before they are read.
        let bytes = unsafe {
            buffer.write_bytes(0, len);
            std::slice::from_raw_parts_mut(buffer, len)
        };
        if entropy::fill(bytes) {
            return len as isize;
        }
    }
    // SAFETY: the system checks what it is given.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize }
}

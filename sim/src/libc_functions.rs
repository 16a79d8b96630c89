//! Clock and randomness at the level at which everything asks for them: three functions of the C library, defined here
//! in its place. Threads that simulate get the simulated ones, all others the system's. So nothing in Hatchery, nor in
//! any library that it uses, needs to know that it is simulated.

#![allow(unsafe_code, reason = "functions of the C library take pointers")]
#![allow(clippy::many_single_char_names, reason = "the arguments of a system call have no names")]

use std::{
    mem,
    sync::atomic::{AtomicPtr, Ordering},
};

use libc::{c_int, c_long, c_uint, c_void, clockid_t, timespec};

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
        _ => system_call(libc::SYS_clock_gettime, [c_long::from(clock), time as c_long, 0, 0, 0, 0]) as c_int,
    }
}

/// `getrandom(2)`.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: c_uint) -> isize {
    if filled(buffer, len) {
        return len as isize;
    }
    let arguments = [buffer as c_long, len as c_long, c_long::from(flags), 0, 0, 0];
    system_call(libc::SYS_getrandom, arguments) as isize
}

/// `syscall(2)`: the cryptography asks for its randomness by this. The C library's takes what the call needs; on the
/// platforms that are simulated on, six arguments are passed the same way.
#[unsafe(no_mangle)]
extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_getrandom && filled(a as *mut u8, b as usize) {
        return b;
    }
    system_call(number, [a, b, c, d, e, f])
}

/// Fills a caller's buffer, if its thread simulates.
fn filled(buffer: *mut u8, len: usize) -> bool {
    if len == 0 || buffer.is_null() {
        return false;
    }
    // SAFETY: the caller gives room for `len` bytes; they are written before they are read.
    let bytes = unsafe {
        buffer.write_bytes(0, len);
        std::slice::from_raw_parts_mut(buffer, len)
    };
    entropy::fill(bytes)
}

type SystemCall = extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// The C library's own `syscall`.
fn system_call(number: c_long, [a, b, c, d, e, f]: [c_long; 6]) -> c_long {
    static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut found = FOUND.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name ends with a zero; the next one after this program's own is the C library's.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        assert!(!found.is_null(), "every C library has this function");
        FOUND.store(found, Ordering::Relaxed);
    }
    // SAFETY: it is the function of that name.
    let call: SystemCall = unsafe { mem::transmute(found) };
    call(number, a, b, c, d, e, f)
}

//! Fault points: where tests let the process end as if its power were cut.

/// The fault point between two steps by which a restore or a repair puts something in place. In a build without
/// `failpoints` it is nothing at all.
pub(crate) fn admin_step() {
    fail::fail_point!("admin::step", |_| kill());
}

/// Ends the process as a power cut would.
pub(crate) fn kill() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

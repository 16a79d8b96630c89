//! Fault points: where tests let the process end as if its power were cut. In a build without `failpoints` they are nothing
//! at all.

macro_rules! power_cut {
    ($name:literal) => {
        fail::fail_point!($name, |_| {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        })
    };
}

/// Before every statement that writes and after every transaction.
pub(crate) fn store_statement() {
    power_cut!("store::statement");
}

/// Between two steps by which a restore or a repair puts something in place.
pub(crate) fn admin_step() {
    power_cut!("admin::step");
}

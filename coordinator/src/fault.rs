//! Fault points of the coordinator: see [`hatchery_common::faults`].

use hatchery_common::faults;

/// Before every statement that writes and after every transaction.
pub(crate) fn store_statement() {
    faults::strikes("store::statement");
}

/// Between two steps by which a restore or a repair puts something in place.
pub(crate) fn admin_step() {
    faults::strikes("admin::step");
}

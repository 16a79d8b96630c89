//! Fault points: places at which tests stop Hatchery, make it fail, or break one of its rules on purpose.
//!
//! Only a build with the feature `failpoints` has them, which no release has; without it they are nothing at all. They are
//! armed by name, with the actions of the `fail` crate, in the environment: `FAILPOINTS='durable::before_sync=3*off->return'`.
//!
//! | argument of `return` | what happens at the point |
//! |---|---|
//! | none | what the place says: an error, or another behaviour |
//! | `kill` | the process ends as if its power were cut |
//!
//! Names that begin with `mutant::` break a rule that Hatchery keeps. They are there to show that the tests would notice:
//!
//! | mutant | the rule that it breaks |
//! |---|---|
//! | `mutant::fencing` | a checkpoint counts only under the job's current epoch and from its holder (I3) |
//! | `mutant::fsync_order` | nothing is acknowledged before it is synced (I7, I12) |
//! | `mutant::commit_order` | nothing is acknowledged before it is committed (I1) |
//! | `mutant::request_deduplication` | one request id makes one job (I2) |
//! | `mutant::lease_margin` | what runs under a lease stops before the lease is given away (I6) |
//! | `mutant::granted_epoch` | a lease is granted under the next epoch (I3); the coordinator itself refuses such a plan |
//! | `mutant::hash_check` | bytes are hashed before they are used (I8) |

/// Arms what the environment names; called once, when a program starts.
#[cfg(feature = "failpoints")]
pub fn arm_from_environment() {
    // Its end would disarm the points again.
    std::mem::forget(fail::FailScenario::setup());
}

/// Arms nothing: this build has no fault points.
#[cfg(not(feature = "failpoints"))]
pub fn arm_from_environment() {}

/// Whether the point called `point` strikes now.
#[cfg(feature = "failpoints")]
pub fn strikes(point: &str) -> bool {
    let told = fail::eval(point, |argument| argument);
    if matches!(&told, Some(Some(argument)) if argument == "kill") {
        // The only error would be that there is no such process.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    told.is_some()
}

/// Never: this build has no fault points.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn strikes(_point: &str) -> bool {
    false
}

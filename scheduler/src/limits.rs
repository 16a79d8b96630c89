//! How much of everything there may be.

use std::time::Duration;

use hatchery_common::device::Device;

/// Most nodes in the fleet.
pub const NODES_MAX: usize = 10_000;
/// Most jobs waiting in the queue.
pub const JOBS_WAITING_MAX: usize = 10_000;
pub const DATASETS_MAX: usize = 100_000;
/// Most rollouts in force that people asked for.
pub const ROLLOUTS_MAX: usize = 100_000;
/// How many rollbacks in a row lead a job back on the same nodes, at the least; and so many of its rollouts that were
/// taken back stay on record.
pub const ROLLOUTS_KEPT: usize = 32;
/// Most times that one rollout is taken back from some of its nodes.
pub const WITHDRAWALS_MAX: usize = 64;
/// The slowest that a rollout may be told to go, in bytes per second for each node.
pub const RATE_BYTES_PER_SEC_MIN: u64 = 1000;
/// Most join tokens that are neither used nor expired.
pub const TOKENS_MAX: usize = 1000;
/// Most labels on a node, in a wish or in a selector.
pub const LABELS_MAX: usize = 64;
/// Most nodes named in a wish or in a selector.
pub const NODES_NAMED_MAX: usize = 1000;
/// Most jobs that a job can come after.
pub const AFTER_MAX: usize = 64;
/// Most devices in one node.
pub const DEVICES_MAX: usize = Device::COUNT_MAX;

/// Most checkpoints that a node is told to hold: the newest of those that its jobs go on from or that people pushed,
/// then the newest of the others. A session's message carries 10,000 at most.
pub const CHECKPOINTS_ASSIGNED_MAX: usize = 5000;

/// Most attempts whose nodes a job remembers: a checkpoint that comes late counts only if its attempt is among them.
pub const HOLDERS_MAX: usize = 32;
/// Most failed attempts that a job remembers.
pub const FAILURES_MAX: usize = 32;
/// Most bytes kept of a failure's message and last output together; the end is kept.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// So many crashes on at least [`CRASH_NODES_MIN`] nodes hold a job as poisoned: I10.
pub const CRASHES_MAX: usize = 3;
/// See [`CRASHES_MAX`].
pub const CRASH_NODES_MIN: usize = 2;
/// So many crashes hold a job as poisoned even if all were on one node, for there may be no other.
pub const CRASHES_ON_ONE_NODE_MAX: usize = 6;
/// So many attempts out of memory on one kind of device end a job as failed, once its sequences go through one by one.
pub const OUT_OF_MEMORY_MAX: usize = 2;

/// The pause after a first failure; it doubles with each further failure that no checkpoint lies between.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest pause after a failure, jitter left out.
pub const BACKOFF_MAX: Duration = Duration::from_mins(1);

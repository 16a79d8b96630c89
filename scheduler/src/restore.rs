//! A state that comes back from a backup is older than the world: agents may run attempts, and hold checkpoints, that it
//! has never heard of. Here is what makes it safe to go on from.

use hatchery_common::{id::Epoch, time::Timestamp};

use crate::{
    cluster::Cluster,
    ending,
    event::{Event, LeaseEnd, What},
};

/// Epochs left out beside what the clock leaves out, for clocks that were set back.
const EPOCHS_LEFT_OUT: u64 = 1 << 20;

/// The events that a restored state goes on with, at `at`; `last_event_at` is the time of its last event.
///
/// Leases of the backup end: whether their holders still have them nobody knows, and a device may have been given to
/// another job since. Then all jobs that have not ended get an epoch above every one that was granted after the backup.
/// How many that were is not known either, and the same backup may be restored twice, with grants between. A clock in
/// milliseconds is ahead of both: each grant waits for the disk and for an agent that gives the last one back, so no job is
/// granted a thousand times in each second of its life.
pub fn restored(cluster: &Cluster, last_event_at: Timestamp, at: Timestamp) -> Vec<Event> {
    let leased = cluster.jobs.values().filter(|job| job.lease.is_some());
    let mut events: Vec<Event> =
        leased.map(|job| ending::interrupted(job, LeaseEnd::NodeLost, None, at)).collect();
    let newest = cluster.jobs.values().map(|job| job.epoch.0).max().unwrap_or(0);
    let epoch_floor = Epoch(newest.max(last_event_at.0).max(at.0) + EPOCHS_LEFT_OUT);
    events.push(What::Restored { epoch_floor }.at(at));
    events
}

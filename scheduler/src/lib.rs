//! The scheduler: pure functions over the cluster's state.
//!
//! ```text
//! Command::decide(&Cluster, now)        -> events and a typed outcome | Rejected(why)
//! plan(&Cluster, &Observed, now)      -> events + a typed reason for everything that waits
//! Cluster::evolve(&Event)              infallible: an event was checked when it was made
//! explain(&Cluster, &Observed, now)   -> every device as a place for a job
//! assignment(&Cluster, node)          what one node is to do
//! retire(&Cluster, now)               -> events: checkpoints that have had their time
//! forget_rollouts(&Cluster, kept, now) -> events: rollouts that are history, or superseded for good
//! violations(&Cluster)                what should never be; check_batch, check_plan: what is cheap of it
//! ```
//!
//! No IO, no clock, no randomness of its own: time and fresh ids are arguments.

mod assignment;
mod cluster;
mod commands;
mod draft;
mod ending;
mod event;
mod evolve;
mod explain;
mod hand_over;
pub mod limits;
mod observed;
mod placement;
mod plan;
mod reason;
mod rejected;
mod restore;
mod retention;
mod rollout;
mod rollout_records;
mod schedule;
mod slot;
mod speed;
mod urgency;
mod violations;
mod wait;

pub use assignment::{assignment, desired_nodes};
pub use cluster::{
    Certificate, Checkpoint, Cluster, Dataset, Failure, HandOver, Holder, Job, JobPhase, JoinToken, Lease,
    MeasuredSpeed, Node, RetiredCheckpoint, Rollout, SpeedKey, Workload,
};
pub use commands::{
    Cancel, Command, CommitCheckpoint, CreateToken, Decision, EndAttempt, Goodbye, Join, OfferCheckpoint,
    Offered, Pause, Pin, Push, RegisterDataset, RemoveNode, Renew, Requeue, Resume, RevokeCertificate,
    RollBack, SetInventory, SetNodeMode, SetPriority, Submit, Submitted, Withdraw,
};
pub use event::{Event, LeaseEnd, What};
pub use explain::explain;
pub use observed::{InLine, Now, Observed, ObservedNode, Policy};
pub use plan::{Plan, plan};
pub use rejected::Rejected;
pub use restore::restored;
pub use retention::retire;
pub use rollout::active;
pub use rollout_records::forget_rollouts;
pub use violations::{Invariant, Violation, check_batch, check_plan, violations};
pub use wait::{AwayNode, Because, Fleet, FleetNode, Instead, Rough, Wait};

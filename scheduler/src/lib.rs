//! The scheduler: pure functions over the cluster's state.
//!
//! ```text
//! decide(&Cluster, Request, now)      -> changes | Rejected(why)
//! plan(&Cluster, &Observed, now)      -> changes + a typed reason for everything that waits
//! Cluster::evolve(&Change)            infallible: a change was checked when it was made
//! explain(&Cluster, &Observed, now)   -> every device as a place for a job
//! assignment(&Cluster, node)          what one node is to do
//! retire(&Cluster, now)               -> changes: checkpoints that have had their time
//! forget_rollouts(&Cluster, kept, now) -> changes: rollouts that are history, or superseded for good
//! violations(&Cluster)                what should never be
//! ```
//!
//! No IO, no clock, no randomness of its own: time and fresh ids are arguments.

mod assignment;
mod cluster;
mod commands;
mod ending;
mod event;
mod evolve;
mod explain;
mod hand_over;
pub mod limits;
mod observed;
mod placement;
mod plan;
mod request;
mod restore;
mod retention;
mod rollout;
mod rollout_records;
mod schedule;
mod speed;
mod urgency;
mod violations;
mod wait;

pub use assignment::{assignment, desired_nodes};
pub use cluster::{
    Certificate, Checkpoint, Cluster, Dataset, Failure, HandOver, Holder, Job, JobPhase, JoinToken, Lease,
    MeasuredSpeed, Node, RetiredCheckpoint, Rollout, SpeedKey, Workload,
};
pub use commands::{Decision, Outcome, decide};
pub use event::{Change, LeaseEnd};
pub use explain::{Candidate, Verdict, explain};
pub use observed::{Now, Observed, ObservedNode, Policy};
pub use plan::{InLine, Plan, plan};
pub use request::{Rejected, Request};
pub use restore::restored;
pub use retention::retire;
pub use rollout::active;
pub use rollout_records::forget_rollouts;
pub use speed::Known;
pub use violations::{Violation, violations};
pub use wait::{AwayNode, Because, Fleet, FleetNode, Instead, Rough, Wait};

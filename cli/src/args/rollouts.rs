//! Checkpoints, and where they are to be.

use clap::{Args, Subcommand};

use crate::human::parse_rate;

/// `hatchery checkpoints`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Every checkpoint is kept, unless the job's recipe limits them:
  [retain]
  last = 3        # the newest checkpoints
  every = 1000    # and each checkpoint whose step is a multiple of this
Always kept: the newest, the best, pinned ones, those in a current rollout, and those that a job needs."
)]
pub(crate) struct CheckpointsArgs {
    /// Only checkpoints of this job.
    pub(crate) job: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<PinCommand>,
}

/// `hatchery checkpoints pin` and `unpin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PinCommand {
    /// Keep a checkpoint, whatever its job's recipe says.
    Pin {
        /// Id, unique prefix, a job (its newest checkpoint), JOB:best, `latest`.
        checkpoint: String,
    },
    /// Keep a checkpoint only as long as its job's recipe says.
    Unpin {
        /// Id, unique prefix, a job (its newest checkpoint), JOB:best, `latest`.
        checkpoint: String,
    },
}

/// `hatchery rollback`.
#[derive(Debug, Args)]
#[command(after_help = "\
The previously active checkpoint answers again on these nodes: that of an older rollout, else that of the job's own
policy. It is still there, so nothing is transferred. Repeat the push to undo the rollback. The last 32 activations on
the same nodes can be rolled back one after another; older ones cannot.")]
pub(crate) struct RollbackArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest", conflicts_with = "rollout")]
    pub(crate) job: String,
    /// Nodes to roll back: all, names separated by commas, or labels such as room=attic.
    #[arg(long, default_value = "all", value_name = "NODES")]
    pub(crate) to: String,
    /// Undo this rollout, active or not: id from `hatchery rollouts`.
    #[arg(long, value_name = "ID")]
    pub(crate) rollout: Option<String>,
}

/// `hatchery rollouts`.
#[derive(Debug, Args)]
#[command(after_help = "\
TO lists the target nodes. READY counts the nodes where the checkpoint is stored and tested, ACTIVE those where it
answers for its job. Rows by `policy` come from the job's recipe. The newest 32 undone rollouts of each job are kept.")]
pub(crate) struct RolloutsArgs {
    /// Include undone rollouts.
    #[arg(long)]
    pub(crate) all: bool,
}

/// `hatchery push`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each node fetches the checkpoint, verifies it, and checks that it gives the same short answer as on the node that
trained it. With --activate it then answers for its job, without a gap; until then, and if the check fails, the
previously active checkpoint does. With --wait the exit code is 0 only if all nodes succeed.

Examples:
  hatchery push my-job:best --activate --wait
  hatchery push 3f2a --to room=attic --activate --limit-rate 5MB/s
  hatchery rollback my-job")]
pub(crate) struct PushArgs {
    /// Id, unique prefix, a job (its newest checkpoint), JOB:best, `latest`, or `best` (of the newest one's job).
    #[arg(default_value = "latest")]
    pub(crate) checkpoint: String,
    /// Target nodes: all, names separated by commas, or labels such as room=attic.
    #[arg(long, default_value = "all", value_name = "NODES")]
    pub(crate) to: String,
    /// Activate it: it answers for its job on a node once it has passed the self-test there.
    #[arg(long)]
    pub(crate) activate: bool,
    /// Wait until every target node is done or has failed.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Download limit of each node, such as 500kB/s or 5MB/s; at least 1kB/s.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit_rate: Option<u64>,
}

//! Checkpoints, and where they are to be.

use clap::{Args, Subcommand};

use crate::human::parse_rate;

/// `hatchery checkpoints`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Everything is kept, unless a job's recipe says otherwise:
  [retain]
  last = 3        # of its checkpoints the newest so many
  every = 1000    # and each whose step is a multiple of this
The newest and the best are kept in any case, and so is what is pinned, named by a rollout in force, or needed by a job."
)]
pub(crate) struct CheckpointsArgs {
    /// Only those of this job.
    pub(crate) job: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Option<PinCommand>,
}

/// `hatchery checkpoints pin` and `unpin`.
#[derive(Debug, Subcommand)]
pub(crate) enum PinCommand {
    /// Keep one whatever its job's recipe says.
    Pin {
        /// Id, unique prefix, a job (its newest checkpoint), JOB:best, `latest`.
        checkpoint: String,
    },
    /// Keep one only as its job's recipe says.
    Unpin {
        /// The same.
        checkpoint: String,
    },
}

/// `hatchery rollback`.
#[derive(Debug, Args)]
#[command(after_help = "\
What was active before the rollout answers again on its nodes: what an older rollout activated there, else what the job's
own policy puts there. Nothing is moved for that, as it is still there. The same push again undoes it. The last 32
activations on the same nodes can be taken back one after the other; older ones are superseded for good.")]
pub(crate) struct RollbackArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest", conflicts_with = "rollout")]
    pub(crate) job: String,
    /// Nodes on which it is taken back: all, names separated by commas, or labels such as room=attic.
    #[arg(long, default_value = "all", value_name = "NODES")]
    pub(crate) to: String,
    /// Take this rollout back, whatever it is: an id from `hatchery rollouts`.
    #[arg(long, value_name = "ID")]
    pub(crate) rollout: Option<String>,
}

/// `hatchery rollouts`.
#[derive(Debug, Args)]
#[command(after_help = "\
TO is where it is to be, READY on how many of these nodes it is there and tested, ACTIVE where it answers for its job. A row
by `policy` is what the job's own recipe puts on nodes. Of those that were taken back each job's newest 32 are remembered.")]
pub(crate) struct RolloutsArgs {
    /// Those that were taken back as well.
    #[arg(long)]
    pub(crate) all: bool,
}

/// `hatchery push`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each node fetches it, verifies it, and tests it by a short answer, which must be that of the node that made it. With
--activate it then answers there for its job, from one moment to the next; until then, and if the test fails, what was
active before does so. With --wait the exit code is 0 only if all nodes got there.

Examples:
  hatchery push my-job:best --activate --wait
  hatchery push 3f2a --to room=attic --activate --limit-rate 5MB/s
  hatchery rollback my-job")]
pub(crate) struct PushArgs {
    /// Id, unique prefix, a job (its newest checkpoint), JOB:best, `latest`, or `best` (of the newest one's job).
    #[arg(default_value = "latest")]
    pub(crate) checkpoint: String,
    /// Nodes that get it: all, names separated by commas, or labels such as room=attic.
    #[arg(long, default_value = "all", value_name = "NODES")]
    pub(crate) to: String,
    /// Let it answer there for its job, once it has passed its self-test.
    #[arg(long)]
    pub(crate) activate: bool,
    /// Stay until every node has it, or cannot have it.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How fast each node may fetch it: 500kB/s, 5MB/s; at least 1kB/s.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit_rate: Option<u64>,
}

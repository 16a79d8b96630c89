//! The command line as clap reads it.

mod admin;
mod rollouts;
mod serve;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use hatchery_common::{
    access::Scope,
    device::DeviceKind,
    id::{Name, RequestId},
    recipe::{Priority, ReplicaWeights, ReplicateWhich},
};

pub(crate) use admin::{AdminCommand, BackupArgs, FsckArgs, RestoreArgs};
pub(crate) use rollouts::{CheckpointsArgs, PinCommand, PushArgs, RollbackArgs, RolloutsArgs};
pub(crate) use serve::{AgentArgs, CoordinatorArgs, UpArgs};

use crate::{human::parse_duration, output::Output};

const ABOUT: &str =
    "Train BDH language models on your own machines, and query every checkpoint on any of them.";

const AFTER_HELP: &str = "\
First steps:
  hatchery up                                   start a coordinator and an agent here
  hatchery submit --preset tiny --data notes/   train on a folder of text
  hatchery watch latest                         follow its progress
  hatchery generate --prompt 'The ' latest      prompt the newest checkpoint
  hatchery token create                         create a join string for another machine

Exit codes:
  0 success   1 failure   2 wrong usage   3 no coordinator answers   4 not found   5 refused   130 Ctrl-C

Progress bars appear only in a terminal. Elsewhere, or with NO_COLOR set, progress is printed as lines.";

/// The `hatchery` command.
#[derive(Debug, Parser)]
#[command(name = "hatchery", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    /// Output format.
    #[arg(long, global = true, value_enum, default_value_t, env = "HATCHERY_OUTPUT")]
    pub(crate) output: Output,
    /// State folder of this machine [default: ~/.hatchery].
    #[arg(long, global = true, value_name = "DIR", env = "HATCHERY_HOME")]
    pub(crate) home: Option<PathBuf>,
    /// Coordinator address; overrides the saved one.
    #[arg(long, global = true, value_name = "HOST:PORT", env = "HATCHERY_COORDINATOR")]
    pub(crate) coordinator: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a coordinator and an agent on this machine, in one process.
    Up(UpArgs),
    /// Run the coordinator: the server that schedules jobs and keeps all records.
    Coordinator(CoordinatorArgs),
    /// Run an agent: this machine trains jobs, stores checkpoints and answers prompts.
    Agent(AgentArgs),
    /// Connect this terminal to a coordinator on another machine.
    Login(LoginArgs),
    /// Create join strings for machines and people.
    #[command(subcommand)]
    Token(TokenCommand),
    /// List or revoke certificates.
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Submit a training job.
    Submit(Box<SubmitArgs>),
    /// List jobs.
    Jobs(JobsArgs),
    /// Show one job: its state, placement and failures; or change its priority.
    Job(OneJobArgs),
    /// Follow a job until it ends.
    Watch(JobArgs),
    /// Show the logs of a job's trainers.
    Logs(LogsArgs),
    /// Stop a job for good; a running job writes a checkpoint first.
    Cancel(JobOrGroupArgs),
    /// Stop a job until `hatchery resume`; a running job writes a checkpoint first.
    Pause(JobOrGroupArgs),
    /// Put a paused job back in the queue.
    Resume(JobOrGroupArgs),
    /// Put a running job back in the queue; it writes a checkpoint first.
    Requeue(JobOrGroupArgs),
    /// List nodes.
    Nodes,
    /// Show one node; or cordon, drain, reopen or remove it.
    Node(NodeArgs),
    /// List datasets.
    Datasets,
    /// List checkpoints and the nodes that hold them; or pin one.
    Checkpoints(CheckpointsArgs),
    /// Roll out a checkpoint to nodes, and activate it there if asked.
    Push(PushArgs),
    /// Undo the newest rollout that activated a checkpoint of a job.
    Rollback(RollbackArgs),
    /// List rollouts: checkpoint, target nodes, author and progress.
    Rollouts(RolloutsArgs),
    /// Generate text from a checkpoint, on one node or on all.
    Generate(GenerateArgs),
    /// Convert a checkpoint of the public PyTorch code; needs no coordinator.
    Import(ImportArgs),
    /// Show the fleet's event history.
    Events(EventsArgs),
    /// Show the coordinator's state.
    Status,
    /// Back up, restore or check a coordinator's state, on the coordinator's machine.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Show versions.
    Version,
    /// Print a shell completion script.
    Completions(CompletionsArgs),
    /// Write the manual, a page for each command.
    #[command(hide = true)]
    Man(ManArgs),
}

/// `hatchery login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Join string from `hatchery token create --scope operator`.
    #[arg(value_name = "JOIN STRING")]
    pub(crate) join: String,
    /// Your name in the fleet's records [default: $USER].
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// `hatchery token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a one-time join string for a machine or for a person's terminal.
    Create(TokenCreateArgs),
}

/// `hatchery token create`.
#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// Permissions: `agent` joins as a node, `operator` may do everything, `viewer` may only look.
    #[arg(long, default_value = "agent", value_name = "agent|operator|viewer")]
    pub(crate) scope: Scope,
    /// Name of the node or person; overrides the name they choose.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label for the node; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// Lifetime of the join string: 90s, 15m, 24h, 7d.
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub(crate) valid: Duration,
}

/// `hatchery certificate`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// List certificates.
    List,
    /// Revoke a certificate; its holder is refused from then on.
    Revoke {
        /// Id or unique prefix, from `hatchery certificate list`.
        certificate: String,
    },
}

/// `hatchery submit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hatchery submit --preset seed --data notes/ --include '**/*.md' --wait
  hatchery submit recipe.toml --set train.steps=500 --set train.lr=5e-4
  hatchery submit --preset tiny --data corpus.txt --device cuda --replicate-to room=attic
  hatchery submit --from first --set train.steps=9000
  hatchery submit --fine-tune first:best --data letters/ --set train.lr=1e-4
  hatchery submit --data notes/ --grid train.lr=1e-3,3e-4 --grid model.n_layer=4,6
  hatchery submit --data notes/ --preset seed --dry-run

The same as a recipe file:
  preset = \"seed\"
  data = [\"notes/\"]
  [train]
  steps = 2000
  lr = 5e-4
  [devices]
  kinds = [\"cuda\"]")]
pub(crate) struct SubmitArgs {
    /// Recipe file in TOML.
    pub(crate) recipe: Option<PathBuf>,
    /// Start from a preset: tiny, seed.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Text file or folder to train on; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Of a folder, use only the files that match this glob; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Train on a dataset that is already on the coordinator: id, unique prefix or name.
    #[arg(long, value_name = "ID", conflicts_with_all = ["data", "include"])]
    pub(crate) dataset: Option<String>,
    /// Continue from this checkpoint with its optimizer state, recipe and data. Raise the number of steps, such as
    /// --set train.steps=9000; the learning rate follows the schedule of the longer run.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with_all = ["recipe", "preset", "data", "include", "dataset"])]
    pub(crate) from: Option<String>,
    /// Start at step 0 with the weights of this checkpoint and a fresh optimizer, on the given data or else on the
    /// checkpoint's dataset.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "from")]
    pub(crate) fine_tune: Option<String>,
    /// Set a recipe key, such as train.steps=500; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Name of the job [default: after the recipe, the data or the preset].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Allowed kind of device: cuda, mps, cpu [default: any]; may be repeated.
    #[arg(long, value_name = "KIND")]
    pub(crate) device: Vec<DeviceKind>,
    /// Name of an allowed node [default: any]; may be repeated.
    #[arg(long)]
    pub(crate) node: Vec<Name>,
    /// Required node label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// Nodes that receive the checkpoints: all, none, or labels such as room=attic,disk=large [default: all].
    #[arg(long, value_name = "NODES")]
    pub(crate) replicate_to: Option<String>,
    /// Checkpoints to replicate [default: each].
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) replicate_which: Option<WhichArg>,
    /// Precision of the weights sent to other nodes [default: f32].
    #[arg(long, value_enum, value_name = "NUMBERS")]
    pub(crate) replicate_weights: Option<WeightsArg>,
    /// UUID of this request; repeating it returns the same job instead of submitting another.
    #[arg(long, value_name = "UUID", conflicts_with = "grid")]
    pub(crate) request_id: Option<RequestId>,
    /// Name of an excluded node; may be repeated.
    #[arg(long, value_name = "NODE")]
    pub(crate) exclude: Vec<Name>,
    /// Minimum device memory in MiB [default: estimated from model and batch].
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_min: Option<u64>,
    /// Priority from 0 to 100. Higher goes first and may preempt running jobs, after a checkpoint [default: 50].
    #[arg(long, value_name = "N", value_parser = parse_priority)]
    pub(crate) priority: Option<Priority>,
    /// Start only after this job has completed: id, unique prefix, name, or `latest`; may be repeated.
    #[arg(long, value_name = "JOB")]
    pub(crate) after: Vec<String>,
    /// Time from now by which the job should end: 90m, 12h, 2d. It goes ahead of others once it would be late.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// Group of the job; a group is watched, cancelled and ranked together.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Submit one job per value, such as train.lr=1e-3,3e-4, all in one group; if repeated, one per combination.
    #[arg(long, value_name = "KEY=V1,V2")]
    pub(crate) grid: Vec<String>,
    /// Submit nothing; show the expected start and end on each device, and the device it would get.
    #[arg(long, conflicts_with_all = ["wait", "grid"])]
    pub(crate) dry_run: bool,
    /// Wait until the job, or its whole group, has ended; Ctrl-C leaves it running.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Which checkpoints are replicated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WhichArg {
    /// Every checkpoint.
    Each,
    /// Only the newest checkpoint.
    Last,
    /// Only the checkpoint with the lowest validation loss.
    Best,
}

/// In which numbers weights are replicated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WeightsArg {
    /// The full checkpoint, as trained: any node can resume from it at once.
    F32,
    /// Rounded weights only, a sixth of the bytes: a node fetches the full checkpoint before it resumes from it.
    Bf16,
}

impl From<WeightsArg> for ReplicaWeights {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::F32 => Self::F32,
            WeightsArg::Bf16 => Self::Bf16,
        }
    }
}

impl From<WhichArg> for ReplicateWhich {
    fn from(which: WhichArg) -> Self {
        match which {
            WhichArg::Each => Self::Each,
            WhichArg::Last => Self::Last,
            WhichArg::Best => Self::Best,
        }
    }
}

/// `hatchery jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Only jobs that have not ended.
    #[arg(long)]
    pub(crate) active: bool,
    /// Only jobs of this group, best validation loss first.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Wait until all jobs of the group have ended.
    #[arg(long, requires = "group")]
    pub(crate) wait: bool,
    /// Show more of each job.
    #[arg(long, conflicts_with = "group")]
    pub(crate) wide: bool,
}

/// `hatchery job`.
#[derive(Debug, Args)]
pub(crate) struct OneJobArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
    /// Show the expected start and end on each device, and why it is chosen or not.
    #[arg(long)]
    pub(crate) why: bool,
    /// Change the priority, 0 to 100.
    #[arg(long, value_name = "N", value_parser = parse_priority, conflicts_with = "why")]
    pub(crate) priority: Option<Priority>,
}

/// A command on one job, or on all of a group that have not ended.
#[derive(Debug, Args)]
pub(crate) struct JobOrGroupArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
    /// Apply to all jobs of this group that have not ended.
    #[arg(long, value_name = "NAME", conflicts_with = "job")]
    pub(crate) group: Option<Name>,
}

/// A command on one job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
}

/// `hatchery logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
    /// Follow the log until the job has ended.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `hatchery node`.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Id, unique prefix, or name.
    pub(crate) node: String,
    /// Start no new jobs on the node; running jobs continue.
    #[arg(long, group = "change")]
    pub(crate) cordon: bool,
    /// Start no new jobs on the node, and move running jobs elsewhere after a checkpoint.
    #[arg(long, group = "change")]
    pub(crate) drain: bool,
    /// Start jobs on the node again.
    #[arg(long, group = "change")]
    pub(crate) open: bool,
    /// Remove the node from the fleet: its certificates are revoked and its jobs move elsewhere.
    #[arg(long, group = "change")]
    pub(crate) remove: bool,
}

/// `hatchery generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hatchery generate --prompt 'Once upon' --max-bytes 200
  hatchery generate my-job --prompt 'fn main' --temperature 0.8 --top-k 40 --seed 7
  hatchery generate my-job --prompt 'Q: why?' --top-p 0.9 --repetition-penalty 1.2 --stop $'\\n' --stop 'Q:'
  hatchery generate latest --prompt 'The ' --greedy --all-nodes

Text is streamed as it is generated; bytes that are not UTF-8 appear as \u{fffd}. --output json gives the exact bytes.")]
pub(crate) struct GenerateArgs {
    /// Checkpoint: id, unique prefix, JOB (its active checkpoint on the answering node), JOB:latest, JOB:best,
    /// `latest`, or `best` (of the newest checkpoint's job).
    #[arg(default_value = "latest", conflicts_with = "checkpoint_flag")]
    pub(crate) checkpoint: String,
    /// The checkpoint, as an option.
    #[arg(long = "checkpoint", value_name = "ID", id = "checkpoint_flag")]
    pub(crate) checkpoint_flag: Option<String>,
    /// Prompt; `-` reads it from stdin.
    #[arg(short, long, default_value = "\n", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Node that answers [default: chosen by the coordinator].
    #[arg(long, conflicts_with = "all_nodes")]
    pub(crate) node: Option<String>,
    /// Ask every node that holds the checkpoint, one after another; JOB means its newest checkpoint.
    #[arg(long)]
    pub(crate) all_nodes: bool,
    /// Maximum number of new bytes.
    #[arg(short = 'n', long, default_value_t = 200)]
    pub(crate) max_bytes: u32,
    /// Sampling temperature: lower is more predictable, higher more varied [default: 1].
    #[arg(short, long, value_name = "X")]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K likeliest bytes only [default: all].
    #[arg(short = 'k', long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Sample from the likeliest bytes that together reach this probability, above 0 to 1 [default: all].
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Sample from bytes with at least this share of the top byte's probability, 0 to 1 [default: all].
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Penalty for bytes that are among the last 64, 1 or more [default: 1, no penalty].
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Stop before this text; may be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Random seed; the same seed gives the same text [default: 0].
    #[arg(short, long)]
    pub(crate) seed: Option<u64>,
    /// Always pick the likeliest byte.
    #[arg(short, long)]
    pub(crate) greedy: bool,
}

/// `hatchery import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads files of torch.save, torch 1.6 or later, with {model, config, step} or a bare state dict; and state dicts in \
safetensors, with or without a config.json next to them. No code in the file is run: a file that names anything but \
tensors and a BDHConfig is refused.

Examples:
  hatchery import bdh_step_3000.pt --out imported
  hatchery import state.safetensors --n-layer 6 --block 512 --out imported
  hatchery-trainer generate --checkpoint imported --prompt 'The '")]
pub(crate) struct ImportArgs {
    /// A .pt or .safetensors file.
    pub(crate) file: PathBuf,
    /// Checkpoint folder to write; must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Number of layers, if the file does not record it; the weights cannot tell, as all layers share them.
    #[arg(long, value_name = "N")]
    pub(crate) n_layer: Option<u32>,
    /// Dropout in training, if the file does not record it [default: 0.1, as published].
    #[arg(long, value_name = "SHARE")]
    pub(crate) dropout: Option<f64>,
    /// Training block in bytes; answers look back no further [default: as recorded in the file, else unlimited].
    #[arg(long, value_name = "BYTES")]
    pub(crate) block: Option<u32>,
}

/// `hatchery events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only events after this number.
    #[arg(long, default_value_t = 0)]
    pub(crate) after: u64,
    /// Follow new events as they happen.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events of this job.
    #[arg(long)]
    pub(crate) job: Option<String>,
}

/// `hatchery completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for.
    pub(crate) shell: clap_complete::Shell,
}

/// `hatchery man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder that takes the pages; it must be there.
    pub(crate) folder: PathBuf,
}

/// Reads a number from 0 to 100.
fn parse_priority(text: &str) -> Result<Priority, String> {
    let number = text.parse::<u8>().map_err(|_| format!("`{text}` is not a number from 0 to 100"))?;
    Priority::new(number).map_err(|error| error.problem)
}

/// Reads `key=value`.
pub(crate) fn parse_label(text: &str) -> Result<(Name, Name), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is not a label such as room=attic"))?;
    let name = |text: &str| Name::new("label", text).map_err(|error| error.to_string());
    Ok((name(key)?, name(value)?))
}

//! The command line as clap reads it.

mod admin;
mod rollouts;

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

use crate::{human::parse_duration, output::Output};

const ABOUT: &str = "Train BDH language models on the machines you own, and find every checkpoint on every one of \
                     them, answering.";

const AFTER_HELP: &str = "\
First steps:
  hatchery up                                   a coordinator and an agent on this machine
  hatchery submit --preset tiny --data notes/   train on a folder of text
  hatchery watch latest                         see it learn
  hatchery generate --prompt 'The ' latest      ask the newest checkpoint
  hatchery token create                         a join string for the next machine

Exit codes:
  0 done   1 failed   2 wrong usage   3 no coordinator answers   4 not found   5 refused   130 Ctrl-C

Bars are drawn in a terminal only. Elsewhere, and where NO_COLOR is set, progress comes as lines.";

/// The `hatchery` command.
#[derive(Debug, Parser)]
#[command(name = "hatchery", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    /// How to print results.
    #[arg(long, global = true, value_enum, default_value_t, env = "HATCHERY_OUTPUT")]
    pub(crate) output: Output,
    /// The folder that holds this machine's state [default: ~/.hatchery].
    #[arg(long, global = true, value_name = "DIR", env = "HATCHERY_HOME")]
    pub(crate) home: Option<PathBuf>,
    /// Address of the coordinator, in place of the saved one.
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
    /// Run the coordinator: the one server that schedules and keeps the records.
    Coordinator(CoordinatorArgs),
    /// Make this machine an agent: it trains, holds checkpoints and answers.
    Agent(AgentArgs),
    /// Make this terminal a client of a coordinator elsewhere.
    Login(LoginArgs),
    /// Join strings for machines and people.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Certificates that were given out.
    #[command(subcommand)]
    Certificate(CertificateCommand),
    /// Submit a training job.
    Submit(Box<SubmitArgs>),
    /// List jobs.
    Jobs(JobsArgs),
    /// Show one job: how it stands, why it waits and where it may go, what failed; or give it another priority.
    Job(OneJobArgs),
    /// Follow a job until it ends.
    Watch(JobArgs),
    /// Show what a job's trainers wrote.
    Logs(LogsArgs),
    /// Stop a job for good, through a checkpoint if it runs.
    Cancel(JobOrGroupArgs),
    /// Stop a job, through a checkpoint if it runs, until `hatchery resume`.
    Pause(JobOrGroupArgs),
    /// Let a paused job wait for a device again.
    Resume(JobOrGroupArgs),
    /// Send a running job back to the queue, through a checkpoint.
    Requeue(JobOrGroupArgs),
    /// List nodes.
    Nodes,
    /// Show one node; close it to new work, drain it, open it again, or take it out of the fleet.
    Node(NodeArgs),
    /// List datasets.
    Datasets,
    /// List checkpoints and where they are.
    Checkpoints(CheckpointsArgs),
    /// Put a checkpoint on nodes, and let it answer there for its job.
    Push(PushArgs),
    /// Take back the newest rollout that activated a checkpoint of a job.
    Rollback(RollbackArgs),
    /// List rollouts: which checkpoint is to be where, by whose wish, and how far that is.
    Rollouts(RolloutsArgs),
    /// Ask a checkpoint for text, on any node or on all.
    Generate(GenerateArgs),
    /// Make a checkpoint folder out of a file of the public PyTorch code; needs no coordinator.
    Import(ImportArgs),
    /// Show the fleet's history.
    Events(EventsArgs),
    /// Show the coordinator's state.
    Status,
    /// Back up a coordinator's state, restore it, check it; on its own machine.
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Show versions.
    Version,
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
}

/// `hatchery up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Address to listen on; others can reach it only if it is not a loopback address.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address that other machines are told, if it differs; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<String>,
    /// Name of this node [default: the machine's own].
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) availability: AvailabilityArgs,
}

/// When a machine's devices are the fleet's.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "When this machine trains; else it stops within seconds, through a checkpoint")]
pub(crate) struct AvailabilityArgs {
    /// Only in these hours, by its own clock: 'mon-fri 19:00-07:00, sat-sun' [default: always].
    #[arg(long, value_name = "HOURS")]
    pub(crate) hours: Option<String>,
    /// Not while it runs on its battery.
    #[arg(long)]
    pub(crate) mains_power_only: bool,
    /// Only while other programs use at most this part of all cores, such as 0.3.
    #[arg(long, value_name = "SHARE")]
    pub(crate) load_max: Option<f64>,
    /// Only while nobody has touched keyboard or mouse for so many seconds, such as 300.
    #[arg(long, value_name = "SECS")]
    pub(crate) owner_idle_secs_min: Option<u32>,
}

/// `hatchery coordinator`.
#[derive(Debug, Args)]
#[command(after_help = "\
Settings come from, weakest first: defaults, the file, HATCHERY_COORDINATOR__KEY in the environment, flags.
Example: HATCHERY_COORDINATOR__LEASE_SECS=30 hatchery coordinator --print-config")]
pub(crate) struct CoordinatorArgs {
    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address that other machines are told; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<String>,
    /// Seconds after a node's last report until its jobs are given away.
    #[arg(long, value_name = "SECS")]
    pub(crate) lease_secs: Option<u64>,
    /// Settings file, TOML [default: coordinator.toml in the home folder, if it is there].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the settings in force and where each comes from, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// `hatchery agent`.
#[derive(Debug, Args)]
#[command(after_help = "\
On the coordinator's own machine no join string is needed. Elsewhere, once:
  hatchery agent --join 'hatchery-join-...'
After that, plain `hatchery agent` starts it again. Settings come from, weakest first: defaults, the file,
HATCHERY_AGENT__KEY in the environment, flags.")]
pub(crate) struct AgentArgs {
    /// Join string from `hatchery token create`; used once.
    #[arg(long, value_name = "STRING")]
    pub(crate) join: Option<String>,
    /// Name of this node [default: the machine's own]; counts when it joins.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label of this node, such as room=attic; may be repeated; counts when it joins.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// The trainer [default: hatchery-trainer beside this program].
    #[arg(long, value_name = "FILE", env = "HATCHERY_TRAINER")]
    pub(crate) trainer: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) availability: AvailabilityArgs,
    /// Settings file, TOML [default: agent.toml in the home folder, if it is there].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the settings in force and where each comes from, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// `hatchery login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Join string from `hatchery token create --scope operator`.
    #[arg(value_name = "JOIN STRING")]
    pub(crate) join: String,
    /// Your name, as it will stand beside what you do [default: the account's].
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// `hatchery token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a one-time join string for a machine, or for a person's terminal.
    Create(TokenCreateArgs),
}

/// `hatchery token create`.
#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// What its bearer may do.
    #[arg(long, default_value = "agent", value_name = "agent|operator|viewer")]
    pub(crate) scope: Scope,
    /// Name for the node or the person, in place of their own wish.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label for the node; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// How long it can be used: 90s, 15m, 24h, 7d.
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub(crate) valid: Duration,
}

/// `hatchery certificate`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// List them.
    List,
    /// Revoke one: its bearer is refused from now on.
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

A recipe file holds the same things:
  preset = \"seed\"
  data = [\"notes/\"]
  [train]
  steps = 2000
  lr = 5e-4
  [devices]
  kinds = [\"cuda\"]")]
pub(crate) struct SubmitArgs {
    /// Recipe file, TOML.
    pub(crate) recipe: Option<PathBuf>,
    /// Start from a preset: tiny, seed.
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// A file or folder of text; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Take only files of a folder that match this glob; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Train on a dataset that the coordinator has already.
    #[arg(long, value_name = "ID", conflicts_with_all = ["data", "include"])]
    pub(crate) dataset: Option<String>,
    /// Go on from this checkpoint, optimizer and all, by its own recipe and on its own data; give more steps, such as --set
    /// train.steps=9000. The learning rate is from here on that of a run meant so long from the start.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with_all = ["recipe", "preset", "data", "include", "dataset"])]
    pub(crate) from: Option<String>,
    /// Begin at step 0 with the weights of this checkpoint and a fresh optimizer, on the data given, or else on its own.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "from")]
    pub(crate) fine_tune: Option<String>,
    /// Set one key of the recipe, such as train.steps=500; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Name of the job.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Kind of device that will do: cuda, mps, cpu; may be repeated.
    #[arg(long, value_name = "KIND")]
    pub(crate) device: Vec<DeviceKind>,
    /// Name of a node that will do; may be repeated.
    #[arg(long)]
    pub(crate) node: Vec<Name>,
    /// Label that the node must carry; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// Nodes that get the checkpoints: all, none, or labels such as room=attic,disk=large.
    #[arg(long, value_name = "NODES")]
    pub(crate) replicate_to: Option<String>,
    /// Which checkpoints they get.
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) replicate_which: Option<WhichArg>,
    /// In which numbers nodes that only answer get the weights.
    #[arg(long, value_enum, value_name = "NUMBERS")]
    pub(crate) replicate_weights: Option<WeightsArg>,
    /// Name this request, with a UUID of your own: the same again gives the same job, however often it is sent.
    #[arg(long, value_name = "UUID", conflicts_with = "grid")]
    pub(crate) request_id: Option<RequestId>,
    /// Name of a node that will not do; may be repeated.
    #[arg(long, value_name = "NODE")]
    pub(crate) exclude: Vec<Name>,
    /// The least memory of the device, in MiB [default: estimated from model and batch].
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_min: Option<u64>,
    /// 0 to 100; jobs of higher priority go first, and may push others off their device, through a checkpoint [default: 50].
    #[arg(long, value_name = "N", value_parser = parse_priority)]
    pub(crate) priority: Option<Priority>,
    /// Start only when this job has completed: id, unique prefix, name, or `latest`; may be repeated.
    #[arg(long, value_name = "JOB")]
    pub(crate) after: Vec<String>,
    /// When it should have ended, from now: 90m, 12h, 2d; it goes before others once it would be late.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) deadline: Option<Duration>,
    /// Name of the group that it is watched, cancelled and ranked with.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Submit a job for each value, such as train.lr=1e-3,3e-4; repeated: for each combination. They are one group.
    #[arg(long, value_name = "KEY=V1,V2")]
    pub(crate) grid: Vec<String>,
    /// Submit nothing; show every device with when the job would start and end there, and which it would get.
    #[arg(long, conflicts_with_all = ["wait", "grid"])]
    pub(crate) dry_run: bool,
    /// Stay until the job has ended, or all of the group; Ctrl-C leaves it running.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Which checkpoints are replicated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WhichArg {
    /// Each one.
    Each,
    /// Only the newest.
    Last,
    /// Only the one of the lowest validation loss.
    Best,
}

/// In which numbers weights are replicated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum WeightsArg {
    /// As they were trained, and the rest of the checkpoint with them: any node can go on from it at once.
    F32,
    /// Rounded, and nothing else: a sixth of the bytes. A node that is to go on from it gets all of it first.
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
    /// Only those that have not ended.
    #[arg(long)]
    pub(crate) active: bool,
    /// Only those of this group, the best validation loss first.
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<Name>,
    /// Stay until all of the group have ended.
    #[arg(long, requires = "group")]
    pub(crate) wait: bool,
}

/// `hatchery job`.
#[derive(Debug, Args)]
pub(crate) struct OneJobArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
    /// Show every device with when the job would start and end there, and why it is or is not chosen.
    #[arg(long)]
    pub(crate) why: bool,
    /// Give it this priority, 0 to 100.
    #[arg(long, value_name = "N", value_parser = parse_priority, conflicts_with = "why")]
    pub(crate) priority: Option<Priority>,
}

/// A command on one job, or on all of a group that have not ended.
#[derive(Debug, Args)]
pub(crate) struct JobOrGroupArgs {
    /// Id, unique prefix, name, or `latest`.
    #[arg(default_value = "latest")]
    pub(crate) job: String,
    /// All jobs of this group that have not ended.
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
    /// Go on until the job has ended.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `hatchery node`.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Id, unique prefix, or name.
    pub(crate) node: String,
    /// Give it no new work; what runs goes on.
    #[arg(long, group = "change")]
    pub(crate) cordon: bool,
    /// Give it no new work, and send what runs elsewhere, each job through a checkpoint.
    #[arg(long, group = "change")]
    pub(crate) drain: bool,
    /// Give it work again.
    #[arg(long, group = "change")]
    pub(crate) open: bool,
    /// Take it out of the fleet: its certificates are revoked, its jobs go elsewhere.
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

Text is shown as it is made, character by character; bytes that are no UTF-8 become \u{fffd}. --output json gives the exact bytes.")]
pub(crate) struct GenerateArgs {
    /// Checkpoint id, unique prefix, a job (what is active of it on the node that answers), JOB:latest, JOB:best, `latest`, or
    /// `best` (of the newest one's job).
    #[arg(default_value = "latest", conflicts_with = "checkpoint_flag")]
    pub(crate) checkpoint: String,
    /// The same, as an option.
    #[arg(long = "checkpoint", value_name = "ID", id = "checkpoint_flag")]
    pub(crate) checkpoint_flag: Option<String>,
    /// The text before; `-` reads it from stdin.
    #[arg(short, long, default_value = "\n", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Ask this node.
    #[arg(long, conflicts_with = "all_nodes")]
    pub(crate) node: Option<String>,
    /// Ask every node that holds it, one after the other; of a job its newest checkpoint.
    #[arg(long)]
    pub(crate) all_nodes: bool,
    /// Most new bytes.
    #[arg(short = 'n', long, default_value_t = 200)]
    pub(crate) max_bytes: u32,
    /// Below 1: more likely text; above 1: wilder [default: 1].
    #[arg(short, long, value_name = "X")]
    pub(crate) temperature: Option<f64>,
    /// Choose among the likeliest so many.
    #[arg(short = 'k', long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Choose among the likeliest that together have this share of the probability: above 0 to 1.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Choose among those with at least this share of the likeliest one's probability: 0 to 1.
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f64>,
    /// Make bytes less likely that are among the last 64: above 1 [default: 1, which changes nothing].
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f64>,
    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// The same seed gives the same text.
    #[arg(short, long)]
    pub(crate) seed: Option<u64>,
    /// Always the likeliest byte.
    #[arg(short, long)]
    pub(crate) greedy: bool,
}

/// `hatchery import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads what torch.save of torch 1.6 or later wrote, {model, config, step} or a state dict alone, and a state dict in \
safetensors, by itself or with a config.json beside it. Nothing that is in the file is run: a file that names anything \
but tensors and a BDHConfig is refused.

Examples:
  hatchery import bdh_step_3000.pt --out imported
  hatchery import state.safetensors --n-layer 6 --block 512 --out imported
  hatchery-trainer generate --checkpoint imported --prompt 'The '")]
pub(crate) struct ImportArgs {
    /// A .pt or .safetensors file.
    pub(crate) file: PathBuf,
    /// The checkpoint folder to write; it must be new, or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Layers, where the file does not say; weights do not tell, since all layers share them.
    #[arg(long, value_name = "N")]
    pub(crate) n_layer: Option<u32>,
    /// Dropout in training, where the file does not say [default: 0.1, as published].
    #[arg(long, value_name = "SHARE")]
    pub(crate) dropout: Option<f64>,
    /// The block in bytes that it was trained on: answers then look back no further than that.
    #[arg(long, value_name = "BYTES")]
    pub(crate) block: Option<u32>,
}

/// `hatchery events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only events after this number.
    #[arg(long, default_value_t = 0)]
    pub(crate) after: u64,
    /// Go on as they happen.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only those of this job.
    #[arg(long)]
    pub(crate) job: Option<String>,
}

/// `hatchery completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For which shell.
    pub(crate) shell: clap_complete::Shell,
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

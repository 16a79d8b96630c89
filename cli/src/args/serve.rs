//! The services: a coordinator, an agent, both.

use std::path::PathBuf;

use clap::Args;
use hatchery_common::id::Name;

use super::parse_label;

/// `hatchery up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Listen address; other machines need one that is not loopback [default: 127.0.0.1:4747].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address under which other machines reach this one [default: detected]; may be repeated.
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
#[command(
    next_help_heading = "When this machine may train; otherwise training stops within seconds, after a checkpoint"
)]
pub(crate) struct AvailabilityArgs {
    /// Train only during these hours, in local time: 'mon-fri 19:00-07:00, sat-sun' [default: always].
    #[arg(long, value_name = "HOURS")]
    pub(crate) hours: Option<String>,
    /// Train only on mains power, never on battery.
    #[arg(long)]
    pub(crate) mains_power_only: bool,
    /// Train only while other programs use at most this share of all cores, such as 0.3 [default: no limit].
    #[arg(long, value_name = "SHARE")]
    pub(crate) load_max: Option<f64>,
    /// Train only after this many seconds without keyboard or mouse input, such as 300 [default: no limit].
    #[arg(long, value_name = "SECS")]
    pub(crate) owner_idle_secs_min: Option<u32>,
}

/// `hatchery coordinator`.
#[derive(Debug, Args)]
#[command(after_help = "\
Later sources override earlier ones: defaults, settings file, environment (HATCHERY_COORDINATOR__KEY), flags.
Example: HATCHERY_COORDINATOR__LEASE_SECS=30 hatchery coordinator --print-config")]
pub(crate) struct CoordinatorArgs {
    /// Listen address [default: 127.0.0.1:4747].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address under which other machines reach this one [default: detected]; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<String>,
    /// Seconds after a node's last report until its jobs move to other nodes [default: 15].
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
The coordinator's own machine needs no join string. On any other machine, join once:
  hatchery agent --join 'hatchery-join-...'
From then on, plain `hatchery agent` is enough. Later sources override earlier ones: defaults, settings
file, environment (HATCHERY_AGENT__KEY), flags.")]
pub(crate) struct AgentArgs {
    /// Join string from `hatchery token create`; needed only the first time.
    #[arg(long, value_name = "STRING")]
    pub(crate) join: Option<String>,
    /// Name of this node [default: host name]; takes effect on joining.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Label of this node, such as room=attic; takes effect on joining; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<(Name, Name)>,
    /// Trainer program [default: hatchery-trainer next to this program].
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

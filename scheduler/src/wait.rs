//! Why a job waits: a value that a program can match and a sentence that a person can read.

use std::{fmt, time::Duration};

use hatchery_common::{
    availability::Away,
    device::Device,
    id::{Epoch, Name},
    node::TrainerState,
    recipe::DeviceWishes,
    trainer::FailureCause,
};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

/// Why a job waits. Prints as one sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "snake_case")]
pub enum Wait {
    /// No node has joined.
    NoNodes,
    /// No node, connected or not, has a device as wished.
    NoSuchDevice {
        /// What the job wishes for.
        wishes: DeviceWishes,
        fleet: Fleet,
    },
    /// Nodes that have such a device are known, and none is connected.
    NodeNotConnected { nodes: Vec<Name> },
    /// Devices as wished are there, and all have too little memory.
    TooLittleMemory {
        /// What the job needs at the least.
        least_bytes: u64,
        /// The most that one of them has.
        most_bytes: u64,
    },
    /// All nodes that could run it are cordoned or drained.
    NodeCordoned { nodes: Vec<Name> },
    /// All nodes that could run it are their owners' for now.
    NodeAway { nodes: Vec<AwayNode> },
    /// It comes after other jobs.
    After {
        /// Those that have not completed.
        jobs: Vec<Name>,
    },
    /// Its submitter has as many jobs running as one person may have.
    SubmitterAtLimit { submitter: Name, limit: usize },
    /// The coordinator has just started, and the best node is not back yet.
    NodeUnknown {
        node: Name,
        /// How long it still has.
        given: Duration,
        /// What could be had at once.
        instead: Option<Instead>,
    },
    /// The device on which it will end first has another attempt.
    Busy {
        device: Device,
        node: Name,
        /// How long that attempt still needs, where measurements say so.
        about: Option<Duration>,
        /// What could be had at once.
        instead: Option<Instead>,
    },
    /// The same, with other jobs to come before it.
    Behind {
        jobs: usize,
        device: Device,
        node: Name,
        /// How long the attempt and those jobs need, where measurements say so.
        about: Option<Duration>,
        /// What could be had at once.
        instead: Option<Instead>,
    },
    /// It failed and pauses before the next attempt.
    BackingOff { about: Duration, because: Option<Because> },
}

/// A node that is its owner's for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwayNode {
    pub name: Name,
    /// Why, and until when.
    pub away: Away,
}

impl fmt::Display for AwayNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is away ({})", self.name, self.away)
    }
}

/// A device that a waiting job could have at once, and does not take because it would end later there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instead {
    pub device: Device,
    pub node: Name,
    pub later: Duration,
}

/// The failure that a pause follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Because {
    /// Why the attempt failed.
    pub cause: FailureCause,
    pub epoch: Epoch,
    /// Where, unless the node is gone.
    pub node: Option<Name>,
}

/// What there is to train on, shortened for a sentence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// The first nodes by name.
    pub nodes: Vec<FleetNode>,
    /// How many more there are.
    pub more: usize,
}

/// One node in a [`Fleet`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetNode {
    pub name: Name,
    /// What it can train on.
    pub devices: Vec<Device>,
    /// Why it cannot train, if it cannot.
    pub why_not: Option<String>,
}

impl Fleet {
    pub const NODES_MAX: usize = 8;

    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut nodes: Vec<_> = cluster.nodes.values().collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let more = nodes.len().saturating_sub(Self::NODES_MAX);
        nodes.truncate(Self::NODES_MAX);
        let nodes = nodes.into_iter().map(|node| FleetNode {
            name: node.name.clone(),
            devices: node.inventory.devices.iter().map(|device| device.device).collect(),
            why_not: match &node.inventory.trainer {
                TrainerState::Missing { why } => Some(why.clone()),
                TrainerState::Ready { .. } => None,
            },
        });
        Self { nodes: nodes.collect(), more }
    }
}

impl Wait {
    /// The reason's class in one word, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoNodes => "no_nodes",
            Self::NoSuchDevice { .. } => "no_such_device",
            Self::NodeNotConnected { .. } => "node_not_connected",
            Self::TooLittleMemory { .. } => "too_little_memory",
            Self::NodeCordoned { .. } => "node_cordoned",
            Self::NodeAway { .. } => "node_away",
            Self::After { .. } => "after",
            Self::SubmitterAtLimit { .. } => "submitter_at_limit",
            Self::NodeUnknown { .. } => "node_unknown",
            Self::Busy { .. } => "busy",
            Self::Behind { .. } => "behind",
            Self::BackingOff { .. } => "backing_off",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("waiting: ")?;
        match self {
            Self::NoNodes => {
                f.write_str("no node has joined yet; create a join string with `hatchery token create`")
            }
            Self::NoSuchDevice { wishes, fleet } => {
                write!(f, "no node has {}; the fleet has {fleet}", Wished(wishes))
            }
            Self::NodeNotConnected { nodes } => {
                let verb = if nodes.len() == 1 { "is" } else { "are" };
                write!(f, "{}, which could run this, {verb} not connected", listed(nodes, "and"))
            }
            Self::TooLittleMemory { least_bytes, most_bytes } => write!(
                f,
                "it needs at least {} MiB of memory, and the largest suitable device has {} MiB",
                least_bytes.div_ceil(1 << 20),
                most_bytes >> 20
            ),
            Self::NodeCordoned { nodes } => {
                let verb = if nodes.len() == 1 { "is" } else { "are" };
                write!(f, "{}, which could run this, {verb} closed to new jobs", listed(nodes, "and"))?;
                f.write_str("; reopen with `hatchery node NAME --open`")
            }
            Self::NodeAway { nodes } => match &nodes[..] {
                [AwayNode { name, away }] => write!(f, "{name}, which could run this, is away: {away}"),
                nodes => write!(f, "of the nodes that could run this, {}", listed(nodes, "and")),
            },
            Self::After { jobs } => write!(f, "it starts after {}", listed(jobs, "and")),
            Self::SubmitterAtLimit { submitter, limit } => {
                write!(f, "{submitter} has reached the limit of running jobs per person, {limit}")
            }
            Self::NodeUnknown { node, given, instead } => {
                let given = Rough(*given);
                write!(
                    f,
                    "{node} has not reconnected since the coordinator started and has another {given} to \
                     do so"
                )?;
                write_instead(f, instead.as_ref())
            }
            Self::Busy { device, node, about, instead } => {
                write!(f, "{device} of {node} is busy{}", More(*about))?;
                write_instead(f, instead.as_ref())
            }
            Self::Behind { jobs, device, node, about, instead } => {
                let noun = if *jobs == 1 { "job" } else { "jobs" };
                write!(f, "behind {jobs} {noun} for {device} of {node}, which is busy{}", More(*about))?;
                write_instead(f, instead.as_ref())
            }
            Self::BackingOff { about, because } => {
                write!(f, "retries in {}", Rough(*about))?;
                because.as_ref().map_or(Ok(()), |because| write!(f, ", because {because}"))
            }
        }
    }
}

fn write_instead(f: &mut fmt::Formatter<'_>, instead: Option<&Instead>) -> fmt::Result {
    let Some(Instead { device, node, later }) = instead else { return Ok(()) };
    write!(f, "; starting on {device} of {node} now would finish {} later", Rough(*later))
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.cause {
            FailureCause::Crashed => "crashed",
            FailureCause::OutOfMemory => "ran out of memory",
            FailureCause::BadInput => "could not use its input",
            FailureCause::NotANumber => "diverged (not a number)",
            FailureCause::Unavailable => "could not use libtorch or the device",
            FailureCause::Storage => "could not write to disk",
            FailureCause::Outdated => "met a version that does not know its recipe",
        };
        write!(f, "attempt {} {what}", self.epoch)?;
        self.node.as_ref().map_or(Ok(()), |node| write!(f, " on {node}"))
    }
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |node: &FleetNode| match &node.why_not {
            Some(why) => format!("{}, which cannot train ({why})", node.name),
            None if node.devices.is_empty() => format!("{} without devices", node.name),
            None => format!("{} with {}", node.name, listed(&node.devices, "and")),
        };
        let mut parts: Vec<String> = self.nodes.iter().map(one).collect();
        if self.more > 0 {
            parts.push(format!("{} more nodes", self.more));
        }
        f.write_str(&parts.join("; "))
    }
}

/// Wishes as part of a sentence: `cuda or mps, on gpu-a or gpu-b, with room=attic`.
struct Wished<'a>(&'a DeviceWishes);

impl fmt::Display for Wished<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceWishes { kinds, nodes, labels, exclude, .. } = self.0;
        let mut parts = Vec::new();
        parts.push(if kinds.is_empty() { "a device that can train".to_owned() } else { listed(kinds, "or") });
        if !nodes.is_empty() {
            parts.push(format!("on {}", listed(nodes, "or")));
        }
        if !labels.is_empty() {
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            parts.push(format!("with {}", listed(&labels, "and")));
        }
        if !exclude.is_empty() {
            parts.push(format!("and not on {}", listed(exclude, "or")));
        }
        f.write_str(&parts.join(" "))
    }
}

/// `a`, `a and b`, `a, b and c`; of many, the first few and how many more.
fn listed<T: fmt::Display>(items: &[T], last: &str) -> String {
    const SHOWN_MAX: usize = 8;
    let mut words: Vec<String> = items.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    if items.len() > SHOWN_MAX {
        words.push(format!("{} more", items.len() - SHOWN_MAX));
    }
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

/// ` for about another 3 min`, or nothing.
struct More(Option<Duration>);

impl fmt::Display for More {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |about| write!(f, " for about another {}", Rough(about)))
    }
}

/// A duration as people say it: `45 s`, `3 min`, `2 h 5 min`, `4 d 1 h`.
pub struct Rough(pub Duration);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs_f64().ceil() as u64;
        let mins = (secs + 30) / 60;
        let hours = (mins + 30) / 60;
        match (secs, mins, hours) {
            (0..90, ..) => write!(f, "{secs} s"),
            (_, 0..60, _) => write!(f, "{mins} min"),
            (_, _, 0..48) if mins.is_multiple_of(60) => write!(f, "{} h", mins / 60),
            (_, _, 0..48) => write!(f, "{} h {} min", mins / 60, mins % 60),
            _ if hours.is_multiple_of(24) => write!(f, "{} d", hours / 24),
            _ => write!(f, "{} d {} h", hours / 24, hours % 24),
        }
    }
}

//! Who brings the bytes.

mod aria2;
mod bencode;
mod payload;
mod rsync;
mod torrent;
mod tracker;

use clap::ValueEnum;

pub(super) use aria2::Aria2;
pub(super) use rsync::Rsync;

use super::command::is_installed;
use super::fleet::Programs;

/// A way to bring a file to many nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Contender {
    /// Hatchery: agents fetch from one another.
    Swarm,
    /// Hatchery's agents, from the coordinator alone, over tonic.
    Star,
    /// rsync from a daemon at the source, without encryption.
    Rsync,
    /// BitTorrent by aria2, with a tracker at the source, without encryption.
    Aria2,
}

impl Contender {
    pub(super) const ALL: [Self; 4] = [Self::Swarm, Self::Star, Self::Rsync, Self::Aria2];

    /// As it is called in tables and flags.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Swarm => "swarm",
            Self::Star => "star",
            Self::Rsync => "rsync",
            Self::Aria2 => "aria2",
        }
    }

    /// Whether every byte comes from the source, so that a transfer takes N times as long.
    pub(super) fn is_star(self) -> bool {
        matches!(self, Self::Star | Self::Rsync)
    }

    /// Why it cannot be measured here; none: it can.
    pub(super) fn lacks(self, programs: &Programs) -> Option<&'static str> {
        match self {
            Self::Swarm => (!programs.knows_peers).then_some(
                "agents of this build have no setting `peers.enabled`: they fetch from the coordinator alone",
            ),
            Self::Star => None,
            Self::Rsync => {
                (!is_installed("rsync")).then_some("rsync is not installed: apt-get install rsync")
            }
            Self::Aria2 => {
                (!is_installed("aria2c")).then_some("aria2c is not installed: apt-get install aria2")
            }
        }
    }
}

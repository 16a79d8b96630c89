//! What is simulated.

use crate::links::Sharing;

/// The node that has the blob.
pub(crate) const SOURCE: usize = 0;
/// More nodes than this share their links in the simpler way.
const MAX_MIN_NODES: usize = 130;

/// A node's link, in bytes per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) can_be_dialled: bool,
}

/// When something happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// After this share of the floor.
    AtFloorShare(f64),
    /// As soon as every piece is at some receiver.
    OneCopyIsOut,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Incident {
    Joins(usize),
    Dies(usize),
    /// It says nothing more, and its connections stay.
    Stops(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// The source first.
    pub(crate) nodes: Vec<Link>,
    pub(crate) incidents: Vec<(When, Incident)>,
    pub(crate) flipping: Option<usize>,
    /// Whether the tracker has measured all links before.
    pub(crate) rates_are_known: bool,
}

impl Case {
    /// Equal links of 60 Mbit/s.
    pub(crate) fn equal(receivers: usize, size_bytes: u64) -> Self {
        let link = Link { up: MBIT * 60.0, down: MBIT * 60.0, can_be_dialled: true };
        Self {
            name: format!("equal, N = {receivers}, {} MB", size_bytes / 1_000_000),
            size_bytes,
            nodes: vec![link; receivers + 1],
            incidents: Vec::new(),
            flipping: None,
            rates_are_known: false,
        }
    }

    fn piece_size(&self) -> u64 {
        self.size_bytes.div_ceil(512).next_power_of_two().clamp(64 << 10, 4 << 20)
    }

    pub(crate) fn piece_count(&self) -> u32 {
        self.size_bytes.div_ceil(self.piece_size()) as u32
    }

    pub(crate) fn piece_bytes(&self, index: u32) -> f64 {
        let start = u64::from(index) * self.piece_size();
        (self.size_bytes - start).min(self.piece_size()) as f64
    }

    pub(crate) fn sharing(&self) -> Sharing {
        if self.nodes.len() <= MAX_MIN_NODES { Sharing::MaxMin } else { Sharing::EqualShares }
    }

    pub(crate) fn flips(&self, node: usize) -> bool {
        self.flipping == Some(node)
    }

    pub(crate) fn tick_secs(&self) -> f64 {
        if self.nodes.len() <= MAX_MIN_NODES { 0.1 } else { 1.0 }
    }

    pub(crate) fn late(&self) -> impl Iterator<Item = usize> + '_ {
        self.incidents.iter().filter_map(|(_, incident)| match incident {
            Incident::Joins(node) => Some(*node),
            _ => None,
        })
    }

    /// The least time in which all receivers, without those that come late, can have everything.
    pub(crate) fn floor_secs(&self) -> f64 {
        let late: Vec<usize> = self.late().collect();
        let here: Vec<usize> = (1..self.nodes.len()).filter(|node| !late.contains(node)).collect();
        self.floor_secs_of(&here)
    }

    /// The same for these alone.
    pub(crate) fn floor_secs_of(&self, receivers: &[usize]) -> f64 {
        let (size, source) = (self.size_bytes as f64, self.nodes[SOURCE].up);
        let links = || receivers.iter().map(|&node| self.nodes[node]);
        let slowest = links().map(|link| link.down).fold(f64::INFINITY, f64::min);
        let can_send = links().filter(|link| link.can_be_dialled).map(|link| link.up).sum::<f64>();
        (size / source).max(size / slowest).max(receivers.len() as f64 * size / (source + can_send))
    }
}

/// Bytes per second.
pub(crate) const MBIT: f64 = 1e6 / 8.0;

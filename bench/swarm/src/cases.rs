//! What is simulated.

use std::collections::BTreeSet;

use hatchery_swarm::Random;

use crate::links::Sharing;

/// The node that has the blob, or the first of those that have it.
pub const SOURCE: usize = 0;
/// Bytes per second.
pub const MBIT: f64 = 1e6 / 8.0;
/// The link of a node of which nothing else is said: sixteen such share a gigabit.
const LINK: Link = Link { up: 60.0 * MBIT, down: 60.0 * MBIT, can_be_dialled: true };
/// More nodes than this share their links in the simpler way.
const MAX_MIN_NODES: usize = 130;
/// A small checkpoint.
pub const SMALL_BYTES: u64 = 13_000_000;
/// A large one.
pub const LARGE_BYTES: u64 = 100_000_000;

/// A node's link, in bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub up: f64,
    pub down: f64,
    pub can_be_dialled: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum When {
    /// After this share of the floor.
    AtFloorShare(f64),
    /// As soon as every piece is at some receiver.
    OneCopyIsOut,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
pub enum Incident {
    Joins(usize),
    Dies(usize),
    /// It says nothing more, and its connections stay.
    Stops(usize),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub size_bytes: u64,
    pub nodes: Vec<Link>,
    /// How many have the blob from the start.
    pub sources: usize,
    pub incidents: Vec<(When, Incident)>,
    pub flipping: Option<usize>,
    /// Whether the tracker has measured all links before.
    pub rates_are_known: bool,
    /// Receivers whose end is looked at apart from the others'.
    pub apart: Vec<usize>,
}

/// Receivers that are looked at together.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: &'static str,
    pub receivers: Vec<usize>,
    /// The least time in which all of them could have everything.
    pub floor_secs: f64,
}

impl Case {
    /// Equal links of 60 Mbit/s.
    pub fn equal(receivers: usize, size_bytes: u64) -> Self {
        Self {
            name: "equal links".to_owned(),
            size_bytes,
            nodes: vec![LINK; receivers + 1],
            sources: 1,
            incidents: Vec::new(),
            flipping: None,
            rates_are_known: false,
            apart: Vec::new(),
        }
    }

    /// The cases that run by themselves.
    pub fn all() -> Vec<Self> {
        let sizes = [SMALL_BYTES, LARGE_BYTES];
        let equal = [4, 8, 16].into_iter().flat_map(|count| sizes.map(|size| Self::equal(count, size)));
        let unlike = sizes.into_iter().flat_map(Self::unlike);
        let hurt = sizes.into_iter().flat_map(Self::hurt);
        equal.chain(unlike).chain(hurt).collect()
    }

    /// Nodes that are not alike, eight or sixteen of them.
    fn unlike(size_bytes: u64) -> Vec<Self> {
        let named =
            |name: &str, receivers| Self { name: name.to_owned(), ..Self::equal(receivers, size_bytes) };
        let mut slow = named("one at a quarter of the rate", 8);
        slow.nodes[3] = Link { up: LINK.up / 4.0, down: LINK.down / 4.0, ..LINK };
        slow.apart = vec![3];
        let known = Self { name: format!("{}, known", slow.name), rates_are_known: true, ..slow.clone() };
        let mut hidden = named("4 of 16 cannot be dialled", 16);
        for node in 1..=4 {
            hidden.nodes[node].can_be_dialled = false;
        }
        let mut narrow = named("uplinks a tenth, the source's whole", 8);
        for node in 1..=8 {
            narrow.nodes[node].up /= 10.0;
        }
        let mut quick = named("a source of ten times the rate", 8);
        quick.nodes[SOURCE].up *= 10.0;
        // The coordinator and the node that trained: what each sends must be what the other does not.
        let mut halves = Self { sources: 2, ..named("two sources of half the rate", 9) };
        for source in 0..2 {
            halves.nodes[source].up /= 2.0;
        }
        let mut mixed = named("links of 20 to 200 Mbit/s", 16);
        let mut random = Random::new(size_bytes);
        for link in &mut mixed.nodes {
            let rate = 20.0 * MBIT * 10_f64.powf(random.below(1001) as f64 / 1000.0);
            (link.up, link.down) = (rate, rate);
        }
        vec![slow, known, hidden, narrow, quick, halves, mixed]
    }

    /// Nodes to which something happens.
    fn hurt(size_bytes: u64) -> Vec<Self> {
        let half = When::AtFloorShare(0.5);
        let with = |name: &str, incident| Self {
            name: name.to_owned(),
            incidents: vec![incident],
            ..Self::equal(8, size_bytes)
        };
        let late = Self { apart: vec![8], ..with("one joins at half", (half, Incident::Joins(8))) };
        let flips =
            Self { name: "one flips bytes".to_owned(), flipping: Some(3), ..Self::equal(8, size_bytes) };
        vec![
            with("one dies at half", (half, Incident::Dies(3))),
            with("one falls silent at half", (half, Incident::Stops(3))),
            with("the source dies after one copy", (When::OneCopyIsOut, Incident::Dies(SOURCE))),
            late,
            flips,
        ]
    }

    fn piece_size(&self) -> u64 {
        self.size_bytes.div_ceil(512).next_power_of_two().clamp(64 << 10, 4 << 20)
    }

    pub fn piece_count(&self) -> u32 {
        self.size_bytes.div_ceil(self.piece_size()) as u32
    }

    pub fn piece_bytes(&self, index: u32) -> f64 {
        let start = u64::from(index) * self.piece_size();
        (self.size_bytes - start).min(self.piece_size()) as f64
    }

    pub fn sharing(&self) -> Sharing {
        if self.nodes.len() <= MAX_MIN_NODES { Sharing::MaxMin } else { Sharing::EqualShares }
    }

    pub fn flips(&self, node: usize) -> bool {
        self.flipping == Some(node)
    }

    /// How often a node tells the tracker how it is getting on.
    pub fn tick_secs(&self) -> f64 {
        if self.nodes.len() <= MAX_MIN_NODES { 0.1 } else { 1.0 }
    }

    pub fn late(&self) -> impl Iterator<Item = usize> + '_ {
        self.incidents.iter().filter_map(|(_, incident)| match incident {
            Incident::Joins(node) => Some(*node),
            _ => None,
        })
    }

    /// The receivers that are to have everything in the end.
    pub fn groups(&self) -> Vec<Group> {
        let gone: BTreeSet<usize> = (self.incidents.iter())
            .filter_map(|(_, incident)| match incident {
                Incident::Dies(node) | Incident::Stops(node) => Some(*node),
                Incident::Joins(_) => None,
            })
            .collect();
        let stays = |node: &usize| !gone.contains(node);
        let (apart, others): (Vec<_>, Vec<_>) =
            (self.sources..self.nodes.len()).filter(stays).partition(|node| self.apart.contains(node));
        let name = if apart.is_empty() { "all" } else { "others" };
        let mut groups = vec![Group { name, floor_secs: self.floor_secs_of(&others), receivers: others }];
        if !apart.is_empty() {
            groups.push(Group { name: "it", floor_secs: self.floor_secs_of(&apart), receivers: apart });
        }
        groups
    }

    /// The least time in which the receivers of the first group can have everything.
    pub fn floor_secs(&self) -> f64 {
        self.groups()[0].floor_secs.max(self.size_bytes as f64 / self.up_of_sources())
    }

    fn up_of_sources(&self) -> f64 {
        self.nodes[..self.sources].iter().map(|link| link.up).sum()
    }

    pub fn is_source(&self, node: usize) -> bool {
        node < self.sources
    }

    /// F/u_source, F/min(down) or N F/(u_source + sum(u)), whichever is most. Who cannot be dialled sends nothing.
    fn floor_secs_of(&self, receivers: &[usize]) -> f64 {
        let (size, source) = (self.size_bytes as f64, self.up_of_sources());
        let links = || receivers.iter().map(|&node| self.nodes[node]);
        let slowest = links().map(|link| link.down).fold(f64::INFINITY, f64::min);
        let can_send = links().filter(|link| link.can_be_dialled).map(|link| link.up).sum::<f64>();
        (size / source).max(size / slowest).max(receivers.len() as f64 * size / (source + can_send))
    }
}

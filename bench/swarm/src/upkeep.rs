//! What the tracker costs by itself: memory and time for each node.

use std::{fs, time::Instant};

use anyhow::{Context as _, Result};
use hatchery_common::{
    digest::Digest,
    id::{BlobId, NodeId},
};
use hatchery_swarm::{Direction, Random, Reach, Tracker, Trouble};
use serde::Serialize;

/// Of a fleet of so many receivers of one blob.
#[derive(Clone, Debug, Serialize)]
pub struct Upkeep {
    pub receivers: usize,
    /// Resident memory that the tracker has added, by its nodes.
    pub bytes_per_node: f64,
    /// Microseconds for each event of a kind, the plans that follow from it included, and how many plans these are.
    pub events: Vec<(&'static str, f64, f64)>,
}

/// Lets a fleet of so many receivers join, report and leave.
pub fn measure(receivers: usize) -> Result<Upkeep> {
    let (blob, before) = (BlobId(Digest::of(b"measured")), resident_bytes()?);
    let mut tracker = Tracker::new(Random::new(1));
    let mut random = Random::new(2);
    let node = |number: usize| NodeId::from_bytes((number as u128).to_be_bytes());
    let reach = Reach { can_be_dialled: true, children_max: None };
    tracker.node_came(node(0), reach);
    tracker.has_all(blob, node(0));
    let mut events = Vec::new();
    let mut time = |name, tracker: &mut Tracker, tell: &mut dyn FnMut(&mut Tracker, usize)| {
        let (began, mut plans) = (Instant::now(), 0);
        for number in 1..=receivers {
            tell(tracker, number);
            plans += tracker.take_plans().len();
        }
        let each = began.elapsed().as_secs_f64() * 1e6 / receivers as f64;
        events.push((name, each, plans as f64 / receivers as f64));
    };
    time("joins", &mut tracker, &mut |tracker, number| {
        tracker.node_came(node(number), reach);
        tracker.wants(blob, node(number), 0);
    });
    let bytes_per_node = resident_bytes()?.saturating_sub(before) as f64 / receivers as f64;
    time("tells its progress and rate", &mut tracker, &mut |tracker, number| {
        tracker.progressed(blob, node(number), 200);
        tracker.measured(node(number), Direction::Up, 1e6 * (1.0 + random.below(100) as f64 / 100.0));
    });
    time("says that a parent stalls", &mut tracker, &mut |tracker, number| {
        let parents = tracker.plan(blob, node(number)).map(|plan| plan.parents).unwrap_or_default();
        if let Some(&(parent, _)) = parents.first() {
            tracker.trouble(blob, node(number), Trouble::Stalled(parent));
        }
    });
    time("leaves and joins again", &mut tracker, &mut |tracker, number| {
        tracker.node_left(node(number));
        tracker.node_came(node(number), reach);
        tracker.wants(blob, node(number), 100);
    });
    time("has everything", &mut tracker, &mut |tracker, number| tracker.has_all(blob, node(number)));
    Ok(Upkeep { receivers, bytes_per_node, events })
}

/// What this process holds in memory now.
fn resident_bytes() -> Result<u64> {
    let path = "/proc/self/statm";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}; this needs Linux"))?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.with_context(|| format!("{path} is not what it should be"))? * 4096)
}

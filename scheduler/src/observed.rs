//! Observations: what was last heard. Never durable; a restarted coordinator starts with none.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hatchery_common::{
    device::Device,
    id::{JobId, NodeId},
    session::Report,
    time::{BootTime, Timestamp},
    trainer::Progress,
};

use crate::cluster::Job;

/// The two clocks at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub wall: Timestamp,
    pub boot: BootTime,
}

/// What the coordinator has heard since it started.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// When this coordinator started: a node not heard from since then is *unknown*, and its leases run from here (I5).
    pub started_at: BootTime,
    /// A lease's term, counted from the last report received.
    pub lease: Duration,
    /// The nodes heard from.
    pub nodes: BTreeMap<NodeId, ObservedNode>,
    /// What the operator has set.
    pub policy: Policy,
    /// The lines that the last plan made: a new plan keeps to them unless another one is better. Empty after a start.
    pub intended: Arc<BTreeMap<(NodeId, Device), Vec<InLine>>>,
}

/// A job that waits for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InLine {
    pub job: JobId,
    /// How long until it is expected to start.
    pub start_in: Duration,
    /// How long until it is expected to end.
    pub end_in: Duration,
}

/// What an operator sets for planning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Most jobs of one person that run at once; none: as many as there are devices.
    pub running_per_submitter_max: Option<usize>,
}

/// What was last heard of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedNode {
    /// When its last report came; zero before the first.
    pub last_heard: BootTime,
    /// Whether its session is open.
    pub connected: bool,
    pub report: Report,
}

impl ObservedNode {
    /// Whether it has reported since the coordinator started.
    pub fn has_reported(&self) -> bool {
        self.last_heard != BootTime::default()
    }
}

impl Observed {
    pub fn new(started_at: BootTime, lease: Duration) -> Self {
        Self {
            started_at,
            lease,
            nodes: BTreeMap::new(),
            policy: Policy::default(),
            intended: Arc::default(),
        }
    }

    /// When the leases of `node` run out, unless it is heard from again.
    pub fn lease_until(&self, node: NodeId) -> BootTime {
        let last_heard = self.nodes.get(&node).map_or(self.started_at, |node| node.last_heard);
        last_heard.max(self.started_at) + self.lease
    }
    /// The last progress of the job's attempt on `node`.
    pub(crate) fn progress(&self, job: &Job, node: NodeId) -> Option<Progress> {
        let reports = &self.nodes.get(&node)?.report.attempts;
        reports.iter().find(|report| report.id == job.attempt())?.progress
    }
}

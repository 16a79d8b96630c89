//! What was heard since the start. It is never durable: after a restart the agents say it again.

use std::{collections::BTreeMap, sync::Arc};

use hatchery_common::{
    device::Device,
    id::{Epoch, JobId, NodeId},
    session::Report,
    time::{BootTime, Timestamp},
    trainer::{Progress, Validation},
};
use hatchery_scheduler::{Event, InLine, Lease, Observed, What};

use crate::core::double_buffer::Evolve;

/// So many jobs' last attempts are remembered; of more, the oldest are forgotten.
const LAST_ATTEMPTS_MAX: usize = 10_000;

/// All that was heard.
#[derive(Clone, Debug)]
pub(crate) struct Observations {
    /// What planning goes by.
    pub(crate) observed: Observed,
    /// The newest attempt of each job, also after its end, for people.
    pub(crate) last_attempts: BTreeMap<JobId, LastAttempt>,
}

/// The newest attempt of a job.
#[derive(Clone, Debug)]
pub(crate) struct LastAttempt {
    pub(crate) epoch: Epoch,
    pub(crate) node: NodeId,
    pub(crate) device: Device,
    granted_at: Timestamp,
    pub(crate) progress: Option<Progress>,
    pub(crate) validation: Option<Validation>,
    pub(crate) running_on: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Sighting {
    /// A node's session is open.
    Opened {
        node: NodeId,
    },
    /// A node reported.
    Heard {
        node: NodeId,
        at: BootTime,
        report: Box<Report>,
    },
    /// A node's session is closed.
    Closed {
        node: NodeId,
    },
    /// The coordinator itself could not hear for a while: it stood still, or its disk did.
    Deaf {
        until: BootTime,
    },
    /// A plan made these lines.
    Planned {
        lines: Arc<BTreeMap<(NodeId, Device), Vec<InLine>>>,
    },
    /// A node has left the fleet.
    Gone {
        node: NodeId,
    },
    Granted {
        job: JobId,
        epoch: Epoch,
        lease: Lease,
    },
}

impl Sighting {
    /// What is worth remembering of an event.
    pub(crate) fn of_event(event: &Event) -> Option<Self> {
        match &event.what {
            What::LeaseGranted { job, epoch, lease } => {
                Some(Self::Granted { job: *job, epoch: *epoch, lease: lease.clone() })
            }
            What::NodeRemoved { node, .. } => Some(Self::Gone { node: *node }),
            _ => None,
        }
    }
}

impl Observations {
    pub(crate) fn new(observed: Observed) -> Self {
        Self { observed, last_attempts: BTreeMap::new() }
    }

    fn hear(&mut self, node: NodeId, report: &Report) {
        for attempt in &report.attempts {
            let Some(last) = self.last_attempts.get_mut(&attempt.id.job) else { continue };
            if last.node == node && last.epoch == attempt.id.epoch {
                last.progress = attempt.progress.or(last.progress);
                if attempt.validation.is_some() {
                    last.validation.clone_from(&attempt.validation);
                }
                if attempt.running_on.is_some() {
                    last.running_on.clone_from(&attempt.running_on);
                }
            }
        }
    }

    fn grant(&mut self, job: JobId, epoch: Epoch, lease: &Lease) {
        let attempt = LastAttempt {
            epoch,
            node: lease.node,
            device: lease.device,
            granted_at: lease.granted_at,
            progress: None,
            validation: None,
            running_on: None,
        };
        self.last_attempts.insert(job, attempt);
        if self.last_attempts.len() > LAST_ATTEMPTS_MAX {
            let oldest = self.last_attempts.iter().min_by_key(|(_, attempt)| attempt.granted_at);
            if let Some(job) = oldest.map(|(job, _)| *job) {
                self.last_attempts.remove(&job);
            }
        }
    }
}

impl Evolve for Observations {
    type Step = Sighting;

    fn evolve(&mut self, sighting: &Sighting) {
        match sighting {
            // Only a report moves a lease: whoever does nothing but dial keeps none.
            Sighting::Opened { node } => self.observed.nodes.entry(*node).or_default().connected = true,
            Sighting::Heard { node, at, report } => {
                self.hear(*node, report);
                let node = self.observed.nodes.entry(*node).or_default();
                node.last_heard = *at;
                node.report.clone_from(report);
            }
            Sighting::Closed { node } => {
                if let Some(node) = self.observed.nodes.get_mut(node) {
                    node.connected = false;
                }
            }
            // As after a restart: silence proves nothing, so every live lease gets its full term again (I5).
            Sighting::Deaf { until } => self.observed.started_at = *until,
            Sighting::Planned { lines } => self.observed.intended = Arc::clone(lines),
            Sighting::Gone { node } => {
                self.observed.nodes.remove(node);
            }
            Sighting::Granted { job, epoch, lease } => self.grant(*job, *epoch, lease),
        }
    }
}

//! Commands about one node.

use std::time::Duration;

use hatchery_common::{
    field::FieldError,
    id::{Name, NodeId},
    node::{Inventory, NodeDevice, NodeMode},
};

use super::{Command, Decision, check_count};
use crate::{
    cluster::{Cluster, Job},
    ending,
    event::{LeaseEnd, What},
    limits::DEVICES_MAX,
    observed::Now,
    rejected::Rejected,
};

/// A node says what it is and has.
#[derive(Clone, Debug, PartialEq)]
pub struct SetInventory {
    pub node: NodeId,
    pub inventory: Box<Inventory>,
}

impl Command for SetInventory {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node: id, inventory } = self;
        let at = now.wall;
        let node = super::node(cluster, id)?;
        check_devices(&inventory.devices)?;
        let is_news = node.inventory != *inventory;
        Ok(Decision::done(is_news.then(|| What::NodeInventoried { node: id, inventory }.at(at))))
    }
}

fn check_devices(devices: &[NodeDevice]) -> Result<(), FieldError> {
    check_count("devices", devices.len(), DEVICES_MAX)?;
    for (index, NodeDevice { device, calibration, .. }) in devices.iter().enumerate() {
        if devices[..index].iter().any(|other| other.device == *device) {
            return Err(FieldError::new("devices", format!("{device} is listed twice")));
        }
        if let Some(measured) = calibration
            && !(measured.steps_per_sec.is_finite() && measured.flops_per_sec.is_finite())
        {
            return Err(FieldError::new(
                "devices",
                format!("the calibration of {device} is not a finite number"),
            ));
        }
    }
    Ok(())
}

/// The jobs whose lease `node` holds.
fn leased(cluster: &Cluster, node: NodeId) -> impl Iterator<Item = &Job> {
    cluster.jobs.values().filter(move |job| job.lease.as_ref().is_some_and(|lease| lease.node == node))
}

/// An agent says goodbye: its leases end at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Goodbye {
    pub node: NodeId,
}

impl Command for Goodbye {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node } = self;
        let at = now.wall;
        super::node(cluster, node)?;
        Ok(Decision::done(
            leased(cluster, node).map(|job| ending::interrupted(job, LeaseEnd::Stopped, None, at)),
        ))
    }
}

/// Choose whether a node is given work.
#[derive(Clone, Debug, PartialEq)]
pub struct SetNodeMode {
    pub node: NodeId,
    pub mode: NodeMode,
    pub by: Name,
}

impl Command for SetNodeMode {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node: id, mode, by } = self;
        let at = now.wall;
        let node = super::node(cluster, id)?;
        let event = What::NodeModeChanged { node: id, mode, by }.at(at);
        Ok(Decision::done((node.mode != mode).then_some(event)))
    }
}

/// Take a node out: its leases end as lost, and its certificates are revoked.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoveNode {
    pub node: NodeId,
    /// A lease's term. The node may train on for so long, so its jobs go nowhere else before it is over.
    pub lease: Duration,
}

impl Command for RemoveNode {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node, lease } = self;
        let at = now.wall;
        super::node(cluster, node)?;
        // The node hears nothing more, and stops its trainers by itself when its leases run out: I6.
        let until = at + lease;
        let leases =
            leased(cluster, node).map(|job| ending::interrupted(job, LeaseEnd::NodeLost, Some(until), at));
        let certificates = cluster
            .certificates
            .values()
            .filter(|certificate| certificate.node == Some(node) && certificate.revoked_at.is_none())
            .map(|certificate| What::CertificateRevoked { certificate: certificate.id }.at(at));
        Ok(Decision::done(leases.chain(certificates).chain([What::NodeRemoved { node }.at(at)])))
    }
}

//! What concerns one node: its inventory, its goodbye, its removal.

use std::time::Duration;

use hatchery_common::{
    field::FieldError,
    id::{Name, NodeId},
    node::{Inventory, NodeDevice, NodeMode},
    time::Timestamp,
};

use super::{Decision, check_count};
use crate::{
    cluster::{Cluster, Job},
    ending,
    event::{Change, LeaseEnd},
    limits::DEVICES_MAX,
    request::Rejected,
};

pub(super) fn inventory(
    cluster: &Cluster,
    id: NodeId,
    inventory: Box<Inventory>,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let node = super::node(cluster, id)?;
    check_devices(&inventory.devices)?;
    // Free space moves all the time; it is reported by the session and is no news here.
    let disk_free_bytes = inventory.disk_free_bytes;
    if (Inventory { disk_free_bytes, ..node.inventory.clone() }) == *inventory {
        return Ok(Decision::done([]));
    }
    Ok(Decision::done([Change::NodeInventoried { node: id, inventory, at }]))
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

pub(super) fn goodbye(cluster: &Cluster, node: NodeId, at: Timestamp) -> Result<Decision, Rejected> {
    super::node(cluster, node)?;
    Ok(Decision::done(leased(cluster, node).map(|job| ending::interrupted(job, LeaseEnd::Stopped, None, at))))
}

pub(super) fn set_mode(
    cluster: &Cluster,
    id: NodeId,
    mode: NodeMode,
    by: Name,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let node = super::node(cluster, id)?;
    let change = Change::NodeModeChanged { node: id, mode, by, at };
    Ok(Decision::done((node.mode != mode).then_some(change)))
}

pub(super) fn remove(
    cluster: &Cluster,
    node: NodeId,
    lease: Duration,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    super::node(cluster, node)?;
    // The node hears nothing more, and stops its trainers by itself when its leases run out: I6.
    let until = at + lease;
    let leases =
        leased(cluster, node).map(|job| ending::interrupted(job, LeaseEnd::NodeLost, Some(until), at));
    let certificates = cluster
        .certificates
        .values()
        .filter(|certificate| certificate.node == Some(node) && certificate.revoked_at.is_none())
        .map(|certificate| Change::CertificateRevoked { certificate: certificate.id, at });
    Ok(Decision::done(leases.chain(certificates).chain([Change::NodeRemoved { node, at }])))
}

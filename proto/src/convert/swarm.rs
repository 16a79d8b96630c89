//! What the session says of blobs that nodes exchange.

use hatchery_common::{
    field::FieldError,
    swarm::{
        FetchPlan, PEER_ADDRESSES_MAX, PLANNED_PARENTS_MAX, PeerReach, PlannedParent, SWARM_BLOBS_MAX,
        SwarmReport, Trouble, Wait, WantedBlob,
    },
    tls::check_address,
};

use super::fields::{at_most, each, optional, parsed, parsed_each};
use crate::v1::{self, peer_trouble};

impl From<SwarmReport> for v1::SwarmReport {
    fn from(report: SwarmReport) -> Self {
        let holds = |blobs: Vec<_>| v1::Holds { blobs: blobs.iter().map(ToString::to_string).collect() };
        Self {
            reach: report.reach.map(Into::into),
            holds: report.holds.map(holds),
            wants: report.wants.into_iter().map(Into::into).collect(),
            up_bytes_per_sec: report.up_bytes_per_sec,
            down_bytes_per_sec: report.down_bytes_per_sec,
            sent_bytes: report.sent_bytes,
            received_bytes: report.received_bytes,
        }
    }
}

impl TryFrom<v1::SwarmReport> for SwarmReport {
    type Error = FieldError;

    fn try_from(report: v1::SwarmReport) -> Result<Self, FieldError> {
        let holds = |holds: v1::Holds| parsed_each("holds.blobs", &holds.blobs, SWARM_BLOBS_MAX);
        Ok(Self {
            reach: optional("reach", report.reach)?,
            holds: report.holds.map(holds).transpose()?,
            wants: each("wants", report.wants, SWARM_BLOBS_MAX)?,
            up_bytes_per_sec: rate("up_bytes_per_sec", report.up_bytes_per_sec)?,
            down_bytes_per_sec: rate("down_bytes_per_sec", report.down_bytes_per_sec)?,
            sent_bytes: report.sent_bytes,
            received_bytes: report.received_bytes,
        })
    }
}

/// Most bytes per second that are believed.
const BYTES_PER_SEC_MAX: f64 = 1e12;

/// A rate is a number above 0, and no more than any link has.
fn rate(field: &str, rate: Option<f64>) -> Result<Option<f64>, FieldError> {
    match rate {
        Some(rate) if !(rate > 0.0 && rate <= BYTES_PER_SEC_MAX) => {
            let problem =
                format!("must be above 0 and up to {BYTES_PER_SEC_MAX} bytes per second, not {rate}");
            Err(FieldError::new(field, problem))
        }
        _ => Ok(rate),
    }
}

impl From<PeerReach> for v1::PeerReach {
    fn from(reach: PeerReach) -> Self {
        let PeerReach { port, addresses, children_max } = reach;
        Self { port: port.map(Into::into), addresses, children_max }
    }
}

impl TryFrom<v1::PeerReach> for PeerReach {
    type Error = FieldError;

    fn try_from(reach: v1::PeerReach) -> Result<Self, FieldError> {
        let port = |port: u32| match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(FieldError::new("port", format!("{port} is not a port"))),
        };
        Ok(Self {
            port: reach.port.map(port).transpose()?,
            addresses: addresses(reach.addresses)?,
            children_max: reach.children_max,
        })
    }
}

fn addresses(list: Vec<String>) -> Result<Vec<String>, FieldError> {
    at_most("addresses", list.len(), PEER_ADDRESSES_MAX, "entries")?;
    for (index, address) in list.iter().enumerate() {
        check_address(&format!("addresses.{index}"), address)?;
    }
    Ok(list)
}

impl From<WantedBlob> for v1::WantedBlob {
    fn from(wanted: WantedBlob) -> Self {
        Self { blob: wanted.blob.to_string(), held: wanted.held, fetch: wanted.fetch }
    }
}

impl TryFrom<v1::WantedBlob> for WantedBlob {
    type Error = FieldError;

    fn try_from(wanted: v1::WantedBlob) -> Result<Self, FieldError> {
        Ok(Self { blob: parsed("blob", &wanted.blob)?, held: wanted.held, fetch: wanted.fetch })
    }
}

impl From<Trouble> for peer_trouble::Trouble {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Stalled(node) => Self::Stalled(node.to_string()),
            Trouble::Slow(node) => Self::Slow(node.to_string()),
            Trouble::Wrong(node) => Self::Wrong(node.to_string()),
            Trouble::Starved => Self::Starved(peer_trouble::Starved {}),
        }
    }
}

impl TryFrom<peer_trouble::Trouble> for Trouble {
    type Error = FieldError;

    fn try_from(trouble: peer_trouble::Trouble) -> Result<Self, FieldError> {
        Ok(match trouble {
            peer_trouble::Trouble::Stalled(node) => Self::Stalled(parsed("stalled", &node)?),
            peer_trouble::Trouble::Slow(node) => Self::Slow(parsed("slow", &node)?),
            peer_trouble::Trouble::Wrong(node) => Self::Wrong(parsed("wrong", &node)?),
            peer_trouble::Trouble::Starved(_) => Self::Starved,
        })
    }
}

impl From<FetchPlan> for v1::FetchPlan {
    fn from(plan: FetchPlan) -> Self {
        let waits = match plan.waits {
            None => v1::FetchWait::Unspecified,
            Some(Wait::NoHolder) => v1::FetchWait::NoHolder,
            Some(Wait::NoSlot) => v1::FetchWait::NoSlot,
        };
        Self {
            blob: plan.blob.to_string(),
            parents: plan.parents.into_iter().map(Into::into).collect(),
            waits: waits.into(),
        }
    }
}

impl TryFrom<v1::FetchPlan> for FetchPlan {
    type Error = FieldError;

    fn try_from(plan: v1::FetchPlan) -> Result<Self, FieldError> {
        let waits = match v1::FetchWait::try_from(plan.waits) {
            Ok(v1::FetchWait::NoHolder) => Some(Wait::NoHolder),
            Ok(v1::FetchWait::NoSlot) => Some(Wait::NoSlot),
            // A reason that a newer coordinator has says nothing that an older agent acts on.
            Ok(v1::FetchWait::Unspecified) | Err(_) => None,
        };
        Ok(Self {
            blob: parsed("blob", &plan.blob)?,
            parents: each("parents", plan.parents, PLANNED_PARENTS_MAX)?,
            waits,
        })
    }
}

impl From<PlannedParent> for v1::PlannedParent {
    fn from(parent: PlannedParent) -> Self {
        Self { node: parent.node.to_string(), addresses: parent.addresses }
    }
}

impl TryFrom<v1::PlannedParent> for PlannedParent {
    type Error = FieldError;

    fn try_from(parent: v1::PlannedParent) -> Result<Self, FieldError> {
        Ok(Self { node: parsed("node", &parent.node)?, addresses: addresses(parent.addresses)? })
    }
}

//! Recipes travel as their JSON, so that a key is defined once, in `hatchery_common::recipe`; and sets of nodes.

use hatchery_common::{
    digest::Digest,
    field::FieldError,
    recipe::{JobSpec, NodeSelector, Priority, Reader, SpecError},
};

use super::fields::{ENTRIES_MAX, labels, missing, parsed_each, wire_labels};
use crate::v1::{self, node_selector};

impl From<JobSpec> for v1::JobSpec {
    fn from(spec: JobSpec) -> Self {
        let json = spec.to_json();
        Self { digest: Digest::of(&json).as_bytes().to_vec(), json }
    }
}

/// Reads the spec that a message carries, for `reader`. The digest is that of the bytes as they came.
pub fn job_spec(spec: Option<v1::JobSpec>, reader: Reader) -> Result<(Digest, JobSpec), SpecError> {
    let (digest, json) = whole(spec)?;
    Ok((digest, JobSpec::read(&json, reader)?))
}

/// Reads as much as is known here of the spec that a message carries, and says of the rest why it is not.
pub(super) fn job_spec_in_part(
    spec: Option<v1::JobSpec>,
    reader: Reader,
) -> Result<(JobSpec, Vec<SpecError>), SpecError> {
    JobSpec::read_in_part(&whole(spec)?.1, reader)
}

/// The bytes, which must be those that the digest says.
fn whole(spec: Option<v1::JobSpec>) -> Result<(Digest, Vec<u8>), FieldError> {
    let v1::JobSpec { json, digest } = spec.unwrap_or_default();
    if json.is_empty() {
        return Err(FieldError::new("spec", "is missing, or of a version that sends it otherwise"));
    }
    let found = Digest::of(&json);
    if Digest::from_slice("spec.digest", &digest)? != found {
        return Err(FieldError::new("spec.digest", format!("is not that of the JSON, {found}")));
    }
    Ok((found, json))
}

impl From<NodeSelector> for v1::NodeSelector {
    fn from(selector: NodeSelector) -> Self {
        let set = match selector {
            NodeSelector::All => node_selector::Set::All(node_selector::All {}),
            NodeSelector::None => node_selector::Set::None(node_selector::None {}),
            NodeSelector::Labels(labels) => {
                node_selector::Set::Labels(node_selector::Labels { labels: wire_labels(labels) })
            }
            NodeSelector::Nodes(nodes) => {
                let ids = nodes.iter().map(ToString::to_string).collect();
                node_selector::Set::Listed(node_selector::Nodes { ids })
            }
        };
        Self { set: Some(set) }
    }
}

impl TryFrom<v1::NodeSelector> for NodeSelector {
    type Error = FieldError;

    fn try_from(selector: v1::NodeSelector) -> Result<Self, FieldError> {
        Ok(match selector.set.ok_or_else(|| missing("set"))? {
            node_selector::Set::All(_) => Self::All,
            node_selector::Set::None(_) => Self::None,
            node_selector::Set::Labels(wanted) => Self::Labels(labels("labels", &wanted.labels)?),
            node_selector::Set::Listed(listed) => {
                Self::Nodes(parsed_each("listed", &listed.ids, ENTRIES_MAX)?)
            }
        })
    }
}

/// Reads the field `priority`.
pub fn priority(number: u32) -> Result<Priority, FieldError> {
    // What does not fit into a byte is too large in any case.
    Priority::new(u8::try_from(number).unwrap_or(u8::MAX))
}

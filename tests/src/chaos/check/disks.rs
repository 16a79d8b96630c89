//! What lies on the disks, held against what was acknowledged.

use std::collections::BTreeSet;

use super::{Evidence, Finding};

/// Whatever an agent was told is committed is committed, and each committed checkpoint lies whole with the coordinator.
pub(super) fn acknowledged_checkpoints_are_whole(evidence: &Evidence) -> Vec<Finding> {
    let is_committed =
        |short: &&String| evidence.checkpoints.iter().any(|one| one.id.starts_with(short.as_str()));
    let lost = evidence.told_committed.iter().filter(|short| !is_committed(short));
    let lost = lost.map(|short| {
        Finding::new("I7", format!("an agent was told that {short} is committed, and it is not"))
    });
    let broken = evidence.checkpoints.iter().flat_map(|checkpoint| {
        checkpoint.blobs().filter_map(move |(name, blob)| {
            let state = state_of(evidence, blob, checkpoint.wanted_on > 0)?;
            Some(Finding::new("I7", format!("{name} of checkpoint {} {state}", checkpoint.id)))
        })
    });
    lost.chain(broken).collect()
}

/// What is wrong with a blob that is needed. One in which a bit was flipped may be gone if no node holds it.
fn state_of(evidence: &Evidence, blob: &str, is_held: bool) -> Option<String> {
    let flipped = evidence.records.flipped.iter().any(|one| one == blob);
    match evidence.blobs.get(blob) {
        Some(true) => None,
        None if flipped && !is_held => None,
        Some(false) => Some(format!("is blob {blob}, whose bytes are wrong")),
        None => Some(format!("is blob {blob}, which is gone")),
    }
}

/// Whoever says that it holds a checkpoint holds its bytes, and damage that was done was found.
pub(super) fn nobody_holds_unverified_bytes(evidence: &Evidence) -> Vec<Finding> {
    let replicas = evidence.wrong_replicas.iter().map(|(node, checkpoint, file)| {
        Finding::new(
            "I8",
            format!("{node} holds checkpoint {checkpoint} as ready, and its {file} is not what it should be"),
        )
    });
    let blobs = evidence.blobs.iter().filter(|(_, right)| !**right).map(|(blob, _)| {
        Finding::new("I8", format!("the coordinator's blob {blob} is not what its name says"))
    });
    let damaged = !evidence.records.flipped.is_empty() || evidence.records.replicas_flipped > 0;
    let missed = (damaged && evidence.quarantined == 0)
        .then(|| Finding::new("I8", "bits were flipped on disks, and nothing was put aside"));
    replicas.chain(blobs).chain(missed).collect()
}

/// What datasets name is there. Checkpoints are looked at by [`acknowledged_checkpoints_are_whole`].
pub(super) fn what_is_referenced_stays(evidence: &Evidence) -> Vec<Finding> {
    let datasets = evidence.events.iter().filter(|event| event.kind == "dataset_registered");
    let files = datasets.flat_map(|event| event.change["manifest"]["files"].as_array().into_iter().flatten());
    let blobs: BTreeSet<&str> = files.filter_map(|file| file["blob"].as_str()).collect();
    let broken = blobs.into_iter().filter_map(|blob| state_of(evidence, blob, true));
    broken.map(|state| Finding::new("I11", format!("a file of a dataset {state}"))).collect()
}

//! Any checkpoint.

use hatchery_common::{
    checkpoint::{CheckpointFile, CheckpointManifest, SERVING_FILE},
    id::{BlobId, DatasetId, Epoch},
    view::{CheckpointView, ReplicaView},
};
use proptest::{collection::vec, option, prelude::*};

use super::{checkpoint_id, digest, job_id, metrics, model, name, node_id, replica_state, time};

pub(crate) fn checkpoint_manifest() -> impl Strategy<Value = CheckpointManifest> {
    let named = |(name, (blob, size_bytes)): (&str, _)| CheckpointFile {
        name: name.to_owned(),
        blob: BlobId(blob),
        size_bytes,
    };
    let files =
        (vec((digest(), 2..=1u64 << 30), 4), option::of(digest())).prop_map(move |(files, serving)| {
            // Smaller than the weights that it is made of.
            let serving = serving.map(|blob| (SERVING_FILE, (blob, files[1].1 / 2)));
            CheckpointManifest::FILES.into_iter().zip(files).chain(serving).map(named).collect()
        });
    let run = (job_id(), any::<u64>(), any::<u64>(), option::of(checkpoint_id()), digest());
    (run, model(), any::<u32>(), metrics(), files).prop_map(|(run, model, block, metrics, files)| {
        CheckpointManifest {
            job: run.0,
            epoch: Epoch(run.1),
            step: run.2,
            parent: run.3,
            dataset: DatasetId(run.4),
            model,
            block,
            metrics,
            files,
        }
    })
}

pub(crate) fn checkpoint_view() -> impl Strategy<Value = CheckpointView> {
    let replica = (node_id(), name(), option::of(replica_state()), any::<(bool, bool, bool)>()).prop_map(
        |(node, node_name, state, (active, to_be_active, serving_only))| ReplicaView {
            node,
            node_name,
            state,
            active,
            to_be_active,
            serving_only,
        },
    );
    (checkpoint_manifest(), name(), time(), any::<(bool, bool)>(), vec(replica, 0..4)).prop_map(
        |(manifest, job_name, committed_at, (is_best, is_pinned), replicas)| CheckpointView {
            id: manifest.id(),
            manifest,
            job_name,
            committed_at,
            is_best,
            is_pinned,
            replicas,
        },
    )
}

//! Conversion between the wire's messages and the domain's types, in one place.
//!
//! Domain to message cannot fail. Message to domain checks everything: lengths, ranges, ids, enum values, parts that are
//! missing; the [`FieldError`](hatchery_common::field::FieldError) names the field by its dotted path in the message,
//! entries of lists by their index: `spec.train.lr`, `attempts.3.epoch`.

mod enums;
mod fields;
mod generate;
mod manifest;
mod node;
mod recipe;
mod report;
mod rollout;
mod run;
mod session;
mod swarm;
mod view;

pub use enums::{scope, scope_number};
pub use fields::{
    CERTIFICATE_REQUEST_BYTES_MAX, ENTRIES_MAX, LABELS_MAX, OUTPUT_BYTES_MAX, attempt_id,
    certificate_request, labels, wire_labels,
};
pub use manifest::{
    CHECKPOINT_MANIFEST_BYTES_MAX, DATASET_MANIFEST_BYTES_MAX, checkpoint_manifest,
    checkpoint_manifest_bytes, dataset_manifest, dataset_manifest_bytes,
};
pub use node::{DEVICES_MAX, NOTES_MAX};
pub use recipe::{job_spec, priority};

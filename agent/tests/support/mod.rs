//! What several tests need.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "helpers of tests may stop the test")]

pub mod coordinator;
pub mod inhabited;
pub mod node;

use std::{path::PathBuf, time::Duration};

use hatchery_common::{
    device::Device,
    digest::Digest,
    id::{AttemptId, DatasetId, Epoch, JobId, Name},
    recipe::{JobSpec, Recipe},
    trainer::AttemptOrder,
};

/// How long anything in a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The fake trainer, which `cargo test` builds among the examples.
pub fn fake_trainer() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/fake-trainer");
    assert!(path.exists(), "build it first: cargo build -p hatchery-agent --example fake-trainer");
    path
}

/// A job with a model small enough to be written in no time.
pub fn small_job(dataset: DatasetId) -> JobSpec {
    job(dataset, 1, 16)
}

/// A job with a model of so many layers, so wide.
pub fn job(dataset: DatasetId, layers: u32, width: u32) -> JobSpec {
    let settings = [
        format!("model.n_layer={layers}"),
        format!("model.n_embd={width}"),
        "model.n_head=2".to_owned(),
        "model.mlp_internal_dim_multiplier=4".to_owned(),
    ];
    let recipe = Recipe::parse(None, "", &settings).unwrap();
    recipe.job(dataset, &Name::from_lossy("job"))
}

/// Writes a corpus and an order for it into `folder`; gives the order's path.
pub fn write_order(folder: &std::path::Path, script: &str) -> PathBuf {
    let spec = small_job(DatasetId(Digest::of(b"")));
    let corpus = folder.join("corpus");
    std::fs::write(&corpus, script).unwrap();
    let order = AttemptOrder {
        attempt: AttemptId { job: JobId::from_bytes([1; 16]), epoch: Epoch(1) },
        model: spec.model,
        train: spec.train,
        corpus,
        device: Device::CPU,
        threads: 1,
        checkpoints: folder.join("checkpoints"),
        resume_from: None,
        fine_tune_from: None,
        lease_until: None,
    };
    std::fs::create_dir_all(&order.checkpoints).unwrap();
    let path = folder.join("order.json");
    std::fs::write(&path, serde_json::to_vec(&order).unwrap()).unwrap();
    path
}

/// Whether a process runs; one that has ended and waits to be asked does not.
pub fn runs(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

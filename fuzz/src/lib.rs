//! Parsers of what comes from outside, and what must hold for any bytes at all.
//!
//! A target takes any bytes and says whether they were what its parser reads. It panics where the parser breaks its word:
//! what was read and is written again is the same, limits are kept, and nothing is taken on trust. `cargo xtask fuzz` looks
//! for such bytes, led by coverage; `tests/seeds.rs` tries the seeds, what is near to them, and what was once found.

mod blob;
mod join;
mod manifests;
mod messages;
mod models;
mod peers;

pub struct Target {
    /// What people call it.
    pub name: &'static str,
    /// Reads bytes, and checks what must hold. True if they were what is read there.
    pub check: fn(&[u8]) -> bool,
    /// Bytes that are read, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: [Target; 12] = [
    Target { name: "piece-manifest", check: blob::piece_manifest, seeds: blob::piece_manifests },
    Target { name: "piece-set", check: blob::piece_set, seeds: blob::piece_sets },
    Target { name: "from-agent", check: messages::from_agent, seeds: messages::of_agents },
    Target { name: "from-coordinator", check: messages::from_coordinator, seeds: messages::of_coordinators },
    Target { name: "peer-ask", check: peers::ask, seeds: peers::asks },
    Target { name: "squeezed-piece", check: peers::squeezed, seeds: peers::squeezed_pieces },
    Target { name: "checkpoint-manifest", check: manifests::checkpoint, seeds: manifests::checkpoints },
    Target { name: "dataset-manifest", check: manifests::dataset, seeds: manifests::datasets },
    Target { name: "job-spec", check: manifests::spec, seeds: manifests::specs },
    Target { name: "checkpoint-folder", check: models::folder, seeds: models::folders },
    Target { name: "import", check: models::import, seeds: models::imports },
    Target { name: "join-string", check: join::string, seeds: join::strings },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

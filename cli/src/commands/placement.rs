//! Where a job may go, and why: `submit --dry-run`, `job --why`.

use std::time::Duration;

use hatchery_common::{placement::Candidate, view::PlacementView};

use crate::{human, output::table};

/// A line for each device, the best first, with the reason.
pub(super) fn show(placement: &PlacementView) -> String {
    let why = placement.why.as_ref().map(|why| format!("{why}\n\n")).unwrap_or_default();
    if placement.candidates.is_empty() {
        return why + "the fleet has no device for this job";
    }
    let headings = ["node", "device", ">steps/s", "source", ">start in", ">end in", "verdict"];
    why + &table(&headings, placement.candidates.iter().map(row))
}

fn row(candidate: &Candidate) -> Vec<String> {
    let time = |ms: Option<u64>| match ms {
        None => "-".to_owned(),
        Some(0..1000) => "now".to_owned(),
        Some(ms) => human::duration(Duration::from_millis(ms)),
    };
    vec![
        candidate.node_name.to_string(),
        candidate.device.to_string(),
        human::speed(candidate.steps_per_sec),
        candidate.known.name().to_owned(),
        time(candidate.start_in_ms),
        time(candidate.end_in_ms),
        candidate.why.clone(),
    ]
}

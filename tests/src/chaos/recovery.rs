//! How long jobs stood still: from the last step of an attempt that was cut short to the first one of the next.

use std::{collections::BTreeMap, fmt};

use super::evidence::Evidence;

/// The gaps of one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gaps {
    /// Why the attempts ended: `node_lost`, `failed`, `stopped`, `handed_over`.
    pub(super) cause: String,
    /// How long each job stood still, shortest first.
    pub(super) each_ms: Vec<u64>,
}

impl Gaps {
    fn median_ms(&self) -> u64 {
        self.each_ms.get(self.each_ms.len() / 2).copied().unwrap_or(0)
    }

    fn worst_ms(&self) -> u64 {
        self.each_ms.last().copied().unwrap_or(0)
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = |ms: u64| ms as f64 / 1000.0;
        write!(
            f,
            "{:>8}  attempts ended as {}; until the next made steps: median {:.1} s, worst {:.1} s",
            self.each_ms.len(),
            self.cause,
            secs(self.median_ms()),
            secs(self.worst_ms())
        )
    }
}

/// All gaps by cause. Whatever a job waited for counts, a device as well; a pause that somebody wished for does not.
pub(super) fn gaps(evidence: &Evidence) -> Vec<Gaps> {
    let mut steps: BTreeMap<(&str, u64), (u64, u64)> = BTreeMap::new();
    for step in &evidence.steps {
        let (first, last) = steps.entry((&step.job, step.epoch)).or_insert((step.wall_ms, step.wall_ms));
        (*first, *last) = ((*first).min(step.wall_ms), (*last).max(step.wall_ms));
    }
    let paused: Vec<&str> = evidence
        .events
        .iter()
        .filter(|event| event.kind == "job_paused" || event.change["why"]["why"] == "pause")
        .map(|event| event.text("job"))
        .collect();
    let mut by_cause: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in evidence.events.iter().filter(|event| event.kind == "lease_ended") {
        let (job, epoch) = (event.text("job"), event.number_of("epoch"));
        let next = steps.range((job, epoch + 1)..).next().filter(|((other, _), _)| *other == job);
        let (Some((_, last)), Some((_, (first, _)))) = (steps.get(&(job, epoch)), next) else { continue };
        if !paused.contains(&job) {
            let cause = event.change["why"]["why"].as_str().unwrap_or("unknown");
            by_cause.entry(cause).or_default().push(first.saturating_sub(*last));
        }
    }
    let gaps = by_cause.into_iter().map(|(cause, mut each_ms)| {
        each_ms.sort_unstable();
        Gaps { cause: cause.to_owned(), each_ms }
    });
    gaps.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::chaos::evidence::{Event, Step};

    #[test]
    fn it_is_from_the_last_step_to_the_next_attempts_first() {
        let step =
            |job: &str, epoch, wall_ms| Step { job: job.to_owned(), epoch, process: 1, step: 1, wall_ms };
        let ended = |number, job: &str, epoch: u64, why: &str| Event {
            number,
            at_ms: 0,
            kind: "lease_ended".to_owned(),
            change: json!({"job": job, "epoch": epoch, "why": {"why": why}}),
        };
        let evidence = Evidence {
            events: vec![
                ended(1, "a", 1, "node_lost"),
                ended(2, "a", 2, "node_lost"),
                ended(3, "b", 1, "node_lost"),
                ended(4, "b", 3, "failed"),
            ],
            // The second attempt of a never came to make a step, and b went on after the third.
            steps: vec![
                step("a", 1, 100),
                step("a", 1, 200),
                step("a", 3, 3200),
                step("b", 1, 50),
                step("b", 3, 1050),
            ],
            ..Evidence::default()
        };
        let lost = Gaps { cause: "node_lost".to_owned(), each_ms: vec![1000, 3000] };
        assert_eq!(gaps(&evidence), std::slice::from_ref(&lost));
        assert!(lost.to_string().ends_with("median 3.0 s, worst 3.0 s"), "{lost}");
    }
}

//! A fleet is back before any lease runs out, however many dial at once.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use hatchery_bench_reconnect::measure;

const AGENTS: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn all_agents_are_back_at_once_and_no_lease_has_run_out() {
    let outcome = measure(AGENTS, Duration::ZERO).await.unwrap();
    assert_eq!(outcome.leases_over, 0, "{} agents saw their leases run out", outcome.leases_over);
    assert_eq!((outcome.jobs_running, outcome.jobs), (AGENTS, AGENTS), "every attempt goes on");
    assert!(!outcome.events.contains("lease_ended"), "{:?}", outcome.events);
}

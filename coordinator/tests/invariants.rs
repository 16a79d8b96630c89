//! An invariant that would be broken stops what would break it: nothing of it is committed, and people see it.

// Outside of the test functions clippy takes helpers for production code.
#![allow(clippy::unwrap_used, clippy::large_futures, reason = "a test may panic anywhere")]

#[allow(dead_code, reason = "shared with the tests of the front door")]
#[path = "front_door/agent.rs"]
mod agent;
#[allow(dead_code, reason = "shared with the tests of the front door")]
#[path = "front_door/fixture.rs"]
mod fixture;

use agent::Agent;
use fixture::{Fixture, soon};
use hatchery_common::id::Epoch;

/// Arms a point for all of this process, so it has one test.
const MUTANT: &str = "mutant::granted_epoch";

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_breaks_an_invariant_is_refused_counted_and_shown() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let sound = soon(fleet.status()).await.unwrap();
    assert_eq!((sound.invariants_broken, sound.invariant_broken_last), (0, None));

    fail::cfg(MUTANT, "return").unwrap();
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let broken = soon(async {
        loop {
            let status = fleet.status().await.unwrap();
            if status.invariants_broken > 0 {
                return status;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let last = broken.invariant_broken_last.unwrap();
    assert!(last.contains("(I3)") && last.contains(&job.id.to_string()), "{last}");
    let waiting = fixture.job_when(job.id, |_| true).await;
    assert_eq!((waiting.phase.name(), waiting.epoch), ("queued", Epoch(0)), "nothing of it is committed");

    // What does not break an invariant goes on.
    fail::remove(MUTANT);
    assert_eq!(session.attempt().await.id.epoch, Epoch(1));
    let after = soon(fleet.status()).await.unwrap();
    assert!(after.invariants_broken >= broken.invariants_broken);
}

//! What nodes say of this moment: shown, and kept nowhere.

use hatchery_common::{node::NodeMetrics, view::NodeState};

use crate::{
    agent::Agent,
    fixture::{Fixture, soon},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_last_report_s_figures_are_shown_until_the_coordinator_starts_anew() {
    let mut fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let agent = Agent::join(&fixture, "ada").await;
    let mut session = agent.dial().await;
    assert_eq!(soon(fleet.node("ada")).await.unwrap().metrics, None, "nothing has been reported");
    let events = soon(fleet.status()).await.unwrap().last_event;
    let mut last = NodeMetrics::default();
    for free in [9 << 30, 1 << 30] {
        last =
            NodeMetrics { disk_free_bytes: Some(free), load_average: Some(1.25), temperature_celsius: None };
        session.report_metrics(last).await;
        assert_eq!(soon(fleet.node("ada")).await.unwrap().metrics, Some(last));
    }
    assert_eq!(soon(fleet.status()).await.unwrap().last_event, events, "it is no event");

    drop(session);
    let silent = soon(async {
        loop {
            let node = fleet.node("ada").await.unwrap();
            if node.state == NodeState::Disconnected {
                return node;
            }
        }
    });
    let silent = silent.await;
    assert_eq!((silent.metrics, silent.last_heard_ms_ago.is_some()), (Some(last), true));

    fixture.restart().await;
    let forgotten = soon(fixture.fleet().await.node("ada")).await.unwrap();
    assert_eq!((forgotten.metrics, forgotten.last_heard_ms_ago), (None, None));
}

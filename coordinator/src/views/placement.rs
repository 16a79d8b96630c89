//! Where a job may go, and why: asked by people, of a snapshot.

use hatchery_common::{
    digest::Digest,
    id::{JobId, Name, RequestId},
    recipe::JobSpec,
    time::{BootTime, Timestamp},
    view::PlacementView,
};
use hatchery_scheduler::{Cluster, Command as _, Now, Observed, Rejected, Submit, explain, plan};

use crate::core::handle::Snapshot;

/// Of a job of the fleet.
pub(crate) fn of_job(snapshot: &Snapshot, job: JobId) -> PlacementView {
    let candidates = explain(&snapshot.cluster, snapshot.observed(), now(), job);
    PlacementView { candidates, why: snapshot.waits.get(&job).map(ToString::to_string) }
}

/// Of a job that nobody has submitted: what would be if `submitter` did. Refused for what a submission is refused for.
pub(crate) fn of_spec(
    snapshot: &Snapshot,
    spec: JobSpec,
    submitter: Name,
) -> Result<PlacementView, Rejected> {
    let (job, now) = (JobId::random(), now());
    let mut cluster = Cluster::clone(&snapshot.cluster);
    let (request, body) = (RequestId::random(), Digest::of(b""));
    let submit = Submit { request, job, body, spec: Box::new(spec), submitter };
    let events = submit.decide(&cluster, now)?.events;
    for event in &events {
        cluster.evolve(event);
    }
    let observed: &Observed = snapshot.observed();
    let wait = plan(&cluster, observed, now).waits.remove(&job);
    let candidates = explain(&cluster, observed, now, job);
    Ok(PlacementView { candidates, why: wait.as_ref().map(ToString::to_string) })
}

fn now() -> Now {
    Now { wall: Timestamp::now(), boot: BootTime::now() }
}

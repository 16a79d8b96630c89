//! A whole fleet that loses its coordinator and finds it again, all at once.
//!
//! The coordinator and its store are the real ones, and so are TLS and the agents' pauses between dials; what an agent does
//! beside its session is left out, so that many fit into one process.

mod agent;
mod coordinator;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hatchery_agent::lease::Lease;
use hatchery_common::{
    access::Scope,
    id::{DatasetId, Name, RequestId},
    recipe::{Labels, Recipe},
    tls::{Credentials, JoinString},
};
use hatchery_proto::client::{FleetClient, TokenCall};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    agent::{Agent, Seen, Standing},
    coordinator::Coordinator,
};

/// The term of a lease, as coordinators have it unless told otherwise.
const LEASE_SECS: u64 = 15;
/// Calls made at the same time while the fleet is set up.
const CALLS_AT_ONCE: usize = 32;
/// Longer than anything here takes; who waits so long has failed.
const PATIENCE: Duration = Duration::from_mins(5);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub agents: usize,
    /// How long no coordinator answered.
    pub gone: Duration,
    /// From its return until the last agent was heard.
    pub back: Duration,
    /// Times that anybody dialled.
    pub dials: usize,
    /// Leases so near their end that trainers stopped.
    pub leases_closing: usize,
    /// Leases that ran out.
    pub leases_over: usize,
    /// Jobs, and those of them that are still in their first attempt.
    pub jobs: usize,
    pub jobs_running: usize,
    /// Kinds of the events since the coordinator was there first.
    pub events: BTreeSet<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the coordinator was gone for {:.1} s; {} agents were back and heard {:.1} s later, after {} dials; {} \
             trainers had stopped meanwhile",
            self.gone.as_secs_f64(),
            self.agents,
            self.back.as_secs_f64(),
            self.dials,
            self.leases_closing + self.leases_over,
        )
    }
}

/// Has so many agents with a lease each lose their coordinator for `gone_for` and as long as it takes to start, and waits
/// until all are back. Progress goes to stderr.
pub async fn measure(count: usize, gone_for: Duration) -> Result<Outcome> {
    let (began, mut coordinator) = (Instant::now(), Coordinator::start().await?);
    let (fleet, dataset) = (coordinator.fleet().await?, coordinator.dataset().await?);
    let joining = stream::iter((0..count).map(|number| join(fleet.clone(), number)));
    let credentials: Vec<Credentials> = joining.buffer_unordered(CALLS_AT_ONCE).try_collect().await?;
    eprintln!("{count} agents joined in {:.1} s", began.elapsed().as_secs_f64());

    let (began, seen) = (Instant::now(), Arc::new(Seen::default()));
    let (mut agents, mut standings) = (JoinSet::new(), Vec::new());
    for credentials in credentials {
        let (standing, shown) = watch::channel(Standing::default());
        let (lease, seen) = (Lease::default(), Arc::clone(&seen));
        agents.spawn(Agent { credentials, lease, attempts: Vec::new(), seen, standing }.live());
        standings.push(shown);
    }
    all(&mut standings, "everybody is heard", |standing| standing.heard).await?;
    eprintln!("all connected at once and heard in {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let submits = stream::iter((0..count).map(|_| submit(fleet.clone(), dataset)));
    submits.buffer_unordered(CALLS_AT_ONCE).try_collect::<Vec<()>>().await?;
    all(&mut standings, "everybody has work", |standing| standing.works).await?;
    eprintln!("each has a lease after {:.1} s", began.elapsed().as_secs_f64());
    let before = fleet.status().await?.last_event;
    let sessions: Vec<usize> = standings.iter().map(|standing| standing.borrow().session).collect();
    let counted = |seen: &AtomicUsize| seen.swap(0, Ordering::Relaxed);
    eprintln!("while all this was set up, {} leases ran low", counted(&seen.closing) + counted(&seen.over));
    counted(&seen.dials);

    let left = Instant::now();
    coordinator.restart(gone_for).await?;
    let (gone, began) = (left.elapsed(), Instant::now());
    for (standing, session) in standings.iter_mut().zip(sessions) {
        let again = standing.wait_for(|standing| standing.session > session && standing.heard);
        timeout(PATIENCE, again).await.context("an agent is not back")??;
    }
    let back = began.elapsed();
    let (leases_over, dials, leases_closing) =
        (counted(&seen.over), counted(&seen.dials), counted(&seen.closing));
    let jobs = fleet.jobs(false).await?;
    let events = fleet.events(before, false, None).await?;
    let outcome = Outcome {
        agents: count,
        gone,
        back,
        dials,
        leases_closing,
        leases_over,
        jobs: jobs.len(),
        jobs_running: jobs.iter().filter(|job| job.phase.name() == "running" && job.epoch.0 == 1).count(),
        events: events.map_ok(|event| event.kind).try_collect().await?,
    };
    agents.shutdown().await;
    coordinator.end().await?;
    Ok(outcome)
}

/// Makes one more node of the fleet.
async fn join(fleet: FleetClient, number: usize) -> Result<Credentials> {
    let call = TokenCall { scope: Scope::Agent, name: None, labels: Labels::new(), valid: None };
    let (text, _) = fleet.create_token(&call).await?;
    let string: JoinString = text.parse()?;
    let name = Name::from_lossy(&format!("node-{number}"));
    Ok(hatchery_net::join(&string, &name, &Labels::new()).await?.0)
}

/// Submits a job that is far from its end.
async fn submit(fleet: FleetClient, dataset: DatasetId) -> Result<()> {
    let settings =
        ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "train.steps=1000000", "train.block=32"];
    let recipe = Recipe::parse(None, "", &settings.map(str::to_owned))?;
    let spec = recipe.job(dataset, &Name::from_lossy("job"));
    fleet.submit(RequestId::random(), &spec).await?;
    Ok(())
}

/// Waits until every agent stands so.
async fn all(
    standings: &mut [watch::Receiver<Standing>],
    what: &str,
    holds: impl Fn(&Standing) -> bool,
) -> Result<()> {
    let waited = timeout(PATIENCE, async {
        for standing in standings.iter_mut() {
            standing.wait_for(&holds).await?;
        }
        Ok(())
    });
    waited.await.with_context(|| format!("in vain: {what}"))?
}

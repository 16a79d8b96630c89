//! A whole fleet that loses its coordinator and finds it again, all at once.
//!
//! The coordinator and its store are the real ones, and so are TLS and the agents' pauses between dials; what an agent does
//! beside its session is left out, so that many fit into one process. `cargo xtask bench reconnect` has a thousand.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use hatchery_agent::{
    backoff::Backoff,
    lease::{Lease, LeaseState},
};
use hatchery_common::{
    access::Scope,
    blob::{BlobLimits, BlobStore},
    dataset::{DatasetFile, DatasetManifest},
    device::Device,
    id::{DatasetId, Name, RequestId},
    node::{Inventory, NodeDevice, TrainerState},
    recipe::{Labels, Recipe},
    session::{AgentMessage, AttemptPhase, AttemptReport, CoordinatorMessage, Report},
    time::BootTime,
    tls::{Credentials, JoinString},
};
use hatchery_coordinator::{CoordinatorSettings, run};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::{AgentsClient, CallError, FleetClient, TokenCall};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Agents in `cargo test`; `RECONNECT_AGENTS` asks for more, and `RECONNECT_GONE_SECS` for a longer absence.
const AGENTS: usize = 120;
/// The term of a lease, as coordinators have it unless told otherwise.
const LEASE_SECS: u64 = 15;
/// Calls made at the same time while the fleet is set up.
const CALLS_AT_ONCE: usize = 32;
/// Longer than anything here takes; who waits so long has failed.
const PATIENCE: Duration = Duration::from_mins(5);
/// Longest wait for a welcome; as the agent's own.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);

/// The coordinator, in this process.
struct House {
    settings: CoordinatorSettings,
    home: tempfile::TempDir,
    /// Of its own, so that everything of it ends at once.
    runtime: Runtime,
}

impl House {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:0".to_owned();
        let settings =
            CoordinatorSettings { listen, lease_secs: LEASE_SECS, ..CoordinatorSettings::default() };
        let (runtime, address) = begin(&settings, home.path()).await;
        let settings = CoordinatorSettings { listen: address, ..settings };
        Self { settings, home, runtime }
    }

    /// Is gone as by a SIGKILL, for so long, and comes back at the same address.
    async fn restart(&mut self, gone: Duration) {
        // Another one for the moment, in which nothing runs.
        let killed = std::mem::replace(&mut self.runtime, Runtime::new().unwrap());
        end(killed).await;
        tokio::time::sleep(gone).await;
        let (runtime, _) = begin(&self.settings, self.home.path()).await;
        std::mem::replace(&mut self.runtime, runtime).shutdown_background();
    }

    async fn fleet(&self) -> FleetClient {
        FleetClient::connect(&Credentials::load(&self.home.path().join("client")).unwrap()).await.unwrap()
    }

    /// Puts a corpus for everybody.
    async fn dataset(&self) -> DatasetId {
        let folder = tempfile::tempdir().unwrap();
        let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
        let store = BlobStore::open(folder.path(), limits).unwrap();
        let text = b"to be or not to be, that is the question\n".repeat(400);
        let blob = store.put_bytes(&text).unwrap();
        let operator = Credentials::load(&self.home.path().join("client")).unwrap();
        BlobClient::connect(&operator).await.unwrap().put(&[blob], &store, |_| {}).await.unwrap();
        let file = DatasetFile { path: "hamlet.txt".into(), blob, size_bytes: text.len() as u64 };
        let manifest = DatasetManifest::new(Name::from_lossy("hamlet"), vec![file]).unwrap();
        self.fleet().await.create_dataset(&manifest).await.unwrap().id
    }
}

async fn begin(settings: &CoordinatorSettings, home: &Path) -> (Runtime, String) {
    let settings = settings.clone().check(home).unwrap();
    let (on_ready, ready) = oneshot::channel();
    let runtime = Runtime::new().unwrap();
    let running = runtime.spawn(run(settings, CancellationToken::new(), on_ready));
    let Ok(ready) = timeout(PATIENCE, ready).await.expect("it takes too long to start") else {
        panic!("it does not start: {:?}", running.await);
    };
    (runtime, ready.address.to_string())
}

/// Ends all tasks, and waits for the store's thread, which holds the database.
async fn end(runtime: Runtime) {
    tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
}

/// What the agents have seen, together.
#[derive(Debug, Default)]
struct Seen {
    /// Times that anybody dialled.
    dials: AtomicUsize,
    /// Leases that were over before a report was answered again.
    over: AtomicUsize,
    /// Leases so near their end that trainers would have stopped.
    closing: AtomicUsize,
}

/// How one agent stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// Which of its sessions this is.
    session: usize,
    /// Whether a report of this session was answered.
    heard: bool,
    /// Whether it has an attempt.
    works: bool,
}

/// An agent's session and its lease.
struct Agent {
    credentials: Credentials,
    lease: Lease,
    attempts: Vec<AttemptReport>,
    seen: Arc<Seen>,
    standing: watch::Sender<Standing>,
}

impl Agent {
    /// Dials, reports, and dials again, as the agent's own keeper of a session does.
    async fn live(mut self) {
        let mut backoff = Backoff::of_dials(Duration::from_secs(LEASE_SECS));
        loop {
            let mut welcomed = false;
            self.seen.dials.fetch_add(1, Ordering::Relaxed);
            // Whatever ends a session: it dials again.
            drop(self.hold(&mut welcomed).await);
            if welcomed {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn hold(&mut self, welcomed: &mut bool) -> Result<(), CallError> {
        let agents = AgentsClient::connect(&self.credentials).await?;
        let _blobs = BlobClient::connect(&self.credentials).await?;
        let (outbox, messages) = mpsc::channel(64);
        outbox.send(AgentMessage::Hello(Box::new(inventory()))).await.unwrap();
        let dialled = async {
            let mut answers = agents.session(ReceiverStream::new(messages)).await?;
            let first = answers.next().await;
            Ok::<_, CallError>((answers, first))
        };
        let Ok(dialled) = timeout(WELCOME_TIMEOUT, dialled).await else { return Ok(()) };
        let (mut answers, first) = dialled?;
        let Some(CoordinatorMessage::Welcome { report_every, .. }) = first.transpose()? else {
            return Ok(());
        };
        *welcomed = true;
        self.lease.session_began();
        self.standing
            .send_modify(|standing| (standing.session, standing.heard) = (standing.session + 1, false));
        let (mut sequence, mut due) = (0, tokio::time::interval(report_every));
        loop {
            tokio::select! {
                _ = due.tick() => {
                    sequence += 1;
                    self.lease.report_sent(sequence, BootTime::now());
                    let report = Report { sequence, attempts: self.attempts.clone(), ..Report::default() };
                    // A full outbox is emptied by the session, or closed with it.
                    drop(outbox.try_send(AgentMessage::Report(report)));
                }
                answer = answers.next() => match answer.transpose()? {
                    Some(message) => if self.hear(message) {
                        // What it was given is news, as to a real agent.
                        due.reset_immediately();
                    },
                    None => return Ok(()),
                },
            }
        }
    }

    fn hear(&mut self, message: CoordinatorMessage) -> bool {
        match message {
            CoordinatorMessage::Assignment(assignment) => {
                self.lease.set_length(assignment.lease);
                let reports = assignment.attempts.iter().map(|attempt| AttemptReport {
                    job: attempt.job,
                    epoch: attempt.epoch,
                    phase: AttemptPhase::Running,
                    progress: None,
                    validation: None,
                    running_on: None,
                });
                self.attempts = reports.collect();
                let works = !self.attempts.is_empty();
                self.standing.send_modify(|standing| standing.works = works);
                true
            }
            CoordinatorMessage::ReportReceived { sequence } => {
                // A lease that nothing was granted under is over from the start.
                if self.lease.deadline().is_some() {
                    match self.lease.state(BootTime::now()) {
                        LeaseState::Live => {}
                        LeaseState::Closing => drop(self.seen.closing.fetch_add(1, Ordering::Relaxed)),
                        LeaseState::Over => drop(self.seen.over.fetch_add(1, Ordering::Relaxed)),
                    }
                }
                self.lease.report_received(sequence);
                self.standing.send_if_modified(|standing| !std::mem::replace(&mut standing.heard, true));
                false
            }
            _ => false,
        }
    }
}

fn inventory() -> Inventory {
    Inventory {
        hostname: "box".into(),
        cores: 2,
        memory_bytes: 8 << 30,
        trainer: TrainerState::Ready { version: "0.1.0".into(), libtorch: "2.11.0".into() },
        devices: vec![NodeDevice {
            device: Device::CPU,
            name: "a processor".into(),
            memory_bytes: 8 << 30,
            bf16: false,
            driver: None,
            power_watts_max: None,
            calibration: None,
        }],
        ..Inventory::default()
    }
}

/// Makes one more node of the fleet.
async fn join(fleet: FleetClient, number: usize) -> Credentials {
    let call = TokenCall { scope: Scope::Agent, name: None, labels: Labels::new(), valid: None };
    let (text, _) = fleet.create_token(&call).await.unwrap();
    let string: JoinString = text.parse().unwrap();
    let name = Name::from_lossy(&format!("node-{number}"));
    hatchery_net::join(&string, &name, &Labels::new()).await.unwrap().0
}

/// Submits a job that is far from its end.
async fn submit(fleet: FleetClient, dataset: DatasetId) {
    let settings =
        ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "train.steps=1000000", "train.block=32"];
    let recipe = Recipe::parse(None, "", &settings.map(str::to_owned)).unwrap();
    let spec = recipe.job(dataset, &Name::from_lossy("job"));
    fleet.submit(RequestId::random(), &spec).await.unwrap();
}

/// Waits until every agent stands so.
async fn all(standings: &mut [watch::Receiver<Standing>], what: &str, holds: impl Fn(&Standing) -> bool) {
    let waited = timeout(PATIENCE, async {
        for standing in standings.iter_mut() {
            standing.wait_for(&holds).await.unwrap();
        }
    });
    assert!(waited.await.is_ok(), "in vain: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_agents_are_back_at_once_and_no_lease_has_run_out() {
    let asked = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let count = asked("RECONNECT_AGENTS").map_or(AGENTS, |agents| agents as usize);
    let gone_for = Duration::from_secs(asked("RECONNECT_GONE_SECS").unwrap_or(0));
    let (began, mut house) = (Instant::now(), House::start().await);
    let (fleet, dataset) = (house.fleet().await, house.dataset().await);
    let joining = stream::iter((0..count).map(|number| join(fleet.clone(), number)));
    let credentials: Vec<Credentials> = joining.buffer_unordered(CALLS_AT_ONCE).collect().await;
    println!("{count} agents joined in {:.1} s", began.elapsed().as_secs_f64());

    let (began, seen) = (Instant::now(), Arc::new(Seen::default()));
    let (mut agents, mut standings) = (JoinSet::new(), Vec::new());
    for credentials in credentials {
        let (standing, shown) = watch::channel(Standing::default());
        let (lease, seen) = (Lease::default(), Arc::clone(&seen));
        agents.spawn(Agent { credentials, lease, attempts: Vec::new(), seen, standing }.live());
        standings.push(shown);
    }
    all(&mut standings, "everybody is heard", |standing| standing.heard).await;
    println!("all connected at once and heard in {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let submits = stream::iter((0..count).map(|_| submit(fleet.clone(), dataset)));
    submits.buffer_unordered(CALLS_AT_ONCE).collect::<Vec<()>>().await;
    all(&mut standings, "everybody has work", |standing| standing.works).await;
    println!("each has a lease after {:.1} s", began.elapsed().as_secs_f64());
    let before = fleet.status().await.unwrap().last_event;
    let sessions: Vec<usize> = standings.iter().map(|standing| standing.borrow().session).collect();
    let counted = |seen: &AtomicUsize| seen.swap(0, Ordering::Relaxed);
    println!("while all this was set up, {} leases ran low", counted(&seen.closing) + counted(&seen.over));
    counted(&seen.dials);

    let gone = Instant::now();
    house.restart(gone_for).await;
    let (back, began) = (gone.elapsed(), Instant::now());
    for (standing, session) in standings.iter_mut().zip(sessions) {
        let again = standing.wait_for(|standing| standing.session > session && standing.heard);
        assert!(timeout(PATIENCE, again).await.is_ok(), "an agent is not back");
    }
    let over = counted(&seen.over);
    println!(
        "the coordinator was gone for {:.1} s; {count} agents were back and heard {:.1} s later, after {} dials; {} \
         trainers had stopped meanwhile",
        back.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        counted(&seen.dials),
        counted(&seen.closing) + over,
    );
    assert!(over == 0 || !gone_for.is_zero(), "{over} agents saw their leases run out");
    let jobs = fleet.jobs(false).await.unwrap();
    let running = jobs.iter().filter(|job| job.phase == "running" && job.epoch.0 == 1).count();
    assert_eq!((running, jobs.len()), (count, count), "every attempt goes on");
    let events = fleet.events(before, false, None).await.unwrap();
    let kinds: BTreeSet<String> = events.map_ok(|event| event.kind).try_collect().await.unwrap();
    assert!(!kinds.contains("lease_ended"), "{kinds:?}");
    agents.shutdown().await;
    end(house.runtime).await;
}

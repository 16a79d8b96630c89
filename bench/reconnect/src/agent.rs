//! Agents of which nothing is there but the session and the lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use hatchery_agent::{
    backoff::Backoff,
    lease::{Lease, LeaseState},
};
use hatchery_common::{
    device::Device,
    node::{Inventory, NodeDevice, TrainerState},
    session::{AgentMessage, AttemptPhase, AttemptReport, CoordinatorMessage, Report},
    time::BootTime,
    tls::Credentials,
};
use hatchery_net::{Connect as _, transfer::BlobClient};
use hatchery_proto::client::{AgentsClient, CallError};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::LEASE_SECS;

/// Longest wait for a welcome; as the agent's own.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);

/// What the agents have seen, together.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Times that anybody dialled.
    pub(crate) dials: AtomicUsize,
    /// Leases that were over before a report was answered again.
    pub(crate) over: AtomicUsize,
    /// Leases so near their end that trainers would have stopped.
    pub(crate) closing: AtomicUsize,
}

/// How one agent stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Which of its sessions this is.
    pub(crate) session: usize,
    /// Whether a report of this session was answered.
    pub(crate) heard: bool,
    /// Whether it has an attempt.
    pub(crate) works: bool,
}

/// An agent's session and its lease.
pub(crate) struct Agent {
    pub(crate) credentials: Credentials,
    pub(crate) lease: Lease,
    pub(crate) attempts: Vec<AttemptReport>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) standing: watch::Sender<Standing>,
}

impl Agent {
    /// Dials, reports, and dials again, as the agent's own keeper of a session does.
    pub(crate) async fn live(mut self) {
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
        // Nobody has closed it yet.
        drop(outbox.send(AgentMessage::Hello(Box::new(inventory()))).await);
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
                    id: attempt.id,
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

//! The attempts of this node as the agent's loop sees them.
//!
//! | file | its reason to change |
//! |---|---|
//! | `mod` | the table of attempts, and what of it the coordinator is told |
//! | `attempt` | the life of one attempt |
//! | `messages` | what an attempt is told, and what it tells |
//! | `supplies` | which corpus and checkpoint it begins with |
//! | `finished`, `delivery` | how its checkpoints reach the coordinator |
//! | `folder` | what lies in its folder |
//! | `ending` | how it ended |

pub(crate) mod attempt;
pub(crate) mod delivery;
mod ending;
mod finished;
pub(crate) mod folder;
pub(crate) mod messages;
mod supplies;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use hatchery_common::{
    device::Device,
    durable,
    id::{AttemptId, CheckpointId},
    session::{
        AgentMessage, AssignedAttempt, AttemptPhase, AttemptReport, LOG_CHUNK_BYTES_MAX, UnreadableAttempt,
    },
    time::BootTime,
    trainer::FailureCause,
};
use hatchery_net::blocking;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use self::{
    attempt::{Attempt, Context},
    ending::failed,
    finished::Finished,
    folder::AttemptFolder,
    messages::{AttemptUpdate, Orders, Reporter},
};
use crate::{
    files::remove_folder,
    reconcile::{LocalAttempt, LocalPhase, StopReason},
    trainer::stderr_log::StderrLog,
};

/// All attempts known here.
pub(crate) struct Attempts {
    folder: PathBuf,
    context: Context,
    updates: mpsc::Sender<(AttemptId, AttemptUpdate)>,
    known: BTreeMap<AttemptId, Known>,
    stop_by: Option<BootTime>,
}

struct Known {
    phase: LocalPhase,
    device: Option<Device>,
    report: AttemptReport,
    uses: Option<CheckpointId>,
    work: Option<Work>,
}

/// An attempt that was started by this agent.
struct Work {
    orders: watch::Sender<Orders>,
    task: AbortOnDropHandle<()>,
    output: Output,
}

/// How much of the trainer's output the coordinator has.
struct Output {
    log: StderrLog,
    sent: u64,
    received: u64,
    /// A report that was sent after so many bytes.
    awaited: Option<(u64, u64)>,
}

impl Attempts {
    /// Begins with the attempts that an earlier agent `left` in `folder`, which must exist.
    pub(crate) fn new(
        folder: PathBuf,
        left: &[AttemptFolder],
        context: Context,
        updates: mpsc::Sender<(AttemptId, AttemptUpdate)>,
    ) -> Self {
        let left = left.iter().map(|folder| {
            let undelivered = !Finished::in_folder(&folder.checkpoints()).is_empty();
            (folder.key(), Known::new(folder.key(), LocalPhase::Leftover { undelivered }, None))
        });
        Self { known: left.collect(), folder, context, updates, stop_by: None }
    }

    pub(crate) fn observe(&self) -> Vec<LocalAttempt> {
        let local = self.known.iter().map(|(key, known)| LocalAttempt {
            key: *key,
            device: known.device,
            phase: known.phase,
        });
        local.collect()
    }

    /// The checkpoints that attempts go on from, or would after a crash.
    pub(crate) fn in_use(&self) -> BTreeSet<CheckpointId> {
        self.known
            .values()
            .filter(|known| known.phase != LocalPhase::Ended)
            .filter_map(|known| known.uses)
            .collect()
    }

    /// Whether a trainer may be running.
    pub(crate) fn any_active(&self) -> bool {
        self.known.values().any(Known::is_active)
    }

    /// The devices on which a trainer may be running.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Device> {
        self.known.values().filter(|known| known.is_active()).filter_map(|known| known.device)
    }

    /// Whether all that was begun is over.
    pub(crate) fn all_over(&self) -> bool {
        self.known
            .values()
            .all(|known| matches!(known.phase, LocalPhase::Leftover { .. } | LocalPhase::Ended))
    }

    /// Takes up an attempt.
    pub(crate) fn start(&mut self, assigned: AssignedAttempt) {
        let key = assigned.id;
        let phase = if assigned.stop { LocalPhase::Delivering } else { LocalPhase::Active };
        let mut known = Known::new(key, phase, Some(assigned.device));
        known.uses = assigned.resume_from;
        let folder = AttemptFolder::new(&self.folder, key);
        let log = durable::create_folder(folder.path())
            .map_err(|error| error.to_string())
            .and_then(|()| StderrLog::open(folder.path()).map_err(|error| error.to_string()));
        // One that only delivers was noted when it began. Without the note its checkpoints are lost if the agent is too.
        if !assigned.stop
            && let Err(error) = folder.write_assigned(&assigned)
        {
            tracing::warn!(%error, "cannot record an attempt's assignment");
        }
        match log {
            Ok(log) => {
                let (orders, receiver) =
                    watch::channel(Orders { stop_by: self.stop_by, ..Orders::default() });
                let attempt = Attempt {
                    assigned: Arc::new(assigned),
                    folder,
                    log: log.clone(),
                    context: self.context.clone(),
                    orders: receiver,
                    reporter: Reporter { attempt: key, updates: self.updates.clone() },
                };
                let task = AbortOnDropHandle::new(tokio::spawn(run_guarded(attempt)));
                known.work = Some(Work { orders, task, output: Output::new(log) });
            }
            Err(error) => {
                let message = format!("cannot use the attempt's folder: {error}");
                let ending = failed(FailureCause::Storage, message);
                known.apply(AttemptUpdate::Ended { ending, last_output: String::new() });
            }
        }
        self.known.insert(key, known);
    }

    /// Says that one is not for this version, and does nothing else for it.
    pub(crate) fn refuse(&mut self, unreadable: UnreadableAttempt) {
        let key = unreadable.id;
        let mut known = Known::new(key, LocalPhase::Active, None);
        let ending = failed(FailureCause::Outdated, unreadable.why);
        known.apply(AttemptUpdate::Ended { ending, last_output: String::new() });
        self.known.insert(key, known);
    }

    /// Takes up one of an earlier agent, only to offer what is left of it.
    pub(crate) fn offer_leftovers(&mut self, key: AttemptId) {
        let folder = AttemptFolder::new(&self.folder, key);
        match folder.assigned() {
            Some(assigned) => self.start(AssignedAttempt { stop: true, ..assigned }),
            // Nobody can say of what the checkpoints would be.
            None => self.forget(key),
        }
    }

    /// Tells one to write a checkpoint and stop.
    pub(crate) fn stop(&mut self, key: AttemptId, reason: StopReason, now: BootTime) {
        if let Some(known) = self.known.get_mut(&key) {
            tracing::info!(job = %key.job.short(), ?reason, "stopping an attempt");
            known.phase = LocalPhase::Stopping { since: now };
            known.report.phase = AttemptPhase::Stopping;
            known.order(|orders| orders.stop = Some(reason));
        }
    }

    /// Ends one at once. It counts as running until its process is gone.
    pub(crate) fn kill(&self, key: AttemptId) {
        if let Some(known) = self.known.get(&key) {
            known.order(|orders| orders.kill = true);
        }
    }

    /// Ends all that run at once.
    pub(crate) fn kill_all(&self) {
        self.known.values().for_each(|known| known.order(|orders| orders.kill = true));
    }

    /// Forgets one that nobody wants to hear of.
    pub(crate) fn forget(&mut self, key: AttemptId) {
        let Some(known) = self.known.remove(&key) else { return };
        let folder = AttemptFolder::new(&self.folder, key);
        tokio::spawn(async move {
            if let Some(work) = known.work {
                work.task.abort();
                // However it ended, it is at work no longer.
                let _ended = work.task.await;
            }
            if let Err(error) = blocking(move || remove_folder(folder.path())).await {
                tracing::warn!(%error, "cannot remove an attempt's folder");
            }
        });
    }

    /// The lease runs longer now.
    pub(crate) fn extend(&mut self, stop_by: Option<BootTime>) {
        self.stop_by = stop_by;
        self.known.values().for_each(|known| known.order(|orders| orders.stop_by = stop_by));
    }

    /// Takes what an attempt says; true if that is worth a report at once.
    pub(crate) fn update(&mut self, key: AttemptId, update: AttemptUpdate) -> bool {
        self.known.get_mut(&key).is_some_and(|known| known.apply(update))
    }

    /// What the coordinator is told.
    pub(crate) fn reports(&self) -> Vec<AttemptReport> {
        let told = self.known.values().filter(|known| !matches!(known.phase, LocalPhase::Leftover { .. }));
        told.map(|known| known.report.clone()).collect()
    }

    /// A new session: what the old one may have lost is sent again.
    pub(crate) fn session_began(&mut self) {
        for output in self.outputs() {
            output.sent = output.received;
            output.awaited = None;
        }
    }

    /// A report was sent, after all output up to here.
    pub(crate) fn report_sent(&mut self, sequence: u64) {
        for output in self.outputs() {
            output.awaited.get_or_insert((sequence, output.sent));
        }
    }

    /// A report was received, and so was what had been sent before it.
    pub(crate) fn report_received(&mut self, sequence: u64) {
        for output in self.outputs() {
            if let Some((_, sent)) = output.awaited.take_if(|(awaited, _)| *awaited <= sequence) {
                output.received = sent;
            }
        }
    }

    /// Sends new output for as long as there is room for more than `room_min` further messages.
    pub(crate) fn send_output(&mut self, outbox: &mpsc::Sender<AgentMessage>, room_min: usize) {
        for (key, known) in &mut self.known {
            let Some(Work { output, .. }) = &mut known.work else { continue };
            while output.sent < output.log.end() && outbox.capacity() > room_min {
                let Ok((offset, text)) = output.log.read(output.sent, LOG_CHUNK_BYTES_MAX) else { break };
                output.sent = offset + text.len() as u64;
                let lines = AgentMessage::LogLines { attempt: *key, offset, text };
                if outbox.try_send(lines).is_err() {
                    break;
                }
            }
        }
    }

    fn outputs(&mut self) -> impl Iterator<Item = &mut Output> {
        self.known.values_mut().filter_map(|known| known.work.as_mut()).map(|work| &mut work.output)
    }
}

impl Known {
    fn new(key: AttemptId, phase: LocalPhase, device: Option<Device>) -> Self {
        let report = AttemptReport {
            id: key,
            phase: AttemptPhase::Fetching { done_bytes: 0, total_bytes: 0 },
            progress: None,
            validation: None,
            running_on: None,
        };
        Self { phase, device, report, uses: None, work: None }
    }

    fn is_active(&self) -> bool {
        matches!(self.phase, LocalPhase::Active | LocalPhase::Stopping { .. })
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        if let Some(work) = &self.work {
            work.orders.send_modify(change);
        }
    }

    fn apply(&mut self, update: AttemptUpdate) -> bool {
        let report = &mut self.report;
        // Once told to stop it is stopping, whatever else it still says.
        let active = self.phase == LocalPhase::Active;
        match update {
            AttemptUpdate::Fetching { done_bytes, total_bytes } if active => {
                report.phase = AttemptPhase::Fetching { done_bytes, total_bytes };
                return false;
            }
            AttemptUpdate::Starting if active => report.phase = AttemptPhase::Starting,
            AttemptUpdate::Running(device) => {
                report.running_on = Some(device);
                if active {
                    report.phase = AttemptPhase::Running;
                }
            }
            AttemptUpdate::Fetching { .. } | AttemptUpdate::Starting => return false,
            AttemptUpdate::Uses(checkpoint) => {
                self.uses = Some(checkpoint);
                return false;
            }
            AttemptUpdate::Progress(progress) => {
                report.progress = Some(progress);
                return false;
            }
            AttemptUpdate::Validation(validation) => report.validation = Some(validation),
            AttemptUpdate::Delivering => {
                report.phase = AttemptPhase::Stopping;
                self.phase = LocalPhase::Delivering;
            }
            AttemptUpdate::Ended { ending, last_output } => {
                tracing::info!(job = %report.id.job.short(), ?ending, "attempt ended");
                report.phase = AttemptPhase::Ended { ending, last_output };
                self.phase = LocalPhase::Ended;
            }
        }
        true
    }
}

/// Runs an attempt; a fault of the agent itself ends it as any other failure does, instead of leaving it hanging.
async fn run_guarded(attempt: Attempt) {
    let reporter = attempt.reporter.clone();
    let work = AbortOnDropHandle::new(tokio::spawn(attempt.run()));
    if let Err(error) = work.await {
        let ending = failed(FailureCause::Crashed, format!("internal error of the agent: {error}"));
        reporter.tell(AttemptUpdate::Ended { ending, last_output: String::new() }).await;
    }
}

impl Output {
    fn new(log: StderrLog) -> Self {
        Self { log, sent: 0, received: 0, awaited: None }
    }
}

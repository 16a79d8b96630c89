//! One attempt, from its assignment to its end: fetch what it needs, run its trainer, deliver its checkpoints.

use std::sync::Arc;

use hatchery_common::{
    device::{Device, DeviceKind},
    id::CheckpointId,
    recipe::Precision,
    session::AssignedAttempt,
    trainer::{AttemptOrder, Ending, FailureCause, TrainerCommand, TrainerEvent},
};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    delivery::{Delivery, QueueLimits},
    ending::{self, failed},
    finished::Finished,
    folder::{AttemptFolder, Committed},
    messages::{AttemptUpdate, Orders, Reporter},
    supplies::{Begin, Supplier, Supplies},
};
use crate::{
    machine::{gpu_guard::Gpus, nvidia},
    platform::{Platform, Trainer},
    replicas::{corpora::Corpora, fetch::Fetcher, self_test::SelfTester},
    trainer::{orphan, process::Heard, stderr_log::StderrLog},
};

/// Most bytes of output shown with a failure.
const LAST_OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// Most bytes of the reason why a trainer is slower than it could be.
const REASON_BYTES_MAX: usize = 300;

/// What all attempts of a node share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) fetcher: Fetcher,
    pub(crate) corpora: Corpora,
    /// Threads of a trainer on the processor; 0: as many as there are cores.
    pub(crate) cpu_threads: u32,
    pub(crate) queue_limits: QueueLimits,
    pub(crate) self_tester: SelfTester,
    pub(crate) gpus: Gpus,
    /// Notified whenever a trainer has written to its log.
    pub(crate) output_grew: Arc<Notify>,
}

/// One attempt at work.
pub(crate) struct Attempt {
    pub(crate) assigned: Arc<AssignedAttempt>,
    pub(crate) folder: AttemptFolder,
    pub(crate) log: StderrLog,
    pub(crate) context: Context,
    pub(crate) orders: watch::Receiver<Orders>,
    pub(crate) reporter: Reporter,
}

impl Attempt {
    /// Does all of it; the last update is [`AttemptUpdate::Ended`].
    pub(crate) async fn run(mut self) {
        let delivery = Delivery::new(
            self.context.fetcher.clone(),
            Arc::clone(&self.assigned),
            self.context.queue_limits,
            self.context.self_tester.clone(),
            self.log.clone(),
        );
        let leftovers = Finished::in_folder(&self.folder.checkpoints());
        let newest_leftover = leftovers.last().cloned();
        if let Some(newest) = &newest_leftover {
            delivery.keep(&newest.folder);
        }
        for finished in leftovers {
            delivery.add(finished);
        }
        let delivering = AbortOnDropHandle::new(tokio::spawn(delivery.clone().run(self.on_delivered())));

        let ending =
            if self.assigned.stop { Ending::Stopped } else { self.train(&delivery, newest_leftover).await };
        self.reporter.tell(AttemptUpdate::Delivering).await;
        delivery.add_unannounced(&self.folder.checkpoints());
        delivery.close();
        if delivering.await.is_err() {
            tracing::error!(job = %self.assigned.id.job, "the delivery of checkpoints failed");
        }
        let failed = matches!(ending, Ending::Failed { .. });
        let last_output = if failed { self.log.tail(LAST_OUTPUT_BYTES_MAX) } else { String::new() };
        self.reporter.tell(AttemptUpdate::Ended { ending, last_output }).await;
    }

    async fn train(&mut self, delivery: &Delivery, leftover: Option<Finished>) -> Ending {
        let mut orders = self.orders.clone();
        let supplier = self.supplier(leftover.as_ref());
        let supplies = tokio::select! {
            supplies = supplier.get() => supplies,
            ending = told_to_end(&mut orders) => return ending,
        };
        let order = match supplies {
            Ok(supplies) => self.order(supplies),
            Err(ending) => return ending,
        };
        self.reporter.tell(AttemptUpdate::Starting).await;
        // The GPU's memory is the trainer's.
        tokio::select! {
            () = self.context.gpus.vacated(self.assigned.device) => {}
            ending = told_to_end(&mut orders) => return ending,
        }
        let process = match self.start(&order) {
            Ok(process) => process,
            Err(ending) => return ending,
        };
        self.listen(process, delivery).await
    }

    fn supplier<'a>(&'a self, leftover: Option<&'a Finished>) -> Supplier<'a> {
        Supplier {
            assigned: &self.assigned,
            folder: &self.folder,
            leftover,
            fetcher: &self.context.fetcher,
            corpora: &self.context.corpora,
            reporter: &self.reporter,
        }
    }

    fn on_delivered(&self) -> impl Fn(CheckpointId, u64) + Send + use<> {
        let (folder, reporter) = (self.folder.clone(), self.reporter.clone());
        move |checkpoint, step| {
            if let Err(error) = folder.write_committed(&Committed { checkpoint, step }) {
                tracing::warn!(%error, "cannot record the committed checkpoint");
            }
            // Only if it is told is the checkpoint kept from being dropped; it could be fetched again.
            reporter.try_tell(AttemptUpdate::Uses(checkpoint));
        }
    }

    fn order(&self, supplies: Supplies) -> AttemptOrder {
        let spec = &self.assigned.spec;
        let (resume_from, fine_tune_from) = match supplies.begin {
            Begin::Anew => (None, None),
            Begin::Resume(folder) => (Some(folder), None),
            Begin::FineTune(folder) => (None, Some(folder)),
        };
        AttemptOrder {
            attempt: self.assigned.id,
            model: spec.model.clone(),
            train: spec.train.clone(),
            corpus: supplies.corpus,
            device: self.assigned.device,
            threads: self.context.cpu_threads,
            checkpoints: self.folder.checkpoints(),
            resume_from,
            fine_tune_from,
            lease_until: self.orders.borrow().stop_by,
        }
    }

    fn start(&self, order: &AttemptOrder) -> Result<Box<dyn Trainer>, Ending> {
        let written = self.folder.write_order(order);
        let path = written.map_err(|error| failed(FailureCause::Storage, error.to_string()))?;
        let grew = Arc::clone(&self.context.output_grew);
        let platform = &self.context.platform;
        let started = platform.start_trainer(&path, &self.log, Box::new(move || grew.notify_one()));
        let process = started.map_err(|error| {
            let message = format!("cannot start the trainer {}: {error}", platform.trainer().display());
            failed(FailureCause::Unavailable, message)
        })?;
        tracing::info!(job = %self.assigned.id.job.short(), epoch = %self.assigned.id.epoch, process = process.id(),
            device = %self.assigned.device, "trainer started");
        Ok(process)
    }

    async fn listen(&mut self, mut process: Box<dyn Trainer>, delivery: &Delivery) -> Ending {
        let mut orders = self.orders.clone();
        orders.mark_changed();
        let mut obeyed = Orders::default();
        let mut said = None;
        let status = loop {
            tokio::select! {
                heard = process.hear() => match heard {
                    Heard::Event(TrainerEvent::Ended(ending)) => said = Some(ending),
                    Heard::Event(event) => self.pass_on(event, delivery).await,
                    Heard::Exited(status) => break status,
                },
                // The agent's own end drops this whole attempt, and kills the trainer.
                Ok(()) = orders.changed() => {
                    let newest = *orders.borrow_and_update();
                    obey(process.as_ref(), obeyed, newest);
                    obeyed = newest;
                }
            }
        };
        drop(process);
        orphan::forget(self.folder.path());
        ending::of_trainer(said, status, *orders.borrow())
    }

    async fn pass_on(&self, event: TrainerEvent, delivery: &Delivery) {
        match event {
            TrainerEvent::Started { device, precision, slower_because, .. } => {
                let precision = match precision {
                    Precision::Bf16 => "bf16",
                    Precision::F32 | Precision::Auto => "f32",
                };
                let slower = slower_because.map_or_else(String::new, |why| {
                    let start = &why[..why.floor_char_boundary(REASON_BYTES_MAX)];
                    format!("; slower than possible: {start}")
                });
                self.reporter.tell(AttemptUpdate::Running(format!("{device}, {precision}{slower}"))).await;
            }
            TrainerEvent::Progress(mut progress) => {
                if let Device { kind: DeviceKind::Cuda, index } = self.assigned.device {
                    let now = nvidia::now(index).await;
                    progress.power_watts = now.power_watts;
                    progress.gpu = now.reading;
                }
                self.reporter.tell(AttemptUpdate::Progress(progress)).await;
            }
            TrainerEvent::Validation(validation) => {
                self.reporter.tell(AttemptUpdate::Validation(validation)).await;
            }
            TrainerEvent::Checkpoint { folder, step, metrics } => {
                // A trainer says nothing else, but it is another process.
                if folder.parent() == Some(&self.folder.checkpoints()) {
                    delivery.add(Finished { folder, step, metrics });
                } else {
                    tracing::warn!(folder = %folder.display(), "a trainer reported a checkpoint outside its folder");
                }
            }
            // What these say stands in the checkpoints too.
            TrainerEvent::TrainLoss(_) | TrainerEvent::EarlyStop { .. } | TrainerEvent::Ended(_) => {}
        }
    }
}

/// Waits until told to stop or to end; gives how that ends an attempt that has no trainer yet.
async fn told_to_end(orders: &mut watch::Receiver<Orders>) -> Ending {
    let told = orders.wait_for(|orders| orders.kill || orders.stop.is_some()).await.map(|orders| *orders);
    match told {
        Ok(orders) => ending::stopped(orders),
        // The agent ends, and this attempt with it.
        Err(_) => std::future::pending().await,
    }
}

/// Does what is new in the orders.
fn obey(process: &dyn Trainer, before: Orders, now: Orders) {
    if now.kill {
        process.kill();
    } else if now.stop.is_some() && before.stop.is_none() {
        process.terminate();
    }
    if let Some(until) = now.stop_by.filter(|_| now.stop_by != before.stop_by) {
        process.tell(TrainerCommand::Lease { until });
    }
}

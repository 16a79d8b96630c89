//! The node's inventory as the coordinator is told it: what the platform finds, the processor divided between trainers,
//! and the speeds that were measured before.

use std::{path::Path, sync::Arc, time::Duration};

use hatchery_common::node::{Inventory, TrainerState};
use tokio::sync::{mpsc, watch};

use super::{calibration::CalibrationCache, cpu_partition};
use crate::{platform::Platform, settings::AgentSettings};

/// How often a missing trainer is looked for.
const FIND_TRAINER_EVERY: Duration = Duration::from_mins(1);

pub(crate) async fn survey(platform: &dyn Platform, settings: &AgentSettings) -> Inventory {
    // The state folder may not be there yet; its file system is that of the nearest folder above it.
    let existing = settings.state.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let mut inventory = platform.look(existing).await;
    cpu_partition::divide(settings.cpu_trainers, &mut inventory);
    measured_before(platform, settings, &inventory).fill(&mut inventory);
    if settings.availability.looks() {
        inventory.notes.extend(platform.usage(&settings.availability).await.problems);
    }
    inventory
}

/// The speeds that were measured before.
pub(crate) fn measured_before(
    platform: &dyn Platform,
    settings: &AgentSettings,
    inventory: &Inventory,
) -> CalibrationCache {
    let cpu_threads = cpu_partition::threads(settings.cpu_threads, settings.cpu_trainers, inventory);
    CalibrationCache::open(&settings.state, platform.trainer(), cpu_threads)
}

/// Looks again now and then for as long as there is no trainer that runs: somebody may be installing it.
pub(crate) async fn find_trainer(
    platform: Arc<dyn Platform>,
    settings: AgentSettings,
    known: watch::Receiver<Inventory>,
    found: mpsc::Sender<Inventory>,
) {
    loop {
        tokio::time::sleep(FIND_TRAINER_EVERY).await;
        if matches!(known.borrow().trainer, TrainerState::Ready { .. }) {
            return;
        }
        let seen = survey(&*platform, &settings).await;
        if matches!(seen.trainer, TrainerState::Ready { .. }) && found.send(seen).await.is_err() {
            return;
        }
    }
}

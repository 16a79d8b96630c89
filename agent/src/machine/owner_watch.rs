//! Looks again and again, and tells the agent's loop.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hatchery_common::{availability::Away, time::BootTime};
use jiff::ZonedDateTime;
use tokio::sync::watch;

use super::availability::{AvailabilitySettings, Judgement, Usage};
use crate::platform::Platform;

/// How often the machine and its clock are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches over this machine for its owner.
#[derive(Debug)]
pub(crate) struct OwnerWatch {
    platform: Arc<dyn Platform>,
    policy: AvailabilitySettings,
    judgement: Judgement,
    /// What could not be seen and was said already.
    said: BTreeSet<String>,
}

impl OwnerWatch {
    /// One that has looked once.
    pub(crate) async fn new(platform: Arc<dyn Platform>, policy: AvailabilitySettings) -> Self {
        let mut watcher = Self { platform, policy, judgement: Judgement::default(), said: BTreeSet::new() };
        if watcher.policy.limits() {
            watcher.look().await;
        }
        watcher
    }

    /// Why the machine is its owner's; none: it is the fleet's.
    pub(crate) fn away(&self) -> Option<Away> {
        self.judgement.away
    }

    /// Looks for as long as somebody wants to know.
    pub(crate) async fn run(mut self, shown: watch::Sender<Option<Away>>) {
        if !self.policy.limits() {
            return shown.closed().await;
        }
        while !shown.is_closed() {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look().await;
            let away = self.away();
            shown.send_if_modified(|before| std::mem::replace(before, away) != away);
        }
    }

    async fn look(&mut self) {
        let usage =
            if self.policy.looks() { self.platform.usage(&self.policy).await } else { Usage::default() };
        for problem in &usage.problems {
            if self.said.insert(problem.clone()) {
                tracing::warn!("{problem}");
            }
        }
        self.judgement = self.judgement.next(&self.policy, &usage, &ZonedDateTime::now(), BootTime::now());
    }
}

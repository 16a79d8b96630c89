//! Which checkpoint answers here for each job. The choice outlives the agent, and changes at once: nobody ever sees half
//! of a change, and what answered before does so until the new choice is durable.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use hatchery_common::{
    durable::{self, FileError},
    id::{CheckpointId, JobId},
    time::BootTime,
};
use hatchery_net::blocking;
use tokio::sync::oneshot;

/// The file in the agent's folder.
const ACTIVE_FILE: &str = "active.json";
/// Longest file: 10,000 jobs, and room.
const ACTIVE_BYTES_MAX: u64 = 2 << 20;
/// The pause after the file could not be written.
const RETRY_EVERY: Duration = Duration::from_secs(5);

type Choices = BTreeMap<JobId, CheckpointId>;

/// What is active here.
#[derive(Debug)]
pub(crate) struct Active {
    path: PathBuf,
    durable: Choices,
    /// What is being written, and how that went.
    writing: Option<(Choices, oneshot::Receiver<Result<(), FileError>>)>,
    not_before: BootTime,
}

impl Active {
    /// Reads what was active when the agent last ran. A file that cannot be read counts as none: the coordinator says it
    /// again.
    pub(crate) fn open(state: &Path) -> Self {
        let path = state.join(ACTIVE_FILE);
        let read = durable::read_limited(&path, ACTIVE_BYTES_MAX);
        let durable = match read {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %path.display(), "the link to the active checkpoint is wrong; replacing it");
                Choices::new()
            }),
            Err(error) => {
                if !error.is_missing() {
                    tracing::warn!(%error, "cannot read the active checkpoints; recreating the record");
                }
                Choices::new()
            }
        };
        Self { path, durable, writing: None, not_before: BootTime::default() }
    }

    /// For each job what answers here.
    pub(crate) fn choices(&self) -> &Choices {
        &self.durable
    }

    /// Whether a checkpoint answers here for its job.
    pub(crate) fn is_active(&self, checkpoint: CheckpointId) -> bool {
        self.durable.values().any(|active| *active == checkpoint)
    }

    /// Begins to let `checkpoint` answer for `job` from now on, or nothing. One change at a time: what is asked for meanwhile
    /// is to be asked for again.
    pub(crate) fn choose(&mut self, job: JobId, checkpoint: Option<CheckpointId>, now: BootTime) {
        if self.writing.is_some() || now < self.not_before {
            return;
        }
        let mut choices = self.durable.clone();
        match checkpoint {
            Some(checkpoint) => drop(choices.insert(job, checkpoint)),
            None => drop(choices.remove(&job)),
        }
        let text = serde_json::to_vec(&choices).expect("ids are always JSON");
        let (path, (done, result)) = (self.path.clone(), oneshot::channel());
        tokio::spawn(async move {
            // Nobody waits for it any more when the agent has ended.
            let _gone = done.send(blocking(move || durable::write_atomically(&path, &text)).await);
        });
        self.writing = Some((choices, result));
    }

    /// Takes note of a change that has become durable; true if there is one.
    pub(crate) fn settle(&mut self, now: BootTime) -> bool {
        let Some((choices, mut result)) = self.writing.take() else { return false };
        match result.try_recv() {
            Ok(Ok(())) => {
                for (job, checkpoint) in
                    choices.iter().filter(|(job, one)| self.durable.get(job) != Some(one))
                {
                    tracing::info!(job = %job.short(), checkpoint = %checkpoint.short(), "checkpoint active");
                }
                self.durable = choices;
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot record the active checkpoint; the previous one stays active");
                self.not_before = now + RETRY_EVERY;
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                self.writing = Some((choices, result));
                false
            }
            Err(oneshot::error::TryRecvError::Closed) => false,
        }
    }
}

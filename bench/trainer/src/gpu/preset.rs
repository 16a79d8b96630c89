//! Runs of a preset in this process, as a job makes them, and what is heard of them.

use std::path::{Path, PathBuf};

use anyhow::bail;
use hatchery_common::{
    device::Device,
    recipe::{Precision, Recipe},
    trainer::{Ending, Progress, TrainerEvent},
};
use hatchery_trainer::{
    control::Control,
    data::Corpus,
    report::Reporter,
    run::{Task, run},
};

/// What is trained, on what.
#[derive(Debug)]
pub(super) struct Preset {
    pub(super) name: String,
    pub(super) corpus: Corpus,
    pub(super) device: Device,
    pub(super) precision: Precision,
}

/// The last figures of a run that came to its end.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) progress: Progress,
    pub(super) validation_loss: Option<f64>,
    /// In the order in which they were written.
    pub(super) checkpoints: Vec<PathBuf>,
}

impl Preset {
    /// Trains with these settings over the preset's, from its start or from a checkpoint.
    pub(super) fn train(
        &self,
        settings: &[String],
        folder: &Path,
        resume_from: Option<PathBuf>,
    ) -> anyhow::Result<Heard> {
        let precision = format!("train.precision={:?}", self.precision).to_lowercase();
        let settings = [settings, &[precision]].concat();
        let Recipe { model, train, .. } = Recipe::parse(Some(&self.name), "", &settings)?;
        let task = Task {
            model,
            train,
            corpus: self.corpus.clone(),
            device: Some(self.device),
            threads: 0,
            checkpoints: folder.to_owned(),
            resume_from,
            fine_tune_from: None,
        };
        let mut heard = Heard::default();
        match run(Ok(task), &Control::new(None), &mut heard) {
            Ending::Completed => Ok(heard),
            ending => bail!("a run of the preset {} ended otherwise than by its end: {ending:?}", self.name),
        }
    }
}

impl Reporter for Heard {
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()> {
        match event {
            TrainerEvent::Progress(progress) => self.progress = *progress,
            TrainerEvent::Validation(validation) => {
                eprintln!("step {}, validation {:.4}", validation.step, validation.loss);
                self.validation_loss = Some(validation.loss);
            }
            TrainerEvent::Checkpoint { folder, .. } => self.checkpoints.push(folder.clone()),
            _ => {}
        }
        Ok(())
    }
}

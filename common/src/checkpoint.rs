//! Checkpoints: the folder that a trainer writes, and the manifest that the house passes on.
//!
//! A checkpoint folder holds, in this order of importance:
//!
//! | file | what | needed for |
//! |---|---|---|
//! | `config.json` | the six public fields of [`ModelConfig`] and nothing else, as the public code reads them | everything |
//! | `model.safetensors` | the five weights under their public names, f32; in its metadata `format` = `pt`, and under [`TRAINED_BLOCK_KEY`] the trained block | everything |
//! | `optimizer.safetensors` | AdamW's moments: `exp_avg.NAME`, `exp_avg_sq.NAME` for each weight | going on |
//! | `training.json` | a [`TrainingCursor`](crate::cursor::TrainingCursor) | going on |
//!
//! With `train.ema_decay`, `model.safetensors` holds the running mean of the weights, which is what is validated and
//! served; the weights that training goes on with then stand beside the moments, as `raw.NAME`.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    field::FieldError,
    id::{BlobId, CheckpointId, DatasetId, Epoch, JobId},
    model::ModelConfig,
    trainer::Metrics,
};

/// The public fields of the model.
pub const CONFIG_FILE: &str = "config.json";
/// The weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// The optimizer's moments.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The cursor.
pub const TRAINING_FILE: &str = "training.json";
/// The metadata key of `model.safetensors` that holds the trained block, as decimal text.
pub const TRAINED_BLOCK_KEY: &str = "hatchery.block";
/// The block that the public training code uses, taken where a checkpoint does not name its own.
pub const PUBLIC_BLOCK: u32 = 512;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// One of the four file names above.
    pub name: String,
    /// Its bytes.
    pub blob: BlobId,
    /// How many bytes.
    pub size_bytes: u64,
}

/// An immutable description of one checkpoint. Its id is the digest of its canonical bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointManifest {
    /// The job that made it.
    pub job: JobId,
    /// The attempt that made it.
    pub epoch: Epoch,
    /// Steps done.
    pub step: u64,
    /// The checkpoint that its attempt went on from.
    pub parent: Option<CheckpointId>,
    /// The text it learned from.
    pub dataset: DatasetId,
    /// The model's shape.
    pub model: ModelConfig,
    /// The block it was trained on.
    pub block: u32,
    /// What was known of the run.
    pub metrics: Metrics,
    /// The files, in the order of the table above.
    pub files: Vec<CheckpointFile>,
}

impl CheckpointManifest {
    /// The four file names, in their order.
    pub const FILES: [&'static str; 4] = [CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE];

    /// The digest of its canonical bytes: JSON with the fields in their order here.
    pub fn id(&self) -> CheckpointId {
        let bytes = serde_json::to_vec(self).expect("a manifest of text and numbers is always JSON");
        CheckpointId(Digest::of(&bytes))
    }

    /// All files together.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// The file called `name`.
    pub fn file(&self, name: &str) -> Option<&CheckpointFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// Checks what comes from outside: exactly the four files, none of them empty or absurdly large, finite figures.
    pub fn check(&self) -> Result<(), FieldError> {
        // The optimizer's: both moments and the weights themselves, and a header.
        const FILE_BYTES_MAX: u64 = 4 * ModelConfig::PARAMETERS_MAX * 3 + (1 << 20);
        if !self.files.iter().map(|file| file.name.as_str()).eq(Self::FILES) {
            return Err(FieldError::new("files", format!("must be exactly {}", Self::FILES.join(", "))));
        }
        for file in &self.files {
            if file.size_bytes == 0 || file.size_bytes > FILE_BYTES_MAX {
                return Err(FieldError::new("files", format!("{} has {} bytes", file.name, file.size_bytes)));
            }
        }
        let metrics = [
            self.metrics.first_loss,
            self.metrics.train_loss,
            self.metrics.validation_loss,
            self.metrics.best.map(|best| best.loss),
        ];
        if metrics.into_iter().flatten().any(|loss| !loss.is_finite()) {
            return Err(FieldError::new("metrics", "a loss is not a finite number"));
        }
        Ok(())
    }
}

/// The name of the folder for the checkpoint after `step` steps: `step-000000100`.
pub fn folder_name(step: u64) -> String {
    format!("step-{step:09}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RawModelConfig;

    #[test]
    fn a_manifest_is_named_by_its_content() {
        let file = |name: &str| CheckpointFile {
            name: name.into(),
            blob: BlobId(Digest::of(name.as_bytes())),
            size_bytes: 9,
        };
        let mut manifest = CheckpointManifest {
            job: JobId::from_bytes([1; 16]),
            epoch: Epoch(1),
            step: 100,
            parent: None,
            dataset: DatasetId(Digest::of(b"")),
            model: ModelConfig::new(RawModelConfig::default()).unwrap(),
            block: 256,
            metrics: Metrics { train_loss: Some(1.1), ..Default::default() },
            files: CheckpointManifest::FILES.map(file).to_vec(),
        };
        let text = serde_json::to_string(&manifest).unwrap();
        let back: CheckpointManifest = serde_json::from_str(&text).unwrap();
        assert_eq!(back.id(), manifest.id());
        assert_eq!(manifest.check(), Ok(()));
        manifest.files[0].name = "../config.json".into();
        assert!(manifest.check().is_err());
        assert_ne!(back.id(), manifest.id());
    }
}

//! Checkpoints: the folder that a trainer writes, and the manifest that Hatchery passes on.
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
//! Where a job wishes for it (`replicate.weights`), the agent that delivers a checkpoint adds a fifth file:
//! `model-bf16.safetensors`, the same as `model.safetensors` with its weights rounded to bf16. A node that only answers
//! then needs that and `config.json`, about a sixth of the bytes; in its folder the weights are called `model.safetensors`.
//!
//! With `train.ema_decay`, `model.safetensors` holds the running mean of the weights, which is what is validated and
//! served; the weights that training goes on with then stand beside the moments, as `raw.NAME`.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    field::FieldError,
    id::{AttemptId, BlobId, CheckpointId, DatasetId, Epoch, JobId},
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
/// The weights once more, for replicas that only answer.
pub const SERVING_FILE: &str = "model-bf16.safetensors";
/// The metadata key of `model.safetensors` that holds the trained block, as decimal text.
pub const TRAINED_BLOCK_KEY: &str = "hatchery.block";
/// The block that the public training code uses, taken where a checkpoint does not name its own.
pub const PUBLIC_BLOCK: u32 = 512;

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFile {
    /// One of the file names above.
    pub name: String,
    /// Its bytes.
    pub blob: BlobId,
    /// How many bytes.
    pub size_bytes: u64,
}

/// How much of a checkpoint a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplicaForm {
    /// What it takes to answer: the shape, and the weights in bf16.
    ServingOnly,
    /// All of it: any attempt can go on from it.
    Whole,
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
    /// The files, in the order of the table above; [`SERVING_FILE`] last, where there is one.
    pub files: Vec<CheckpointFile>,
}

impl CheckpointManifest {
    /// The names of the files that every checkpoint has, in their order.
    pub const FILES: [&'static str; 4] = [CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE];

    /// The digest of its canonical bytes: JSON with the fields in their order here.
    pub fn id(&self) -> CheckpointId {
        let bytes = serde_json::to_vec(self).expect("a manifest of text and numbers is always JSON");
        CheckpointId(Digest::of(&bytes))
    }

    /// The attempt that made it.
    pub const fn attempt(&self) -> AttemptId {
        AttemptId { job: self.job, epoch: self.epoch }
    }

    /// All files together.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// The file called `name`.
    pub fn file(&self, name: &str) -> Option<&CheckpointFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The form of a replica that is wished in this one: serving-only where there are weights for it, else whole.
    pub fn form_for(&self, wished: ReplicaForm) -> ReplicaForm {
        if self.file(SERVING_FILE).is_some() { wished } else { ReplicaForm::Whole }
    }

    /// The files of a replica of this form, each with its name in the replica's folder.
    pub fn files_in(&self, form: ReplicaForm) -> impl Iterator<Item = (&str, &CheckpointFile)> {
        let serving = self.file(SERVING_FILE).filter(|_| form == ReplicaForm::ServingOnly);
        self.files.iter().filter_map(move |file| match (serving, file.name.as_str()) {
            (None, name) | (Some(_), name @ CONFIG_FILE) => Some((name, file)),
            (Some(serving), name @ MODEL_FILE) => Some((name, serving)),
            (Some(_), _) => None,
        })
    }

    /// The bytes of a replica of this form.
    pub fn bytes_in(&self, form: ReplicaForm) -> u64 {
        self.files_in(form).map(|(_, file)| file.size_bytes).sum()
    }

    /// Checks what comes from outside: exactly the files that there may be, none of them empty or absurdly large, finite
    /// figures. Weights for replicas that only answer are smaller than the others, so a folder's files tell its form.
    pub fn check(&self) -> Result<(), FieldError> {
        // The optimizer's: both moments and the weights themselves, and a header.
        const FILE_BYTES_MAX: u64 = 4 * ModelConfig::PARAMETERS_MAX * 3 + (1 << 20);
        let serving = self.file(SERVING_FILE);
        let names = Self::FILES.into_iter().chain(serving.map(|_| SERVING_FILE));
        if !self.files.iter().map(|file| file.name.as_str()).eq(names) {
            let names = Self::FILES.join(", ");
            return Err(FieldError::new(
                "files",
                format!("must be exactly {names}, optionally followed by {SERVING_FILE}"),
            ));
        }
        for file in &self.files {
            if file.size_bytes == 0 || file.size_bytes > FILE_BYTES_MAX {
                return Err(FieldError::new("files", format!("{} has {} bytes", file.name, file.size_bytes)));
            }
        }
        if serving.is_some_and(|serving| serving.size_bytes >= self.files[1].size_bytes) {
            return Err(FieldError::new(
                "files",
                format!("{SERVING_FILE} must be smaller than {MODEL_FILE}"),
            ));
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
        let mut manifest = manifest(&CheckpointManifest::FILES);
        let text = serde_json::to_string(&manifest).unwrap();
        let back: CheckpointManifest = serde_json::from_str(&text).unwrap();
        assert_eq!(back.id(), manifest.id());
        assert_eq!(manifest.check(), Ok(()));
        manifest.files[0].name = "../config.json".into();
        assert!(manifest.check().is_err());
        assert_ne!(back.id(), manifest.id());
    }

    #[test]
    fn a_replica_that_only_answers_has_the_smaller_weights_under_the_name_of_the_others() {
        let mut five = manifest(&[&CheckpointManifest::FILES[..], &[SERVING_FILE]].concat());
        let wrong = five.check().unwrap_err().to_string();
        assert!(wrong.contains("must be smaller"), "{wrong}");
        five.files[1].size_bytes = 17;
        assert_eq!(five.check(), Ok(()));
        let found: Vec<(&str, BlobId)> =
            five.files_in(ReplicaForm::ServingOnly).map(|(name, file)| (name, file.blob)).collect();
        assert_eq!(found, [(CONFIG_FILE, five.files[0].blob), (MODEL_FILE, five.files[4].blob)]);
        assert_eq!(five.files_in(ReplicaForm::Whole).count(), 5);
        assert_eq!((five.bytes_in(ReplicaForm::ServingOnly), five.size_bytes()), (18, 53));
        assert_eq!(five.form_for(ReplicaForm::ServingOnly), ReplicaForm::ServingOnly);
        for wrong in [[0, 1, 2, 4, 3].as_slice(), &[0, 1, 2, 3, 4, 4], &[4, 0, 1, 2, 3], &[0, 1, 4]] {
            let files = wrong.iter().map(|index| five.files[*index].clone()).collect();
            assert!(CheckpointManifest { files, ..five.clone() }.check().is_err(), "{wrong:?}");
        }

        let four = manifest(&CheckpointManifest::FILES);
        assert_eq!(four.form_for(ReplicaForm::ServingOnly), ReplicaForm::Whole);
        assert_eq!(four.bytes_in(ReplicaForm::ServingOnly), four.size_bytes());
    }

    /// Files of nine bytes each.
    fn manifest(names: &[&str]) -> CheckpointManifest {
        let file = |name: &&str| CheckpointFile {
            name: (*name).into(),
            blob: BlobId(Digest::of(name.as_bytes())),
            size_bytes: 9,
        };
        CheckpointManifest {
            job: JobId::from_bytes([1; 16]),
            epoch: Epoch(1),
            step: 100,
            parent: None,
            dataset: DatasetId(Digest::of(b"")),
            model: ModelConfig::new(RawModelConfig::default()).unwrap(),
            block: 256,
            metrics: Metrics { train_loss: Some(1.1), ..Default::default() },
            files: names.iter().map(file).collect(),
        }
    }
}

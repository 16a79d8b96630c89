//! Recipes: the model's shape, how to train, where to run, where checkpoints go.

use std::num::NonZeroU32;

use hatchery_common::{
    device::DeviceKind,
    field::FieldError,
    id::Name,
    model::{ModelConfig, RawModelConfig},
    recipe::{
        DeviceWishes, JobSpec, NodeSelector, Precision, Priority, QueueWishes, RawTrainSpec, ReplicaPolicy,
        ReplicaWeights, ReplicateWhich, RetainPolicy, Schedule, StartFrom, StartHow, TrainSpec,
    },
    time::Timestamp,
};

use super::{
    enums::Enumeration,
    fields::{
        ENTRIES_MAX, at_most, labels, missing, name_optional, needed, optional, parsed, parsed_each,
        wire_labels,
    },
};
use crate::v1::{self, node_selector};

/// Most device kinds in a wish; a repeated one does no harm.
const KINDS_MAX: usize = 16;

impl From<ModelConfig> for v1::ModelConfig {
    fn from(config: ModelConfig) -> Self {
        let raw = RawModelConfig::from(config);
        Self {
            n_layer: raw.n_layer,
            n_embd: raw.n_embd,
            dropout: raw.dropout,
            n_head: raw.n_head,
            mlp_internal_dim_multiplier: raw.mlp_internal_dim_multiplier,
            vocab_size: raw.vocab_size,
        }
    }
}

impl TryFrom<v1::ModelConfig> for ModelConfig {
    type Error = FieldError;

    fn try_from(config: v1::ModelConfig) -> Result<Self, FieldError> {
        Self::new(RawModelConfig {
            n_layer: config.n_layer,
            n_embd: config.n_embd,
            dropout: config.dropout,
            n_head: config.n_head,
            mlp_internal_dim_multiplier: config.mlp_internal_dim_multiplier,
            vocab_size: config.vocab_size,
        })
    }
}

impl From<TrainSpec> for v1::TrainSpec {
    fn from(spec: TrainSpec) -> Self {
        let raw = RawTrainSpec::from(spec);
        Self {
            steps: raw.steps,
            batch: raw.batch,
            block: raw.block,
            lr: raw.lr,
            weight_decay: raw.weight_decay,
            beta1: raw.beta1,
            beta2: raw.beta2,
            epsilon: raw.epsilon,
            seed: raw.seed,
            precision: raw.precision.number(),
            checkpoint_every: raw.checkpoint_every,
            validate_every: raw.validate_every,
            validation_share: raw.validation_share,
            validation_windows: raw.validation_windows,
            schedule: raw.schedule.number(),
            warmup_steps: raw.warmup_steps,
            lr_min_share: raw.lr_min_share,
            decay_share: raw.decay_share,
            clip_norm: raw.clip_norm,
            accumulate: raw.accumulate,
            ema_decay: raw.ema_decay,
            early_stop: raw.early_stop,
            early_stop_min_change: raw.early_stop_min_change,
            checkpoint_best: raw.checkpoint_best,
            log_every: raw.log_every,
        }
    }
}

impl TryFrom<v1::TrainSpec> for TrainSpec {
    type Error = FieldError;

    fn try_from(spec: v1::TrainSpec) -> Result<Self, FieldError> {
        Self::new(RawTrainSpec {
            steps: spec.steps,
            batch: spec.batch,
            block: spec.block,
            lr: spec.lr,
            weight_decay: spec.weight_decay,
            beta1: spec.beta1,
            beta2: spec.beta2,
            epsilon: spec.epsilon,
            seed: spec.seed,
            precision: Precision::read("precision", spec.precision)?,
            checkpoint_every: spec.checkpoint_every,
            validate_every: spec.validate_every,
            validation_share: spec.validation_share,
            validation_windows: spec.validation_windows,
            schedule: Schedule::read("schedule", spec.schedule)?,
            warmup_steps: spec.warmup_steps,
            lr_min_share: spec.lr_min_share,
            decay_share: spec.decay_share,
            clip_norm: spec.clip_norm,
            accumulate: spec.accumulate,
            ema_decay: spec.ema_decay,
            early_stop: spec.early_stop,
            early_stop_min_change: spec.early_stop_min_change,
            checkpoint_best: spec.checkpoint_best,
            log_every: spec.log_every,
        })
    }
}

impl From<DeviceWishes> for v1::DeviceWishes {
    fn from(wishes: DeviceWishes) -> Self {
        Self {
            kinds: wishes.kinds.into_iter().map(Enumeration::number).collect(),
            nodes: wishes.nodes.into_iter().map(String::from).collect(),
            labels: wire_labels(wishes.labels),
            exclude: wishes.exclude.into_iter().map(String::from).collect(),
            memory_bytes_min: wishes.memory_bytes_min,
        }
    }
}

impl TryFrom<v1::DeviceWishes> for DeviceWishes {
    type Error = FieldError;

    fn try_from(wishes: v1::DeviceWishes) -> Result<Self, FieldError> {
        at_most("kinds", wishes.kinds.len(), KINDS_MAX, "entries")?;
        at_most("nodes", wishes.nodes.len(), ENTRIES_MAX, "entries")?;
        let kind = |(index, number): (usize, &i32)| DeviceKind::read(&format!("kinds.{index}"), *number);
        at_most("exclude", wishes.exclude.len(), ENTRIES_MAX, "entries")?;
        let names = |field: &str, names: &[String]| {
            let name = |(index, text): (usize, &String)| Name::new(&format!("{field}.{index}"), text);
            names.iter().enumerate().map(name).collect::<Result<Vec<Name>, _>>()
        };
        Ok(Self {
            kinds: wishes.kinds.iter().enumerate().map(kind).collect::<Result<_, _>>()?,
            nodes: names("nodes", &wishes.nodes)?,
            labels: labels("labels", &wishes.labels)?,
            exclude: names("exclude", &wishes.exclude)?,
            memory_bytes_min: wishes.memory_bytes_min,
        })
    }
}

impl From<NodeSelector> for v1::NodeSelector {
    fn from(selector: NodeSelector) -> Self {
        let set = match selector {
            NodeSelector::All => node_selector::Set::All(node_selector::All {}),
            NodeSelector::None => node_selector::Set::None(node_selector::None {}),
            NodeSelector::Labels(labels) => {
                node_selector::Set::Labels(node_selector::Labels { labels: wire_labels(labels) })
            }
            NodeSelector::Nodes(nodes) => {
                let ids = nodes.iter().map(ToString::to_string).collect();
                node_selector::Set::Listed(node_selector::Nodes { ids })
            }
        };
        Self { set: Some(set) }
    }
}

impl TryFrom<v1::NodeSelector> for NodeSelector {
    type Error = FieldError;

    fn try_from(selector: v1::NodeSelector) -> Result<Self, FieldError> {
        Ok(match selector.set.ok_or_else(|| missing("set"))? {
            node_selector::Set::All(_) => Self::All,
            node_selector::Set::None(_) => Self::None,
            node_selector::Set::Labels(wanted) => Self::Labels(labels("labels", &wanted.labels)?),
            node_selector::Set::Listed(listed) => {
                Self::Nodes(parsed_each("listed", &listed.ids, ENTRIES_MAX)?)
            }
        })
    }
}

impl From<ReplicaPolicy> for v1::ReplicaPolicy {
    fn from(policy: ReplicaPolicy) -> Self {
        Self {
            to: Some(policy.to.into()),
            which: policy.which.number(),
            weights: Some(policy.weights.number()),
        }
    }
}

impl TryFrom<v1::ReplicaPolicy> for ReplicaPolicy {
    type Error = FieldError;

    fn try_from(policy: v1::ReplicaPolicy) -> Result<Self, FieldError> {
        let weights = policy.weights.map(|number| ReplicaWeights::read("weights", number)).transpose()?;
        Ok(Self {
            to: needed("to", policy.to)?,
            which: ReplicateWhich::read("which", policy.which)?,
            weights: weights.unwrap_or_default(),
        })
    }
}

impl From<StartFrom> for v1::StartFrom {
    fn from(start: StartFrom) -> Self {
        Self { checkpoint: start.checkpoint.to_string(), how: start.how.number() }
    }
}

impl TryFrom<v1::StartFrom> for StartFrom {
    type Error = FieldError;

    fn try_from(start: v1::StartFrom) -> Result<Self, FieldError> {
        Ok(Self {
            checkpoint: parsed("checkpoint", &start.checkpoint)?,
            how: StartHow::read("how", start.how)?,
        })
    }
}

impl From<QueueWishes> for v1::QueueWishes {
    fn from(wishes: QueueWishes) -> Self {
        Self {
            priority: wishes.priority.get().into(),
            group: wishes.group.map(Into::into),
            after: wishes.after.iter().map(ToString::to_string).collect(),
            deadline_ms: wishes.deadline.map(|deadline| deadline.0),
        }
    }
}

impl TryFrom<v1::QueueWishes> for QueueWishes {
    type Error = FieldError;

    fn try_from(wishes: v1::QueueWishes) -> Result<Self, FieldError> {
        Ok(Self {
            priority: priority(wishes.priority)?,
            group: name_optional("group", wishes.group.as_deref())?,
            after: parsed_each("after", &wishes.after, ENTRIES_MAX)?,
            deadline: wishes.deadline_ms.map(Timestamp),
        })
    }
}

/// Reads the field `priority`.
pub fn priority(number: u32) -> Result<Priority, FieldError> {
    // What does not fit into a byte is too large in any case.
    Priority::new(u8::try_from(number).unwrap_or(u8::MAX))
}

impl From<RetainPolicy> for v1::RetainPolicy {
    fn from(policy: RetainPolicy) -> Self {
        Self { last: policy.last.map(NonZeroU32::get), every: policy.every }
    }
}

impl TryFrom<v1::RetainPolicy> for RetainPolicy {
    type Error = FieldError;

    fn try_from(policy: v1::RetainPolicy) -> Result<Self, FieldError> {
        let at_least_one = |last| NonZeroU32::new(last).ok_or(FieldError::new("last", "must be at least 1"));
        Ok(Self { last: policy.last.map(at_least_one).transpose()?, every: policy.every })
    }
}

impl From<JobSpec> for v1::JobSpec {
    fn from(spec: JobSpec) -> Self {
        Self {
            name: spec.name.into(),
            dataset: spec.dataset.to_string(),
            model: Some(spec.model.into()),
            train: Some(spec.train.into()),
            devices: Some(spec.devices.into()),
            replicate: Some(spec.replicate.into()),
            start_from: spec.start_from.map(Into::into),
            queue: Some(spec.queue.into()),
            retain: Some(spec.retain.into()),
        }
    }
}

impl TryFrom<v1::JobSpec> for JobSpec {
    type Error = FieldError;

    fn try_from(spec: v1::JobSpec) -> Result<Self, FieldError> {
        Ok(Self {
            name: Name::new("name", &spec.name)?,
            dataset: parsed("dataset", &spec.dataset)?,
            model: needed("model", spec.model)?,
            train: needed("train", spec.train)?,
            devices: needed("devices", spec.devices)?,
            replicate: needed("replicate", spec.replicate)?,
            start_from: optional("start_from", spec.start_from)?,
            queue: optional("queue", spec.queue)?.unwrap_or_default(),
            retain: optional("retain", spec.retain)?.unwrap_or_default(),
        })
    }
}

//! Models kept in memory between answers: the least recently asked goes first.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hatchery_bdh::{LoadError, Model};
use hatchery_common::{checkpoint::ReplicaForm, id::CheckpointId};

/// A checkpoint that became whole meanwhile answers with other weights.
pub(crate) type ModelKey = (CheckpointId, ReplicaForm);

/// A model's place, where the first to come loads it and the others wait.
type Slot = Arc<Mutex<Option<Arc<Model>>>>;

#[derive(Debug)]
pub(crate) struct Models {
    kept_max: usize,
    /// Least recently asked first.
    slots: Mutex<VecDeque<(ModelKey, Slot)>>,
}

impl Models {
    pub(crate) fn new(kept_max: usize) -> Self {
        Self { kept_max, slots: Mutex::default() }
    }

    /// The model of a checkpoint, which lies in `folder`, and whether it had to be loaded. Blocks while it is.
    pub(crate) fn get(&self, key: ModelKey, folder: &Path) -> Result<(Arc<Model>, bool), LoadError> {
        let slot = self.slot(key);
        let mut model = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*model {
            return Ok((Arc::clone(model), false));
        }
        match Model::load(folder) {
            Ok(loaded) => Ok((Arc::clone(model.insert(Arc::new(loaded))), true)),
            Err(error) => {
                self.forget(key.0);
                Err(error)
            }
        }
    }

    /// Lets go of a model; answers that are being made keep theirs to their end.
    pub(crate) fn forget(&self, id: CheckpointId) {
        self.slots().retain(|((kept, _), _)| *kept != id);
    }

    fn slot(&self, key: ModelKey) -> Slot {
        let mut slots = self.slots();
        let known = slots.iter().position(|(kept, _)| *kept == key).and_then(|index| slots.remove(index));
        let (_, slot) = known.unwrap_or_else(|| (key, Slot::default()));
        slots.push_back((key, Arc::clone(&slot)));
        while slots.len() > self.kept_max {
            slots.pop_front();
        }
        slot
    }

    fn slots(&self) -> MutexGuard<'_, VecDeque<(ModelKey, Slot)>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

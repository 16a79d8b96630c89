//! A file that `torch.save` wrote: a zip archive of a pickle, and of each storage's bytes beside it.

use std::{collections::BTreeMap, fs::File, path::Path};

use safetensors::Dtype;

use super::{
    ImportError, insert_tensor,
    pickle::{Number, Pickle, PickleError, Tensor, Value},
    source::{GivenConfig, Source, View, check_view},
    zip::{self, Span, ZipError},
};

/// Longest pickle: a checkpoint's has a KiB for each few tensors.
const PICKLE_BYTES_MAX: u64 = 256 << 10;
/// The pickle's entry, in the archive's one folder.
const PICKLE_ENTRY: &str = "/data.pkl";

/// Finds the tensors and the configuration in the archive `file`.
pub(super) fn open(path: &Path, mut file: File) -> Result<Source, ImportError> {
    let form = |problem: String| ImportError::Form { file: path.to_owned(), problem };
    let unreadable = |source| ImportError::Unreadable { file: path.to_owned(), source };
    let entries = zip::entries(&mut file).map_err(|error| match error {
        ZipError::Io(source) => unreadable(source),
        ZipError::Damaged(problem) => form(problem),
    })?;
    let folder = entries.keys().find_map(|name| name.strip_suffix(PICKLE_ENTRY));
    let folder = folder.ok_or_else(|| form("it is a zip archive without a data.pkl".to_owned()))?;
    let mut small = |name: &str| {
        let Some(span) = entries.get(&format!("{folder}/{name}")) else { return Ok(None) };
        if span.bytes > PICKLE_BYTES_MAX {
            let problem =
                format!("its {name} has {} bytes, more than the limit of {PICKLE_BYTES_MAX}", span.bytes);
            return Err(form(problem));
        }
        zip::read_at(&mut file, span.start, span.bytes).map(Some).map_err(unreadable)
    };
    if small("byteorder")?.is_some_and(|order| order != b"little") {
        return Err(form(
            "its numbers are not little-endian; save it again on a little-endian machine".to_owned(),
        ));
    }
    let pickle = small(&PICKLE_ENTRY[1..])?.unwrap_or_default();
    let pickle = Pickle::read(&pickle).map_err(|error| match error {
        PickleError::Forbidden(name) => ImportError::Forbidden { file: path.to_owned(), name },
        PickleError::Wrong { at, problem } => form(format!("at byte {at} of its pickle: {problem}")),
    })?;
    let contents = Contents { path, pickle: &pickle, folder, entries: &entries };
    let (tensors, config) = contents.read()?;
    Ok(Source { file, tensors, config, trained_block: None })
}

struct Contents<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
    folder: &'a str,
    entries: &'a BTreeMap<String, Span>,
}

impl Contents<'_> {
    fn wrong(&self, problem: impl Into<String>) -> ImportError {
        ImportError::Form { file: self.path.to_owned(), problem: problem.into() }
    }

    /// `{model, config, ...}`, or a state dict alone.
    fn read(&self) -> Result<(BTreeMap<String, View>, GivenConfig), ImportError> {
        let root = self.items(self.pickle.root()).ok_or_else(|| self.wrong("it holds no dictionary"))?;
        let Some(model) = root.get("model") else {
            return Ok((self.tensors(&root)?, GivenConfig::default()));
        };
        let model = self.items(model).ok_or_else(|| self.wrong("its `model` is not a state dict"))?;
        let config = match root.get("config") {
            None | Some(Value::None) => GivenConfig::default(),
            Some(Value::Config(Some(attributes))) => self.config(self.pickle.value(*attributes))?,
            Some(dict) => self.config(dict)?,
        };
        Ok((self.tensors(&model)?, config))
    }

    /// A dictionary's items by name; other keys than text are left out. The last of one name counts.
    fn items(&self, value: &Value) -> Option<BTreeMap<&str, &Value>> {
        let Value::Dict(items) = value else { return None };
        let named = items.iter().filter_map(|(key, value)| match self.pickle.value(*key) {
            Value::Text(key) => Some((key.as_str(), self.pickle.value(*value))),
            _ => None,
        });
        Some(named.collect())
    }

    fn tensors(&self, state: &BTreeMap<&str, &Value>) -> Result<BTreeMap<String, View>, ImportError> {
        let mut tensors = BTreeMap::new();
        for (name, value) in state {
            let Value::Tensor(tensor) = value else {
                return Err(self.wrong(format!(
                    "`{name}` is not a tensor; the file must hold a state dict, or {{\"model\": state \
                     dict, \"config\": ...}}"
                )));
            };
            insert_tensor(self.path, &mut tensors, name, |name| self.view(name, tensor))?;
        }
        Ok(tensors)
    }

    fn view(&self, name: &str, tensor: &Tensor) -> Result<View, ImportError> {
        let wrong = |problem: String| ImportError::Tensor {
            file: self.path.to_owned(),
            tensor: name.to_owned(),
            problem,
        };
        let storage = &tensor.storage;
        let dtype = match storage.number {
            Number::F64 => Dtype::F64,
            Number::F32 => Dtype::F32,
            Number::F16 => Dtype::F16,
            Number::BF16 => Dtype::BF16,
            Number::Other => {
                return Err(wrong("does not hold floats; save f32, f64, bf16 or f16".to_owned()));
            }
        };
        let entry = self
            .entries
            .get(&format!("{}/data/{}", self.folder, storage.key))
            .ok_or_else(|| wrong(format!("lies in storage {:?}, which is not in the file", storage.key)))?;
        let number_bytes = dtype.bitsize() as u64 / 8;
        let len =
            u64::try_from(storage.len).ok().filter(|len| len.checked_mul(number_bytes) == Some(entry.bytes));
        let len = len.ok_or_else(|| {
            wrong(format!("lies in a storage of {} numbers that has {} bytes", storage.len, entry.bytes))
        })?;
        let (shape, strides) =
            check_view(tensor.offset, &tensor.shape, &tensor.strides, len).map_err(wrong)?;
        let start = entry.start + tensor.offset as u64 * number_bytes;
        Ok(View { dtype, shape, strides, start })
    }

    fn config(&self, value: &Value) -> Result<GivenConfig, ImportError> {
        let fields = self.items(value).ok_or_else(|| {
            self.wrong("its `config` is neither a dictionary nor a BDHConfig; save the six public fields")
        })?;
        let whole = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(Value::Int(number)) if u32::try_from(*number).is_ok() => Ok(Some(*number as u32)),
            Some(other) => Err(self.wrong(format!("its config's `{name}` is {}", shown(other)))),
        };
        let dropout = match fields.get("dropout") {
            None => None,
            Some(Value::Float(share)) => Some(*share),
            Some(Value::Int(share)) => Some(*share as f64),
            Some(other) => return Err(self.wrong(format!("its config's `dropout` is {}", shown(other)))),
        };
        Ok(GivenConfig {
            n_layer: whole("n_layer")?,
            n_embd: whole("n_embd")?,
            dropout,
            n_head: whole("n_head")?,
            mlp_internal_dim_multiplier: whole("mlp_internal_dim_multiplier")?,
            vocab_size: whole("vocab_size")?,
        })
    }
}

/// A wrong field's value for an error; long ones are not repeated.
fn shown(value: &Value) -> String {
    match value {
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        _ => "not a number".to_owned(),
    }
}

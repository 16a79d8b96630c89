//! The corpus, and which part of it each step reads.

use std::{
    fs::File,
    io::BufWriter,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use hatchery_common::{
    dataset::{DatasetError, Scan},
    field::FieldError,
    recipe::TrainSpec,
};
use memmap2::Mmap;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    ffi,
    rng::{Purpose, below, bits},
};

/// Why a corpus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot read the corpus {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Files could not be gathered.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// There is no room for the gathered corpus.
    #[error("cannot copy the corpus to a temporary file: {0}; set TMPDIR to a folder with enough space")]
    Gather(std::io::Error),
    #[error(transparent)]
    Size(#[from] FieldError),
}

/// Text as bytes, mapped into memory; clones share it.
#[derive(Clone, Debug)]
pub struct Corpus(Option<Arc<Mmap>>);

/// B windows of a corpus.
#[derive(Debug)]
pub struct Batch {
    /// (B, T) int64.
    pub tokens: Tensor,
    /// The byte after each token, (B, T) int64.
    pub targets: Tensor,
}

impl Corpus {
    /// Maps one file, which must not change as long as the corpus lives.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Read { path: path.to_owned(), source };
        Self::map(&File::open(path).map_err(failed)?).map_err(failed)
    }

    /// Maps what `scan` found: the file itself if it is one, else all of them joined in a temporary file.
    pub fn gather(scan: &Scan) -> Result<Self, DataError> {
        if let [file] = scan.files.as_slice() {
            return Self::open(&file.path);
        }
        let file = tempfile::tempfile().map_err(DataError::Gather)?;
        let mut writer = BufWriter::new(&file);
        scan.write_corpus(&mut writer).map_err(|error| match error {
            DatasetError::Write(error) => DataError::Gather(error),
            error => error.into(),
        })?;
        writer.into_inner().map_err(|error| DataError::Gather(error.into_error()))?;
        Self::map(&file).map_err(DataError::Gather)
    }

    fn map(file: &File) -> std::io::Result<Self> {
        // An empty file cannot be mapped.
        Ok(Self(if file.metadata()?.len() == 0 { None } else { Some(Arc::new(ffi::map_file(file)?)) }))
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |text| text)
    }

    pub fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The windows of `block` tokens that start at `starts`, on `device`. Each start needs `block` + 1 bytes after it.
    pub fn batch(&self, starts: &[u64], block: usize, device: Device) -> Result<Batch, TchError> {
        let windows: Vec<u8> =
            starts.iter().flat_map(|start| &self.bytes()[*start as usize..][..=block]).copied().collect();
        Batch::from_windows(&windows, starts.len(), device)
    }
}

impl Batch {
    /// Cuts `bytes` into `rows` windows of equal length: all but the last byte of each are tokens, all but the first
    /// targets.
    pub fn from_windows(bytes: &[u8], rows: usize, device: Device) -> Result<Self, TchError> {
        // One small copy to the device, as bytes; the shift by one happens there.
        let windows = upload(&Tensor::f_from_slice(bytes)?.f_view_([rows as i64, -1])?, device)?;
        let windows = windows.f_to_kind(Kind::Int64)?;
        let block = windows.size()[1] - 1;
        let part = |from| windows.f_narrow(1, from, block)?.f_contiguous();
        Ok(Self { tokens: part(0)?, targets: part(1)? })
    }
}

/// `tensor`, which is on the CPU, on `device`. CUDA takes small copies before it returns and waits for nothing; another device may
/// still read the source afterwards, and is waited for.
pub(crate) fn upload(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    let waits_for_nothing = matches!(device, Device::Cuda(_));
    tensor.f_to_device_(device, tensor.kind(), waits_for_nothing, false)
}

/// Random bytes that mean nothing, `rows` windows of `block` tokens: what speed is measured on.
pub fn noise(step: u64, rows: u32, block: u32, device: Device) -> Result<Batch, TchError> {
    let bytes: Vec<u8> = (0..u64::from(rows) * (u64::from(block) + 1))
        .map(|index| bits(1, Purpose::Windows, step, index) as u8)
        .collect();
    Batch::from_windows(&bytes, rows as usize, device)
}

/// Which windows a run reads: a pure function of the recipe, the corpus' length, the step and the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
    batch: u64,
    block: u64,
    train_bytes: u64,
    corpus_bytes: u64,
    validation_windows: u64,
}

impl Sampler {
    /// Splits a corpus of `corpus_bytes` as the recipe says; refuses one too small, with the sizes.
    pub fn new(spec: &TrainSpec, corpus_bytes: u64) -> Result<Self, FieldError> {
        let raw = spec.raw();
        Ok(Self {
            seed: raw.seed,
            batch: raw.batch.into(),
            block: raw.block.into(),
            train_bytes: spec.split(corpus_bytes)?,
            corpus_bytes,
            validation_windows: raw.validation_windows.into(),
        })
    }

    /// Tokens in a window.
    pub fn block(&self) -> usize {
        self.block as usize
    }

    /// Where the windows of step `step` (from 0) start, all of them within the training part.
    pub fn starts(&self, step: u64) -> Vec<u64> {
        // A window and the byte after it: the last start is train_bytes - block - 1.
        let choices = self.train_bytes - self.block;
        (0..self.batch).map(|row| below(choices, bits(self.seed, Purpose::Windows, step, row))).collect()
    }

    /// The part that is held out.
    pub fn held_out(&self) -> Range<u64> {
        self.train_bytes..self.corpus_bytes
    }

    /// Where the validation windows start: consecutive ones from the start of the held-out part.
    pub fn validation_starts(&self) -> Vec<u64> {
        let mut starts = consecutive_starts(self.held_out(), self.block);
        starts.truncate(self.validation_windows as usize);
        starts
    }
}

/// Where consecutive windows of `block` tokens start in `part`, each with a byte after it; a short tail is left out.
pub fn consecutive_starts(part: Range<u64>, block: u64) -> Vec<u64> {
    let windows = (part.end - part.start).saturating_sub(1) / block;
    (0..windows).map(|window| part.start + window * block).collect()
}

#[cfg(test)]
mod tests {
    use hatchery_common::recipe::RawTrainSpec;

    use super::*;

    fn sampler(change: impl FnOnce(&mut RawTrainSpec)) -> Sampler {
        let mut raw = RawTrainSpec { batch: 64, block: 32, validation_windows: 5, ..Default::default() };
        change(&mut raw);
        Sampler::new(&TrainSpec::new(raw).unwrap(), 2000).unwrap()
    }

    #[test]
    fn windows_follow_from_seed_and_step_and_stay_in_the_training_part() {
        let (one, other) = (sampler(|_| {}), sampler(|raw| raw.seed = 2));
        assert_eq!(one.held_out(), 1800..2000);
        let mut seen = std::collections::HashSet::new();
        for step in 0..200 {
            let starts = one.starts(step);
            assert_eq!(starts, sampler(|raw| raw.steps = 9).starts(step), "nothing else matters");
            assert_ne!(starts, other.starts(step));
            assert_ne!(starts, one.starts(step + 1));
            assert!(starts.iter().all(|start| start + 32 < 1800));
            seen.extend(starts);
        }
        // 12,800 draws among 1768 places: each is missed with a chance of 0.0007.
        assert!(seen.len() > 1760 && seen.contains(&1767), "{}", seen.len());
        let wider = sampler(|raw| raw.batch = 65);
        assert_eq!(one.starts(3), wider.starts(3)[..64], "a row does not depend on the others");
    }

    #[test]
    fn validation_windows_are_the_first_of_the_held_out_part() {
        assert_eq!(sampler(|_| {}).validation_starts(), [1800, 1832, 1864, 1896, 1928]);
        assert_eq!(sampler(|raw| raw.validation_windows = 9).validation_starts().last(), Some(&1960));
        assert_eq!(consecutive_starts(0..33, 32), [0]);
        assert_eq!(consecutive_starts(0..32, 32), [0; 0]);
        assert_eq!(consecutive_starts(5..5, 1), [0; 0]);
    }

    #[test]
    fn targets_are_the_bytes_after_the_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus");
        std::fs::write(&path, (0..100).collect::<Vec<u8>>()).unwrap();
        let corpus = Corpus::open(&path).unwrap();
        let batch = corpus.batch(&[0, 96], 3, Device::Cpu).unwrap();
        let rows = |tensor: &Tensor| Vec::<Vec<i64>>::try_from(tensor).unwrap();
        assert_eq!(rows(&batch.tokens), [[0, 1, 2], [96, 97, 98]]);
        assert_eq!(rows(&batch.targets), [[1, 2, 3], [97, 98, 99]]);
    }
}

//! What the trainers wrote to stderr: for each attempt a row of segment files, of which the oldest are dropped.
//!
//! ```text
//! logs/<job>/<epoch>-<node>/00000000000000000000.log     each segment is named by the offset of its first byte
//! logs/<job>/<epoch>-<node>/00000000000000262144.log
//! ```
//!
//! The names say all there is to know, so a restart loses nothing and there is nothing to repair. Logs are for people:
//! they are not synced to the disk.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use hatchery_common::{
    durable::FileError,
    id::{AttemptId, Epoch, JobId, NodeId},
};
use tokio::sync::watch;

/// An attempt's bytes lie in this many segments at most; a quarter of the least allowed is as long as one message.
const SEGMENTS: u64 = 4;

/// The logs of all attempts.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    folder: Arc<Path>,
    segment_bytes_max: u64,
    /// Counts the writes, for those who follow.
    writes: watch::Sender<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AttemptLog {
    pub(crate) epoch: Epoch,
    folder: PathBuf,
}

impl Logs {
    /// Keeps at most `bytes_max` of each attempt in `folder`.
    pub(crate) fn new(folder: PathBuf, bytes_max: u64) -> Self {
        let segment_bytes_max = (bytes_max / SEGMENTS).max(1);
        Self { folder: folder.into(), segment_bytes_max, writes: watch::Sender::new(0) }
    }

    /// Tells of every write.
    pub(crate) fn writes(&self) -> watch::Receiver<u64> {
        self.writes.subscribe()
    }

    /// Whether `node` has written for this attempt before, so that what comes late is still taken.
    pub(crate) fn has(&self, attempt: AttemptId, node: NodeId) -> bool {
        self.attempt_folder(attempt, node).is_dir()
    }

    /// Adds `text`, whose first byte is the attempt's byte number `offset`; what is there already is left out.
    pub(crate) fn append(
        &self,
        attempt: AttemptId,
        node: NodeId,
        offset: u64,
        text: &[u8],
    ) -> Result<(), FileError> {
        let folder = self.attempt_folder(attempt, node);
        fs::create_dir_all(&folder).map_err(|error| FileError::new("create", &folder, error))?;
        let mut segments = segments(&folder)?;
        let end = segments.last().map_or(0, Segment::end);
        let Some(new) = text.get(end.saturating_sub(offset) as usize..).filter(|new| !new.is_empty()) else {
            return Ok(());
        };
        let start = offset.max(end);
        // A gap, or a full segment: go on in a new one.
        let path = match segments.last() {
            Some(last) if last.end() == start && last.len + new.len() as u64 <= self.segment_bytes_max => {
                last.path.clone()
            }
            _ => {
                let path = folder.join(format!("{start:020}.log"));
                segments.push(Segment { path: path.clone(), start, len: 0 });
                path
            }
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| FileError::new("open", &path, error))?;
        file.write_all(new).map_err(|error| FileError::new("write", &path, error))?;
        let old = segments.len().saturating_sub(SEGMENTS as usize);
        for segment in &segments[..old] {
            fs::remove_file(&segment.path).map_err(|error| FileError::new("remove", &segment.path, error))?;
        }
        self.writes.send_modify(|writes| *writes += 1);
        Ok(())
    }

    /// The attempts of a job that wrote anything, oldest first.
    pub(crate) fn attempts(&self, job: JobId) -> Result<Vec<AttemptLog>, FileError> {
        let folder = self.folder.join(job.to_string());
        let mut attempts: Vec<AttemptLog> = list(&folder)?
            .into_iter()
            .filter_map(|folder| {
                let name = folder.file_name()?.to_str()?;
                let epoch = name.split_once('-')?.0.parse().ok()?;
                Some(AttemptLog { epoch: Epoch(epoch), folder })
            })
            .collect();
        attempts.sort();
        Ok(attempts)
    }

    fn attempt_folder(&self, attempt: AttemptId, node: NodeId) -> PathBuf {
        let AttemptId { job, epoch } = attempt;
        self.folder.join(job.to_string()).join(format!("{epoch}-{node}"))
    }
}

impl AttemptLog {
    /// At most `bytes_max` kept bytes without a gap, from offset `from` on or from the first kept one after it, and the
    /// offset of the first.
    pub(crate) fn read(&self, from: u64, bytes_max: usize) -> Result<(u64, Vec<u8>), FileError> {
        let mut start = from;
        let mut text = Vec::new();
        for segment in segments(&self.folder)? {
            let next = start + text.len() as u64;
            let room = (bytes_max - text.len()) as u64;
            let gap = segment.start > next;
            if room == 0 || gap && !text.is_empty() {
                break;
            }
            if segment.end() > next {
                let at = next.max(segment.start);
                if text.is_empty() {
                    start = at;
                }
                segment.read_into(&mut text, at, room)?;
            }
        }
        Ok((start, text))
    }
}

struct Segment {
    path: PathBuf,
    start: u64,
    len: u64,
}

impl Segment {
    const fn end(&self) -> u64 {
        self.start + self.len
    }

    fn read_into(&self, text: &mut Vec<u8>, at: u64, bytes_max: u64) -> Result<(), FileError> {
        let failed = |error| FileError::new("read", &self.path, error);
        let mut file = match fs::File::open(&self.path) {
            // Dropped meanwhile, because newer bytes came.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(failed)?,
        };
        file.seek(SeekFrom::Start(at - self.start)).map_err(failed)?;
        file.take(bytes_max).read_to_end(text).map_err(failed)?;
        Ok(())
    }
}

fn segments(folder: &Path) -> Result<Vec<Segment>, FileError> {
    let mut segments = Vec::new();
    for path in list(folder)? {
        let start = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let (Some(start), Ok(metadata)) = (start, fs::metadata(&path)) {
            segments.push(Segment { path, start, len: metadata.len() });
        }
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(segments)
}

/// What lies in a folder; nothing, if it is not there.
fn list(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = |error| FileError::new("list", folder, error);
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            entries.map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(log: &AttemptLog) -> (u64, Vec<u8>) {
        let (first, mut all) = log.read(0, 3).unwrap();
        loop {
            let (at, text) = log.read(first + all.len() as u64, 3).unwrap();
            if text.is_empty() {
                return (first, all);
            }
            assert_eq!(at, first + all.len() as u64);
            all.extend(text);
        }
    }

    #[test]
    fn repeated_bytes_are_left_out_and_old_ones_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path().join("logs"), 40);
        let (job, node) = (JobId::random(), NodeId::random());
        assert!(!logs.has(AttemptId { job, epoch: Epoch(1) }, node));
        assert_eq!(logs.attempts(job).unwrap(), []);
        logs.append(AttemptId { job, epoch: Epoch(1) }, node, 0, b"hello ").unwrap();
        logs.append(AttemptId { job, epoch: Epoch(1) }, node, 3, b"lo world\n").unwrap();
        logs.append(AttemptId { job, epoch: Epoch(1) }, node, 0, b"hello").unwrap();
        logs.append(AttemptId { job, epoch: Epoch(10) }, node, 0, b"later").unwrap();
        logs.append(AttemptId { job, epoch: Epoch(2) }, node, 0, b"second").unwrap();
        let attempts = logs.attempts(job).unwrap();
        assert_eq!(attempts.iter().map(|one| one.epoch.0).collect::<Vec<_>>(), [1, 2, 10]);
        assert_eq!(read_all(&attempts[0]), (0, b"hello world\n".to_vec()));

        let mut offset = 12;
        for line in 0..20 {
            let text = format!("line {line:03}\n");
            logs.append(AttemptId { job, epoch: Epoch(1) }, node, offset, text.as_bytes()).unwrap();
            offset += text.len() as u64;
        }
        let (first, kept) = read_all(&attempts[0]);
        assert_eq!(first + kept.len() as u64, offset);
        assert!(kept.ends_with(b"line 018\nline 019\n") && kept.len() <= 40, "{}", kept.len());
        assert_eq!(*logs.writes().borrow(), 24);
    }

    #[test]
    fn a_gap_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path().to_owned(), 1000);
        let (job, node) = (JobId::random(), NodeId::random());
        logs.append(AttemptId { job, epoch: Epoch(1) }, node, 0, b"one").unwrap();
        logs.append(AttemptId { job, epoch: Epoch(1) }, node, 100, b"two").unwrap();
        let attempt = &logs.attempts(job).unwrap()[0];
        assert_eq!(attempt.read(0, 64).unwrap(), (0, b"one".to_vec()));
        assert_eq!(attempt.read(3, 64).unwrap(), (100, b"two".to_vec()));
    }
}

//! What a trainer writes for people, kept on disk within bounds.
//!
//! Two segment files, each named by the offset of its first byte: when the newer one is full it becomes the older one,
//! and the oldest goes. Offsets count everything ever written by the attempt, also across restarts of the agent.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Most bytes in one segment; twice as many are kept.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;
const PREFIX: &str = "stderr-";

/// The kept output of one attempt; clones share it.
#[derive(Clone, Debug)]
pub struct StderrLog {
    inner: Arc<Mutex<Segments>>,
}

#[derive(Debug)]
struct Segments {
    folder: PathBuf,
    /// Offset of each kept segment's first byte, in order; the last one is written to.
    starts: Vec<u64>,
    newest: File,
    end: u64,
}

impl StderrLog {
    /// Opens the log in an attempt's `folder`, going on from what is there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut starts = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let start = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(".log"));
            starts.extend(start.and_then(|start| start.parse::<u64>().ok()));
        }
        starts.sort_unstable();
        if starts.is_empty() {
            starts.push(0);
        }
        let start = starts[starts.len() - 1];
        let newest = open_segment(folder, start)?;
        let end = start + newest.metadata()?.len();
        let segments = Segments { folder: folder.to_owned(), starts, newest, end };
        Ok(Self { inner: Arc::new(Mutex::new(segments)) })
    }

    /// Adds bytes at the end.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.with(|segments| segments.append(bytes))
    }

    /// The bytes from `offset` on, at most `bytes_max`, with the offset of the first: later than asked if that is gone.
    pub fn read(&self, offset: u64, bytes_max: usize) -> io::Result<(u64, Vec<u8>)> {
        self.with(|segments| segments.read(offset, bytes_max))
    }

    /// How many bytes were ever written.
    pub fn end(&self) -> u64 {
        self.with(|segments| segments.end)
    }

    /// The last bytes, at most `bytes_max`, as text from the start of a line.
    pub fn tail(&self, bytes_max: usize) -> String {
        // One byte more tells whether the first line is whole.
        let from = self.end().saturating_sub(bytes_max as u64 + 1);
        let mut tail = Vec::new();
        let mut offset = from;
        while let Ok((start, bytes)) = self.read(offset, bytes_max + 1 - tail.len()) {
            if bytes.is_empty() {
                break;
            }
            offset = start + bytes.len() as u64;
            tail.extend(bytes);
        }
        let last = tail.len().saturating_sub(1);
        let first_line =
            tail[..last].iter().position(|byte| *byte == b'\n').map_or(1.min(tail.len()), |at| at + 1);
        let whole_line = if from == 0 { 0 } else { first_line };
        let mut text = String::from_utf8_lossy(&tail[whole_line..]).into_owned();
        // Each replaced byte takes three.
        while text.len() > bytes_max {
            text.pop();
        }
        text
    }

    fn with<T>(&self, act: impl FnOnce(&mut Segments) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Segments {
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let used = self.end - self.starts[self.starts.len() - 1];
            let room = SEGMENT_BYTES_MAX.saturating_sub(used);
            if room == 0 {
                self.begin_segment()?;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.newest.write_all(now)?;
            self.end += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        self.newest = open_segment(&self.folder, self.end)?;
        self.starts.push(self.end);
        while self.starts.len() > 2 {
            fs::remove_file(segment_path(&self.folder, self.starts.remove(0)))?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, bytes_max: usize) -> io::Result<(u64, Vec<u8>)> {
        let offset = offset.clamp(self.starts[0], self.end);
        let index = self.starts.partition_point(|start| *start <= offset) - 1;
        let mut file = File::open(segment_path(&self.folder, self.starts[index]))?;
        file.seek(SeekFrom::Start(offset - self.starts[index]))?;
        let mut bytes = Vec::new();
        file.take(bytes_max as u64).read_to_end(&mut bytes)?;
        Ok((offset, bytes))
    }
}

fn segment_path(folder: &Path, start: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{start:020}.log"))
}

fn open_segment(folder: &Path, start: u64) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(segment_path(folder, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_end_within_bounds_and_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let log = StderrLog::open(folder.path()).unwrap();
        let line = |number: u64| format!("line {number:07}\n").into_bytes();
        for number in 0..300_000 {
            log.append(&line(number)).unwrap();
        }
        let on_disk: u64 =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk <= 2 * SEGMENT_BYTES_MAX, "{on_disk} bytes are kept");

        let log = StderrLog::open(folder.path()).unwrap();
        assert_eq!(log.end(), 300_000 * 13);
        log.append(&line(300_000)).unwrap();
        let (oldest, bytes) = log.read(0, 100).unwrap();
        assert!(oldest > 0 && bytes.len() == 100);
        assert!(String::from_utf8(bytes).unwrap().contains(&format!("{:07}", oldest / 13 + 1)));
        assert_eq!(log.read(299_999 * 13, 1000).unwrap().1, [line(299_999), line(300_000)].concat());
        assert_eq!(log.read(u64::MAX, 10).unwrap(), (log.end(), vec![]));
        for length in [26, 30] {
            assert_eq!(log.tail(length), "line 0299999\nline 0300000\n");
        }
        assert_eq!(log.tail(25), "line 0300000\n");
        assert_eq!(log.tail(5), "0000\n");
    }
}

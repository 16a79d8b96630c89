//! A wheel, on the index or on this disk: its members, its RECORD, and taking files out of it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::archive::{self, Member, Span};
use super::http::Http;
use super::record::{self, Recorded};
use crate::progress::Meter;

/// Attempts in a row that bring no byte before a download is given up.
const FRUITLESS_ATTEMPTS_MAX: u32 = 5;
/// Wait before the second attempt; doubled for each further one.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// RECORD and METADATA are texts of at most a few megabytes.
const DIST_INFO_BYTES_MAX: u64 = 64 << 20;

/// Where a wheel's bytes come from.
pub(crate) enum Source<'a> {
    /// A server that answers range requests.
    Remote {
        /// The client to ask with.
        http: &'a Http,
        url: String,
        /// `Authorization` to send along.
        authorization: Option<String>,
    },
    /// A file that is here already.
    Local(PathBuf),
}

/// A wheel whose directory has been read.
pub(crate) struct Wheel<'a> {
    /// The wheel's file name.
    pub(crate) filename: String,
    source: Source<'a>,
    members: Vec<Member>,
    record: HashMap<String, Recorded>,
}

impl<'a> Wheel<'a> {
    /// Reads the directory and RECORD of a wheel.
    pub(crate) fn open(filename: String, source: Source<'a>) -> Result<Self> {
        let size_bytes = source.size_bytes()?;
        let members =
            archive::members(size_bytes, |range| source.read(range)).with_context(|| filename.clone())?;
        let mut wheel = Self { filename, source, members, record: HashMap::new() };
        wheel.record = record::parse(&wheel.dist_info("RECORD")?)?;
        Ok(wheel)
    }

    pub(crate) fn metadata(&self) -> Result<String> {
        self.dist_info("METADATA")
    }

    fn dist_info(&self, file: &str) -> Result<String> {
        let is_it = |member: &&Member| {
            member
                .name
                .split_once('/')
                .is_some_and(|(folder, rest)| folder.ends_with(".dist-info") && rest == file)
        };
        let member =
            self.members.iter().find(is_it).with_context(|| format!("{} has no {file}", self.filename))?;
        let packed = Cursor::new(self.source.read(member.extent.clone())?);
        let mut content = Vec::new();
        archive::inflate(packed, member.extent.start, member, DIST_INFO_BYTES_MAX, &mut content)?;
        String::from_utf8(content).with_context(|| format!("{file} of {} is not text", self.filename))
    }

    /// The members that a choice picks; one that RECORD does not know is refused, and so is an unsafe path.
    pub(crate) fn choose(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Member>> {
        let is_file = |member: &&Member| !member.name.ends_with('/') && is_wanted(&member.name);
        let chosen: Vec<Member> = self.members.iter().filter(is_file).cloned().collect();
        for Member { name, .. } in &chosen {
            if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                bail!("{} holds a file with an unsafe path: {name}", self.filename);
            }
            if !self.record.contains_key(name) {
                bail!("{name} is not in the RECORD of {}", self.filename);
            }
        }
        Ok(chosen)
    }

    /// Fetches one span and unpacks its members below `root`. What has arrived stays in `downloads` until then, so
    /// that a broken download goes on where it ended; one that proves damaged is started anew, once.
    pub(crate) fn take(&self, span: &Span, root: &Path, downloads: &Path, meter: &mut Meter) -> Result<()> {
        let (http, url, authorization) = match &self.source {
            Source::Local(path) => {
                let mut archive =
                    File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
                self.unpack_all(&mut archive, 0, span, root)?;
                meter.arrived(span.length_bytes());
                return Ok(());
            }
            Source::Remote { http, url, authorization } => (http, url, authorization.as_deref()),
        };
        let part = downloads.join(format!("{}.{}-{}.part", self.filename, span.range.start, span.range.end));
        fetch(http, url, authorization, &span.range, &part, meter)?;
        if let Err(error) = self.unpack_all(&mut File::open(&part)?, span.range.start, span, root) {
            if is_the_systems(&error) {
                return Err(error);
            }
            meter.say(&format!("  damaged download, once more: {error:#}"));
            meter.lost(span.length_bytes());
            std::fs::remove_file(&part)?;
            fetch(http, url, authorization, &span.range, &part, meter)?;
            self.unpack_all(&mut File::open(&part)?, span.range.start, span, root)?;
        }
        Ok(std::fs::remove_file(&part)?)
    }

    /// What RECORD says of a member that `choose` returned.
    pub(crate) fn recorded(&self, member: &Member) -> &Recorded {
        &self.record[&member.name]
    }

    fn unpack_all(&self, archive: &mut File, base: u64, span: &Span, root: &Path) -> Result<()> {
        for member in &span.members {
            archive::unpack(archive, base, member, self.recorded(member), &root.join(&member.name))?;
        }
        Ok(())
    }
}

impl Source<'_> {
    fn size_bytes(&self) -> Result<u64> {
        match self {
            Self::Remote { http, url, authorization } => {
                Ok(http.range(url, 0..1, authorization.as_deref())?.content_range()?.1)
            }
            Self::Local(path) => {
                Ok(std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
            }
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let length = range.end - range.start;
        match self {
            Self::Remote { http, url, authorization } => {
                let bytes = http.range(url, range, authorization.as_deref())?.bytes(length)?;
                if bytes.len() as u64 != length {
                    bail!("{url} sends {} bytes where {length} were asked for", bytes.len());
                }
                Ok(bytes)
            }
            Self::Local(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut bytes = vec![0; usize::try_from(length)?];
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

/// Fetches `range` of `url` into `part`, going on where `part` ends. A connection that breaks is made anew.
fn fetch(
    http: &Http,
    url: &str,
    authorization: Option<&str>,
    range: &Range<u64>,
    part: &Path,
    meter: &mut Meter,
) -> Result<()> {
    let length = range.end - range.start;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(part)
        .with_context(|| format!("cannot write {}", part.display()))?;
    let mut have = file.metadata()?.len();
    if have > length {
        file.set_len(0)?;
        have = 0;
    }
    meter.already_there(have);
    let mut fruitless = 0;
    while have < length {
        let before = have;
        let missing = range.start + have..range.end;
        let outcome = http.range(url, missing.clone(), authorization).and_then(|response| {
            copy(response.reader().take(missing.end - missing.start), &mut file, &mut have, meter)
        });
        let Err(error) = outcome else { continue };
        if error.downcast_ref::<DiskError>().is_some() {
            return Err(error);
        }
        meter.say(&format!("  the connection failed, resuming from byte {}: {error:#}", range.start + have));
        if have > before {
            fruitless = 0;
            continue;
        }
        fruitless += 1;
        if fruitless == FRUITLESS_ATTEMPTS_MAX {
            return Err(error.context(format!("gave up after {fruitless} attempts; run it again to resume")));
        }
        std::thread::sleep(RETRY_WAIT * 2_u32.pow(fruitless));
    }
    Ok(())
}

/// Whether the operating system is what refused, as a full disk does: then fetching again is of no use.
fn is_the_systems(error: &anyhow::Error) -> bool {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.into_iter().any(|cause| cause.raw_os_error().is_some())
}

#[derive(Debug)]
struct DiskError(std::io::Error);

impl std::fmt::Display for DiskError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "cannot write the download to disk: {}", self.0)
    }
}

impl std::error::Error for DiskError {}

fn copy(mut from: impl Read, to: &mut File, have: &mut u64, meter: &mut Meter) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let before = *have;
    loop {
        match from.read(&mut buffer)? {
            0 if *have == before => bail!("the server sent nothing"),
            0 => return Ok(()),
            count => {
                to.write_all(&buffer[..count]).map_err(DiskError)?;
                *have += count as u64;
                meter.arrived(count as u64);
            }
        }
    }
}

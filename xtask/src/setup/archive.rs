//! Zip files from afar: their members, the spans of bytes that hold the wanted ones, and unpacking them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config, read_zipfile_from_stream_with_compressed_size};
use zip::result::ZipError;

use super::record::Recorded;

/// So much of an archive's end holds the record of where its directory is.
const TAIL_BYTES: u64 = 64 << 10;
/// A directory has a megabyte or two; it is read in blocks, because a request costs more than the bytes beyond its end.
const READ_AHEAD_BYTES: u64 = 1 << 20;

/// Members closer together than this are fetched in one go: a request costs more than the bytes between them.
const GAP_BYTES_MAX: u64 = 256 << 10;

/// A file in a zip file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path within the archive.
    pub(crate) name: String,
    compressed_bytes: u64,
    /// Where its local header, data and all that belongs to it stand in the archive.
    pub(crate) extent: Range<u64>,
}

/// Reads the members of a zip file of `size_bytes`, by place, given a way to read ranges of it.
pub(crate) fn members(size_bytes: u64, read: impl Fn(Range<u64>) -> Result<Vec<u8>>) -> Result<Vec<Member>> {
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, Ranged::new(size_bytes, read)).map_err(in_words)?;
    let mut members = (0..archive.len())
        .map(|index| {
            let entry = archive.by_index_data(index).map_err(in_words)?;
            let (name, start) = (entry.name().map_err(in_words)?.into_owned(), entry.header_start());
            Ok(Member { name, compressed_bytes: entry.compressed_size(), extent: start..start })
        })
        .collect::<Result<Vec<_>>>()?;
    members.sort_by_key(|member| member.extent.start);
    let directory = archive.central_directory_start();
    let ends: Vec<u64> = members.iter().skip(1).map(|next| next.extent.start).chain([directory]).collect();
    for (member, end) in members.iter_mut().zip(ends) {
        member.extent.end = end;
    }
    Ok(members)
}

fn in_words(error: ZipError) -> anyhow::Error {
    match error {
        ZipError::Io(error) => error.into(),
        other => anyhow!("not a zip file, or damaged: {other}"),
    }
}

/// A file that is elsewhere, read in blocks as if it were here.
struct Ranged<F> {
    size_bytes: u64,
    read: F,
    at: u64,
    block_start: u64,
    block: Vec<u8>,
}

impl<F: Fn(Range<u64>) -> Result<Vec<u8>>> Ranged<F> {
    fn new(size_bytes: u64, read: F) -> Self {
        Self { size_bytes, read, at: 0, block_start: 0, block: Vec::new() }
    }

    /// What is here of the file from the current place on; fetched where it is not.
    fn block(&mut self) -> io::Result<&[u8]> {
        let block = self.block_start..self.block_start + self.block.len() as u64;
        if !block.contains(&self.at) && self.at < self.size_bytes {
            // What is read near the end is read backwards.
            let start = self.at.min(self.size_bytes.saturating_sub(TAIL_BYTES));
            let end = self.size_bytes.min(start + READ_AHEAD_BYTES);
            self.block = (self.read)(start..end).map_err(|error| io::Error::other(format!("{error:#}")))?;
            self.block_start = start;
        }
        let skipped = usize::try_from(self.at - self.block_start).unwrap_or(usize::MAX);
        Ok(self.block.get(skipped..).unwrap_or_default())
    }
}

impl<F: Fn(Range<u64>) -> Result<Vec<u8>>> Read for Ranged<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.block()?.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<F> Seek for Ranged<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size_bytes.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Bytes of an archive that are fetched together, and the members to take from them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where in the archive.
    pub(crate) range: Range<u64>,
    /// The wanted members, in the archive's order.
    pub(crate) members: Vec<Member>,
}

impl Span {
    /// How many bytes there are to fetch.
    pub(crate) fn length_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The member that makes up most of the span: what to call it.
    pub(crate) fn title(&self) -> &str {
        let largest = self.members.iter().max_by_key(|member| member.extent.end - member.extent.start);
        largest.map_or("", |member| member.name.rsplit('/').next().unwrap_or(&member.name))
    }
}

/// Joins members (sorted by place) that stand close to one another.
pub(crate) fn spans(members: impl IntoIterator<Item = Member>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for member in members {
        match spans.last_mut() {
            Some(span) if member.extent.start - span.range.end <= GAP_BYTES_MAX => {
                span.range.end = member.extent.end;
                span.members.push(member);
            }
            _ => spans.push(Span { range: member.extent.clone(), members: vec![member] }),
        }
    }
    spans
}

/// Unpacks one member to `destination`, through a temporary file beside it and only if size and hash are as recorded.
/// `archive` holds the bytes of the zip file from `base` on.
pub(crate) fn unpack(
    archive: &mut File,
    base: u64,
    member: &Member,
    recorded: &Recorded,
    destination: &Path,
) -> Result<()> {
    let folder = destination.parent().context("a member has a folder to go to")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut temporary = destination.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let outcome = write_checked(archive, base, member, recorded, temporary);
    if outcome.is_err() {
        // What is left of it would only take up room.
        std::fs::remove_file(temporary).ok();
        return outcome;
    }
    std::fs::rename(temporary, destination)
        .with_context(|| format!("cannot put {} in place", destination.display()))
}

fn write_checked(
    archive: &mut File,
    base: u64,
    member: &Member,
    recorded: &Recorded,
    to: &Path,
) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut sink = Hashing { file, hasher: Sha256::new(), size_bytes: 0 };
    // One byte beyond the recorded size is enough to see that it is wrong; a hostile member may be endless.
    inflate(archive, base, member, recorded.size_bytes + 1, &mut sink)?;
    let sha256 = HEXLOWER.encode(&sink.hasher.finalize());
    if sink.size_bytes != recorded.size_bytes || sha256 != recorded.sha256 {
        bail!(
            "{}: {} bytes with SHA-256 {sha256} received, but the wheel lists {} bytes with {}",
            member.name,
            sink.size_bytes,
            recorded.size_bytes,
            recorded.sha256
        );
    }
    Ok(())
}

/// Writes a member's content to `sink`, at most `limit_bytes` of it. `archive` holds the zip file from `base` on.
pub(crate) fn inflate(
    mut archive: impl Read + Seek,
    base: u64,
    member: &Member,
    limit_bytes: u64,
    sink: &mut impl Write,
) -> Result<()> {
    let name = &member.name;
    archive.seek(SeekFrom::Start(member.extent.start - base))?;
    let mut packed = BufReader::with_capacity(1 << 18, archive.take(member.extent.end - member.extent.start));
    let content = read_zipfile_from_stream_with_compressed_size(&mut packed, member.compressed_bytes);
    let content = content.with_context(|| format!("{name}: damaged"))?;
    let content =
        content.with_context(|| format!("{name}: damaged: there is no file where it should begin"))?;
    io::copy(&mut content.take(limit_bytes), sink).with_context(|| format!("{name}: cannot unpack"))?;
    Ok(())
}

struct Hashing {
    file: File,
    hasher: Sha256,
    size_bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

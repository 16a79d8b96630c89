//! Zip files from afar: the central directory, the spans of bytes that hold the wanted members, and unpacking them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use data_encoding::HEXLOWER;
use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};

use super::record::Recorded;

const END_SIGNATURE: u32 = 0x0605_4b50;
const ENTRY_SIGNATURE: u32 = 0x0201_4b50;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const END_BYTES: usize = 22;
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
const COMMENT_BYTES_MAX: u64 = 65_535;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Members closer together than this are fetched in one go: a request costs more than the bytes between them.
const GAP_BYTES_MAX: u64 = 256 << 10;

/// A file in a zip file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path within the archive.
    pub(crate) name: String,
    method: u16,
    compressed_bytes: u64,
    /// Where its local header, data and all that belongs to it stand in the archive.
    pub(crate) extent: Range<u64>,
}

/// Reads the list of members of a zip file of `size_bytes`, given a way to read ranges of it.
pub(crate) fn directory(
    size_bytes: u64,
    read: impl Fn(Range<u64>) -> Result<Vec<u8>>,
) -> Result<Vec<Member>> {
    let tail_start = size_bytes.saturating_sub(COMMENT_BYTES_MAX + END_BYTES as u64);
    let tail = read(tail_start..size_bytes)?;
    let end_at = (0..=tail.len().saturating_sub(END_BYTES))
        .rev()
        .find(|&at| tail.len() >= at + END_BYTES && u32_at(&tail, at) == END_SIGNATURE)
        .context("not a zip file: it has no end record")?;
    let count = u16_at(&tail, end_at + 10);
    let (length, start) = (u64::from(u32_at(&tail, end_at + 12)), u64::from(u32_at(&tail, end_at + 16)));
    if count == u16::MAX || start == u64::from(u32::MAX) {
        bail!("a zip64 archive, which wheels of this kind never are");
    }
    if start + length > size_bytes {
        bail!(
            "not a whole zip file: its directory would end after byte {}, the file ends at {size_bytes}",
            start + length
        );
    }
    let listing = read(start..start + length)?;
    let mut members = entries(&listing, usize::from(count))?;
    members.sort_by_key(|member| member.extent.start);
    let ends: Vec<u64> = members.iter().skip(1).map(|next| next.extent.start).chain([start]).collect();
    for (member, end) in members.iter_mut().zip(ends) {
        member.extent.end = end;
    }
    Ok(members)
}

fn entries(listing: &[u8], count: usize) -> Result<Vec<Member>> {
    let mut members = Vec::with_capacity(count);
    let mut at = 0;
    for _ in 0..count {
        if listing.len() < at + ENTRY_BYTES || u32_at(listing, at) != ENTRY_SIGNATURE {
            bail!("damaged zip file: its directory breaks off after {} members", members.len());
        }
        let name_end = at + ENTRY_BYTES + usize::from(u16_at(listing, at + 28));
        let entry_end =
            name_end + usize::from(u16_at(listing, at + 30)) + usize::from(u16_at(listing, at + 32));
        let name = listing.get(at + ENTRY_BYTES..name_end).context("damaged zip file: a name is cut off")?;
        let start = u64::from(u32_at(listing, at + 42));
        members.push(Member {
            name: String::from_utf8_lossy(name).into_owned(),
            method: u16_at(listing, at + 10),
            compressed_bytes: u64::from(u32_at(listing, at + 20)),
            extent: start..start,
        });
        at = entry_end;
    }
    Ok(members)
}

/// Bytes of an archive that are fetched together, and the members to take from them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where in the archive.
    pub(crate) range: Range<u64>,
    /// What is wanted of it, in the archive's order.
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
            "{}: {} bytes with SHA-256 {sha256} came, {} bytes with {} were promised by the wheel",
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
    let mut header = [0; LOCAL_BYTES];
    archive.seek(SeekFrom::Start(member.extent.start - base))?;
    archive.read_exact(&mut header).with_context(|| format!("{name}: the archive ends too early"))?;
    if u32_at(&header, 0) != LOCAL_SIGNATURE {
        bail!("{name}: damaged: there is no zip header where it should begin");
    }
    archive.seek(SeekFrom::Current(i64::from(u16_at(&header, 26)) + i64::from(u16_at(&header, 28))))?;
    let data = BufReader::with_capacity(1 << 18, archive.take(member.compressed_bytes));
    let copied = match member.method {
        STORED => io::copy(&mut data.take(limit_bytes), sink),
        DEFLATED => io::copy(&mut DeflateDecoder::new(data).take(limit_bytes), sink),
        other => bail!("{name}: packed by method {other}, which wheels do not use"),
    };
    copied.with_context(|| format!("{name}: cannot unpack"))?;
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

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

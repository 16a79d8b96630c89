//! Where the entries of a zip archive lie in its file. Only archives as `torch.save` writes them: stored, not compressed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Most entries: one for each tensor and a handful more.
const ENTRIES_MAX: u64 = 1 << 12;
/// Longest directory of the archive.
const DIRECTORY_BYTES_MAX: u64 = 1 << 20;
/// How far from the end of the file the directory's end record can begin: its own length and the longest comment.
const END_BYTES_MAX: u64 = 22 + 0xFFFF;

const END_SIGNATURE: u32 = 0x0605_4b50;
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const DIRECTORY_SIGNATURE: u32 = 0x0201_4b50;
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
const LOCAL_HEADER_BYTES: u64 = 30;
const LOCATOR_BYTES: usize = 20;
const END64_BYTES: u64 = 56;
/// The number of an extra field that holds 64-bit sizes.
const EXTRA_64: u16 = 1;

/// Where an entry's bytes lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// What is wrong with an archive.
#[derive(Debug)]
pub(super) enum ZipError {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for ZipError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(problem: impl Into<String>) -> Result<T, ZipError> {
    Err(ZipError::Damaged(problem.into()))
}

/// Finds all entries of the archive in `file`, by name. No two of them share a byte.
pub(super) fn entries(file: &mut File) -> Result<BTreeMap<String, Span>, ZipError> {
    let size_bytes = file.metadata()?.len();
    let directory = find_directory(file, size_bytes)?;
    let bytes = read_at(file, directory.start, directory.bytes)?;
    let mut rest = Fields(&bytes);
    let mut entries = BTreeMap::new();
    let mut spans = Vec::new();
    while !rest.0.is_empty() {
        let (name, header_start, bytes) = directory_entry(&mut rest)?;
        let span = entry_span(file, directory.start, header_start, bytes)?;
        spans.push(Span { start: header_start, bytes: span.start + span.bytes - header_start });
        if entries.len() as u64 >= ENTRIES_MAX {
            return damaged(format!("it has more than {ENTRIES_MAX} entries"));
        }
        if entries.insert(name.clone(), span).is_some() {
            return damaged(format!("it has two entries called {name:?}"));
        }
    }
    spans.sort_by_key(|span| span.start);
    if spans.windows(2).any(|pair| pair[0].start + pair[0].bytes > pair[1].start) {
        return damaged("some of its entries overlap");
    }
    Ok(entries)
}

/// Reads `bytes` from `start` on; the caller has compared both with the size of the file.
pub(super) fn read_at(file: &mut File, start: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// The directory, found by the record at the end of the file.
fn find_directory(file: &mut File, size_bytes: u64) -> Result<Span, ZipError> {
    let tail_bytes = size_bytes.min(END_BYTES_MAX + LOCATOR_BYTES as u64);
    let tail_start = size_bytes - tail_bytes;
    let tail = read_at(file, tail_start, tail_bytes)?;
    let Some(end) = tail.windows(4).rposition(|window| window == END_SIGNATURE.to_le_bytes()) else {
        return damaged("its end is missing; the copy is incomplete");
    };
    let mut fields = Fields(&tail[end..]);
    fields.skip(12)?;
    let mut directory = Span { bytes: fields.u32()?.into(), start: fields.u32()?.into() };
    let comment_bytes = fields.u16()?;
    fields.skip(comment_bytes.into())?;
    let locator = end.checked_sub(LOCATOR_BYTES).map(|start| Fields(&tail[start..end]));
    let mut directory_end = tail_start + end as u64;
    if let Some(mut locator) = locator
        && locator.u32()? == END64_LOCATOR_SIGNATURE
    {
        locator.skip(4)?;
        let start = locator.u64()?;
        if start.checked_add(END64_BYTES).is_none_or(|end| end > directory_end) {
            return damaged("its 64-bit end record lies outside the file");
        }
        let record = read_at(file, start, END64_BYTES)?;
        let mut fields = Fields(&record);
        if fields.u32()? != END64_SIGNATURE {
            return damaged("its 64-bit end record is missing");
        }
        fields.skip(36)?;
        directory = Span { bytes: fields.u64()?, start: fields.u64()? };
        directory_end = start;
    }
    if directory.bytes > DIRECTORY_BYTES_MAX {
        return damaged(format!(
            "its directory claims {} bytes, more than the limit of {DIRECTORY_BYTES_MAX}",
            directory.bytes
        ));
    }
    match directory.start.checked_add(directory.bytes) {
        Some(end) if end <= directory_end => Ok(directory),
        _ => damaged("its directory lies outside the file"),
    }
}

/// Takes one entry off the directory: its name, where its header lies, and how many bytes it has.
fn directory_entry(rest: &mut Fields<'_>) -> Result<(String, u64, u64), ZipError> {
    if rest.u32()? != DIRECTORY_SIGNATURE {
        return damaged("its directory is invalid");
    }
    rest.skip(4)?;
    let (flags, method) = (rest.u16()?, rest.u16()?);
    rest.skip(8)?;
    let (mut compressed, mut bytes) = (u64::from(rest.u32()?), u64::from(rest.u32()?));
    let (name_bytes, extra_bytes, comment_bytes) = (rest.u16()?, rest.u16()?, rest.u16()?);
    rest.skip(8)?;
    let mut start = u64::from(rest.u32()?);
    let name = rest.take(name_bytes.into())?.to_vec();
    let mut extra = Fields(rest.take(extra_bytes.into())?);
    rest.skip(comment_bytes.into())?;
    let Ok(name) = String::from_utf8(name) else {
        return damaged("an entry's name is not UTF-8");
    };
    while !extra.0.is_empty() {
        let (number, length) = (extra.u16()?, extra.u16()?);
        let mut field = Fields(extra.take(length.into())?);
        if number == EXTRA_64 {
            // Only those are there that do not fit into their 32 bits, in this order.
            for short in [&mut bytes, &mut compressed, &mut start] {
                if *short == u64::from(u32::MAX) {
                    *short = field.u64()?;
                }
            }
        }
    }
    if method != 0 || compressed != bytes || flags & 1 != 0 {
        return damaged(format!(
            "its entry {name:?} is compressed or encrypted, which torch.save does not do"
        ));
    }
    Ok((name, start, bytes))
}

/// Where the bytes behind an entry's own header lie, all before `directory_start`.
fn entry_span(
    file: &mut File,
    directory_start: u64,
    header_start: u64,
    bytes: u64,
) -> Result<Span, ZipError> {
    let outside = "an entry lies outside the file";
    if header_start.checked_add(LOCAL_HEADER_BYTES).is_none_or(|end| end > directory_start) {
        return damaged(outside);
    }
    let header = read_at(file, header_start, LOCAL_HEADER_BYTES)?;
    let mut fields = Fields(&header);
    if fields.u32()? != LOCAL_SIGNATURE {
        return damaged("an entry's header is missing");
    }
    fields.skip(22)?;
    let names_bytes = u64::from(fields.u16()?) + u64::from(fields.u16()?);
    let start = header_start + LOCAL_HEADER_BYTES + names_bytes;
    match start.checked_add(bytes) {
        Some(end) if end <= directory_start => Ok(Span { start, bytes }),
        _ => damaged(outside),
    }
}

/// Little-endian numbers, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], ZipError> {
        let Some((taken, rest)) = self.0.split_at_checked(bytes) else {
            return damaged("a record in it is cut off");
        };
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), ZipError> {
        self.take(bytes).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ZipError> {
        Ok(*self.take(N)?.first_chunk().expect("so many bytes were taken"))
    }

    fn u16(&mut self) -> Result<u16, ZipError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ZipError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ZipError> {
        self.array().map(u64::from_le_bytes)
    }
}

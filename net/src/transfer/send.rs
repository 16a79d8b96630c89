//! Sending blobs: one stream for many, small ones without waiting for answers.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use hatchery_common::{
    blob::{BlobReader, BlobStore, PieceManifest},
    durable::FileError,
    id::BlobId,
};
use hatchery_proto::v1::{Piece, PieceRange, PutRequest, PutResponse, put_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{BlobClient, PIECES_AHEAD, TransferError, writing::range_bytes};
use crate::blocking;

impl BlobClient {
    /// Makes sure that the other side has these blobs of `store`, and says how many bytes had to be moved. Blobs that
    /// are there are not sent, nor are pieces that an earlier try has brought there.
    pub async fn put(
        &self,
        blobs: &[BlobId],
        store: &BlobStore,
        on_bytes: impl FnMut(u64) + Send,
    ) -> Result<u64, TransferError> {
        let source = |blob| Source { blob, size_bytes: store.size(blob).unwrap_or(0), from: From::Store };
        let sources = blobs.iter().copied().map(source).collect();
        self.send(sources, Some(store), on_bytes).await
    }

    /// The same for files with their manifests, from [`hash_scan`](super::hash_scan) for instance.
    pub async fn put_files(
        &self,
        files: &[(PieceManifest, PathBuf)],
        on_bytes: impl FnMut(u64) + Send,
    ) -> Result<u64, TransferError> {
        let source = |(manifest, path): &(PieceManifest, PathBuf)| Source {
            blob: manifest.id(),
            size_bytes: manifest.size_bytes(),
            from: From::File(manifest.clone(), path.clone()),
        };
        self.send(files.iter().map(source).collect(), None, on_bytes).await
    }

    async fn send(
        &self,
        sources: Vec<Source>,
        store: Option<&BlobStore>,
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<u64, TransferError> {
        let ids: Vec<BlobId> = sources.iter().map(|source| source.blob).collect();
        let mut missing: HashSet<BlobId> = self.missing(&ids).await?.into_iter().collect();
        let mut wanted = Vec::new();
        for source in sources {
            // Each once: of several files with the same bytes the first is sent.
            if missing.remove(&source.blob) {
                wanted.push(source);
            } else {
                on_bytes(source.size_bytes);
            }
        }
        if wanted.is_empty() {
            return Ok(0);
        }
        let (requests, receiver) = mpsc::channel(PIECES_AHEAD);
        let stream = self.calls().put(ReceiverStream::new(receiver)).await?.into_inner();
        let answers = Answers { stream, unanswered: HashSet::new(), resume: HashMap::new() };
        let mut sending = Sending { requests, answers, on_bytes, moved: 0 };
        for source in wanted {
            let (store, blob) = (store.cloned(), source.blob);
            let opened = Arc::new(blocking(move || source.open(store.as_ref())).await?);
            sending.blob(blob, opened).await?;
        }
        sending.finish().await
    }
}

/// A blob to send.
struct Source {
    blob: BlobId,
    size_bytes: u64,
    from: From,
}

enum From {
    Store,
    File(PieceManifest, PathBuf),
}

/// A blob that is being sent.
enum Opened {
    Blob(BlobReader),
    File { manifest: PieceManifest, file: File, path: PathBuf },
}

impl Source {
    fn open(self, store: Option<&BlobStore>) -> Result<Opened, TransferError> {
        match (self.from, store) {
            (From::File(manifest, path), _) => match File::open(&path) {
                Ok(file) => Ok(Opened::File { manifest, file, path }),
                Err(source) => Err(FileError::new("open", &path, source).into()),
            },
            (From::Store, Some(store)) => Ok(Opened::Blob(store.reader(self.blob)?)),
            (From::Store, None) => unreachable!("sources in a store come with the store"),
        }
    }
}

impl Opened {
    fn manifest(&self) -> &PieceManifest {
        match self {
            Self::Blob(reader) => reader.manifest(),
            Self::File { manifest, .. } => manifest,
        }
    }

    /// Reads and checks a piece.
    fn read_piece(&self, index: u32) -> Result<Vec<u8>, TransferError> {
        match self {
            Self::Blob(reader) => Ok(reader.read_piece(index)?),
            Self::File { manifest, file, path } => read_file_piece(manifest, file, path, index),
        }
    }
}

fn read_file_piece(
    manifest: &PieceManifest,
    file: &File,
    path: &Path,
    index: u32,
) -> Result<Vec<u8>, TransferError> {
    let changed = || TransferError::Changed { path: path.to_owned() };
    let range = manifest.piece_range(index).ok_or_else(changed)?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => changed(),
        _ => FileError::new("read", path, source).into(),
    })?;
    manifest.verify(index, &bytes).map_err(|_| changed())?;
    Ok(bytes)
}

/// One call of `Put`, as the client sees it.
struct Sending<F> {
    requests: mpsc::Sender<PutRequest>,
    answers: Answers,
    on_bytes: F,
    moved: u64,
}

/// What comes back.
struct Answers {
    stream: Streaming<PutResponse>,
    /// Blobs that are not known to be complete there.
    unanswered: HashSet<BlobId>,
    /// What was answered to the manifests of large blobs.
    resume: HashMap<BlobId, Vec<PieceRange>>,
}

impl<F: FnMut(u64)> Sending<F> {
    async fn blob(&mut self, blob: BlobId, opened: Arc<Opened>) -> Result<(), TransferError> {
        let manifest = opened.manifest();
        let count = manifest.piece_count();
        self.answers.unanswered.insert(blob);
        self.request(put_request::Part::Manifest(manifest.encode())).await?;
        let missing =
            if count <= 1 { vec![(0, count)] } else { self.answers.missing_pieces(blob, count).await? };
        let missing_bytes: u64 = missing.iter().map(|range| range_bytes(manifest, *range)).sum();
        (self.on_bytes)(manifest.size_bytes() - missing_bytes);
        for index in missing.into_iter().flat_map(|(first, end)| first..end) {
            let opened = Arc::clone(&opened);
            let bytes = blocking(move || opened.read_piece(index)).await?;
            let new_bytes = bytes.len() as u64;
            self.request(put_request::Part::Piece(Piece { index, bytes: bytes.into() })).await?;
            self.moved += new_bytes;
            (self.on_bytes)(new_bytes);
        }
        // A large blob is waited for: the next manifest would end it.
        while count > 1 && self.answers.unanswered.contains(&blob) {
            self.answers.next().await?;
        }
        Ok(())
    }

    /// Sends a part; answers are taken meanwhile, so that the two sides never wait for each other.
    async fn request(&mut self, part: put_request::Part) -> Result<(), TransferError> {
        loop {
            tokio::select! {
                answer = self.answers.next() => answer?,
                place = self.requests.reserve() => match place {
                    Ok(place) => {
                        place.send(PutRequest { part: Some(part) });
                        return Ok(());
                    }
                    // The call is over; its last answer says why.
                    Err(_) => loop {
                        self.answers.next().await?;
                    },
                },
            }
        }
    }

    /// Says that no more will come, and waits until all is durable there.
    async fn finish(mut self) -> Result<u64, TransferError> {
        drop(self.requests);
        while !self.answers.unanswered.is_empty() {
            self.answers.next().await?;
        }
        Ok(self.moved)
    }
}

impl Answers {
    /// Takes one answer.
    async fn next(&mut self) -> Result<(), TransferError> {
        let Some(PutResponse { blob, missing }) = self.stream.message().await? else {
            return Err(TransferError::wrong("the stream of responses ended too early"));
        };
        let known = blob.parse().ok().filter(|blob| self.unanswered.contains(blob));
        let wrong = || TransferError::wrong(format!("a response about `{blob}`, which was not sent"));
        let blob = known.ok_or_else(wrong)?;
        if missing.is_empty() {
            self.unanswered.remove(&blob);
        } else {
            self.resume.insert(blob, missing);
        }
        Ok(())
    }

    /// Waits for the answer to a large blob's manifest. None: it is complete.
    async fn missing_pieces(&mut self, blob: BlobId, count: u32) -> Result<Vec<(u32, u32)>, TransferError> {
        while self.unanswered.contains(&blob) {
            if let Some(ranges) = self.resume.remove(&blob) {
                let ranges: Vec<_> = ranges.iter().map(|range| (range.first, range.end)).collect();
                let in_order = ranges.is_sorted_by(|(_, end), (first, _)| end <= first);
                if !in_order || ranges.iter().any(|&(first, end)| first >= end || end > count) {
                    return Err(TransferError::wrong(format!(
                        "it requests pieces that blob {blob} does not have"
                    )));
                }
                return Ok(ranges);
            }
            self.next().await?;
        }
        Ok(Vec::new())
    }
}

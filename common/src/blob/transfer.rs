//! The transfers of a store: blobs on their way here.

use tracing::warn;

use crate::{
    blob::{BlobError, BlobInfo, BlobStore, BlobWriter, PieceManifest, layout, store::Transfer},
    id::BlobId,
    time::BootTime,
};

impl BlobStore {
    /// Starts the transfer of a blob from elsewhere, or goes on with one that was interrupted. Pieces that an earlier
    /// writer left are hashed again before they count.
    pub fn writer(&self, manifest: PieceManifest) -> Result<BlobWriter, BlobError> {
        let (id, size_bytes) = (manifest.id(), manifest.size_bytes());
        let known = {
            let mut state = self.state();
            if state.blobs.contains_key(&id) {
                return Err(BlobError::Present { id });
            }
            match state.transfers.get_mut(&id) {
                Some(transfer) if transfer.has_writer => return Err(BlobError::Busy { id }),
                Some(transfer) => {
                    transfer.has_writer = true;
                    true
                }
                None => {
                    self.check_room(&state, size_bytes)?;
                    state.transfers.insert(id, Transfer::new(size_bytes, true));
                    false
                }
            }
        };
        let writer = BlobWriter::open(self.clone(), id, manifest);
        writer.map_err(|error| {
            if known {
                self.release_transfer(id);
            } else {
                self.end_transfer(id);
            }
            self.explain_full(error, size_bytes)
        })
    }

    /// Goes on with an unfinished transfer, by the manifest that was kept with it.
    pub fn resume(&self, id: BlobId) -> Result<BlobWriter, BlobError> {
        if !self.state().transfers.contains_key(&id) {
            return Err(BlobError::NotFound { id });
        }
        if let Ok(manifest) = layout::read_manifest(&self.layout().partial_place(id).pieces, id)? {
            self.writer(manifest)
        } else {
            self.discard_partial(id)?;
            Err(BlobError::NotFound { id })
        }
    }

    /// Transfers that are not finished, by name.
    pub fn partials(&self) -> Vec<BlobInfo> {
        let state = self.state();
        let info = |(&id, transfer): (&BlobId, &Transfer)| BlobInfo { id, size_bytes: transfer.size_bytes };
        let mut transfers: Vec<_> = state.transfers.iter().map(info).collect();
        transfers.sort();
        transfers
    }

    /// Gives up an unfinished transfer and its space; false if there is none.
    pub fn discard_partial(&self, id: BlobId) -> Result<bool, BlobError> {
        // One step: who writes after it begins anew.
        let mut state = self.state();
        match state.transfers.get(&id) {
            None => return Ok(false),
            Some(transfer) if transfer.has_writer => return Err(BlobError::Busy { id }),
            Some(_) => {}
        }
        self.clear_partial(id);
        state.transfers.remove(&id);
        Ok(true)
    }

    /// Gives up every unfinished transfer that has had no writer since then, and their space.
    pub fn discard_idle_partials(&self, since: BootTime) -> Vec<BlobInfo> {
        let mut state = self.state();
        let is_idle = |transfer: &Transfer| !transfer.has_writer && transfer.written_at < since;
        let idle = state.transfers.extract_if(|_, transfer| is_idle(transfer));
        let gone: Vec<_> =
            idle.map(|(id, transfer)| BlobInfo { id, size_bytes: transfer.size_bytes }).collect();
        for transfer in &gone {
            self.clear_partial(transfer.id);
        }
        gone
    }

    /// The transfer has no writer any more, but its pieces stay.
    pub(super) fn release_transfer(&self, id: BlobId) {
        if let Some(transfer) = self.state().transfers.get_mut(&id) {
            (transfer.has_writer, transfer.written_at) = (false, BootTime::now());
        }
    }

    /// The transfer has come to its end.
    pub(super) fn end_transfer(&self, id: BlobId) {
        self.clear_partial(id);
        self.state().transfers.remove(&id);
    }

    fn clear_partial(&self, id: BlobId) {
        let place = self.layout().partial_place(id);
        // The manifest last: as long as it is there, the next start knows the rest as this transfer's.
        for path in [&place.data, &place.have, &place.pieces] {
            if let Err(error) = layout::remove_file(path) {
                warn!(%error, "cannot remove a leftover file; it stays until the next start");
            }
        }
    }
}

//! Calls about datasets.

use std::cmp::Reverse;

use hatchery_proto::{convert, v1};
use hatchery_scheduler::RegisterDataset;

use super::{call::Call, error::ApiError};
use crate::views;

pub(super) async fn create(
    call: Call,
    request: v1::CreateDatasetRequest,
) -> Result<v1::CreateDatasetResponse, ApiError> {
    let manifest = convert::dataset_manifest(&request.manifest)?;
    let id = manifest.id();
    call.context.check_blobs(manifest.files().iter().map(|file| (file.blob, file.size_bytes)))?;
    call.command(RegisterDataset { manifest }).await?;
    let dataset = call.snapshot().cluster.datasets.get(&id).map(|dataset| views::dataset(dataset).into());
    Ok(v1::CreateDatasetResponse { dataset })
}

pub(super) async fn list(
    call: Call,
    _: v1::ListDatasetsRequest,
) -> Result<v1::ListDatasetsResponse, ApiError> {
    let snapshot = call.snapshot();
    let mut datasets: Vec<_> = snapshot.cluster.datasets.values().collect();
    datasets.sort_by_key(|dataset| Reverse(dataset.registered_at));
    let datasets = datasets.into_iter().map(|dataset| views::dataset(dataset).into()).collect();
    Ok(v1::ListDatasetsResponse { datasets })
}

//! Calls about checkpoints.

use std::cmp::Reverse;

use hatchery_proto::v1;
use hatchery_scheduler::Pin;

use super::{call::Call, error::ApiError};
use crate::views;

pub(super) async fn list(
    call: Call,
    request: v1::ListCheckpointsRequest,
) -> Result<v1::ListCheckpointsResponse, ApiError> {
    let job = request.job.map(|job| call.job_id(&job)).transpose()?;
    let snapshot = call.snapshot();
    let all = snapshot.cluster.checkpoints.iter();
    let mut wanted: Vec<_> = all.filter(|(_, one)| job.is_none_or(|job| one.manifest.job == job)).collect();
    wanted.sort_by_key(|(_, one)| Reverse((one.committed_at, one.manifest.step)));
    let places = views::Places::of(&snapshot.cluster);
    let view = |(id, one)| views::checkpoint(&snapshot, &places, id, one).into();
    let checkpoints = wanted.into_iter().map(|(id, one)| view((*id, one))).collect();
    Ok(v1::ListCheckpointsResponse { checkpoints })
}

pub(super) async fn get(
    call: Call,
    request: v1::GetCheckpointRequest,
) -> Result<v1::GetCheckpointResponse, ApiError> {
    let id = call.checkpoint_id(&request.checkpoint)?;
    Ok(v1::GetCheckpointResponse { checkpoint: Some(call.checkpoint(id)?) })
}

pub(super) async fn pin(
    call: Call,
    request: v1::PinCheckpointRequest,
) -> Result<v1::PinCheckpointResponse, ApiError> {
    let v1::PinCheckpointRequest { checkpoint, is_pinned } = request;
    let checkpoint = call.checkpoint_id(&checkpoint)?;
    let before = v1::Checkpoint { is_pinned, ..call.checkpoint(checkpoint)? };
    call.command(Pin { checkpoint, is_pinned, by: call.caller.clone() }).await?;
    // One that only its pin kept is gone by now.
    let checkpoint = call.checkpoint(checkpoint).unwrap_or(before);
    Ok(v1::PinCheckpointResponse { checkpoint: Some(checkpoint) })
}

//! Calls about the fleet as a whole: its state in figures, and its history.

use futures::{StreamExt as _, TryStreamExt as _};
use hatchery_proto::v1;

use super::{
    call::{Call, Responses},
    error::ApiError,
    watch,
};
use crate::{collect, views};

pub(super) async fn get(call: Call, _: v1::GetStatusRequest) -> Result<v1::GetStatusResponse, ApiError> {
    let blobs = collect::view(&call.context);
    Ok(views::status(&call.snapshot(), call.context.started_at, blobs).into())
}

pub(super) async fn watch_events(
    call: Call,
    request: v1::WatchEventsRequest,
) -> Result<Responses<v1::WatchEventsResponse>, ApiError> {
    let job = request.job.as_deref().map(|job| call.job_id(job)).transpose()?;
    let events = watch::events(&call.context, request.after, request.follow, job);
    Ok(events.map_ok(|event| v1::WatchEventsResponse { event: Some(event.into()) }).boxed())
}

//! Calls about jobs.

use std::cmp::Reverse;

use futures::{StreamExt as _, TryStreamExt as _};
use hatchery_common::{
    faults,
    field::FieldError,
    id::{JobId, RequestId},
    recipe::Reader,
};
use hatchery_proto::{convert, v1};
use hatchery_scheduler::{Cancel, Pause, Requeue, Resume, SetPriority, Submit};

use super::{
    call::{Call, Responses},
    error::ApiError,
    watch as streams,
};
use crate::views::{self, placement};

pub(super) async fn submit(
    call: Call,
    request: v1::SubmitJobRequest,
) -> Result<v1::SubmitJobResponse, ApiError> {
    let id = request.request_id.parse();
    let id: RequestId = id.map_err(|error: FieldError| FieldError::new("request_id", error.problem))?;
    let id = if faults::strikes("mutant::request_deduplication") { RequestId::random() } else { id };
    let (body, spec) = convert::job_spec(request.spec, Reader::Coordinator)?;
    let submitted = call
        .command(Submit {
            request: id,
            job: JobId::random(),
            body,
            spec: Box::new(spec),
            submitter: call.caller.clone(),
        })
        .await?;
    Ok(v1::SubmitJobResponse { job: Some(call.job(submitted.job)?), duplicate: submitted.duplicate })
}

pub(super) async fn list(call: Call, request: v1::ListJobsRequest) -> Result<v1::ListJobsResponse, ApiError> {
    let snapshot = call.snapshot();
    let jobs = snapshot.cluster.jobs.values().filter(|job| request.all || !job.phase.is_terminal());
    let mut jobs: Vec<_> = jobs.collect();
    jobs.sort_by_key(|job| Reverse((job.submitted_at, job.id)));
    let jobs = jobs.into_iter().map(|job| views::job(&snapshot, job).into()).collect();
    Ok(v1::ListJobsResponse { jobs })
}

pub(super) async fn get(call: Call, request: v1::GetJobRequest) -> Result<v1::GetJobResponse, ApiError> {
    let job = call.job_id(&request.job)?;
    Ok(v1::GetJobResponse { job: Some(call.job(job)?) })
}

pub(super) async fn watch(
    call: Call,
    request: v1::WatchJobRequest,
) -> Result<Responses<v1::WatchJobResponse>, ApiError> {
    let job = call.job_id(&request.job)?;
    let jobs = streams::job(&call.context, job);
    let response = |(job, event_number): (hatchery_common::view::JobView, u64)| v1::WatchJobResponse {
        job: Some(job.into()),
        event_number,
    };
    Ok(jobs.map_ok(response).boxed())
}

pub(super) async fn cancel(
    call: Call,
    request: v1::CancelJobRequest,
) -> Result<v1::CancelJobResponse, ApiError> {
    let job = call.job_id(&request.job)?;
    call.command(Cancel { job, by: call.caller.clone() }).await?;
    Ok(v1::CancelJobResponse { job: Some(call.job(job)?) })
}

pub(super) async fn pause(
    call: Call,
    request: v1::PauseJobRequest,
) -> Result<v1::PauseJobResponse, ApiError> {
    let job = call.job_id(&request.job)?;
    call.command(Pause { job, by: call.caller.clone() }).await?;
    Ok(v1::PauseJobResponse { job: Some(call.job(job)?) })
}

pub(super) async fn resume(
    call: Call,
    request: v1::ResumeJobRequest,
) -> Result<v1::ResumeJobResponse, ApiError> {
    let job = call.job_id(&request.job)?;
    call.command(Resume { job, by: call.caller.clone() }).await?;
    Ok(v1::ResumeJobResponse { job: Some(call.job(job)?) })
}

pub(super) async fn requeue(
    call: Call,
    request: v1::RequeueJobRequest,
) -> Result<v1::RequeueJobResponse, ApiError> {
    let job = call.job_id(&request.job)?;
    call.command(Requeue { job, by: call.caller.clone() }).await?;
    Ok(v1::RequeueJobResponse { job: Some(call.job(job)?) })
}

pub(super) async fn set_priority(
    call: Call,
    request: v1::SetJobPriorityRequest,
) -> Result<v1::SetJobPriorityResponse, ApiError> {
    let priority = convert::priority(request.priority)?;
    let job = call.job_id(&request.job)?;
    call.command(SetPriority { job, priority, by: call.caller.clone() }).await?;
    Ok(v1::SetJobPriorityResponse { job: Some(call.job(job)?) })
}

pub(super) async fn explain_placement(
    call: Call,
    request: v1::ExplainPlacementRequest,
) -> Result<v1::ExplainPlacementResponse, ApiError> {
    use v1::explain_placement_request::What;
    let what = request.what.ok_or_else(|| FieldError::new("what", "give a job or a spec"))?;
    let placement = match what {
        What::Job(job) => placement::of_job(&call.snapshot(), call.job_id(&job)?),
        What::Spec(spec) => {
            let (_, spec) = convert::job_spec(Some(spec), Reader::Coordinator)?;
            placement::of_spec(&call.snapshot(), spec, call.caller)?
        }
    };
    Ok(placement.into())
}

pub(super) async fn read_logs(
    call: Call,
    request: v1::ReadLogsRequest,
) -> Result<Responses<v1::ReadLogsResponse>, ApiError> {
    let job = call.job_id(&request.job)?;
    let lines = streams::logs(&call.context, job, request.follow);
    Ok(lines.map_ok(|(epoch, text)| v1::ReadLogsResponse { epoch: epoch.0, text }).boxed())
}

//! Calls about rollouts.

use hatchery_common::{field::FieldError, id::RolloutId, recipe::NodeSelector};
use hatchery_proto::v1;
use hatchery_scheduler::{Push, RollBack, Withdraw};

use super::{
    call::{Call, needed},
    error::ApiError,
    lookup,
};
use crate::{core::handle::Snapshot, views::rollouts};

pub(super) async fn push(
    call: Call,
    request: v1::PushCheckpointRequest,
) -> Result<v1::PushCheckpointResponse, ApiError> {
    let checkpoint = call.checkpoint_id(&request.checkpoint)?;
    let to: NodeSelector = needed("to", request.to)?;
    let rollout = RolloutId::random();
    let (activate, bytes_per_sec_max) = (request.activate, request.bytes_per_sec_max);
    let by = call.caller.clone();
    call.command(Push { rollout, checkpoint, to, activate, bytes_per_sec_max, by }).await?;
    Ok(v1::PushCheckpointResponse {
        rollout_id: rollout.to_string(),
        checkpoint: Some(call.checkpoint(checkpoint)?),
    })
}

pub(super) async fn withdraw(
    call: Call,
    request: v1::WithdrawRolloutRequest,
) -> Result<v1::WithdrawRolloutResponse, ApiError> {
    use v1::withdraw_rollout_request::Which;
    let from: NodeSelector = needed("from", request.from)?;
    let which = request.which.ok_or_else(|| FieldError::new("which", "give a job or a rollout"))?;
    let before = call.snapshot();
    let (by, all_from) = (call.caller.clone(), from.clone());
    let rollout = match which {
        Which::Job(job) => {
            let job = call.job_id(&job)?;
            call.command(RollBack { job, from: all_from, by }).await?
        }
        Which::Rollout(given) => {
            let rollout = lookup::rollout(&before.cluster, &given)?;
            call.command(Withdraw { rollout, from: all_from, by }).await?
        }
    };
    let after = call.snapshot();
    let on_record = |snapshot: &Snapshot| snapshot.cluster.rollouts.get(&rollout).cloned();
    // Where very many are taken back at once, it may be off the record by now.
    let known = on_record(&after).or_else(|| on_record(&before));
    let known = known.ok_or_else(|| ApiError::Internal("the rollout is gone".to_owned()))?;
    Ok(rollouts::withdrawn(&after, &known, &from).into())
}

pub(super) async fn list(
    call: Call,
    request: v1::ListRolloutsRequest,
) -> Result<v1::ListRolloutsResponse, ApiError> {
    let rollouts = rollouts::list(&call.snapshot(), request.all);
    Ok(v1::ListRolloutsResponse { rollouts: rollouts.into_iter().map(Into::into).collect() })
}

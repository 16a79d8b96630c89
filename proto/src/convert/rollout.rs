//! Rollouts, and what is active.

use hatchery_common::{
    field::FieldError,
    id::Name,
    time::Timestamp,
    view::{ActiveView, NowActiveView, RolloutView, WithdrawnView},
};

use super::fields::{
    ENTRIES_MAX, OUTPUT_BYTES_MAX, each, name_optional, needed, parsed, parsed_optional, short_text,
};
use crate::v1::{self, node, withdraw_rollout_response};

impl From<RolloutView> for v1::Rollout {
    fn from(rollout: RolloutView) -> Self {
        Self {
            id: rollout.id.map(|id| id.to_string()),
            job: rollout.job.to_string(),
            job_name: rollout.job_name.into(),
            checkpoint: rollout.checkpoint.to_string(),
            step: rollout.step,
            to: rollout.to,
            by: rollout.by.map(Into::into),
            at_ms: rollout.at.0,
            activate: rollout.activate,
            bytes_per_sec_max: rollout.bytes_per_sec_max,
            withdrawn_at_ms: rollout.withdrawn_at.map(|at| at.0),
            nodes: rollout.nodes,
            ready: rollout.ready,
            active: rollout.active,
            failed: rollout.failed,
        }
    }
}

impl TryFrom<v1::Rollout> for RolloutView {
    type Error = FieldError;

    fn try_from(rollout: v1::Rollout) -> Result<Self, FieldError> {
        Ok(Self {
            id: parsed_optional("id", rollout.id.as_deref())?,
            job: parsed("job", &rollout.job)?,
            job_name: Name::new("job_name", &rollout.job_name)?,
            checkpoint: parsed("checkpoint", &rollout.checkpoint)?,
            step: rollout.step,
            to: short_text("to", rollout.to, OUTPUT_BYTES_MAX)?,
            by: name_optional("by", rollout.by.as_deref())?,
            at: Timestamp(rollout.at_ms),
            activate: rollout.activate,
            bytes_per_sec_max: rollout.bytes_per_sec_max,
            withdrawn_at: rollout.withdrawn_at_ms.map(Timestamp),
            nodes: rollout.nodes,
            ready: rollout.ready,
            active: rollout.active,
            failed: rollout.failed,
        })
    }
}

impl From<WithdrawnView> for v1::WithdrawRolloutResponse {
    fn from(withdrawn: WithdrawnView) -> Self {
        Self {
            rollout: Some(withdrawn.rollout.into()),
            active: withdrawn.active.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::WithdrawRolloutResponse> for WithdrawnView {
    type Error = FieldError;

    fn try_from(response: v1::WithdrawRolloutResponse) -> Result<Self, FieldError> {
        Ok(Self {
            rollout: needed("rollout", response.rollout)?,
            active: each("active", response.active, ENTRIES_MAX)?,
        })
    }
}

impl From<NowActiveView> for withdraw_rollout_response::Active {
    fn from(active: NowActiveView) -> Self {
        Self {
            node: active.node.to_string(),
            node_name: active.node_name.into(),
            checkpoint: active.checkpoint.map(|checkpoint| checkpoint.to_string()),
        }
    }
}

impl TryFrom<withdraw_rollout_response::Active> for NowActiveView {
    type Error = FieldError;

    fn try_from(active: withdraw_rollout_response::Active) -> Result<Self, FieldError> {
        Ok(Self {
            node: parsed("node", &active.node)?,
            node_name: Name::new("node_name", &active.node_name)?,
            checkpoint: parsed_optional("checkpoint", active.checkpoint.as_deref())?,
        })
    }
}

impl From<ActiveView> for node::Active {
    fn from(active: ActiveView) -> Self {
        Self {
            job: active.job.to_string(),
            job_name: active.job_name.into(),
            checkpoint: active.checkpoint.to_string(),
            step: active.step,
        }
    }
}

impl TryFrom<node::Active> for ActiveView {
    type Error = FieldError;

    fn try_from(active: node::Active) -> Result<Self, FieldError> {
        Ok(Self {
            job: parsed("job", &active.job)?,
            job_name: Name::new("job_name", &active.job_name)?,
            checkpoint: parsed("checkpoint", &active.checkpoint)?,
            step: active.step,
        })
    }
}

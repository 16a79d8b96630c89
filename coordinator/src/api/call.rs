//! A call of a person, as its handler has it, and what handlers need of the fleet.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use hatchery_common::{
    field::FieldError,
    id::{CheckpointId, JobId, Name},
    time::BootTime,
    view::NodeView,
};
use hatchery_proto::v1;
use hatchery_scheduler::{Command, Node, Rejected};

use super::{context::Context, error::ApiError, lookup};
use crate::{
    core::handle::Snapshot,
    views::{self, event::node_name},
};

/// The responses of a streaming call.
pub(super) type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, ApiError>> + Send>>;

/// A call of a person.
pub(super) struct Call {
    pub(super) context: Arc<Context>,
    /// Who calls.
    pub(super) caller: Name,
}

impl Call {
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.context.event_loop.snapshot()
    }

    pub(super) async fn command<C>(&self, command: C) -> Result<C::Outcome, ApiError>
    where
        C: Command + Send + 'static,
        C::Outcome: Send + 'static,
    {
        Ok(self.context.event_loop.command(command).await?)
    }

    /// The job meant by what somebody typed.
    pub(super) fn job_id(&self, given: &str) -> Result<JobId, ApiError> {
        Ok(lookup::job(&self.snapshot().cluster, given)?.id)
    }

    /// The checkpoint meant by what somebody typed.
    pub(super) fn checkpoint_id(&self, given: &str) -> Result<CheckpointId, ApiError> {
        Ok(lookup::checkpoint(&self.snapshot().cluster, given)?)
    }

    pub(super) fn job(&self, id: JobId) -> Result<v1::Job, ApiError> {
        let snapshot = self.snapshot();
        let job = snapshot.cluster.jobs.get(&id);
        let job = job.ok_or_else(|| Rejected::NotFound { what: "job", id: id.to_string() })?;
        Ok(views::job(&snapshot, job).into())
    }

    pub(super) fn checkpoint(&self, id: CheckpointId) -> Result<v1::Checkpoint, ApiError> {
        let snapshot = self.snapshot();
        let checkpoint = snapshot.cluster.checkpoints.get(&id);
        let checkpoint =
            checkpoint.ok_or_else(|| Rejected::NotFound { what: "checkpoint", id: id.to_string() })?;
        let places = views::Places::of(&snapshot.cluster);
        Ok(views::checkpoint(&snapshot, &places, id, checkpoint).into())
    }

    pub(super) fn node(&self, snapshot: &Snapshot, node: &Node, now: BootTime) -> NodeView {
        let name = |node| Name::from_lossy(&node_name(&snapshot.cluster, node));
        views::node(snapshot, node, self.context.tracking.standing(node.id, name), now)
    }
}

/// A part of a request that must be there, read.
pub(super) fn needed<W, D: TryFrom<W, Error = FieldError>>(
    field: &str,
    part: Option<W>,
) -> Result<D, ApiError> {
    let part = part.ok_or_else(|| FieldError::new(field, "is missing"))?;
    Ok(D::try_from(part).map_err(|error| error.within(field))?)
}

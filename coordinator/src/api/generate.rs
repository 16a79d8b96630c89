//! Asking a model for text.

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use hatchery_common::{
    generate::{GenerationOrder, GenerationPart, SamplingParams, StopStrings},
    id::Name,
    session::AnswerPart,
};
use hatchery_proto::v1;

use super::{
    call::{Call, Responses},
    error::ApiError,
    lookup::{self, Asked},
    routing,
};
use crate::{
    sessions::generations::{GenerateError, Generation},
    views::event::node_name,
};

/// Finds a node that answers, and asks it.
pub(super) async fn generate(
    call: Call,
    request: v1::GenerateRequest,
) -> Result<Responses<v1::GenerateResponse>, ApiError> {
    let snapshot = call.snapshot();
    let cluster = &snapshot.cluster;
    let asked = lookup::asked(cluster, &request.checkpoint)?;
    let given = request.node.as_deref().map(|node| lookup::node(cluster, node)).transpose()?;
    let active = match asked {
        Asked::Checkpoint(_) => None,
        Asked::Job(job) => routing::choose_active(&snapshot, job, given),
    };
    let checkpoint = match active {
        Some((_, checkpoint)) => checkpoint,
        None => lookup::checkpoint(cluster, &request.checkpoint)?,
    };
    let sampling = request.sampling.map(SamplingParams::try_from).transpose();
    let sampling = sampling.map_err(|error| error.within("sampling"))?.unwrap_or_default();
    let stop = StopStrings::new(request.stop)?;
    let (prompt, max_bytes) = (request.prompt, request.max_bytes);
    let order = GenerationOrder { checkpoint, prompt, max_bytes, sampling, stop };
    order.check()?;
    let node = match active {
        Some((node, _)) => node,
        None => routing::choose(&snapshot, checkpoint, given)?,
    };
    let name = node_name(cluster, node);
    let outbox = call.context.sessions.outbox(node);
    let outbox = outbox.ok_or_else(|| GenerateError::NodeLeft { node: name.clone() })?;
    let generation = call.context.generations.ask(outbox, name.clone(), order).await?;
    let chosen = GenerationPart::Chosen { node, node_name: Name::from_lossy(&name), checkpoint };
    let parts = stream::iter([Ok(chosen)]).chain(parts(generation));
    Ok(parts.map_ok(Into::into).map_err(ApiError::from).boxed())
}

/// The parts of an answer up to its end.
fn parts(generation: Generation) -> impl Stream<Item = Result<GenerationPart, GenerateError>> {
    stream::try_unfold(Some(generation), |generation| async move {
        let Some(mut generation) = generation else { return Ok(None) };
        Ok(match generation.next().await? {
            AnswerPart::Text(bytes) => Some((GenerationPart::Text { bytes }, Some(generation))),
            AnswerPart::Finished(figures) => Some((GenerationPart::Finished(figures), None)),
            AnswerPart::Failed(_) => None,
        })
    })
}

//! Calls about nodes.

use hatchery_common::{node::NodeMode, time::BootTime};
use hatchery_proto::v1;
use hatchery_scheduler::{RemoveNode, SetNodeMode};

use super::{call::Call, error::ApiError, lookup};

pub(super) async fn list(call: Call, _: v1::ListNodesRequest) -> Result<v1::ListNodesResponse, ApiError> {
    let (snapshot, now) = (call.snapshot(), BootTime::now());
    let mut nodes: Vec<_> = snapshot.cluster.nodes.values().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let nodes = nodes.into_iter().map(|node| call.node(&snapshot, node, now).into()).collect();
    Ok(v1::ListNodesResponse { nodes })
}

pub(super) async fn get(call: Call, request: v1::GetNodeRequest) -> Result<v1::GetNodeResponse, ApiError> {
    let snapshot = call.snapshot();
    let id = lookup::node(&snapshot.cluster, &request.node)?;
    let node = call.node(&snapshot, &snapshot.cluster.nodes[&id], BootTime::now());
    Ok(v1::GetNodeResponse { node: Some(node.into()) })
}

pub(super) async fn set_mode(
    call: Call,
    request: v1::SetNodeModeRequest,
) -> Result<v1::SetNodeModeResponse, ApiError> {
    let mode = request.mode.parse()?;
    let node = lookup::node(&call.snapshot().cluster, &request.node)?;
    call.command(SetNodeMode { node, mode, by: call.caller.clone() }).await?;
    if mode == NodeMode::Open {
        // Whoever opens it has looked at it: what it sent wrong before is forgiven.
        call.context.tracking.trust(node);
    }
    let snapshot = call.snapshot();
    let shown = snapshot.cluster.nodes.get(&node);
    let shown = shown.map(|node| call.node(&snapshot, node, BootTime::now()).into());
    Ok(v1::SetNodeModeResponse { node: shown })
}

pub(super) async fn remove(
    call: Call,
    request: v1::RemoveNodeRequest,
) -> Result<v1::RemoveNodeResponse, ApiError> {
    let snapshot = call.snapshot();
    let node = lookup::node(&snapshot.cluster, &request.node)?;
    call.command(RemoveNode { node, lease: snapshot.observed().lease }).await?;
    Ok(v1::RemoveNodeResponse {})
}

//! The service for people: which handler answers which call. Each is read, put to the event loop or answered from the
//! snapshot, and written by the handler; what it fails with becomes a status here.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use hatchery_proto::v1;
use tonic::{Request, Response, Status};

use super::{
    access, authorization::Caller, call::Call, checkpoints, context::Context, datasets, generate, jobs,
    nodes, rollouts, status,
};

/// The service for people.
#[derive(Clone, Debug)]
pub(crate) struct FleetService {
    pub(crate) context: Arc<Context>,
}

impl FleetService {
    fn call<T>(&self, request: Request<T>) -> Result<(Call, T), Status> {
        let caller = Caller::of(&request)?.name;
        Ok((Call { context: Arc::clone(&self.context), caller }, request.into_inner()))
    }
}

type Statuses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The trait that tonic generates, call by call: `call(Request) -> Response = handler`, then those that stream.
macro_rules! calls {
    (
        single { $($call:ident($request:ident) -> $response:ident = $handler:path;)* }
        streaming {
            $($stream_call:ident($stream_request:ident) -> $stream:ident of $item:ident = $stream_handler:path;)*
        }
    ) => {
        #[tonic::async_trait]
        impl v1::fleet_server::Fleet for FleetService {
            $(
                async fn $call(
                    &self,
                    request: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    let (call, request) = self.call(request)?;
                    Ok(Response::new($handler(call, request).await?))
                }
            )*
            $(
                type $stream = Statuses<v1::$item>;

                async fn $stream_call(
                    &self,
                    request: Request<v1::$stream_request>,
                ) -> Result<Response<Self::$stream>, Status> {
                    let (call, request) = self.call(request)?;
                    let items = $stream_handler(call, request).await?;
                    Ok(Response::new(items.map_err(Status::from).boxed()))
                }
            )*
        }
    };
}

calls! {
    single {
        get_status(GetStatusRequest) -> GetStatusResponse = status::get;
        create_dataset(CreateDatasetRequest) -> CreateDatasetResponse = datasets::create;
        list_datasets(ListDatasetsRequest) -> ListDatasetsResponse = datasets::list;
        submit_job(SubmitJobRequest) -> SubmitJobResponse = jobs::submit;
        list_jobs(ListJobsRequest) -> ListJobsResponse = jobs::list;
        get_job(GetJobRequest) -> GetJobResponse = jobs::get;
        cancel_job(CancelJobRequest) -> CancelJobResponse = jobs::cancel;
        pause_job(PauseJobRequest) -> PauseJobResponse = jobs::pause;
        resume_job(ResumeJobRequest) -> ResumeJobResponse = jobs::resume;
        requeue_job(RequeueJobRequest) -> RequeueJobResponse = jobs::requeue;
        set_job_priority(SetJobPriorityRequest) -> SetJobPriorityResponse = jobs::set_priority;
        explain_placement(ExplainPlacementRequest) -> ExplainPlacementResponse = jobs::explain_placement;
        list_nodes(ListNodesRequest) -> ListNodesResponse = nodes::list;
        get_node(GetNodeRequest) -> GetNodeResponse = nodes::get;
        set_node_mode(SetNodeModeRequest) -> SetNodeModeResponse = nodes::set_mode;
        remove_node(RemoveNodeRequest) -> RemoveNodeResponse = nodes::remove;
        list_checkpoints(ListCheckpointsRequest) -> ListCheckpointsResponse = checkpoints::list;
        get_checkpoint(GetCheckpointRequest) -> GetCheckpointResponse = checkpoints::get;
        pin_checkpoint(PinCheckpointRequest) -> PinCheckpointResponse = checkpoints::pin;
        push_checkpoint(PushCheckpointRequest) -> PushCheckpointResponse = rollouts::push;
        withdraw_rollout(WithdrawRolloutRequest) -> WithdrawRolloutResponse = rollouts::withdraw;
        list_rollouts(ListRolloutsRequest) -> ListRolloutsResponse = rollouts::list;
        create_token(CreateTokenRequest) -> CreateTokenResponse = access::create_token;
        list_certificates(ListCertificatesRequest) -> ListCertificatesResponse = access::list_certificates;
        revoke_certificate(RevokeCertificateRequest) -> RevokeCertificateResponse = access::revoke_certificate;
    }
    streaming {
        watch_job(WatchJobRequest) -> WatchJobStream of WatchJobResponse = jobs::watch;
        read_logs(ReadLogsRequest) -> ReadLogsStream of ReadLogsResponse = jobs::read_logs;
        watch_events(WatchEventsRequest) -> WatchEventsStream of WatchEventsResponse = status::watch_events;
        generate(GenerateRequest) -> GenerateStream of GenerateResponse = generate::generate;
    }
}

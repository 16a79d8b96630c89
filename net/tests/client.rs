//! The typed clients against servers over real TLS: what they say when something is wrong, and that they recover.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use hatchery_common::{
    access::Scope,
    generate::{FinishReason, GenerationPart, SamplingParams, StopStrings},
    id::{DatasetId, Name, NodeId},
    recipe::{JobSpec, Labels, Reader, Recipe},
    session::{AgentMessage, CoordinatorMessage},
    tls::{Authority, Identity, JoinSecret, JoinString, Role},
};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::{
    client::{AgentsClient, CallError, FleetClient, GenerateCall, TokenCall},
    v1,
};
use support::server::{Server, authority, credentials};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService},
    service::Routes,
};
use tonic_prost::ProstCodec;

type HttpRequest = http::Request<Body>;
type HttpResponse = http::Response<Body>;
type Handler = dyn Fn(String, HttpRequest) -> BoxFuture<'static, HttpResponse> + Send + Sync;

/// A service that answers as the test says, call by call.
#[derive(Clone)]
struct Scripted<const AGENTS: bool>(Arc<Handler>);

impl NamedService for Scripted<false> {
    const NAME: &'static str = "hatchery.v1.Fleet";
}

impl NamedService for Scripted<true> {
    const NAME: &'static str = "hatchery.v1.Agents";
}

impl<const AGENTS: bool> Service<HttpRequest> for Scripted<AGENTS> {
    type Response = HttpResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<HttpResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
        (self.0)(call, request).map(Ok).boxed()
    }
}

/// Answers one call with one message.
fn unary<Q, A>(
    request: HttpRequest,
    answer: impl FnOnce(Q) -> Result<A, Status> + Send + 'static,
) -> BoxFuture<'static, HttpResponse>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
{
    async move {
        let mut answer = Some(answer);
        let service = tower::service_fn(move |request: Request<Q>| {
            let answer = answer.take().unwrap();
            async move { answer(request.into_inner()).map(Response::new) }
        });
        Grpc::new(ProstCodec::<A, Q>::default()).unary(service, request).await
    }
    .boxed()
}

/// Answers one call with several messages.
fn streamed<Q, A>(request: HttpRequest, answers: Vec<Result<A, Status>>) -> BoxFuture<'static, HttpResponse>
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + Clone + 'static,
{
    async move {
        let service = tower::service_fn(move |_: Request<Streaming<Q>>| {
            let answers = answers.clone();
            async move { Ok::<_, Status>(Response::new(stream::iter(answers))) }
        });
        Grpc::new(ProstCodec::<A, Q>::default()).streaming(service, request).await
    }
    .boxed()
}

async fn fleet(
    handler: impl Fn(String, HttpRequest) -> BoxFuture<'static, HttpResponse> + Send + Sync + 'static,
) -> (Server, FleetClient) {
    let server = Server::start(Routes::new(Scripted::<false>(Arc::new(handler)))).await;
    let client = FleetClient::connect(&credentials(server.address)).await.unwrap();
    (server, client)
}

fn job() -> v1::Job {
    let recipe = Recipe::parse(Some("tiny"), "", &[]).unwrap();
    let dataset = DatasetId(hatchery_common::digest::Digest::of(b"corpus"));
    let spec: JobSpec = recipe.job(dataset, &Name::from_lossy("first"));
    v1::Job {
        id: "1".repeat(32),
        spec: Some(spec.into()),
        submitter: "ada".into(),
        phase: "queued".into(),
        metrics: Some(v1::Metrics::default()),
        ..Default::default()
    }
}

#[tokio::test]
async fn nobody_there_is_said_with_what_to_do() {
    support::server::authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = FleetClient::connect(&credentials(address)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no coordinator answers at {address}: start one with `hatchery up`, or point to another with --coordinator"
        )
    );
    assert!(error.is_retriable());
    let error = BlobClient::connect(&credentials(address)).await.unwrap_err();
    assert!(matches!(error, CallError::Down(_)), "{error:?}");
}

#[tokio::test]
async fn a_coordinator_of_another_fleet_is_not_an_absent_one() {
    let (server, _client) = fleet(|_, _| unreachable!("nothing is called")).await;
    let folder = tempfile::tempdir().unwrap();
    let strangers = Authority::create_or_load(folder.path()).unwrap();
    let mut credentials = credentials(server.address);
    credentials.authority_pem = strangers.certificate_pem().to_owned();
    let error = FleetClient::connect(&credentials).await.unwrap_err();
    assert!(matches!(error, CallError::Denied(_)) && !error.is_retriable(), "{error:?}");
    assert!(error.to_string().contains("is not the expected coordinator"), "{error}");
}

#[tokio::test]
async fn a_client_finds_a_coordinator_that_came_back() {
    let handler = |_, request| {
        unary(request, |_: v1::GetStatusRequest| {
            Ok(v1::GetStatusResponse { version: "1.2.3".into(), ..Default::default() })
        })
    };
    let (server, client) = fleet(handler).await;
    assert_eq!(client.status().await.unwrap().version, "1.2.3");
    let address = server.address;
    server.stop().await;
    // The first call may still find the connection that is just being closed.
    let error = client.status().await.unwrap_err();
    assert!(error.is_retriable(), "{error:?}");
    let error = client.status().await.unwrap_err();
    assert!(error.to_string().contains(&format!("no coordinator answers at {address}")), "{error}");
    let _server = Server::start_at(address, Routes::new(Scripted::<false>(Arc::new(handler)))).await;
    assert_eq!(client.status().await.unwrap().version, "1.2.3");
}

#[tokio::test]
async fn refusals_are_sorted_by_what_the_caller_can_do() {
    let handler = |_, request| {
        unary::<v1::GetJobRequest, v1::GetJobResponse>(request, |request| {
            let code: i32 = request.job.parse().unwrap();
            Err(Status::new(code.into(), "this is why"))
        })
    };
    let (_server, client) = fleet(handler).await;
    let why = || "this is why".to_owned();
    for (code, expected) in [
        (tonic::Code::NotFound, CallError::NotFound(why())),
        (tonic::Code::InvalidArgument, CallError::Refused(why())),
        (tonic::Code::AlreadyExists, CallError::Refused(why())),
        (tonic::Code::FailedPrecondition, CallError::Refused(why())),
        (tonic::Code::Aborted, CallError::Refused(why())),
        (tonic::Code::ResourceExhausted, CallError::Full(why())),
        (tonic::Code::OutOfRange, CallError::Refused(why())),
        (tonic::Code::PermissionDenied, CallError::Denied(why())),
        (tonic::Code::Unauthenticated, CallError::Denied(why())),
        (tonic::Code::Unavailable, CallError::Unreachable(why())),
        (tonic::Code::Internal, CallError::Failed(why())),
        (tonic::Code::DataLoss, CallError::Failed(why())),
    ] {
        assert_eq!(client.job(&(code as i32).to_string()).await.unwrap_err(), expected);
    }
    let error = client.job(&(tonic::Code::Unimplemented as i32).to_string()).await.unwrap_err();
    assert!(error.to_string().contains("both sides of the same release"), "{error}");
}

#[tokio::test]
async fn answers_become_views_or_say_what_is_wrong_with_them() {
    let handler = |call: String, request| match call.as_str() {
        "ListJobs" => unary(request, |_: v1::ListJobsRequest| {
            let failure =
                v1::Failure { node: "gpu-a".into(), device: "cpu".into(), cause: 99, ..Default::default() };
            let newer = v1::Job { failures: vec![failure], ..job() };
            Ok(v1::ListJobsResponse { jobs: vec![job(), newer] })
        }),
        "SubmitJob" => unary(request, |request: v1::SubmitJobRequest| {
            let job = v1::Job { spec: request.spec, id: request.request_id, ..job() };
            Ok(v1::SubmitJobResponse { job: Some(job), duplicate: true })
        }),
        "GetJob" => unary(request, |_: v1::GetJobRequest| Ok(v1::GetJobResponse { job: None })),
        "WatchJob" => {
            let update = v1::WatchJobResponse { job: Some(job()), event_number: 1 };
            streamed::<v1::WatchJobRequest, _>(
                request,
                vec![Ok(update), Err(Status::unavailable("going down"))],
            )
        }
        "Generate" => {
            use v1::generate_response::Part;
            let finish_reason = v1::FinishReason::StopString as i32;
            let finished = v1::GenerationFinished { finish_reason, ..Default::default() };
            let parts = [Part::Text(b"the".to_vec()), Part::Finished(finished)];
            let answers = parts.map(|part| Ok(v1::GenerateResponse { part: Some(part) })).to_vec();
            streamed::<v1::GenerateRequest, _>(request, answers)
        }
        "CreateToken" => unary(request, |request: v1::CreateTokenRequest| {
            assert_eq!((request.scope, request.valid_secs), (v1::Scope::Viewer as i32, 0));
            Ok(v1::CreateTokenResponse { join_string: "x".into(), expires_at_ms: 5 })
        }),
        other => panic!("{other} is called"),
    };
    let (_server, client) = fleet(handler).await;

    let error = client.jobs(true).await.unwrap_err().to_string();
    assert!(error.contains("jobs.1.failures.0.cause: has the value 99"), "{error}");
    assert_eq!(client.job("x").await.unwrap_err().to_string().matches("job: is missing").count(), 1);

    let spec = hatchery_proto::convert::job_spec(job().spec, Reader::CommandLine).unwrap().1;
    let request = hatchery_common::id::RequestId::random();
    let (view, duplicate) = client.submit(request, &spec).await.unwrap();
    assert_eq!((view.id.to_string(), view.spec, duplicate), (request.to_string(), spec, true));

    let mut updates = client.watch_job("x").await.unwrap();
    assert_eq!(updates.next().await.unwrap().unwrap().phase.name(), "queued");
    assert_eq!(updates.next().await.unwrap().unwrap_err(), CallError::Unreachable("going down".into()));

    let call = GenerateCall {
        checkpoint: "latest".into(),
        node: None,
        prompt: vec![],
        max_bytes: 3,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::new(vec![b"\n".to_vec()]).unwrap(),
    };
    let parts: Vec<_> = client.generate(&call).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(parts[0], GenerationPart::Text { bytes: b"the".to_vec() });
    let GenerationPart::Finished(figures) = parts[1] else { panic!("{parts:?}") };
    assert_eq!(figures.finish_reason, FinishReason::StopString);

    let call = TokenCall { scope: Scope::Viewer, name: None, labels: Labels::new(), valid: None };
    assert_eq!(client.create_token(&call).await.unwrap().1.0, 5);
}

async fn agents(
    handler: impl Fn(String, HttpRequest) -> BoxFuture<'static, HttpResponse> + Send + Sync + 'static,
) -> Server {
    Server::start(Routes::new(Scripted::<true>(Arc::new(handler)))).await
}

#[tokio::test]
async fn one_joins_with_a_key_of_ones_own_and_renews() {
    let secret = JoinSecret::random();
    let expected = secret.as_bytes().to_vec();
    let node = NodeId::random();
    let server = agents(move |call, request| {
        let identity = Identity::new(Role::Agent(node));
        let expected = expected.clone();
        match call.as_str() {
            "Join" => unary(request, move |request: v1::JoinRequest| {
                if request.secret != expected {
                    return Err(Status::permission_denied("this join string has been used"));
                }
                let certificate_pem =
                    authority().issue_client(&identity, &request.certificate_request_pem).unwrap();
                Ok(v1::JoinResponse {
                    certificate_pem,
                    authority_pem: authority().certificate_pem().to_owned(),
                    name: request.name,
                    node: Some(node.to_string()),
                })
            }),
            _ => unary(request, move |request: v1::RenewRequest| {
                let certificate_pem =
                    authority().issue_client(&identity, &request.certificate_request_pem).unwrap();
                Ok(v1::RenewResponse { certificate_pem })
            }),
        }
    })
    .await;
    let mut join = JoinString {
        addresses: vec![server.address.to_string()],
        authority: authority().key_hash(),
        secret,
        scope: Scope::Agent,
    };
    let name = Name::from_lossy("gpu-a");
    let (credentials, given, joined) = hatchery_net::join(&join, &name, &Labels::new()).await.unwrap();
    assert_eq!((given, joined), (name.clone(), Some(node)));
    assert_eq!(credentials.identity().unwrap().role, Role::Agent(node));

    let client = AgentsClient::connect(&credentials).await.unwrap();
    let renewed = client.renew(&credentials).await.unwrap();
    assert_eq!(renewed.identity().unwrap().role, Role::Agent(node));
    assert_ne!(renewed.key_pem, credentials.key_pem);
    AgentsClient::connect(&renewed).await.unwrap();

    join.secret = JoinSecret::random();
    let error = hatchery_net::join(&join, &name, &Labels::new()).await.unwrap_err();
    assert_eq!(error, CallError::Denied("this join string has been used".into()));

    let folder = tempfile::tempdir().unwrap();
    join.authority = Authority::create_or_load(folder.path()).unwrap().key_hash();
    let error = hatchery_net::join(&join, &name, &Labels::new()).await.unwrap_err();
    assert!(error.to_string().contains("is not the expected coordinator"), "{error}");
}

#[tokio::test]
async fn a_session_goes_both_ways_and_leaves_out_what_it_does_not_know() {
    let server = agents(|_, request| {
        async move {
            let service = tower::service_fn(|request: Request<Streaming<v1::SessionRequest>>| async move {
                let answers = request.into_inner().map(|message| {
                    let message = AgentMessage::try_from(message?)
                        .map_err(|error| Status::invalid_argument(error.to_string()))?;
                    Ok(match message {
                        AgentMessage::Report(report) => {
                            CoordinatorMessage::ReportReceived { sequence: report.sequence }.into()
                        }
                        _ => v1::SessionResponse { message: None },
                    })
                });
                Ok::<_, Status>(Response::new(answers))
            });
            let codec = ProstCodec::<v1::SessionResponse, v1::SessionRequest>::default();
            Grpc::new(codec).streaming(service, request).await
        }
        .boxed()
    })
    .await;
    let client = AgentsClient::connect(&credentials(server.address)).await.unwrap();
    let report =
        |sequence| AgentMessage::Report(hatchery_common::session::Report { sequence, ..Default::default() });
    let messages = stream::iter([AgentMessage::Goodbye, report(1), AgentMessage::Goodbye, report(2)]);
    let answers: Vec<_> = client.session(messages).await.unwrap().map(Result::unwrap).collect().await;
    let received = |sequence| CoordinatorMessage::ReportReceived { sequence };
    assert_eq!(answers, [received(1), received(2)]);
}

#[tokio::test]
async fn a_manifest_is_what_its_id_says() {
    let server = agents(|_, request| {
        unary(request, |_: v1::GetDatasetManifestRequest| {
            let manifest = br#"{"name":"notes","files":[{"path":"a","blob":"0000000000000000000000000000000000000000000000000000000000000000","size_bytes":1}]}"#;
            Ok(v1::GetDatasetManifestResponse { manifest: manifest.to_vec() })
        })
    })
    .await;
    let client = AgentsClient::connect(&credentials(server.address)).await.unwrap();
    let other = DatasetId(hatchery_common::digest::Digest::of(b"other"));
    let error = client.dataset_manifest(other).await.unwrap_err();
    assert!(error.to_string().contains("manifest: belongs to another dataset"), "{error}");
}

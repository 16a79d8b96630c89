//! Every call that there is, made by those who may not make it.

use std::collections::BTreeSet;

use futures::stream;
use hatchery_common::{
    access::Scope,
    recipe::Labels,
    tls::{Authority, Credentials, Identity, JoinString, Role, client_config, client_config_pinned},
};
use hatchery_net::transport::{Profile, connect};
use hatchery_proto::DESCRIPTORS;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    agent::{join, token},
    fixture::{Fixture, name, soon},
};

/// What viewers may call; a new call that only looks is added here and in the coordinator's table.
const VIEWERS: [&str; 13] = [
    "ExplainPlacement",
    "GetStatus",
    "ListDatasets",
    "ListJobs",
    "GetJob",
    "WatchJob",
    "ReadLogs",
    "WatchEvents",
    "ListNodes",
    "GetNode",
    "ListCheckpoints",
    "GetCheckpoint",
    "ListRollouts",
];

/// The paths of all calls in all services.
fn calls() -> BTreeSet<String> {
    let sets = [
        DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    files
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let path = format!("/{package}.{}", service.name());
                service.method.into_iter().map(move |method| format!("{path}/{}", method.name()))
            })
        })
        .collect()
}

/// Calls with an empty message, whatever the call's form: on the wire all forms are alike.
async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    soon(grpc.ready()).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = Request::new(stream::iter([()]));
    let path = PathAndQuery::try_from(path).unwrap();
    let response = soon(grpc.streaming(request, path, ProstCodec::<(), ()>::default())).await?;
    soon(response.into_inner().message()).await.map(drop)
}

async fn channel_of(credentials: &Credentials) -> Channel {
    let config = credentials.client_config().unwrap();
    soon(connect(&credentials.addresses, config, Profile::Control)).await.unwrap()
}

fn code(result: Result<(), Status>) -> Code {
    result.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_denied_to_those_it_is_not_for() {
    let fixture = Fixture::start().await;
    let operator = fixture.credentials();
    let (agent, _) = join(&fixture, Scope::Agent, "box").await;
    let (viewer, _) = join(&fixture, Scope::Viewer, "eve").await;
    let fleet = fixture.fleet().await;
    let mut revoked = Vec::new();
    for scope in [Scope::Agent, Scope::Operator, Scope::Viewer] {
        let (credentials, _) = join(&fixture, scope, "gone").await;
        let channel = channel_of(&credentials).await;
        let id = credentials.identity().unwrap().certificate.to_string();
        soon(fleet.revoke_certificate(&id)).await.unwrap();
        revoked.push(channel);
    }
    let nobody = client_config(&operator.authority_pem, None).unwrap();
    let nobody = soon(connect(&operator.addresses, nobody, Profile::Control)).await.unwrap();
    let (operator, agent, viewer) =
        (channel_of(&operator).await, channel_of(&agent).await, channel_of(&viewer).await);

    let calls = calls();
    assert!(calls.len() >= 30, "{calls:?}");
    for path in &calls {
        let (service, method) = path[1..].split_once('/').unwrap();
        let (anyone, mut allowed) = match (service, method) {
            ("hatchery.v1.Agents", "Join") => (true, vec![]),
            ("hatchery.v1.Agents", "Renew") => (false, vec!["agent", "operator", "viewer"]),
            ("hatchery.v1.Agents" | "hatchery.v1.Peers", _) => (false, vec!["agent"]),
            ("hatchery.v1.Blobs", _) => (false, vec!["agent", "operator"]),
            ("hatchery.v1.Fleet", method) if VIEWERS.contains(&method) => (false, vec!["operator", "viewer"]),
            ("hatchery.v1.Fleet", _) => (false, vec!["operator"]),
            _ => (false, vec!["agent", "operator", "viewer"]),
        };
        if anyone {
            assert_eq!(
                code(call(&nobody, path).await),
                Code::InvalidArgument,
                "{path} without a certificate"
            );
            allowed.extend(["agent", "operator", "viewer"]);
        } else {
            assert_eq!(
                code(call(&nobody, path).await),
                Code::Unauthenticated,
                "{path} without a certificate"
            );
            for channel in &revoked {
                assert_eq!(code(call(channel, path).await), Code::Unauthenticated, "{path} when revoked");
            }
        }
        for (scope, channel) in [("agent", &agent), ("operator", &operator), ("viewer", &viewer)] {
            let code = code(call(channel, path).await);
            let denied = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
            assert_eq!(!denied, allowed.contains(&scope), "{path} as {scope}: {code:?}");
            assert!(
                !matches!(code, Code::Unimplemented | Code::Internal | Code::Unknown),
                "{path}: {code:?}"
            );
        }
    }
    for path in ["/hatchery.v1.Fleet/Format", "/hatchery.v2.Fleet/GetJob", "/"] {
        assert_eq!(code(call(&operator, path).await), Code::PermissionDenied, "{path}");
        assert_eq!(code(call(&nobody, path).await), Code::Unauthenticated, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_must_stand_in_the_records_as_it_is() {
    let fixture = Fixture::start().await;
    // The authority's key in wrong hands is not enough: what it signed must be in the records.
    let authority = Authority::create_or_load(&fixture.state().join("authority")).unwrap();
    let (known, _) = join(&fixture, Scope::Viewer, "eve").await;
    let known_id = known.identity().unwrap().certificate;
    for identity in [
        Identity::new(Role::Operator(name("mallory"))),
        Identity::new(Role::Coordinator),
        Identity { role: Role::Operator(name("eve")), certificate: known_id },
    ] {
        let certificate = authority.issue_client_with_key(&identity).unwrap();
        let forged = Credentials::new(vec![fixture.address()], authority.certificate_pem(), certificate);
        let channel = channel_of(&forged).await;
        for path in calls().iter().filter(|path| !path.ends_with("/Join")) {
            assert_eq!(code(call(&channel, path).await), Code::Unauthenticated, "{path} as {identity:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_known_by_its_key_before_a_word_is_said() {
    let (fixture, impostor) = (Fixture::start().await, Fixture::start().await);
    let (text, _) = soon(fixture.fleet().await.create_token(&token(Scope::Agent))).await.unwrap();
    let mut string: JoinString = text.parse().unwrap();
    let good = string.addresses.clone();
    string.addresses = vec![impostor.address()];
    let error = soon(hatchery_net::join(&string, &name("box"), &Labels::new())).await.unwrap_err();
    assert!(matches!(error, hatchery_proto::client::CallError::Denied(_)), "{error:?}");
    assert!(client_config_pinned(string.authority).is_ok());
    string.addresses = good;
    soon(hatchery_net::join(&string, &name("box"), &Labels::new())).await.unwrap();
}

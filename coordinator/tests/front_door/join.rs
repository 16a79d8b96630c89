//! Joining: one-time strings, certificates, their renewal and their end.

use futures::StreamExt as _;
use hatchery_common::{
    access::Scope,
    recipe::Labels,
    tls::{Identity, JoinString, Role},
};
use hatchery_net::Connect;
use hatchery_proto::client::{AgentsClient, CallError, FleetClient};

use crate::{
    agent::{Agent, join, token},
    fixture::{Fixture, name, soon, soon_failed},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_join_string_is_good_once() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let mut wish = token(Scope::Agent);
    wish.name = Some(name("attic"));
    wish.labels = Labels::from([(name("room"), name("attic"))]);
    let (text, _) = soon(fleet.create_token(&wish)).await.unwrap();
    let string: JoinString = text.parse().unwrap();
    assert_eq!(string.addresses, [fixture.address()]);
    let labels = Labels::from([(name("os"), name("linux"))]);
    let (credentials, given, node) = soon(hatchery_net::join(&string, &name("mine"), &labels)).await.unwrap();
    assert_eq!(given.as_str(), "attic", "the string's name comes first");
    assert_eq!(credentials.identity().unwrap().role, Role::Agent(node.unwrap()));
    let error = soon(hatchery_net::join(&string, &name("again"), &labels)).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Denied(text) if text.contains("unknown, used or expired")),
        "{error:?}"
    );
    let nodes = soon(fleet.nodes()).await.unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].labels.len(), 2);

    let (_, twin) = join(&fixture, Scope::Viewer, "eve").await;
    assert_eq!(twin, None);
    let second = soon(fleet.create_token(&wish)).await.unwrap().0.parse().unwrap();
    let (_, given, _) = soon(hatchery_net::join(&second, &name("x"), &labels)).await.unwrap();
    assert_eq!(given.as_str(), "attic-2", "names of nodes are unique");
    let mut short = token(Scope::Agent);
    short.valid = Some(std::time::Duration::from_secs(5));
    let error = soon(fleet.create_token(&short)).await.unwrap_err();
    assert!(error.to_string().starts_with("valid_secs: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_and_revoked() {
    let fixture = Fixture::start().await;
    let fleet = fixture.fleet().await;
    let agent = Agent::join(&fixture, "box").await;
    let renewed = soon(agent.client.renew(&agent.credentials)).await.unwrap();
    let (old, new) = (agent.credentials.identity().unwrap(), renewed.identity().unwrap());
    assert_ne!(old.certificate, new.certificate);
    assert_eq!(old.role, new.role);
    let renewed_client = soon(AgentsClient::connect(&renewed)).await.unwrap();

    // Revoked with its session open: the stream ends, and so does everything else.
    let mut session = agent.session().await;
    session.report(vec![], vec![]).await;
    let revoked = soon(fleet.revoke_certificate(&old.certificate.to_string())).await.unwrap();
    assert!(revoked.revoked_at.is_some());
    let error = soon_failed(&mut session.incoming).await;
    assert!(matches!(&error, CallError::Denied(text) if text.contains("revoked")), "{error:?}");
    let error = soon(agent.client.renew(&agent.credentials)).await.unwrap_err();
    assert!(matches!(error, CallError::Denied(_)), "{error:?}");
    let again = soon(renewed_client.renew(&renewed)).await.unwrap();
    let mut certificates = soon(fleet.certificates()).await.unwrap();
    certificates.retain(|certificate| certificate.node == Some(agent.node));
    assert_eq!(certificates.len(), 3, "the old, the renewed, and the renewed again");

    soon(fleet.remove_node("box")).await.unwrap();
    let client = AgentsClient::connect(&again).await;
    let refused = match client {
        Ok(client) => soon(client.renew(&again)).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, CallError::Denied(_)), "{refused:?}");
    assert_eq!(soon(fleet.nodes()).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_operator_needs_no_flag() {
    let mut fixture = Fixture::start().await;
    let first = fixture.credentials();
    let Identity { role: Role::Operator(_), certificate } = first.identity().unwrap() else { panic!() };
    fixture.restart().await;
    let second = fixture.credentials();
    assert_eq!(second.certificate_pem, first.certificate_pem, "kept over a restart");
    assert_eq!(second.addresses, [fixture.address()], "and told the new address");
    let fleet = fixture.fleet().await;
    let mut events = soon(fleet.events(0, true, None)).await.unwrap();
    soon(events.next()).await.unwrap().unwrap();
    // Locked out by hand; the next start mends it.
    soon(fleet.revoke_certificate(&certificate.to_string())).await.unwrap();
    let error = soon(async {
        loop {
            if let Err(error) = events.next().await.unwrap() {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(error, CallError::Denied(_)), "{error:?}");
    fixture.restart().await;
    assert_ne!(fixture.credentials().certificate_pem, first.certificate_pem);
    soon(fixture.fleet().await.status()).await.unwrap();

    // Credentials of another fleet are put aside, not lost.
    let other = Fixture::start().await;
    other.credentials().save(&fixture.client_folder()).unwrap();
    fixture.restart().await;
    soon(fixture.fleet().await.status()).await.unwrap();
    assert!(fixture.client_folder().join("credentials.other-fleet.toml").exists());
    let stranger = soon(FleetClient::connect(&{
        let mut credentials = other.credentials();
        credentials.addresses = vec![fixture.address()];
        credentials
    }))
    .await
    .unwrap_err();
    assert!(matches!(stranger, CallError::Denied(_)), "{stranger:?}");
}

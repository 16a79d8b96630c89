//! `login`, `token`, `certificate`: who may do what.

use hatchery_common::{access::Scope, durable, id::Name, recipe::Labels, tls::JoinString};
use hatchery_proto::client::TokenCall;
use serde_json::json;

use crate::{
    args::{CertificateCommand, LoginArgs, TokenCommand, TokenCreateArgs},
    exit::{Failure, Outcome},
    home::Home,
    human,
    output::{Output, table},
};

/// Reads a join string; what is wrong with it is a wrong use of the command.
pub(crate) fn parse_join_string(text: &str) -> Result<JoinString, Failure> {
    text.trim().parse::<JoinString>().map_err(Failure::usage)
}

/// `hatchery login`.
pub(crate) async fn login(args: LoginArgs, home: &Home, output: Output) -> Outcome {
    let join = parse_join_string(&args.join)?;
    if join.scope == Scope::Agent {
        return Err(Failure::usage(
            "this join string is for a machine: use it with `hatchery agent --join`, or create one for a \
             person with `hatchery token create --scope operator`",
        ));
    }
    let name = match args.name {
        Some(name) => Name::new("--name", &name).map_err(Failure::usage)?,
        None => Name::from_lossy(&std::env::var("USER").unwrap_or_else(|_| "operator".to_owned())),
    };
    let (credentials, name, _) = hatchery_net::join(&join, &name, &Labels::default()).await?;
    durable::create_folder(&home.client()).map_err(Failure::failed)?;
    credentials.save(&home.client()).map_err(Failure::failed)?;
    output.print(&json!({ "name": name, "addresses": credentials.addresses }), |_| {
        format!("logged in as {name} at {}; try `hatchery nodes`", credentials.addresses.join(", "))
    })
}

/// `hatchery token`.
pub(crate) async fn token(command: TokenCommand, home: &Home, output: Output) -> Outcome {
    let TokenCommand::Create(TokenCreateArgs { scope, name, labels, valid }) = command;
    let call = TokenCall {
        scope,
        name: name.map(|name| Name::new("--name", &name)).transpose().map_err(Failure::usage)?,
        labels: labels.into_iter().collect(),
        valid: Some(valid),
    };
    let scope = call.scope;
    let (join_string, expires_at) = home.fleet().await?.create_token(&call).await?;
    let command = match scope {
        Scope::Agent => format!("hatchery agent --join '{join_string}'"),
        Scope::Operator | Scope::Viewer => format!("hatchery login '{join_string}'"),
    };
    let value = json!({
        "join_string": join_string, "scope": scope, "expires_at": expires_at, "command": command,
    });
    output.print(&value, |_| {
        format!("# valid once, until {expires_at}; run it on the other machine:\n{command}")
    })
}

/// `hatchery certificate`.
pub(crate) async fn certificate(command: CertificateCommand, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    match command {
        CertificateCommand::List => output.print(&fleet.certificates().await?, |certificates| {
            table(
                &["certificate", "scope", "name", "issued", "state"],
                certificates.iter().map(|certificate| {
                    let state = match certificate.revoked_at {
                        Some(at) => format!("revoked {}", human::ago(at)),
                        None => "valid".to_owned(),
                    };
                    vec![
                        certificate.id.short(),
                        certificate.scope.name().to_owned(),
                        certificate.name.to_string(),
                        human::ago(certificate.issued_at),
                        state,
                    ]
                }),
            )
        }),
        CertificateCommand::Revoke { certificate } => {
            let certificate = fleet.revoke_certificate(&certificate).await?;
            output.print(&certificate, |certificate| {
                format!("certificate {} of {} is revoked", certificate.id.short(), certificate.name)
            })
        }
    }
}

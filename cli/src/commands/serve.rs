//! `up`, `coordinator`, `agent`: the commands that stay.

use std::{
    future::Future,
    io::{self, Write},
    path::PathBuf,
};

use hatchery_agent::AgentSettings;
use hatchery_common::{
    access::Scope,
    recipe::Labels,
    settings::{Layers, Resolved, Source},
    telemetry::Telemetry,
    tls::{Credentials, KeyHash},
};
use hatchery_coordinator::{CoordinatorSettings, Ready};
use hatchery_net::Connect;
use hatchery_proto::client::{FleetClient, TokenCall};
use tokio::{signal::unix, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::access::parse_join_string;
use crate::{
    args::{AgentArgs, CoordinatorArgs, UpArgs},
    exit::{Code, Failure, Outcome},
    home::Home,
    output::{self, Output},
};

/// `hatchery coordinator`.
pub(crate) async fn coordinator(args: CoordinatorArgs, home: &Home, output: Output) -> Outcome {
    let resolved = coordinator_settings(&args, home)?;
    if args.print_config {
        return print_config(&resolved, output);
    }
    telemetry("coordinator")?;
    let stop = stop_on_signal()?;
    let (on_ready, ready) = oneshot::channel();
    let running = run_coordinator(resolved.value, home, stop, on_ready);
    let greeting = async {
        if let Ok(ready) = ready.await {
            eprintln!(
                "coordinator ready at {}\n  add a machine:         hatchery token create\n  from this \
                 terminal:    hatchery nodes",
                ready.address
            );
        }
    };
    tokio::join!(running, greeting).0
}

/// `hatchery agent`.
pub(crate) async fn agent(args: AgentArgs, home: &Home, output: Output) -> Outcome {
    let resolved = agent_settings(&args, home)?;
    if args.print_config {
        return print_config(&resolved, output);
    }
    telemetry("agent")?;
    let stop = stop_on_signal()?;
    let settings = resolved.value;
    let credentials = tokio::select! {
        credentials = agent_credentials(&settings, args.join.as_deref(), home) => credentials?,
        () = stop.cancelled() => return Err(Failure::new(Code::Interrupted, "")),
    };
    hatchery_agent::run(settings, credentials, stop.cancelled_owned()).await.map_err(Failure::failed)
}

/// `hatchery up`: both in one process, joined to one another.
pub(crate) async fn up(args: UpArgs, home: &Home) -> Outcome {
    telemetry("hatchery")?;
    let stop = stop_on_signal()?;
    let coordinator = coordinator_settings(
        &CoordinatorArgs {
            listen: args.listen,
            advertise: args.advertise,
            lease_secs: None,
            config: None,
            print_config: false,
        },
        home,
    )?;
    let agent = agent_settings(
        &AgentArgs {
            join: None,
            name: args.name,
            labels: vec![],
            trainer: None,
            availability: args.availability,
            config: None,
            print_config: false,
        },
        home,
    )?;
    let (on_ready, ready) = oneshot::channel();
    // The agent is told to stop first, so that its trainers' last checkpoints still find a coordinator.
    let coordinator_stop = CancellationToken::new();
    let coordinator = run_coordinator(coordinator.value, home, coordinator_stop.clone(), on_ready);
    let agent = async {
        let _stop_coordinator = coordinator_stop.drop_guard();
        // An error here means that the coordinator has not started; its own outcome says why.
        let Ok(ready) = ready.await else { return Ok(()) };
        eprintln!(
            "coordinator and agent ready at {}; in another terminal:\n  hatchery nodes\n  hatchery submit --preset \
             tiny --data FOLDER --wait\n  hatchery generate --prompt 'The '",
            ready.address
        );
        let credentials = agent_credentials(&agent.value, None, home).await?;
        hatchery_agent::run(agent.value, credentials, stop.cancelled_owned()).await.map_err(Failure::failed)
    };
    let (coordinator, agent) = tokio::join!(coordinator, agent);
    coordinator.and(agent)
}

fn run_coordinator(
    settings: CoordinatorSettings,
    home: &Home,
    stop: CancellationToken,
    on_ready: oneshot::Sender<Ready>,
) -> impl Future<Output = Outcome> {
    let settings = settings.check(home.folder()).map_err(Failure::usage);
    async move { hatchery_coordinator::run(settings?, stop, on_ready).await.map_err(Failure::failed) }
}

/// The state folder of the coordinator on this machine, as its settings have it.
pub(super) fn state_folder(home: &Home) -> Result<PathBuf, Failure> {
    let args = CoordinatorArgs {
        listen: None,
        advertise: vec![],
        lease_secs: None,
        config: None,
        print_config: false,
    };
    let settings = coordinator_settings(&args, home)?.value.check(home.folder()).map_err(Failure::usage)?;
    Ok(settings.state().to_owned())
}

fn coordinator_settings(
    args: &CoordinatorArgs,
    home: &Home,
) -> Result<Resolved<CoordinatorSettings>, Failure> {
    let advertise = (!args.advertise.is_empty()).then(|| args.advertise.clone());
    file_layer(Layers::new("coordinator"), args.config.as_ref(), home.folder().join("coordinator.toml"))
        .environment(std::env::vars_os())
        .flag("--listen", "listen", args.listen.clone())
        .flag("--advertise", "advertise", advertise)
        .flag(
            "--lease-secs",
            "lease_secs",
            args.lease_secs.map(|secs| i64::try_from(secs).unwrap_or(i64::MAX)),
        )
        .resolve()
        .map_err(Failure::usage)
}

fn agent_settings(args: &AgentArgs, home: &Home) -> Result<Resolved<AgentSettings>, Failure> {
    let when = &args.availability;
    let trainer = args.trainer.as_ref().map(|path| path.display().to_string());
    let labels: toml::Table =
        args.labels.iter().map(|(key, value)| (key.to_string(), value.to_string().into())).collect();
    let mut resolved: Resolved<AgentSettings> =
        file_layer(Layers::new("agent"), args.config.as_ref(), home.folder().join("agent.toml"))
            .environment(std::env::vars_os())
            .flag("--name", "name", args.name.clone())
            .flag("--trainer", "trainer", trainer)
            .flag("--label", "labels", (!labels.is_empty()).then_some(labels))
            .flag("--hours", "availability.hours", when.hours.clone())
            .flag(
                "--mains-power-only",
                "availability.mains_power_only",
                when.mains_power_only.then_some(true),
            )
            .flag("--load-max", "availability.load_max", when.load_max)
            .flag(
                "--owner-idle-secs-min",
                "availability.owner_idle_secs_min",
                when.owner_idle_secs_min.map(i64::from),
            )
            .resolve()
            .map_err(Failure::usage)?;
    // One folder for everything on this machine, unless somebody said otherwise.
    if resolved.provenance.get("state").is_none_or(|source| *source == Source::Default) {
        resolved.value.state = home.agent();
        resolved.provenance.insert("state".to_owned(), Source::Default);
    }
    resolved.value.check().map_err(Failure::usage)?;
    Ok(resolved)
}

fn file_layer(layers: Layers, given: Option<&PathBuf>, usual: PathBuf) -> Layers {
    match given {
        Some(path) => layers.file(path),
        None => layers.file_if_present(&usual),
    }
}

fn print_config<T: serde::Serialize>(resolved: &Resolved<T>, output: Output) -> Outcome {
    match output {
        Output::Text => output::line(resolved.to_toml().trim_end()),
        Output::Json => output::line(&resolved.to_json().to_string()),
    }
}

/// The agent's own credentials: those it has, or those of the join string, or, on the coordinator's own machine, new
/// ones that the person's credentials can get.
async fn agent_credentials(
    settings: &AgentSettings,
    join: Option<&str>,
    home: &Home,
) -> Result<Credentials, Failure> {
    if let Some(join) = join {
        let join = parse_join_string(join)?;
        // The same command starts it again after a reboot: the string is spent, the credentials are not.
        if let Some(credentials) = hatchery_agent::load_credentials(settings).map_err(Failure::failed)?
            && KeyHash::of_certificate_pem(&credentials.authority_pem)
                .is_ok_and(|hash| hash == join.authority)
        {
            eprintln!("already joined; to join again, delete {}", settings.state.display());
            return Ok(credentials);
        }
        let joined = hatchery_agent::join(&join, settings).await.map_err(join_failure)?;
        eprintln!("joined as {}", joined.name);
        return Ok(joined.credentials);
    }
    if let Some(credentials) = hatchery_agent::load_credentials(settings).map_err(Failure::failed)? {
        return Ok(credentials);
    }
    let Ok(operator) = home.credentials() else {
        return Err(Failure::new(
            Code::Refused,
            "this machine has not joined a fleet: run `hatchery token create` on the coordinator's \
             machine, then `hatchery agent --join 'STRING'` here; or start both here with `hatchery up`",
        ));
    };
    let call = TokenCall { scope: Scope::Agent, name: None, labels: Labels::default(), valid: None };
    let (join_string, _) = FleetClient::connect(&operator).await?.create_token(&call).await?;
    let joined =
        hatchery_agent::join(&parse_join_string(&join_string)?, settings).await.map_err(join_failure)?;
    eprintln!("joined as {}", joined.name);
    Ok(joined.credentials)
}

fn join_failure(error: hatchery_agent::AgentError) -> Failure {
    match error {
        hatchery_agent::AgentError::Join(error) => error.into(),
        error => Failure::failed(error),
    }
}

fn telemetry(role: &'static str) -> Outcome {
    Telemetry::new(role).init().map_err(Failure::usage)
}

/// A token that SIGINT and SIGTERM cancel; a second one ends the process at once.
fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let cannot = |error| Failure::failed(format!("cannot listen for signals: {error}"));
    let mut interrupt = unix::signal(unix::SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = unix::signal(unix::SignalKind::terminate()).map_err(cannot)?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
        // Whoever read it may be gone, which is no reason to run on.
        let _unread = writeln!(io::stderr(), "stopping; press Ctrl-C again to stop at once");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(Code::Interrupted as i32);
    });
    Ok(stop)
}

//! One file for each group of commands.

mod access;
mod admin;
mod checkpoints;
mod control;
mod generate;
mod grid;
mod history;
mod import;
mod jobs;
mod nodes;
mod placement;
mod rollouts;
mod serve;
mod submit;
mod watch;

use clap::CommandFactory;
use control::Control;
use hatchery_common::view::{BlobsView, StatusView};

use crate::{
    args::{Cli, Command},
    exit::{Failure, Outcome},
    home::Home,
    human,
    output::{Output, facts, table},
};

/// Runs one command.
pub(crate) async fn run(command: Command, home: &Home, output: Output) -> Outcome {
    match command {
        Command::Up(args) => Box::pin(serve::up(args, home)).await,
        Command::Coordinator(args) => serve::coordinator(args, home, output).await,
        Command::Agent(args) => serve::agent(args, home, output).await,
        Command::Login(args) => access::login(args, home, output).await,
        Command::Token(command) => access::token(command, home, output).await,
        Command::Certificate(command) => access::certificate(command, home, output).await,
        // A future of many steps: not on the stack.
        Command::Submit(args) => Box::pin(submit::submit(*args, home, output)).await,
        Command::Jobs(args) => jobs::list(args, home, output).await,
        Command::Job(args) => jobs::show(args, home, output).await,
        Command::Watch(args) => watch::watch_named(args, home, output).await,
        Command::Logs(args) => history::logs(args, home, output).await,
        Command::Cancel(args) => control::run(Control::Cancel, args, home, output).await,
        Command::Pause(args) => control::run(Control::Pause, args, home, output).await,
        Command::Resume(args) => control::run(Control::Resume, args, home, output).await,
        Command::Requeue(args) => control::run(Control::Requeue, args, home, output).await,
        Command::Nodes => nodes::list(home, output).await,
        Command::Node(args) => nodes::show(args, home, output).await,
        Command::Datasets => datasets(home, output).await,
        Command::Checkpoints(args) => checkpoints::run(args, home, output).await,
        Command::Push(args) => rollouts::push(args, home, output).await,
        Command::Rollback(args) => rollouts::rollback(args, home, output).await,
        Command::Rollouts(args) => rollouts::list(args, home, output).await,
        Command::Generate(args) => generate::generate(args, home, output).await,
        Command::Import(args) => import::import(&args, output),
        Command::Events(args) => history::events(args, home, output).await,
        Command::Status => status(home, output).await,
        Command::Admin(command) => admin::run(command, home, output).await,
        Command::Version => version(output),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "hatchery", &mut script);
            crate::output::raw(&script)
        }
        Command::Man(args) => clap_mangen::generate_to(Cli::command(), &args.folder)
            .map_err(|error| Failure::failed(format!("cannot write to {}: {error}", args.folder.display()))),
    }
}

async fn datasets(home: &Home, output: Output) -> Outcome {
    let datasets = home.fleet().await?.datasets().await?;
    output.print(&datasets, |datasets| {
        table(
            &["dataset", "name", ">files", ">size", "registered"],
            datasets.iter().map(|dataset| {
                vec![
                    dataset.id.short(),
                    dataset.name.to_string(),
                    dataset.files.to_string(),
                    human::bytes(dataset.corpus_bytes),
                    human::ago(dataset.registered_at),
                ]
            }),
        )
    })
}

async fn status(home: &Home, output: Output) -> Outcome {
    let status = home.fleet().await?.status().await?;
    output.print(&status, |status| {
        facts(&[
            ("version", Some(status.version.clone())),
            ("started", Some(human::ago(status.started_at))),
            ("nodes", Some(format!("{} of {} connected", status.nodes_connected, status.nodes))),
            ("jobs", Some(format!("{} running, {} waiting", status.jobs_running, status.jobs_queued))),
            ("events", Some(status.last_event.to_string())),
            ("blobs", Some(blobs(&status.blobs))),
            ("broken invariants", broken_invariants(status)),
        ])
    })
}

/// What the coordinator refused to commit; nothing in a sound fleet.
fn broken_invariants(status: &StatusView) -> Option<String> {
    let last = status.invariant_broken_last.as_deref().unwrap_or_default();
    (status.invariants_broken > 0).then(|| format!("{}, the last: {last}", status.invariants_broken))
}

/// What the coordinator keeps, and how much of it is about to go.
fn blobs(blobs: &BlobsView) -> String {
    let mut text = format!("{} in {} blobs", human::bytes(blobs.bytes), blobs.count);
    if let Some(bytes_max) = blobs.bytes_max {
        text += &format!(", limit {}", human::bytes(bytes_max));
    }
    if let Some(free) = blobs.disk_free_bytes {
        text += &format!("; {} free on the disk", human::bytes(free));
    }
    if blobs.unreferenced_bytes > 0 {
        text += &format!("; {} unreferenced, to be deleted", human::bytes(blobs.unreferenced_bytes));
    }
    if blobs.unfinished_bytes > 0 {
        text += &format!("; {} in unfinished uploads", human::bytes(blobs.unfinished_bytes));
    }
    text
}

fn version(output: Output) -> Outcome {
    let version = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
    });
    output.print(&version, |_| {
        format!(
            "hatchery {} ({}, {})",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH
        )
    })
}
